"""Writes summary statistics as GWAS-SSF v1.0, the GWAS Catalog's format (Hayhurst et al. 2022, bioRxiv 2022.07.15.500230), and plots.

    excluded = write(Path("disease.tsv.gz"), results, Meta(trait="disease", build="GRCh38", samples=2100, ...))
    # also writes disease.tsv.gz-meta.yaml and the index disease.tsv.gz.tbi (tabix disease.tsv.gz 22:1-51000000)
    manhattan(Path("manhattan.svg"), results.keys, log10_p)
    quantile_quantile(Path("qq.svg"), log10_p, genomic_inflation(p))

The effect allele is ALT. Missing values are ``#NA``; a row without a mandatory value is excluded and counted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedml.analytics import lines
from fedml.analytics.lines import NA
from fedml.cohort.variants.frequency import Array
from fedml.cohort.variants.keys import Keys, Variant, columns_of
from fedml.study.contigs import canonical_contig

MANDATORY = (
    "chromosome",
    "base_pair_location",
    "effect_allele",
    "other_allele",
    "beta",
    "standard_error",
    "effect_allele_frequency",
    "p_value",
)
ENCOURAGED = ("variant_id", "rsid", "ref_allele", "n")
GENOME_WIDE = 5e-8
_NUMBERS = {str(n): n for n in range(1, 23)} | {"X": 23, "PAR": 23, "Y": 24, "MT": 25}
_NAMES = {23: "X", 24: "Y", 25: "MT"}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")  # must be escaped in YAML
_LETTERS = re.compile(r"[ACGT]+", re.IGNORECASE)
_PLACES, _PLACES_UP = 1500, 50  # of points along the genome, and in a unit of -log10 p: closer ones are drawn as one, a dot is wider
_ROWS = 50_000  # whose text is made at a time
_MEDIAN_CHI2 = 0.454936423119572  # of one degree of freedom
_BLUE, _SKY, _RED, _GREY = "#0072B2", "#56B4E9", "#D55E00", "#595959"  # Okabe and Ito (2008): distinguishable by colour-blind readers


@dataclass(frozen=True, eq=False)
class Results:
    """One row per variant; all (variants,). ``own``: further columns by name (numbers or text), such as call_rate, sites, method."""

    keys: Sequence[Variant]
    beta: Array
    standard_error: Array
    frequency: Array
    log10_p: Array
    n: npt.NDArray[np.int64]
    own: Mapping[str, Sequence[Any] | npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Meta:
    """Contents of the metadata file. ``cases`` and ``controls``: of a binary trait; ``more``: further fields by name."""

    trait: str
    build: str
    samples: int
    cases: int | None = None
    controls: int | None = None
    covariates: tuple[str, ...] = ()
    software: str = "fedml-cohorts"
    smallest_frequency: float | None = None
    modified: date = field(default_factory=date.today)
    more: Mapping[str, Any] = field(default_factory=dict)


def write(path: Path, results: Results, meta: Meta) -> dict[str, int]:
    """Writes ``path`` (``.tsv.gz``, bgzip), its tabix index and ``-meta.yaml``; rows by chromosome and position.

    Returns:
        reason -> number of excluded variants. The format has chromosomes 1 to 22, X (23), Y (24) and MT (25), and alleles of ACGT.
    """
    import pysam

    keys = columns_of(results.keys)
    number = keys.by_contig(_chromosome, np.int64)
    spelled = keys.by_alleles(lambda ref, alt: bool(_LETTERS.fullmatch(ref) and _LETTERS.fullmatch(alt)))
    values = np.stack([results.beta, results.standard_error, results.frequency, np.where(results.log10_p <= 0, 0.0, np.nan)])
    reasons = {"contig": number == 0, "alleles": ~spelled, "no estimate": ~np.isfinite(values).all(0)}
    kept, excluded = np.ones(len(number), np.bool_), {}
    for reason, fails in reasons.items():
        if count := int((kept & fails).sum()):
            excluded[reason] = count
        kept &= ~fails
    order = np.flatnonzero(kept)
    order = order[np.lexsort((keys.position[order], number[order]))]
    with pysam.BGZFile(str(path), "wb2") as out:  # the default level takes three times as long for a tenth of the size
        out.write(("\t".join([*MANDATORY, *ENCOURAGED, *results.own]) + "\n").encode())
        for begin in range(0, len(order), _ROWS):
            out.write(lines.lines_of(_columns(results, keys, order[begin : begin + _ROWS])))
    pysam.tabix_index(str(path), force=True, seq_col=0, start_col=1, end_col=1, line_skip=1)
    path.with_name(path.name + "-meta.yaml").write_text(_yaml(_described(path, meta)), encoding="utf-8")
    return excluded


def _columns(results: Results, keys: Keys, at: npt.NDArray[np.int64]) -> list[Any]:
    """The columns of the rows ``at`` as text, in the format's order."""
    part = keys.take(at)
    number, position = lines.column(part.by_contig(_chromosome, np.int64)), lines.column(part.position)
    ref, alt = (part.letters(k) for k in (0, 1))
    names = pc.if_else(pc.match_substring_regex(part.ids, "^rs[0-9]+$"), part.ids, lines.text(NA))
    places, other = lines.joined([number, position, ref, alt], "_"), pa.repeat(lines.text("OA"), len(at))
    found = [lines.numbers(column[at]) for column in (results.beta, results.standard_error, results.frequency)]
    extra = [lines.column(np.asarray(column)[at]) for column in results.own.values()]
    return [
        number,
        position,
        alt,
        ref,
        *found,
        lines.p_values(results.log10_p[at]),
        places,
        names,
        other,
        lines.column(results.n[at]),
        *extra,
    ]


def _chromosome(contig: str) -> int:
    """Its number in the format; 0 for a contig that is no chromosome."""
    return _NUMBERS.get(canonical_contig(contig), 0)


def p_text(log10_p: float) -> str:
    """``lines.p_values`` of one."""
    return str(lines.p_values(np.array([log10_p]))[0])


def genomic_inflation(p: Array) -> float:
    """Lambda: the median chi-squared of the tests divided by the median without association, 0.4549 (Devlin and Roeder 1999, Biometrics
    55:997); nan without tests."""
    from scipy.special import chdtri

    known = p[np.isfinite(p)]
    return float(chdtri(1, np.median(known)) / _MEDIAN_CHI2) if len(known) else float("nan")


def _described(path: Path, meta: Meta) -> dict[str, Any]:
    sample: dict[str, Any] = {"sample_size": meta.samples, "sample_ancestry_category": ["NR"], "case_control_study": meta.cases is not None}
    if meta.cases is not None:
        sample |= {"case_count": meta.cases, "control_count": meta.controls}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    out: dict[str, Any] = {
        "date_metadata_last_modified": meta.modified,
        "trait_description": [meta.trait],
        "genome_assembly": meta.build,
        "coordinate_system": "1-based",
        "samples": [sample],
        "data_file_name": path.name,
        "file_type": "GWAS-SSF v1.0",
        "data_file_md5sum": digest,
        "analysis_software": meta.software,
        "adjusted_covariates": list(meta.covariates),
        "is_harmonised": False,
        "is_sorted": True,
    }
    if meta.smallest_frequency is not None:
        out["minor_allele_freq_lower_limit"] = meta.smallest_frequency
    return {name: value for name, value in (out | dict(meta.more)).items() if value not in (None, [])}


def _yaml(value: Any, indent: str = "") -> str:
    """Mappings and lists as YAML blocks, scalars in JSON syntax, which YAML includes; dates unquoted."""
    if isinstance(value, Mapping):
        return "".join(f"{indent}{key}:{_inside(inner, indent)}" for key, inner in value.items())
    return "".join(f"{indent}-{_inside(inner, indent)}" for inner in value)


def _inside(value: Any, indent: str) -> str:
    if isinstance(value, Mapping | list | tuple) and value:
        return "\n" + _yaml(value, indent + "  ")
    if isinstance(value, date):
        return f" {value.isoformat()}\n"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        text = re.sub(r"^(-?\d+)e", r"\1.0e", text)  # YAML 1.1 reads 1e-05 as text
    return " " + _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def manhattan(path: Path, variants: Sequence[Variant], log10_p: Array, title: str = "") -> None:
    """Plots -log10 p along the genome, as SVG (or by ``path``'s extension). Contigs alternate in colour; variants below 5e-8 are red."""
    y = -log10_p
    tested = np.isfinite(y)
    keys = columns_of(variants)
    number, position = keys.by_contig(lambda name: _chromosome(name) or 26, np.int64), keys.position
    found = np.unique(number[tested])
    figure, axes = _figure((10.0, 4.2))
    begin, ticks = 0.0, list[float]()
    scale = 1e-6 if len(found) == 1 else 1.0
    width = sum(float(np.ptp(position[tested & (number == which)])) for which in found.tolist()) / _PLACES
    for k, which in enumerate(found.tolist()):
        on_contig = tested & (number == which)
        first = 0.0 if len(found) == 1 else float(position[on_contig].min())
        x = (begin + position[on_contig] - first) * scale
        hit = y[on_contig] >= -np.log10(GENOME_WIDE)
        for chosen, colour, size in (
            (_apart(x, y[on_contig], ~hit, width * scale), (_BLUE, _SKY)[k % 2], 5.0),
            (np.flatnonzero(hit), _RED, 14.0),
        ):
            axes.scatter(x[chosen], y[on_contig][chosen], s=size, c=colour, linewidths=0, rasterized=True)
        ticks.append(float(x.min() + x.max()) / 2)
        begin += float(position[on_contig].max()) - first + 2e7
    axes.axhline(-np.log10(GENOME_WIDE), color=_GREY, linewidth=1, linestyle="--")
    at_line = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    axes.annotate("p = 5 × 10⁻⁸", (1, -np.log10(GENOME_WIDE)), (-4, 3), **at_line)
    axes.set_ylim(0, max(9.0, 1.06 * float(y[tested].max(initial=0))))
    axes.margins(x=0.01)
    if len(found) == 1:
        axes.set_xlabel(f"Position on chromosome {_name(found[0])} (Mb)")
    elif len(found):
        axes.set_xticks(ticks, [_name(n) if n < 18 or n % 2 == 0 or n > 22 else "" for n in found.tolist()])
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("Chromosome")
    axes.set_ylabel("−log₁₀ p")
    axes.set_title(title, loc="left")
    _save(figure, path)


def _apart(x: Array, y: Array, chosen: npt.NDArray[np.bool_], width: float) -> npt.NDArray[np.int64]:
    """Indices of points of ``chosen``, of those that would be drawn at the same place one. ``width``: of a place along the genome."""
    at = np.flatnonzero(chosen)
    if not len(at):
        return at
    across, up = np.floor((x[at] - x[at].min()) / max(width, 1e-9)).astype(np.int64), np.floor(y[at] * _PLACES_UP).astype(np.int64)
    found: npt.NDArray[np.int64] = at[np.unique(across * (up.max() + 1) + up, return_index=True)[1]]
    return found


def quantile_quantile(path: Path, log10_p: Array, inflation: float, title: str = "", what: str = "variants") -> None:
    """Plots observed against expected -log10 p, with the 95 % band of each quantile under no association (independent tests).

    Args:
        what: is tested, in the legend.
    """
    from scipy.special import betaincinv

    y = np.sort(-log10_p[np.isfinite(log10_p)])[::-1]
    rank = np.arange(1, len(y) + 1)
    shown = np.unique(np.concatenate([rank[:3000], np.geomspace(1, max(1, len(y)), 3000).astype(np.int64)])) if len(y) else rank
    shown = shown[shown <= len(y)]
    x = -np.log10(shown / (len(y) + 1))
    figure, axes = _figure((5.0, 5.0))
    if len(y):
        band = [-np.log10(betaincinv(shown, len(y) + 1 - shown, q)) for q in (0.025, 0.975)]
        axes.fill_between(x, *band, color="#D9D9D9", linewidth=0, label="95 % under no association")
        axes.plot([0, x[0]], [0, x[0]], color=_GREY, linewidth=1)
        axes.scatter(x, y[shown - 1], s=10, c=_BLUE, linewidths=0, rasterized=True)
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.87), frameon=False)
    axes.annotate(f"λ = {inflation:.3f}\n{len(y):,} {what}", (0.04, 0.96), xycoords="axes fraction", va="top")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Expected −log₁₀ p")
    axes.set_ylabel("Observed −log₁₀ p")
    axes.set_title(title, loc="left")
    _save(figure, path)


def _name(number: int) -> str:
    return _NAMES.get(number, "other" if number > 25 else str(number))


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its axes, without pyplot, which keeps a global list of figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    """Saves the figure so that equal numbers give equal bytes: no date, and a fixed salt for identifiers."""
    from matplotlib import rc_context

    vector = path.suffix == ".svg"
    with rc_context({"svg.hashsalt": "fedml"}):
        figure.savefig(path, metadata={"Date": None} if vector else None)
