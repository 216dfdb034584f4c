"""The report of an association study: one page with the strongest associations, the Manhattan and QQ plots, and how far sites differ.

    write_page(out, render_association(run))        # fedml report RUN, of a run of `fedml gwas`

All is from the run's folder: the log, the table (``gwas.tsv.gz``) and the two plots that the run drew of it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.experiments.report import plots, words
from fedml.experiments.report.markup import Cell, Number, answered, listing, paragraph, section, table, terms, written
from fedml.experiments.report.page import page
from fedml.experiments.report.pointers import pointer
from fedml.runs.events import NO_END, Checks, End, Gwas, Start
from fedml.runs.log import GWAS_TABLE, MANHATTAN, QQ, last, read_log, study_of
from fedml.runs.software import words as code_words
from fedml.study.study import Study

Found = Mapping[str, Any]
TOP = 10  # variants in the table
FORESTS = 3
INFLATED = 1.05  # a genomic inflation above it is said
_LARGEST = 8_000_000  # bytes of a picture
_NUMBERS = ("meta_beta", "meta_standard_error", "random_beta", "random_standard_error", "q", "q_neg_log10_p", "i2")


def render_association(run: Path) -> str:
    """The page as HTML.

    Raises:
        InputError: this is not the folder of a finished association study, or a file of it is missing or cannot be read.
    """
    study, start, event, checks, end = _read(run)
    found = _figures(run, start, event, end)
    parts = [_short(study, found, start), _strongest(found), _pictures(run, found), _sites(found, checks), _check(start, found, study)]
    question = " ".join(study.study.question.split()) or study.study.name
    foot = paragraph(f"Written by fedml report from the run {start.run_id}; colours: Okabe and Ito 2008.")
    head = [f"Report of an association study · {start.run_id}", question, start.run_id]
    return page(f"{study.study.name}: report of an association study", head, parts, foot, found)


def _read(run: Path) -> tuple[Study, Start, Gwas, Sequence[Any], End]:
    try:
        study, events = study_of(run), read_log(run, strict=True)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: is not a run's folder ({error}); give a folder from fedml-runs.") from error
    start = next((e for e in reversed(events) if isinstance(e, Start)), None)
    event = next((e for e in reversed(events) if isinstance(e, Gwas)), None)
    end = last(events, NO_END)
    if start is None or event is None or study.gwas is None:
        raise InputError(f"{run}: has no association (status {end.status}); give the folder of a finished `fedml gwas`.")
    return study, start, event, last(events, Checks(checks=[])).checks, end


def _figures(run: Path, start: Start, event: Gwas, end: End) -> dict[str, Any]:
    """All numbers of the page."""
    rows = _meta_rows(run, event)
    top = []
    for row in event.top[:TOP]:
        half = 1.959964 * row["standard_error"]
        beta = {"value": row["beta"], "low": row["beta"] - half, "high": row["beta"] + half, "method": "Wald"}
        key = (row["chromosome"], row["position"], row["effect_allele"])
        top.append({**{k: row[k] for k in ("chromosome", "position", "rsid", "effect_allele", "other_allele", "frequency", "n", "method")},
                    "beta": beta, "standard_error": row["standard_error"], "p": row["p_value"], **rows.get(key, {})})  # fmt: skip
    out: dict[str, Any] = {
        "run": {"id": start.run_id, "engine": start.engine, "study_sha256": start.study_sha256, "seed": start.seed, "status": end.status},
        "persons": dict(event.persons), "all": sum(event.persons.values()), "cases": event.cases, "controls": event.controls,
        "tested": event.tested, "variants": event.variants, "hits": event.hits, "lambda": event.inflation,
        "left_out": dict(event.left_out), "partly_reported": event.partly_reported, "methods": dict(event.methods), "top": top,
        "seconds": event.seconds, "agreed": list(event.persons),
    }  # fmt: skip
    return _plain(out)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _meta_rows(run: Path, event: Gwas) -> dict[tuple[str, int, str], dict[str, float | None]]:
    """Chromosome, position and effect allele of the strongest variants -> the table's columns about the sites' own estimates."""
    from fedml.experiments.runs.association import read_table

    if not (run / GWAS_TABLE).is_file():
        raise InputError(f"{run / GWAS_TABLE}: is missing; give the unchanged folder of a run of `fedml gwas`.")
    try:
        found = read_table(run)
        wanted = {(row["chromosome"].removeprefix("chr"), row["position"]): row for row in event.top[:TOP]}
        some = found[[(str(c), int(p)) in wanted for c, p in zip(found.chromosome, found.base_pair_location, strict=True)]]
        out = {}
        for row in some.to_dict("records"):
            original = wanted[(str(row["chromosome"]), int(row["base_pair_location"]))]
            key = (original["chromosome"], original["position"], str(row["effect_allele"]))
            out[key] = {name: float(row[name]) if math.isfinite(float(row[name])) else None for name in _NUMBERS if name in row}
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{run / GWAS_TABLE}: cannot be read ({error}); give the unchanged folder of a run.") from error
    return out


def _short(study: Study, found: Found, start: Start) -> str:
    gwas, sites = study.gwas, words.count(len(found["persons"]), "site")
    assert gwas is not None  # noqa: S101 - _read has checked
    kind = "a logistic" if study.traits.gwas == "logistic" else "a linear"
    adjusted = [*gwas.covariates, *([f"{gwas.components} principal components of the genotypes"] if gwas.components else [])]
    cases = f", {found['cases']:,} of them cases" if found["cases"] is not None else ""
    asked = (
        f"Which of {found['variants']:,} variants are associated with {study.cohort.outcome}? Tested one by one with {kind} model, "
        "adjusted for "
        f"{words.join(adjusted) or 'nothing'}, over {found['all']:,} persons of {sites}{cases}."
    )
    hits = f"{found['hits']:,} of {found['tested']:,} tested variants have p below 5e-8, the usual limit for a whole genome."
    best = found["top"][0] if found["top"] else None
    strongest = (
        f"The strongest is {best['rsid']} ({best['chromosome']}:{best['position']:,}): {written(best['beta'], 'estimate')} for each copy "
        "of "
        f"{best['effect_allele']}, p {best['p']}."
        if best
        else ""
    )
    inflation = found["lambda"]
    if inflation is None:
        whole = "The genomic inflation is not defined."
    elif inflation > INFLATED:
        whole = (
            f"The genomic inflation is {inflation:.3f}: p values are smaller than without association, by confounding or by many "
            "true effects."
        )
    elif inflation < 2 - INFLATED:
        whole = f"The genomic inflation is {inflation:.3f}, below 1: p values are larger than without association."
    else:
        whole = f"The genomic inflation is {inflation:.3f}, near 1: no sign of confounding of all variants."
    differing = [v["rsid"] for v in found["top"] if (v.get("q_neg_log10_p") or 0) > -math.log10(0.05 / max(len(found["top"]), 1))]
    fails = (
        f"Sites differ more than by chance (Cochran's Q, p below 0.05 by Bonferroni) in {words.join(differing)}, of the "
        f"{len(found['top'])} strongest."
        if differing
        else f"Of the {len(found['top'])} strongest variants none differs between sites by more than chance (Cochran's Q, Bonferroni)."
    )
    cost = (
        "No noise was added. Sums of each variant left the sites exactly; who knows a person's genome can test whether the person was "
        "among "
        "them (Homer et al. 2008)."
    )
    trust = (
        "One trusts whoever ran this on one machine with the data of all sites."
        if start.engine != "deployment"
        else "One trusts each site for its own sums, and the coordinator for the table."
    )
    fails += " Other ancestries than those of these sites were not tested, and nobody else than these persons."
    rows = [
        ("What was asked", [asked]), ("What came out", [hits, strongest, whole]), ("For whom it fails", [fails]),
        ("What it cost in privacy", [cost]), ("Whom one trusts", [trust]),
    ]  # fmt: skip
    cards = [
        ("below 5e-8", f"{found['hits']:,}", f"of {found['tested']:,} tested"), ("persons", f"{found['all']:,}", sites),
        ("lambda", "not defined" if inflation is None else f"{inflation:.3f}", "1 without association"), ("privacy", "none", "exact sums"),
    ]  # fmt: skip
    items = "".join(
        f'<li><span class="what">{a}</span><span class="value">{b}</span><span class="more">{c}</span></li>' for a, b, c in cards
    )
    return section("answer", "In short", f'<ul class="cards">{items}</ul>', answered(rows))


def _strongest(found: Found) -> str:
    if not found["top"]:
        return ""
    rows: list[list[Cell]] = []
    for k, row in enumerate(found["top"]):
        at = ("top", k)
        cells: list[Cell] = [row["rsid"] or "no id", Number(pointer(*at, "chromosome"), "plain"), Number(pointer(*at, "position"), "count"),
                             f"{row['effect_allele']} / {row['other_allele']}", Number(pointer(*at, "beta"), "estimate"),
                             Number(pointer(*at, "p"), "plain"), Number(pointer(*at, "frequency")), Number(pointer(*at, "n"), "count"),
                             Number(pointer(*at, "i2"), "percent"), row["method"]]  # fmt: skip
        rows.append(cells)
    heads = ["variant", "chromosome", "position", "effect / other", "effect of a copy", "p", "frequency", "persons", "I²", "test"]
    note = (
        "Effect with its 95 % interval (Wald): of a linear model in units of the outcome, of a logistic one the log of the odds ratio. "
        "Strongest "
        "effects are too large on average, because they were chosen for being strong. Neighbours of one locus are not merged. I²: the "
        "share "
        "of the spread between sites that is more than chance."
    )
    return section(
        "strongest", "Strongest associations", table(found, f"The {len(rows)} smallest p values", heads, rows, note), *_forests(found)
    )


def _forests(found: Found) -> list[str]:
    """The estimate over all persons, and the sites' own ones combined with and without a difference between sites."""
    out = []
    for row in found["top"][:FORESTS]:
        drawn = [plots.Row("all persons", row["n"], row["beta"]["value"], row["beta"]["low"], row["beta"]["high"], True)]
        for name, label in (("meta", "sites, one effect"), ("random", "sites, own effects")):
            beta, error = row.get(f"{name}_beta"), row.get(f"{name}_standard_error")
            if beta is not None and error is not None:
                drawn.insert(0, plots.Row(label, row["n"], beta, beta - 1.959964 * error, beta + 1.959964 * error))
        alt = f"Effect of {row['rsid']}: " + "; ".join(f"{r.name} {r.value:.3g} ({r.low:.3g} to {r.high:.3g})" for r in drawn) + "."
        svg = plots.forest(drawn, f"effect of one copy of {row['effect_allele']}, with 95 % interval", alt, at=0.0)
        out.append(f"<figure>{svg}<figcaption><strong>{_text(row['rsid'] or 'no id')}.</strong></figcaption></figure>")
    note = (
        "All persons: one model over all sites. Sites, one effect: each site's own estimate, combined by inverse variance; sites, own "
        "effects: "
        "the same with a variance between sites (DerSimonian and Laird 1986). The single sites' estimates are not in the record."
    )
    return [f'<div class="plots">{"".join(out)}</div>', paragraph(note, kind="note")] if out else []


def _text(words_: str) -> str:
    from html import escape

    return escape(words_)


def _pictures(run: Path, found: Found) -> str:
    inflation = "not defined" if found["lambda"] is None else f"{found['lambda']:.3f}"
    points = f"Each point is a variant: its place in the genome and -log10 of its p. {found['hits']:,} are below 5e-8."
    about = {
        MANHATTAN: ("Manhattan plot", points),
        QQ: ("QQ plot", f"Observed against expected -log10 p without association, with its 95 % band; lambda {inflation}."),
    }
    out = []
    for name, (title, caption) in about.items():
        path = run / name
        if path.is_file() and path.stat().st_size <= _LARGEST:
            data = base64.b64encode(path.read_bytes()).decode()
            image = f'<img src="data:image/svg+xml;base64,{data}" alt="{title}. {caption}">'
            out.append(f'<figure class="wide">{image}<figcaption><strong>{title}.</strong> {caption}</figcaption></figure>')
    return section("plots", "All variants", "".join(out) or paragraph("The run's folder has no plots."))


def _sites(found: Found, checks: Sequence[Any]) -> str:
    rows: list[list[Cell]] = [[site, Number(pointer("persons", site), "count")] for site in found["persons"]]
    rows.append(["all sites", Number("/all", "count")])
    left = [f"{n:,}: {reason}" for reason, n in found["left_out"].items()]
    notes = [f"{c['check']} at {c['site']}: {c['value']} ({c['verdict']})" for c in checks if c["verdict"] != "ok"]
    body = [table(found, "Persons by site", ["site", "persons"], rows)]
    body += ["<h3>Variants that are not in the table</h3>", listing(left) or paragraph("None.")]
    body += [paragraph(f"{found['partly_reported']:,} variants were missing at some site.")]
    body += ["<h3>Checks of the sites' variants that did not simply pass</h3>", listing(notes) or paragraph("None.")]
    return section("sites", "Sites and variants", *body)


def _check(start: Start, found: Found, study: Study) -> str:
    rows = [("Run", f"{start.run_id}, engine {start.engine}, status {found['run']['status']}"), ("Study, SHA-256", start.study_sha256),
            ("Seed", str(start.seed)), ("Code", "not recorded" if start.code is None else code_words(start.code))]  # fmt: skip
    text = (
        "The figures are from the run's log and table; the two large plots are the files that the run drew of the table. fedml bundle "
        "writes the run with the sums of its sites to one signed file, and fedml verify computes the analysis again from them."
    )
    return section("check", "How to check it", paragraph(text), terms(rows))
