"""Comparison: federated, pooled, each site alone; existing runs."""
