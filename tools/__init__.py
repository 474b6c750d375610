"""Small commands around training, one per file: python -m tools.<name>."""
