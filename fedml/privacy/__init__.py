"""Differential privacy: what was released, and what that says about a person or a site."""
