"""The only place that touches Flower's non-public API."""
