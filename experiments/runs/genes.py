"""``fedml genes``: tests of the rare variants of each gene, and their output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.errors import InputError
from fedml.experiments.options import Json, Overrides, Seed, StudyFile, Track, Where
from fedml.experiments.runs.launch import Launched, closing_line, judge, launch, load_study, make_console
from fedml.runs.events import Genes, body
from fedml.study.study import Study

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = ("gene", "mask", "variants", "alleles", "burden_beta", "burden_standard_error", "burden_p", "skat_p", "skat_o_p", "combined_p")


def genes(
    study_file: StudyFile, where: Where, changes: Overrides = None, seed: Seed = None, as_json: Json = False, track: Track = True
) -> None:  # fmt: skip
    """Test the rare variants of each gene together: burden, SKAT, SKAT-O and ACAT-V ([gwas.genes] in the study).

    Writes a table (genes.tsv.gz) and a QQ plot to the run's folder and to MLflow.

    Example: fedml genes rare.toml --sites out/sites
    """
    console = make_console(as_json)
    study = require_genes(load_study(study_file, changes, seed), study_file)
    launched = launch(study_file, study, where, console, "genes", track=track)
    show_genes(launched, console)
    closing_line(launched, console)
    if as_json:
        print(json.dumps(genes_summary(launched)), flush=True)
    judge(launched)


def require_genes(study: Study, file: Path) -> Study:
    """``study``, if it has [gwas.genes].

    Raises:
        InputError: it has not.
    """
    if study.gwas is None or study.gwas.genes is None:
        raise InputError(f'{file}: has no [gwas.genes] section; add one, such as [gwas.genes] file = "annotation.tsv".')
    return study


def _event(launched: Launched) -> Genes | None:
    return next((e for e in reversed(launched.outcome.events) if isinstance(e, Genes)), None)


def genes_summary(launched: Launched) -> dict[str, Any]:
    """The object of ``fedml genes --json``."""
    from fedml.experiments.runs.association import preflight_summary

    event = _event(launched)
    found = {} if event is None else {key: value for key, value in body(event).items() if key not in ("seconds", "sites")}
    rows = {} if event is None else event.sites
    size = {"out": sum(row["bytes_out"] for row in rows.values()), "in": sum(row["bytes_in"] for row in rows.values())}
    mlflow = {"mlflow_run_id": launched.mlflow_run, "mlflow_error": launched.mlflow_error or None}
    return {**preflight_summary(launched), **mlflow, "metrics": found, "bytes": size, "sites": list(rows)}


def show_genes(launched: Launched, console: Console) -> None:
    """Prints the genes with the smallest combined p, and what was left out; nothing if the run ended before."""
    from rich.table import Table

    found = _event(launched)
    if found is None:
        return
    table = Table(title=f"{launched.study.study.name}: strongest of {found.tested} tests of {found.genes} genes", title_justify="left")
    for name in _SHOWN:
        table.add_column(name.replace("_", " "), justify="left" if name in ("gene", "mask") else "right")
    for row in found.top:
        table.add_row(*(_short(str(row[name])) for name in _SHOWN))
    console.print(table)
    for reason, count in found.left_out.items():
        console.print(f"not tested: {reason}: {count}", soft_wrap=True, markup=False)
    inflation = ", ".join(f"{mask} {value:.3f}" for mask, value in found.inflation.items() if value is not None)
    persons = ", ".join(f"{site} {n}" for site, n in found.persons.items())
    console.print(f"persons: {persons}; lambda of SKAT-O: {inflation or 'not defined'}", soft_wrap=True, markup=False)
    console.print(f"table: {launched.outcome.run}/genes.tsv.gz; plot: qq.svg", soft_wrap=True, markup=False)


def _short(text: str) -> str:
    """A number with three digits; other text as it is."""
    try:
        return f"{float(text):.3g}" if "." in text else text
    except ValueError:
        return text
