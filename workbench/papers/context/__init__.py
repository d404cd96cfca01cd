"""Shorter prompts and smaller key–value caches, so that a long context costs less memory and time.

A cache method of the `sequence` contract says which tokens of each layer stay, in what form they are held, or which layers share them; hooks, masks,
positions, bytes and decoding are the same for all, so that a race compares the methods. Costs are the bytes that the cache really holds, and quality is
measured on tokens decoded after the compression: the first answer token of a plain prefill never sees the compressed cache.
"""
