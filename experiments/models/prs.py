"""`fedml prs`: polygenic scores from the table of an association study, by clumping and thresholding (C+T).

    write_scores(run, out, Choice(reference=Path("1kg_eur.bed"), thresholds=(5e-8, 1e-4)))      # a scoring file for each threshold

LD is that of a reference panel that the researcher has, of persons like those of the study; no site is asked. Weights are the table's
betas. Method and pitfalls: Wray et al. 2021, JAMA Psychiatry 78:101. A score is tested on persons who were not in the study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cache_entries import file_sha256
from fedml.cohort.scores.clump import Ranked, Rule, clump
from fedml.cohort.scores.scoring_file import LinearModel, known_build, write_scoring
from fedml.cohort.variants.builds import build_of
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.matching import place
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.errors import InputError
from fedml.experiments.models.export_score import build_of_run
from fedml.runs.events import NO_END, Event, Start
from fedml.runs.log import GWAS_TABLE, STUDY, last, read_log, study_of
from fedml.study.contigs import canonical_contig
from fedml.study.study import Study

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (5e-8, 1e-6, 1e-4, 0.01, 0.05)
_MEMORY_MB = 256
_LEAST = 0.5  # of the variants that are asked for in the reference


class Choice(NamedTuple):
    """``reference``: a VCF, BCF or PLINK bed file, None: by distance alone. ``thresholds``: largest p of each score. ``match``: by which a
    variant of the table is one of the reference."""

    reference: Path | None
    thresholds: Sequence[float] = THRESHOLDS
    rule: Rule = Rule()
    match: Literal["position", "rsid"] = "position"


def write_scores(run: Path, out: Path, choice: Choice, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Writes ``NAME_p0.01.txt.gz`` for each threshold into the folder ``out``; a threshold that no variant reaches has none.

    Raises:
        InputError: the run is no finished association study, the reference cannot be read, is of another build or lacks most variants, or
            no variant is left.
    """
    study, events = _finished(run)
    table = _table(run, max(choice.thresholds))
    build = build_of_run(study, events)
    keys = [
        Variant(canonical_contig(c), int(p), "" if i == "#NA" else str(i), str(o), str(e))
        for c, p, i, o, e in zip(
            table.chromosome, table.base_pair_location, table.rsid, table.other_allele, table.effect_allele, strict=True
        )
    ]
    known, genotypes = np.ones(len(keys), bool), None
    if choice.reference is not None:
        known, genotypes = _reference(choice.reference, keys, build, choice.match)
        if lost := int((~known).sum()):
            say(f"{lost} of {len(keys)} variants are not in {choice.reference.name}, so their LD is not known: they are left out")
    table, keys = table[known], [key for key, has in zip(keys, known.tolist(), strict=True) if has]
    log10_p = -table.neg_log10_p.to_numpy(np.float64)
    ranked = Ranked(np.array([k.contig for k in keys]), np.array([k.position for k in keys], np.int64), log10_p)
    first = clump(ranked, genotypes, choice.rule)
    what = "distance alone" if genotypes is None else f"LD in {genotypes.shape[1]} persons of {choice.reference.name}"  # type: ignore[union-attr]
    say(f"{int(first.sum())} clumps of {len(keys)} variants with p up to {max(choice.thresholds):g}, by {what}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        header = _header(study, events, choice)
        scores = (_Score(keys, table, first & (log10_p <= math.log10(p)), p, build) for p in choice.thresholds)
        return [path for score in scores if (path := _write(out, study, score, header))]
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give --out another folder.") from error


class _Score(NamedTuple):
    keys: list[Variant]
    table: pd.DataFrame
    chosen: npt.NDArray[np.bool_]
    p: float
    build: str


def _finished(run: Path) -> tuple[Study, list[Event]]:
    if not (run / STUDY).is_file():
        raise InputError(f"{run}: is not a run's folder, it has no {STUDY}; give a folder from fedml-runs.")
    study, (events, _) = study_of(run), read_log(run)
    if last(events, NO_END).status != "finished" or not (run / GWAS_TABLE).is_file():
        raise InputError(f"{run}: has no {GWAS_TABLE}; give the folder of a `fedml gwas` that finished.")
    return study, events


def _table(run: Path, p: float) -> pd.DataFrame:
    """The rows with at most this p."""
    from fedml.experiments.runs.association import read_table

    table = read_table(run)
    found = table[table.neg_log10_p >= -math.log10(p)].reset_index(drop=True)
    if not len(found):
        best = table.p_value.iloc[int(table.neg_log10_p.to_numpy().argmax())] if len(table) else "none"
        raise InputError(f"{run}: no variant has p up to {p:g}, the smallest is {best}; give a larger --p.")
    return found


def _reference(
    path: Path, keys: Sequence[Variant], build: str, match: Literal["position", "rsid"]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8]]:
    """Which of the variants the reference has, and their (variants, persons) genotypes there."""
    try:
        source = open_source(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct --reference.") from error
    own = build_of(source.contigs)
    if match == "position" and own and build and own != known_build(build):
        raise InputError(f"{path}: the positions are of {own}, the study's of {build}; give a reference of {build}.")
    wanted: dict[object, int] = {}
    for at, key in enumerate(keys):
        for name in key.id.split(";") if match == "rsid" else [place(key, "position")]:
            if name not in ("", "."):
                wanted[name] = at
    found = np.full((len(keys), len(source.samples)), -1, np.int8)
    known = np.zeros(len(keys), bool)
    for block in source.blocks(range(len(source.samples)), Selection(), _MEMORY_MB):
        for row, there in enumerate(block.keys):
            canonical = there._replace(contig=canonical_contig(there.contig))
            for name in there.id.split(";") if match == "rsid" else [place(canonical, "position")]:
                at = wanted.get(name, -1)
                if at >= 0 and not known[at]:
                    found[at], known[at] = block.dosage[row], True
    if known.sum() < max(_LEAST * len(keys), 1):
        advice = "give a reference of the same build, with variants of the same array or imputation"
        raise InputError(f"{path}: has {int(known.sum())} of the {len(keys)} variants (matched by {match}); {advice}.")
    return known, found[known]


def _header(study: Study, events: Sequence[Event], choice: Choice) -> dict[str, str]:
    start = next((e for e in events if isinstance(e, Start)), None)
    fields = {
        "trait_reported": study.study.question or study.cohort.outcome,
        "weight_type": "beta" if study.traits.gwas == "linear" else "log(OR)",
        "method": f"clumping and thresholding, {choice.rule.kb:g} kb"
        + (f", r2 {choice.rule.r2:g}" if choice.reference else ", by distance alone"),
        "study_name": study.study.name,
        "study_sha256": study.sha256,
        "run_id": "" if start is None else start.run_id,
        "sites": ", ".join(study.federation.training),
    }
    if choice.reference is not None:
        fields |= {"ld_reference": choice.reference.name, "ld_reference_sha256": file_sha256(choice.reference)}
    return {key: "".join(c if c.isprintable() else " " for c in value) for key, value in fields.items() if value}


def _write(out: Path, study: Study, score: _Score, header: dict[str, str]) -> Path | None:
    """The file, completely or not at all; None without a variant."""
    rows = score.table[score.chosen]
    if not len(rows):
        return None
    keys = [key for key, has in zip(score.keys, score.chosen.tolist(), strict=True) if has]
    weight, mean = rows.beta.to_numpy(np.float64), 2 * rows.effect_allele_frequency.to_numpy(np.float64)
    # The sum itself, without a constant: the mean that ``write_scoring`` takes off is given as the intercept.
    model = LinearModel(keys, weight, mean, np.ones(len(keys)), float((weight * mean).sum()))
    path = out / f"{study.study.name}_p{score.p:g}.txt.gz"
    partial = path.with_name(f".partial.{path.name}")
    more = header | {"p_threshold": f"{score.p:g}"}
    write_scoring(partial, model, name=f"{study.study.name}_p{score.p:g}", build=score.build, header=more)
    partial.replace(path)
    return path
