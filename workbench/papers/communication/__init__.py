"""Fewer bytes on the wire between workers that train or serve one network together."""
