"""Whole-slide images as tiles."""
