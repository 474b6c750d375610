"""What the rooms of the project share: errors, checkpoints, processes, run folders."""
