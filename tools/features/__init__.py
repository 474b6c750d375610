"""The command `python -m tools.features` (`__main__.py`) and what it is made of."""
