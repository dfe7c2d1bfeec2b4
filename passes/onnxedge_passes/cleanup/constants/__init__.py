"""Constant folding within bounds, in a process of its own where it could do harm."""
