"""Verbs: pure functions from values to values. No network, no file, no clock."""
