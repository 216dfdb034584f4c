"""The matrix of site x check that is printed before any training: what each site's variants are, what was done to them, what is wrong.

checks = keys_checks(files, panel, spec) + counts_checks(panel, counts, spec)
[c for c in checks if c.verdict == "fail"]        # each with its mend
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.harmonise import Panel, sides
from fedml.cohort.variants.model import Variant
from fedml.cohort.variants.normalise import NOTES, UNSURE
from fedml.study.sections import Variants

EVERYBODY = "all sites"
_COMPARED = 50  # variants, of which frequencies that hardly go together say that alleles are mixed up
_CONTRADICTS = ((0.15, 0.2), (0.1, -0.3))  # mean difference of two sites' frequencies above, and their correlation below
_TURNED = 10  # variants, of which frequencies that fit the other way round say that alleles are exchanged

_MENDS = {
    "reference mismatch": "left out: their REF is not the reference's base; look at build and reference in site.toml",
    UNSURE: "kept only where frequencies tell their strand: the file's other SNPs fit the reference on one strand or the other",
}


@dataclass(frozen=True)
class Check:
    """One cell: ``value`` is a count of variants unless it says otherwise; ``mend`` says what to do where the verdict is not ``ok``."""

    site: str
    check: str
    value: str
    verdict: Literal["ok", "warn", "fail"] = "ok"
    mend: str = ""


@dataclass(frozen=True)
class SiteFile:
    """What a site told about its genotype file."""

    keys: tuple[Variant, ...]
    build: str
    notes: Sequence[int]
    checked: bool


def keys_checks(files: Mapping[str, SiteFile], panel: Panel, spec: Variants) -> list[Check]:
    """What can be told from keys alone."""
    out: list[Check] = []
    wanted = spec.build or Counter(file.build for file in files.values()).most_common(1)[0][0]
    for site, file in files.items():
        wrong = file.build != wanted and (bool(spec.build) or spec.match == "position")
        mend = f'lift the file of {site} over to {wanted}, or set [cohort.variants] match = "rsid"' if wrong else ""
        out.append(Check(site, "genome build", file.build + (", REF checked" if file.checked else ""), "fail" if wrong else "ok", mend))
        for name, count in zip(NOTES, file.notes, strict=True):
            if not count:
                continue
            mend = _MENDS.get(name, "")
            out.append(Check(site, name, str(int(count)), "warn" if mend else "ok", mend))
        for name, count in panel.matching.get(site, {}).items():
            turned = name in ("strand", "strand-swapped")
            mend = "complemented; give the file on the forward strand" if turned else ""
            if name == "twice":
                mend = "left out: the same variant stands twice in the file; keep one"
            if name == "none":
                mend = "left out: the alleles at that place are other ones than elsewhere"
            out.append(Check(site, f"matched: {name}", str(count), "warn" if mend else "ok", mend))
        if doubt := int(panel.doubtful[site].sum()) if site in panel.doubtful else 0:
            out.append(
                Check(site, "A/T or C/G whose strand is not sure", str(doubt), "warn", "kept only where frequencies tell the strand")
            )
    fewest = min(files, key=lambda site: len(files[site].keys))
    share = len(panel.keys) / max(len(files[fewest].keys), 1)
    few = share < spec.min_shared or not panel.keys
    mend = (
        f"the sites share {share:.1%} of the {len(files[fewest].keys)} variants of {fewest}, "
        f"the study asks for {spec.min_shared:.0%}; compare builds, "
        'normalise indels (give a reference), set [cohort.variants] match = "rsid", or lower min_shared'
    )
    out.append(
        Check(EVERYBODY, "shared variants", f"{len(panel.keys)} ({share:.1%} of {fewest})", "fail" if few else "ok", mend if few else "")
    )
    return out + [Check(EVERYBODY, f"left out: {why}", str(n), "warn") for why, n in panel.dropped.items() if n]


def doubts_checks(before: Panel, after: Panel) -> list[Check]:
    """Sites whose A/T and C/G frequencies made doubtful (``fedml.cohort.variants.harmonise.doubt``)."""
    return [
        Check(site, "A/T or C/G against the other sites' frequencies", str(int(mask.sum())), "warn",
              "their strand is not that of the file's other SNPs; kept only where frequencies tell it")
        for site, mask in after.doubtful.items() if mask.any() and not before.doubtful[site].any()
    ]  # fmt: skip


def counts_checks(counts: Mapping[str, npt.NDArray[np.int64]], failed: Mapping[str, int]) -> list[Check]:
    """What counts of genotypes tell: site -> (4, variants), -1 where a site's policy lets nothing leave; ``failed``: threshold ->
    variants."""
    out: list[Check] = []
    told = {site: np.where(table < 0, 0, table) for site, table in counts.items()}
    for site, table in counts.items():
        if hidden := int((table[0] < 0).sum()):
            out.append(
                Check(site, "not told: a genotype of too few persons", str(hidden), "warn", "these persons are left out of those variants")
            )
        called = told[site][:3].sum()
        if called:
            out.append(Check(site, "call rate", f"{called / (called + told[site][3].sum()):.2%}"))
        if dead := int(((table[0] >= 0) & (table[:3].sum(0) == 0)).sum()):
            out.append(Check(site, "called in nobody", str(dead), "warn", "every genotype of these variants is missing here"))
        if count := int((sides(*_alleles(told[site])) * sides(*_alleles(_others(told, site))) < 0).sum()):
            out.append(
                Check(site, "rare allele is the common one elsewhere", str(count), "warn", "kept; look at how these variants were written")
            )
    compared = {site: found for site in told if (found := _compare(_frequency(told[site]), _frequency(_others(told, site)))) is not None}
    for site, (r, wrong) in sorted(compared.items(), key=lambda item: item[1]):  # the first that fails is the one that is told
        mend = f"dosages at {site} seem to count the other allele than its file says; look at how it was written" if wrong else ""
        out.append(Check(site, "allele frequencies against the other sites", f"r = {r:.2f}", "fail" if wrong else "ok", mend))
    return out + [Check(EVERYBODY, f"left out: {why}", str(n), "warn") for why, n in failed.items()]


def _compare(own: npt.NDArray[np.float64], rest: npt.NDArray[np.float64]) -> tuple[float, bool] | None:
    """Correlation of a site's allele frequencies with the others', and whether they contradict; None: too few to say.

    They do where those of ten variants or more fit twice as well when turned round; and where those of fifty or more lie far apart (0.15 on
    average) and hardly go together. Populations may do one of these: rare variants of two need not go together, common ones may lie apart.
    """
    both = np.isfinite(own) & np.isfinite(rest)
    own, rest = own[both], rest[both]
    if len(own) < _TURNED or own.std() == 0 or rest.std() == 0:
        return None
    r, apart = float(np.corrcoef(own, rest)[0, 1]), float(np.abs(own - rest).mean())
    turned = 2 * float(np.abs(own - (1 - rest)).mean()) < apart
    return r, turned or (len(own) >= _COMPARED and any(apart > far and r < least for far, least in _CONTRADICTS))


def _others(told: Mapping[str, npt.NDArray[np.int64]], site: str) -> npt.NDArray[np.int64]:
    return sum((table for name, table in told.items() if name != site), np.zeros_like(told[site]))


def _alleles(table: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """ALT alleles and all called ones."""
    return table[1] + 2 * table[2], 2 * table[:3].sum(0)


def _frequency(table: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    alt, total = _alleles(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: npt.NDArray[np.float64] = np.where(total > 0, alt / total, np.nan)
    return out
