"""The command `python -m tools.export` (`__main__.py`) and what it is made of."""
