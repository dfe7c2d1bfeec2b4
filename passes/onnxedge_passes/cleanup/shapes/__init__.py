"""Symbolic shape arithmetic: sizes as polynomials, and what is known of values made of them."""
