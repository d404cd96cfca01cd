"""Shorter prompts and smaller key–value caches, so that a long context costs less memory and time."""
