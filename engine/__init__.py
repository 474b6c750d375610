"""What any task needs to be trained, evaluated, stopped and continued: a step is read in train.py and sync.py."""
