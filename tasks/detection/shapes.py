"""Shapes on textures, drawn: images with objects that need no files, each a function of its number alone."""
