"""A run's bundle: what it holds, its signature, verification, reproduction."""
