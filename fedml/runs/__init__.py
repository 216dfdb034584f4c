"""A run's folder: events, model, counts."""
