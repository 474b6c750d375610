"""Commands around training: python -m tools.<name>. One with helpers is a package, what several use is in shared/."""
