"""Weights as indices into small shared tables: vector quantization, weight pools, sign splits."""
