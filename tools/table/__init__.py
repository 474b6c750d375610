"""The command `python -m tools.table` (`__main__.py`) and what it is made of."""
