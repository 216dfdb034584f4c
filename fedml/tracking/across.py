"""Metrics of a run that are between sites: AUROC of pairs within sites, and what a further site may have."""

from __future__ import annotations

from pathlib import Path

from fedml.runs.log import load_counts
from fedml.study.study import Study


def across_of(run: Path, study: Study, part: str) -> dict[str, float]:
    """``fedml.tasks.across_sites.recorded`` of one part of a run's counts; empty where it has none."""
    from fedml.tasks.across_sites import plain, recorded
    from fedml.tasks.registry import make_task

    counts = load_counts(run).get(part, {})
    ordered = {site: counts[site] for site in study.federation.sites if site in counts}
    return recorded(plain(make_task(study), ordered, seed=study.study.seed), part) if ordered else {}
