"""Fewer measurements, fewer modes: signals and dynamics recovered from less than was thought needed."""
