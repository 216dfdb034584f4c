"""Researcher and reviewer: the ``fedml`` command, engines, studies, benchmarks."""
