"""The command `python -m tools.predict` (`__main__.py`) and what it is made of."""
