"""Agreement on variants: the panel that all sites share, the orientation of each site's dosages, and the checks before the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.cohort.variants.checks import (
    ALL_SITES,
    EVEN_ADVICE,
    Check,
    SiteFile,
    counts_checks,
    doubts_checks,
    keys_checks,
    sex_checks,
    strand_checks,
)
from fedml.cohort.variants.fine import SCALE
from fedml.cohort.variants.frequency import pooled_counts
from fedml.cohort.variants.harmonise import EVEN, choose, doubt, draft_panel, quality, settle
from fedml.cohort.variants.keys import from_text
from fedml.cohort.variants.palindromes import SiteStrand, unproven
from fedml.errors import RunError
from fedml.strategies.agreement.agreement import Agreement, ReportChecks
from fedml.strategies.agreement.step import take
from fedml.study.study import Study
from fedml.wire.records import BUILD, CHECKED, NOTES, PANEL, Phase

_BLOCK = 50_000  # variants per message
Counts = dict[str, npt.NDArray[np.int64]]


def agree_variants(
    study: Study, grid: Grid, agreed: Agreement, descriptions: Mapping[str, Mapping[str, Any]], tell: ReportChecks
) -> Agreement:
    """``agreed`` with the panel. Calls ``tell`` with the table of checks, also if a check fails.

    Raises:
        RunError: no site has variants, or a check fails; the message gives the first failed check and its advice.
    """
    files = {
        site: SiteFile(from_text(d[PANEL].tobytes()), d[BUILD].tobytes().decode(), d[NOTES].tolist(), bool(d[CHECKED][0]))
        for site, d in descriptions.items()
        if PANEL in d
    }
    if not files:
        raise RunError("no site has variants, but the study's inputs list them.")
    spec = study.cohort.variants
    keys, notes = {site: file.keys for site, file in files.items()}, {site: file.notes for site, file in files.items()}
    analysis = study.gwas or study.frequencies  # with results for each variant
    least = analysis.min_sites if analysis is not None else 0
    if least > len(files):
        section = "gwas" if study.gwas else "frequencies"
        raise RunError(f"[{section}] min_sites is {least}, but {len(files)} sites have variants; lower min_sites, or add sites.")
    draft = draft_panel(keys, spec.match, [site for site, file in files.items() if file.checked], notes, least)
    checks = keys_checks(files, draft, spec)
    build = str(spec.build) or next(iter(files.values())).build
    agreed = replace(agreed, shared=draft, build=build)
    if _failed(checks):
        tell(checks)
        raise RunError(_sentence(checks))
    doubtful = any(mask.any() for mask in draft.doubtful.values())
    exact = study.privacy.unit == "none"
    counts = genotype_counts(study, grid, agreed) if exact and (spec.counted or doubtful or analysis is not None) else None
    if counts is not None:
        checks += doubts_checks(draft, draft := doubt(draft, counts))
    unsure = unproven(draft, {site: SiteStrand(file.keys, file.notes, file.checked) for site, file in files.items()})
    checks += strand_checks(unsure, counts is not None and spec.max_palindromic_maf < 0.5)
    settled, kept = settle(draft, counts, unsure, spec.max_palindromic_maf)
    failed: dict[str, int] = {}
    if counts is not None:
        counts = reoriented(counts, draft.flips, settled.flips, kept)
        keep, failed = quality(pooled_counts(counts), spec)
        if study.gwas is not None and study.gwas.genes is not None:
            keep = keep | _withheld(counts)  # counted together with the others of their gene
        checks += counts_checks(counts, failed, settled)
        if spec.counted or analysis is not None:
            settled = choose(settled, keep)
            counts = {site: table[:, keep] for site, table in counts.items()}
    else:
        why = (
            "a study with privacy releases no counts" if not exact else "set a threshold in [cohort.variants], such as min_call_rate = 0.9"
        )
        checks.append(Check(ALL_SITES, "allele frequencies", "not compared", "warn", f"exchanged alleles would not be detected; {why}"))
    more = {why: n for why, n in settled.dropped.items() if n and why not in draft.dropped}
    checks += [Check(ALL_SITES, f"excluded: {why}", str(n), "warn", EVEN_ADVICE if EVEN in why else "") for why, n in more.items()]
    if study.gwas is not None:
        checks += sex_checks(settled.keys, build, spec, study.gwas.covariates)
    if not settled.keys:
        checks.append(Check(ALL_SITES, "variants to work with", "0", "fail", "every shared variant was excluded; see the checks above"))
    else:
        checks.append(Check(ALL_SITES, "variants to work with", str(len(settled.keys))))
    tell(checks)
    if _failed(checks):
        raise RunError(_sentence(checks))
    return replace(agreed, shared=settled, counts=counts or {})


def genotype_counts(study: Study, grid: Grid, agreed: Agreement) -> Counts:
    """Site -> (7, variants) persons with 0, 1, 2 ALT alleles of the panel, missing, 1 where not in Hardy-Weinberg equilibrium, and persons
    with one copy, with REF and with ALT; of dosages (9, variants), with their sums (``fedml.cohort.variants.frequency.alleles``); -1 where
    the site withholds the counts."""
    sites = [site for site in agreed.nodes.values() if agreed.shared is not None and site in agreed.shared.flips]
    agreement = replace(agreed, nodes={node: site for node, site in agreed.nodes.items() if site in sites})
    parts: dict[str, list[npt.NDArray[np.int64]]] = {site: [] for site in sites}
    for number, start in enumerate(range(0, agreed.variants, _BLOCK)):
        for site, sums in take(study, grid, agreement.part(slice(start, start + _BLOCK)), Phase.GENOTYPES, number, {}).items():
            parts[site].append(sums["counts"])
    return {site: np.concatenate(blocks, axis=1) for site, blocks in parts.items()}


def _withheld(counts: Counts) -> npt.NDArray[np.bool_]:
    """(variants,) of which no site tells counts, and some withhold them."""
    told = np.any([table[0] >= 0 for table in counts.values()], axis=0) & (pooled_counts(counts)[:3].sum(0) > 0)
    out: npt.NDArray[np.bool_] = ~told & np.any([table[0] < 0 for table in counts.values()], axis=0)
    return out


def reoriented(counts: Counts, before: Mapping[str, Any], after: Mapping[str, Any], kept: npt.NDArray[np.bool_]) -> Counts:
    """Counts of the draft's variants converted to the settled panel: where a site's orientation changed, rows 0 and 2 are
    exchanged, and 5 and 6; sums of dosages become those of the other allele."""
    out = {}
    for site, table in counts.items():
        converted = table[:, kept].copy()
        change = before[site][kept] != after[site]
        converted[:7, change] = converted[[2, 1, 0, 3, 4, 6, 5]][:, change]
        if len(converted) > 7:  # sums of dosages: of the other allele
            called = np.stack([converted[:3].sum(0), converted[5:7].sum(0)])
            converted[7:] = np.where(change & (converted[0] >= 0), 2 * SCALE * called - converted[7:], converted[7:])
        out[site] = converted
    return out


def _failed(checks: list[Check]) -> list[Check]:
    return [c for c in checks if c.verdict == "fail"]


def _sentence(checks: list[Check]) -> str:
    failed = _failed(checks)
    more = f" ({len(failed) - 1} more checks fail.)" if len(failed) > 1 else ""
    return f"{failed[0].site}: {failed[0].check} is {failed[0].value}; {failed[0].fix}.{more}"
