"""Bytes and names on the wire. Knows no task and no modality."""
