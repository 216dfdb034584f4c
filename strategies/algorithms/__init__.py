"""Algorithms by name, both halves of each in its file."""
