"""Blocks that a model is made of: networks by name, preprocessing. They know no cohort and no site."""
