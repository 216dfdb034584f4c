"""Runs: start, record, display."""
