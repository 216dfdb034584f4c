"""Sums that sites send instead of personal data, and the server's estimates from them: quality control, principal components,
association."""
