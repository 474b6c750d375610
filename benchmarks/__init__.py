"""What is measured, against what, and how: each module is one command, `python -m benchmarks.all` runs all of them."""
