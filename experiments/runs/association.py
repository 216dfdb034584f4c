"""The output of `fedml preflight` and `fedml gwas`, and a meta-analysis of the single sites for comparison."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedml.errors import InputError
from fedml.experiments.runs.launch import Launched
from fedml.runs.events import NOT_AGREED, Checks, Gwas, body
from fedml.runs.log import GWAS_TABLE, last
from fedml.study.study import Study, for_roster

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HIT = 5e-8  # genome-wide significance (Pe'er et al. 2008, Genet Epidemiol 32:381)


def require(study: Study, file: Path) -> Study:
    """``study``, if it has a [gwas] section.

    Raises:
        InputError: the study has no [gwas] section, or tests genes.
    """
    if study.gwas is None:
        raise InputError(f'{file}: has no [gwas] section; add one, such as [gwas] covariates = ["age", "sex"] and components = 4.')
    if study.gwas.genes is not None:
        raise InputError(f"{file}: tests genes ([gwas.genes]), of which sites do not also test single variants; run fedml genes.")
    return study


def _gwas(launched: Launched) -> Gwas | None:
    return next((e for e in reversed(launched.outcome.events) if isinstance(e, Gwas)), None)


def preflight_summary(launched: Launched) -> dict[str, Any]:
    """The object of ``fedml preflight --json``."""
    outcome = launched.outcome
    agreed = last(outcome.events, NOT_AGREED)
    return {
        "run_id": outcome.run.name, "status": outcome.status, "reason": outcome.reason, "study_sha256": launched.study.sha256,
        "variants": agreed.variants if agreed.came else None, "checks": last(outcome.events, Checks(checks=[])).checks,
        "seconds": outcome.seconds, "folder": str(outcome.run),
    }  # fmt: skip


def gwas_summary(launched: Launched) -> dict[str, Any]:
    """The object of ``fedml gwas --json``."""
    event = _gwas(launched)
    found = {} if event is None else {k: v for k, v in body(event).items() if k not in ("seconds", "sites")}
    rows = {} if event is None else event.sites
    size = {"out": sum(row["bytes_out"] for row in rows.values()), "in": sum(row["bytes_in"] for row in rows.values())}
    mlflow = {"mlflow_run_id": launched.mlflow_run, "mlflow_error": launched.mlflow_error or None}
    return {**preflight_summary(launched), **mlflow, "metrics": found, "bytes": size, "sites": list(rows)}


def show_result(launched: Launched, console: Console) -> None:
    """Prints the strongest associations and the figures of the whole scan; nothing if the run ended before."""
    from rich.table import Table

    found = _gwas(launched)
    if found is None:
        return
    table = Table(title=f"{launched.study.study.name}: strongest of {found.tested} variants", title_justify="left")
    for name in ("variant", "rsid", "effect", "beta", "standard error", "p", "frequency", "n", "method"):
        table.add_column(name, justify="left" if name in ("variant", "rsid", "effect", "method") else "right")
    for row in found.top:
        table.add_row(
            f"{row['chromosome']}:{row['position']}", row["rsid"], row["effect_allele"], f"{row['beta']:.4g}",
            f"{row['standard_error']:.3g}", row["p_value"], f"{row['frequency']:.3f}", str(row["n"]), row["method"],
        )  # fmt: skip
    persons = ", ".join(f"{site} {n}" for site, n in found.persons.items())
    reasons = ", ".join(f"{reason}: {count}" for reason, count in found.left_out.items())
    lines = [
        *([f"not in the table: {reasons}"] if reasons else []),
        f"persons: {persons}; lambda {_inflation_text(found)}; below {HIT:g}: {found.hits}; missing at some site: {found.partly_reported}",
        f"table: {launched.outcome.run}/gwas.tsv.gz (GWAS-SSF, indexed); plots: manhattan.svg, qq.svg",
    ]
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)


def _inflation_text(found: Gwas) -> str:
    return "not defined" if found.inflation is None else f"{found.inflation:.3f}"


def read_table(run: Path) -> pd.DataFrame:
    """``gwas.tsv.gz`` of a run as a table; ``#NA`` is read as NaN."""
    text = {"chromosome": str, "p_value": str, "rsid": str, "variant_id": str}
    table = pd.read_csv(run / GWAS_TABLE, sep="\t", compression="gzip", na_values=["#NA"], keep_default_na=False, dtype=text)
    parts = table.p_value.str.extract(r"^([\d.]+)(?:e([+-]\d+))?$").astype(float)
    with np.errstate(divide="ignore"):
        return table.assign(neg_log10_p=-(np.log10(parts[0]) + parts[1].fillna(0)))


def meta_table(launched: Launched, sites: Path, console: Console) -> dict[str, Any]:
    """Analyses each site alone (with its own components and model), combines the results by inverse variance, and compares with the run.

    Fixed effects (Borenstein et al. 2009, Introduction to Meta-Analysis, chapter 11).
    """
    from fedml.clients.site.manifest import find_sites
    from fedml.errors import RunError
    from fedml.experiments.runs.run import outcome, run_nodes

    study = launched.study
    found, _ = find_sites(sites, study.federation.sites)
    tables = {}
    with tempfile.TemporaryDirectory(prefix="fedml-meta-") as temporary:
        for name, site in found.items():
            folder = Path(temporary) / name
            folder.mkdir()
            try:
                run_nodes(for_roster(study, [name]), [{"manifest": str(site.file.resolve())}], folder, "gwas")
                tables[name] = read_table(folder)
            except RunError as error:
                console.print(f"{name} alone: {error}", soft_wrap=True)
            outcome(folder, 0.0)
    federated = read_table(launched.outcome.run)
    combined = combine({site: _to_reference(table, federated) for site, table in tables.items()})
    joined = federated.join(combined, rsuffix="_meta")
    both = joined.dropna(subset=["beta", "beta_meta"])
    summary = {
        "sites": list(tables), "variants_federated": int(federated.beta.notna().sum()), "variants_meta": int(combined.beta.notna().sum()),
        "correlation_of_betas": float(np.corrcoef(both.beta, both.beta_meta)[0, 1]) if len(both) > 2 else None,
        "median_standard_error_ratio": float((both.standard_error_meta / both.standard_error).median()),
        "hits_federated": _hits(federated), "hits_meta": _hits(combined),
        "lambda_federated": _inflation(federated.neg_log10_p), "lambda_meta": _inflation(combined.neg_log10_p),
    }  # fmt: skip
    (launched.outcome.run / "meta.json").write_text(json.dumps(summary, indent=1))
    console.print(_summary_table(summary))
    return summary


def _to_reference(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """A site's table with the variants and the effect alleles of ``reference``."""
    local = table.set_index("rsid" if table.rsid.notna().all() and table.rsid.is_unique else "variant_id")
    by = reference.rsid if local.index.name == "rsid" else reference.variant_id
    local = local.reindex(by)
    local.index = reference.index
    exchanged = local.effect_allele == reference.other_allele
    return local.assign(beta=np.where(exchanged, -local.beta, local.beta))


def combine(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Inverse-variance weighted mean of the sites' betas, one row for each variant; sites without a result are ignored."""
    from fedml.analytics.linear import normal_log10_p

    beta = np.stack([t.beta.to_numpy(float) for t in tables.values()])
    weight = np.nan_to_num(1 / np.stack([t.standard_error.to_numpy(float) for t in tables.values()]) ** 2, posinf=0.0)
    weight = np.where(np.isfinite(beta), weight, 0.0)
    total = weight.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, error = np.where(total > 0, (weight * np.nan_to_num(beta)).sum(0) / total, np.nan), np.where(total > 0, total**-0.5, np.nan)
        log10_p = normal_log10_p(mean / error)
    index = next(iter(tables.values())).index
    return pd.DataFrame({"beta": mean, "standard_error": error, "neg_log10_p": -log10_p}, index=index)


def _hits(table: pd.DataFrame) -> int:
    return int((table.neg_log10_p > -np.log10(HIT)).sum())


def _inflation(neg_log10_p: pd.Series) -> float:
    from fedml.analytics.sumstats import genomic_inflation

    return float(genomic_inflation(10.0 ** -neg_log10_p.dropna().to_numpy()))


def _summary_table(summary: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(
        title="for comparison: each site alone, combined by inverse variance (meta-analysis)", title_justify="left", caption_justify="left"
    )
    for name in ("", "federated", "meta-analysis"):
        table.add_column(name, justify="right" if name else "left")
    for name, key in (("variants with a result", "variants"), ("below 5e-8", "hits"), ("lambda", "lambda")):
        cells = [summary[f"{key}_federated"], summary[f"{key}_meta"]]
        table.add_row(name, *(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells))
    r, ratio = summary["correlation_of_betas"], summary["median_standard_error_ratio"]
    table.caption = (
        f"betas correlate by {r:.4f}; the meta-analysis' standard errors are {ratio:.3f} x the federated ones (median)"
        if r is not None
        else "too few variants in both to compare"
    )
    return table
