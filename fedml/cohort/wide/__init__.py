"""Matrices of persons x features that are too large for memory: converted once to a file in the site's cache, read row by row."""
