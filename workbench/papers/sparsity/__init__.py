"""Zeros with a pattern that hardware or a packed format can use: N:M, blocks, permutations."""
