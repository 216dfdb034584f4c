"""The coordinating centre, and a complete federation on one machine."""
