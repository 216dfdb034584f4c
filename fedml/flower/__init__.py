"""The only package that uses Flower's non-public API."""
