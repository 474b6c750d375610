"""Weights from files: official checkpoints under our names, and starting a model from them."""
