"""Prediction tasks: each task is one frozen value with its loss, counts, measures, labels and texts."""
