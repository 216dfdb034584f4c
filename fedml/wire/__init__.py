"""Records and encodings of messages on the wire; independent of tasks and modalities."""
