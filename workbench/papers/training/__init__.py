"""The same training with less memory, rate or compute: compressed activations, rate-constrained losses."""
