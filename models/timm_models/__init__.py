"""Models of the installed timm with shortcuts around their blocks, and our own models in timm's registry."""
