"""The command `python -m tools.sweep` (`__main__.py`) and what it is made of."""
