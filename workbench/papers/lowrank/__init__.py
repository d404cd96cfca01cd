"""Matrices and tensors as products of thin ones: ranks chosen by error, hardware or training."""
