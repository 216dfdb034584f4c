"""Sums that sites send instead of persons, and what a server makes of them: quality control, principal components, association."""
