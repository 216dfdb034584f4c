"""The model that is trained and saved: preprocessing, one encoder for each input, fusion."""
