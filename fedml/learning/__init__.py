"""Tasks, metrics that merge exactly, the one local training loop."""
