"""What an association study leaves in its run's folder: ``gwas.tsv.gz`` (GWAS-SSF, bgzipped, indexed), its metadata, and two plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.analytics import sumstats
from fedml.analytics.linear import Association
from fedml.cohort.variants.frequency import allele_frequency, call_rate, hardy_weinberg_p
from fedml.runs.events import Gwas, VariantRow
from fedml.runs.log import GWAS_TABLE, MANHATTAN, QQ

if TYPE_CHECKING:
    from fedml.strategies.gwas.work import Work

HIT = 5e-8  # genome-wide significance (Pe'er et al. 2008, Genet Epidemiol 32:381)
_TOP = 10


def write_results(work: Work, result: Association, method: npt.NDArray[np.str_], told: dict[str, Any]) -> Gwas:
    """Writes table and plots; returns what the run's record says of them (without ``seconds``)."""
    study, pooled, contributes = work.study, work.pooled, work.told
    frequency, hwe = allele_frequency(pooled), hardy_weinberg_p(pooled[0], pooled[1], pooled[2])
    own = {"call_rate": call_rate(pooled), "hwe_p": hwe, "sites": contributes.sum(0), "method": method}
    plan, persons = work.plan, told["persons"]
    meta = sumstats.Meta(
        trait=study.study.question or study.cohort.target, build=work.agreement.build, samples=sum(persons.values()),
        cases=told.get("cases"), controls=told.get("controls"), smallest_frequency=study.cohort.variants.min_maf or None,
        covariates=(*plan.covariates, *(f"PC{k + 1}" for k in range(plan.components))),
        more={"study_name": study.study.name, "study_sha256": study.sha256, "sites": list(persons)},
    )  # fmt: skip
    results = sumstats.Results(work.keys, result.beta, result.standard_error, frequency, result.log10_p, result.n, own)
    left_out = sumstats.write(work.run / GWAS_TABLE, results, meta)
    tested = np.isfinite(result.log10_p)
    inflation = sumstats.genomic_inflation(result.p)
    contig, position = [k.contig for k in work.keys], np.array([k.position for k in work.keys], dtype=np.int64)
    sumstats.manhattan(work.run / MANHATTAN, contig, position, result.log10_p, title=study.study.name)
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
        seconds=0.0, sites=work.traffic, persons=persons, cases=told.get("cases"), controls=told.get("controls"),
        pca_variants=told.get("pca_variants"), pca_steps=told.get("pca_steps"), pca_columns=told.get("pca_columns"),
        pca_angle_rad=told.get("pca_angle_rad"), eigenvalues=told.get("eigenvalues"),
        tested=int(tested.sum()), variants=len(work.keys), inflation=inflation, left_out=left_out, top=top,
        hits=int((result.log10_p[tested] < np.log10(HIT)).sum()), partly_told=int((~contributes.all(0)).sum()),
        methods={name: int((method == name).sum()) for name in np.unique(method).tolist()},
    )  # fmt: skip
