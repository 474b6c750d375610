"""What any task needs to be trained, evaluated, stopped and continued; one step is read in step.py and sync.py."""
