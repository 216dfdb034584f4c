"""A coordinating centre, and a whole federation on one machine."""
