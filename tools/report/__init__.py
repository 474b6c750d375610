"""The command `python -m tools.report` (`__main__.py`) and what it is made of."""
