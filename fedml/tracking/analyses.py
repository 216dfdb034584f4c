"""Analyses of genotypes in MLflow: figures of the run and of its sites, and tables and plots as artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedml.runs.events import Frequencies, Genes, Gwas, Outcomes, body
from fedml.runs.log import FREQUENCIES_FILES, GENES_TABLE, GWAS_FILES, OUTCOMES_FILES, QQ

Analysis = Gwas | Genes | Frequencies | Outcomes


class Page(NamedTuple):
    """Where an analysis is recorded: MLflow's ``client``, the ids of the run and of its sites, the run's folder, and what notes a metric:
    ``put(id, name, value, step)``."""

    client: Any
    parent: str
    children: Mapping[str, str]
    run: Path
    put: Callable[[str, str, Any, int], None]


def log_analysis(page: Page, event: Analysis) -> str | None:
    """Records ``event``; returns its strongest result as a sentence, if it has one."""
    match event:
        case Gwas():
            return _gwas(page, event)
        case Genes():
            return _genes(page, event)
        case Frequencies():
            _figures(page, "frequencies", event, ("variants", "withheld", "seconds"))
            _files(page, "frequencies", FREQUENCIES_FILES)
            return None
        case Outcomes():
            page.put(page.parent, f"{event.analysis}/persons", sum(event.persons.values()), 0)
            _figures(page, event.analysis, event, ("seconds",))
            _persons(page, event.analysis, event.persons)
            _files(page, event.analysis, OUTCOMES_FILES)
            return None


def _gwas(page: Page, event: Gwas) -> str | None:
    values = body(event)
    for name in ("lambda", "hits", "tested", "variants", "partly_reported", "pca_columns", "pca_angle_rad", "cases", "controls", "seconds"):
        page.put(page.parent, f"gwas/{name}", values.get(name), 0)
    page.put(page.parent, "gwas/persons", sum(event.persons.values()), 0)
    _persons(page, "gwas", event.persons)
    _files(page, "gwas", GWAS_FILES)
    if not event.top:
        return None
    best = event.top[0]
    where = f"{best['chromosome']}:{best['position']} {best['rsid']} {best['effect_allele']}"
    return _strongest(page, "gwas", f"{where} beta {best['beta']:.4g} p {best['p_value']}")


def _genes(page: Page, event: Genes) -> str | None:
    _figures(page, "genes", event, ("tested", "genes", "variants", "seconds"))
    _persons(page, "genes", event.persons)
    _files(page, "genes", (GENES_TABLE, QQ))
    if not event.top:
        return None
    best = event.top[0]
    return _strongest(page, "genes", f"{best['gene']} ({best['mask']}) p {best['combined_p']}")


def _figures(page: Page, kind: str, event: Analysis, names: Iterable[str]) -> None:
    for name in names:
        page.put(page.parent, f"{kind}/{name}", getattr(event, name), 0)


def _persons(page: Page, kind: str, persons: Mapping[str, int]) -> None:
    for site, count in persons.items():
        page.put(page.children[site], f"{kind}/persons", count, 0)


def _strongest(page: Page, kind: str, found: str) -> str:
    page.client.set_tag(page.parent, f"fedml.{kind}.strongest", found)
    return f"strongest: {found}"


def _files(page: Page, kind: str, names: Iterable[str]) -> None:
    for name in names:
        if (page.run / name).exists():
            page.client.log_artifact(page.parent, str(page.run / name), kind)
