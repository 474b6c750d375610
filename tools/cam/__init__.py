"""The command `python -m tools.cam` (`__main__.py`) and what it is made of."""
