"""Local training, evaluation, calibration, and comparison of models."""
