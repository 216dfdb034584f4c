"""Processes whose time and peak of memory are measured, and files of any size: as the benchmarks have them."""

from __future__ import annotations

from fedml.experiments.bench.timing import run_process
from fedml.experiments.bench.vcf_stream import read_alone, repeat

__all__ = ["read_alone", "repeat", "run_process"]
