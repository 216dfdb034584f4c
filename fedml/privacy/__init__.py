"""Differential privacy: mechanisms, accounting of releases, and audits."""
