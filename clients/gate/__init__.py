"""Decides which requests and replies are allowed and records each decision. Computes nothing."""
