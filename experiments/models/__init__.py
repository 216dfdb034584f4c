"""Trained models after the run: registry, scoring files, MLflow's pages."""
