"""Writes the results of an association study to the run's folder: ``gwas.tsv.gz`` (GWAS-SSF, bgzipped, indexed), metadata, two plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.analytics import sumstats
from fedml.analytics.meta import Combined
from fedml.cohort.variants.frequency import allele_frequency, alleles, call_rate
from fedml.runs.events import Gwas
from fedml.runs.log import GWAS_TABLE, MANHATTAN, QQ
from fedml.runs.rows import VariantRow

if TYPE_CHECKING:
    from fedml.strategies.gwas.work import Fitted

HIT = 5e-8  # genome-wide significance (Pe'er et al. 2008, Genet Epidemiol 32:381)
_TOP = 10


def write_results(fitted: Fitted, facts: dict[str, Any]) -> Gwas:
    """Writes table and plots; returns their summary for the run's record, ``facts`` included (without ``seconds``).

    Args:
        facts: ``persons`` (site -> number), ``cases`` and ``controls`` of a binary outcome, ``rare``: the number of variants that are not
            tested, and facts about the components.
    """
    work, result, method, combined, _ = fitted
    study, pooled, reported = work.study, work.pooled, work.reported
    frequency = allele_frequency(pooled)
    extra = {
        "an": alleles(pooled)[1], "call_rate": call_rate(pooled), "hwe_fails": pooled[4], "sites": reported.sum(0), "method": method,
        **_by_site(combined),
    }  # fmt: skip
    plan, persons = work.plan, facts["persons"]
    meta = sumstats.Meta(
        trait=study.study.question or study.cohort.outcome, build=work.agreement.build, samples=sum(persons.values()),
        cases=facts.get("cases"), controls=facts.get("controls"), smallest_frequency=study.cohort.variants.min_maf or None,
        covariates=(*plan.covariates, *(f"PC{k + 1}" for k in range(plan.components)), *(["site"] if work.intercepts.each else [])),
        more={"study_name": study.study.name, "study_sha256": study.sha256, "sites": list(persons)},
    )  # fmt: skip
    results = sumstats.Results(work.keys, result.beta, result.standard_error, frequency, result.log10_p, result.n, extra)
    excluded = sumstats.write(work.run / GWAS_TABLE, results, meta)
    if lost := facts.get("on_y", 0):
        excluded["on Y, and the men cannot be analysed"] = lost
    if facts["rare"]:
        excluded[f"fewer than {plan.min_mac:g} minor alleles"] = facts["rare"]
    tested = np.isfinite(result.log10_p)
    inflation = sumstats.genomic_inflation(result.p)
    sumstats.manhattan(work.run / MANHATTAN, work.keys, result.log10_p, title=study.study.name)
    sumstats.quantile_quantile(work.run / QQ, result.log10_p, inflation, title=study.study.name)
    best = np.argsort(np.where(tested, result.log10_p, 1.0), kind="stable")[: min(_TOP, int(tested.sum()))]
    top: list[VariantRow] = [
        {
            "chromosome": work.keys[i].contig,
            "position": work.keys[i].position,
            "rsid": work.keys[i].id,
            "effect_allele": work.keys[i].alt,
            "other_allele": work.keys[i].ref,
            "beta": float(result.beta[i]),
            "standard_error": float(result.standard_error[i]),
            "p_value": sumstats.p_text(float(result.log10_p[i])),
            "frequency": float(frequency[i]),
            "n": int(result.n[i]),
            "method": str(method[i]),
        }
        for i in best
    ]
    return Gwas(
        seconds=0.0, sites=work.traffic.rows, persons=persons, cases=facts.get("cases"), controls=facts.get("controls"),
        pca_variants=facts.get("pca_variants"), pca_steps=facts.get("pca_steps"), pca_columns=facts.get("pca_columns"),
        pca_angle_rad=facts.get("pca_angle_rad"), eigenvalues=facts.get("eigenvalues"),
        tested=int(tested.sum()), variants=len(work.keys) + facts["rare"] + lost, inflation=inflation, left_out=excluded, top=top,
        hits=int((result.log10_p[tested] < np.log10(HIT)).sum()), partly_reported=int((~reported.all(0)).sum()),
        methods={name: int((method == name).sum()) for name in np.unique(method).tolist()},
    )  # fmt: skip


def _by_site(found: Combined) -> dict[str, npt.NDArray[np.float64]]:
    """Columns of the table: the sites' own estimates, combined, and how far they differ."""
    return {
        "meta_beta": found.beta, "meta_standard_error": found.standard_error, "meta_neg_log10_p": -found.log10_p,
        "random_beta": found.random_beta, "random_standard_error": found.random_standard_error,
        "random_neg_log10_p": -found.random_log10_p, "q": found.q, "q_neg_log10_p": -found.q_log10_p, "i2": found.i2,
    }  # fmt: skip
