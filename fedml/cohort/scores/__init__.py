"""Polygenic scores and genes."""
