"""The command `python -m tools.average` (`__main__.py`) and what it is made of."""
