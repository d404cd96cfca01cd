"""What compression changes besides accuracy: privacy, guarantees, bounds, trust."""
