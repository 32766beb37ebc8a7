"""Nouns: frozen values that every room may hold. No I/O, no decisions."""
