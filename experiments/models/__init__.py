"""Trained models after a run: registry, scoring files, MLflow's pages."""
