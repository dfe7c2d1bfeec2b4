"""Normalizations from raw operators, and what stands around them."""
