"""Networks by name, and the model that is saved: preprocessing, one encoder an input, fusion."""
