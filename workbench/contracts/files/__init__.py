"""How compressed things are written: one checked container, networks as graphs, dense and sparse storage."""
