"""The table of sites x checks printed before training: properties of each site's variants, normalisation steps, problems.

checks = keys_checks(files, panel, spec) + counts_checks(counts, failed)
[c for c in checks if c.verdict == "fail"]        # each with its advice
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.frequency import alleles
from fedml.cohort.variants.harmonise import Panel, sides
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.normalise import HET_HAPLOID, NOTES, SEX_UNKNOWN, UNSURE
from fedml.cohort.variants.ploidy import X, places
from fedml.cohort.variants.records import AMBIGUOUS, FILTERED, SAME
from fedml.study.cohort_section import Variants

ALL_SITES = "all sites"
_MIN_CORRELATED = 50  # variants needed to conclude from uncorrelated frequencies that alleles are exchanged
_CONTRADICTS = ((0.15, 0.2), (0.1, -0.3))  # (mean frequency difference above, correlation below) that show exchanged alleles
_MIN_SWAPPED = 10  # variants needed to conclude from frequencies that match 1 - frequency that alleles are exchanged

EVEN_ADVICE = "give data.variants reference at each site, which shows the strand"
_ADVICE = {
    FILTERED: 'left out; [cohort.variants] filter = "any" reads them',
    SAME: "left out: ALT is the same as REF; check how the file was written",
    AMBIGUOUS: "left out: REF or ALT is a letter for several bases, such as R for A or G",
    "reference mismatch": "excluded: REF is not the reference's base; check data.variants build and reference in site.toml",
    SEX_UNKNOWN: "left out: say which column has each person's sex, such as [cohort.variants] "
    'sex = { column = "sex", male = "M", female = "F" } in the study (in a .fam: column 5)',
    HET_HAPLOID: "a man's on X or Y outside the pseudoautosomal regions, or anyone's on MT; check the persons' sex and the build",
    UNSURE: "kept only where frequencies decide the strand: the file's other SNPs match the reference on different strands",
}


@dataclass(frozen=True)
class Check:
    """One cell of the table. ``value``: a count of variants, or text; ``fix``: what to do if the verdict is not ``ok``."""

    site: str
    check: str
    value: str
    verdict: Literal["ok", "warn", "fail"] = "ok"
    fix: str = ""


@dataclass(frozen=True)
class SiteFile:
    """A site's description of its genotype file; ``checked``: REF was compared with a reference."""

    keys: Sequence[Variant]
    build: str
    notes: Sequence[int]
    checked: bool


def keys_checks(files: Mapping[str, SiteFile], panel: Panel, spec: Variants) -> list[Check]:
    """The checks that need only variant keys."""
    out: list[Check] = []
    wanted = spec.build or Counter(file.build for file in files.values()).most_common(1)[0][0]
    for site, file in files.items():
        wrong = file.build != wanted and (bool(spec.build) or spec.match == "position")
        advice = f'lift the file of {site} over to {wanted}, or set [cohort.variants] match = "rsid"' if wrong else ""
        out.append(Check(site, "genome build", file.build + (", REF checked" if file.checked else ""), "fail" if wrong else "ok", advice))
        for name, count in zip(NOTES, file.notes, strict=True):
            if not count:
                continue
            advice = _ADVICE.get(name, "")
            out.append(Check(site, name, str(int(count)), "warn" if advice else "ok", advice))
        for name, count in panel.matching.get(site, {}).items():
            if name == "absent" and panel.lacks(site).any():
                out.append(Check(site, "variants of the panel that it lacks", str(int(panel.lacks(site).sum()))))
            complemented = name in ("strand", "strand-swapped")
            advice = "complemented; give the file on the forward strand" if complemented else ""
            if name == "twice":
                advice = "excluded: the file lists the variant twice; keep one line"
            if name == "none":
                advice = "excluded: the alleles at that position differ from those at the other sites"
            out.append(Check(site, f"matched: {name}", str(count), "warn" if advice else "ok", advice))
        if doubt := int(panel.doubtful[site].sum()) if site in panel.doubtful else 0:
            out.append(Check(site, "A/T or C/G of unknown strand", str(doubt), "warn", "kept only where frequencies decide the strand"))
    fewest = min(files, key=lambda site: len(files[site].keys))
    share = len(panel.keys) / max(len(files[fewest].keys), 1)
    too_few = share < spec.min_shared or not panel.keys
    advice = (
        f"the sites share {share:.1%} of the {len(files[fewest].keys)} variants of {fewest}, "
        f"the study requires {spec.min_shared:.0%}; compare builds, "
        'normalise indels (give a reference), set [cohort.variants] match = "rsid", or lower min_shared'
    )
    verdict: Literal["ok", "fail"] = "fail" if too_few else "ok"
    out.append(Check(ALL_SITES, "shared variants", f"{len(panel.keys)} ({share:.1%} of {fewest})", verdict, advice if too_few else ""))
    return out + [Check(ALL_SITES, f"excluded: {why}", str(n), "warn") for why, n in panel.dropped.items() if n]


def sex_checks(keys: Sequence[Variant], build: str, spec: Variants, covariates: Sequence[str]) -> list[Check]:
    """A warning where variants on X are tested without the sex among the covariates: men have 0 or 2 ALT alleles, women also 1, so a trait
    that differs between them seems to go with variants whose frequencies do."""
    where = places(keys, build)
    on_x = 0 if where is None else int((where == X).sum())
    if not on_x or (spec.sex is not None and spec.sex.column in covariates):
        return []
    column = "the column of the sex" if spec.sex is None else f'"{spec.sex.column}"'
    return [Check(ALL_SITES, "X without sex as a covariate", str(on_x), "warn", f"add {column} to [gwas] covariates")]


def doubts_checks(before: Panel, after: Panel) -> list[Check]:
    """Sites whose allele frequencies put their A/T and C/G variants in doubt (``fedml.cohort.variants.harmonise.doubt``)."""
    return [
        Check(site, "A/T or C/G against the other sites' frequencies", str(int(mask.sum())), "warn",
              "their strand differs from that of the file's other SNPs; kept only where frequencies decide the strand")
        for site, mask in after.doubtful.items() if mask.any() and not before.doubtful[site].any()
    ]  # fmt: skip


def strand_checks(unproven: npt.NDArray[np.bool_], compared: bool) -> list[Check]:
    """The A/T and C/G variants whose strand nothing but the letters shows (``palindromes.unproven``). ``compared``: those with alleles
    about equally frequent are left out."""
    if not (count := int(unproven.sum())):
        return []
    advice = "taken as written; " + (
        "of those with a frequency near 0.5 nobody could tell that they are on the other strand, so they are left out"
        if compared
        else "no frequencies are compared, so one on the other strand would not be noticed"
    )
    return [Check(ALL_SITES, "A/T or C/G, strand not checked", str(count), "warn", f"{advice}; {EVEN_ADVICE}")]


def counts_checks(counts: Mapping[str, npt.NDArray[np.int64]], failed: Mapping[str, int], panel: Panel | None = None) -> list[Check]:
    """The checks that need genotype counts: site -> (7, variants of ``panel``), -1 where the site's policy withholds them; ``failed``:
    threshold -> variants."""
    out: list[Check] = []
    known = {site: np.where(table < 0, 0, table) for site, table in counts.items()}
    for site, table in counts.items():
        if hidden := int((table[0] < 0).sum()):
            out.append(
                Check(
                    site,
                    "counts withheld: too few carriers",
                    str(hidden),
                    "warn",
                    "the site's persons are excluded from these variants",
                )
            )
        here = np.ones(table.shape[1], bool) if panel is None else ~panel.lacks(site)
        called = known[site][:3, here].sum()
        if called:
            out.append(Check(site, "call rate", f"{called / (called + known[site][3, here].sum()):.2%}"))
        if uncalled := int((here & (table[0] >= 0) & (table[:3].sum(0) == 0)).sum()):
            out.append(Check(site, "no genotype called", str(uncalled), "warn", "every genotype of these variants is missing at the site"))
        if count := int((sides(*alleles(known[site])) * sides(*alleles(_others(known, site))) < 0).sum()):
            advice = "kept; check how the file's alleles were written"
            out.append(Check(site, "minor allele is the major allele elsewhere", str(count), "warn", advice))
    compared = {site: found for site in known if (found := _compare(_frequency(known[site]), _frequency(_others(known, site)))) is not None}
    for site, (r, wrong) in sorted(compared.items(), key=lambda item: item[1]):  # the first failed check becomes the error message
        advice = f"dosages at {site} seem to count the allele that its file names REF; check how the file was written" if wrong else ""
        out.append(Check(site, "allele frequencies against the other sites", f"r = {r:.2f}", "fail" if wrong else "ok", advice))
    return out + [Check(ALL_SITES, f"excluded: {why}", str(n), "warn") for why, n in failed.items()]


def _compare(own: npt.NDArray[np.float64], rest: npt.NDArray[np.float64]) -> tuple[float, bool] | None:
    """Correlation of a site's allele frequencies with those of the other sites, and True if they contradict each other; None: too few.

    They contradict if ten variants or more differ half as much after 1 - frequency; or if fifty or more differ much (0.15 on average) and
    correlate weakly. Different populations alone show only one of the two: rare variants may be uncorrelated, common variants may differ.
    """
    both = np.isfinite(own) & np.isfinite(rest)
    own, rest = own[both], rest[both]
    if len(own) < _MIN_SWAPPED or own.std() == 0 or rest.std() == 0:
        return None
    r, difference = float(np.corrcoef(own, rest)[0, 1]), float(np.abs(own - rest).mean())
    swapped = 2 * float(np.abs(own - (1 - rest)).mean()) < difference
    return r, swapped or (len(own) >= _MIN_CORRELATED and any(difference > far and r < least for far, least in _CONTRADICTS))


def _others(counts: Mapping[str, npt.NDArray[np.int64]], site: str) -> npt.NDArray[np.int64]:
    return sum((table for name, table in counts.items() if name != site), np.zeros_like(counts[site]))


def _frequency(table: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    alt, total = alleles(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: npt.NDArray[np.float64] = np.where(total > 0, alt / total, np.nan)
    return out
