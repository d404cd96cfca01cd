"""Generative samplers and autoencoders with less work per step, fewer tokens or smaller latents."""
