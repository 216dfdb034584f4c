"""The bundle of a run: contents, signature, verification, reproduction."""
