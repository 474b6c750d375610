"""What several commands use: command lines, run folders, trained models, their inputs, pictures, statistics."""
