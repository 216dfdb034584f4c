"""Variant files to dosages."""
