"""Weights and activations in few bits: where to round, how to scale, and what the error does."""
