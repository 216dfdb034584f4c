"""Tests of genes in MLflow: figures, and table and plot as artifacts of the run."""

from __future__ import annotations

from typing import Any

from fedml.runs.events import Genes
from fedml.runs.log import GENES_TABLE, QQ


def log_genes(tracker: Any, client: Any, event: Genes) -> str:
    """Records ``event`` by the run's ``Tracker``; returns the strongest gene as a sentence."""
    for name in ("tested", "genes", "variants", "seconds"):
        tracker.put(tracker.parent, f"genes/{name}", getattr(event, name), 0)
    for site, row in event.sites.items():
        tracker.put(tracker.children[site], "genes/persons", event.persons[site], 0)
        if row["journal"]:
            tracker.heads[site] = (str(row["journal"][0]), int(row["journal"][1]))
    for name in (GENES_TABLE, QQ):
        if (tracker.run / name).exists():
            client.log_artifact(tracker.parent, str(tracker.run / name), "genes")
    if not event.top:
        return str(tracker.answer)
    best = event.top[0]
    found = f"{best['gene']} ({best['mask']}) p {best['combined_p']}"
    client.set_tag(tracker.parent, "fedml.genes.strongest", found)
    return f"strongest: {found}"
