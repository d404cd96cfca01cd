"""Machines and formats for compressed networks: cycles, traffic and energy, counted with real tensors."""
