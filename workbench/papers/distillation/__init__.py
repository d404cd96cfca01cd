"""A small student trained on what a large teacher knows beyond the labels."""
