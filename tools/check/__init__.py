"""The command `python -m tools.check` (`__main__.py`) and what it is made of."""
