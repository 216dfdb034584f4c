"""What may come in and go out, and the record of it. Decides; computes nothing."""
