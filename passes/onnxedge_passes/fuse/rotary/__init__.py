"""Rotary embedding, in halves or in pairs."""
