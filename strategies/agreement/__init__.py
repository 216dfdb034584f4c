"""What all sites agree on before the first round."""
