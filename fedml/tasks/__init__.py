"""Prediction tasks: one frozen value a task holds its loss, counts, measures, labels and sentences."""
