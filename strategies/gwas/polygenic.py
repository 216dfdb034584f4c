"""The server's part of a whole-genome regression (``fedml.analytics.ridge``), before the tests.

    variants in blocks -> level 0, block by block -> level 1 -> an offset for each chromosome, which each site computes for its persons

Variants are autosomal, reported by every site with a common allele, and carried by enough persons of each fold. Where there are more than
the sites' persons allow (``fedml.clients.work.polygenic``), they are thinned evenly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.analytics import forms, ridge, ridge_logistic
from fedml.analytics.logistic import LikelihoodSums
from fedml.cohort.variants.frequency import allele_frequency, minor_allele_frequency
from fedml.cohort.variants.keys import Keys, columns_of
from fedml.cohort.variants.model import blocks_of
from fedml.errors import RunError
from fedml.runs.events import Step
from fedml.runs.log import emit
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.step import Arrays, BySite
from fedml.strategies.gwas.panel import spaced
from fedml.strategies.gwas.work import Floats, Work
from fedml.study.contigs import has_one_copy
from fedml.study.gwas_section import Polygenic
from fedml.study.study import Study
from fedml.wire.records import Phase

_MESSAGE = 1 << 22  # numbers of a reply: 32 MB


class Null(NamedTuple):
    """The model without variants of two classes: ``theta`` (K,), the mean of p (1 - p) over persons, and their number."""

    theta: Floats
    weight: float
    persons: float


class Background(NamedTuple):
    """A whole-genome regression: variants in blocks (``part``) with pooled ``frequency``, both levels, and facts for the record."""

    part: Agreement
    frequency: Floats
    whole: ridge.Whole
    facts: dict[str, Any]

    def given(self, work: Work, contig: str) -> dict[str, Any]:
        """The request's arrays for tests on ``contig``. ``work``: of the regression, with all its sites."""
        names = list(dict.fromkeys(key.contig for key in _keys(self.part)))
        leave = names.index(contig) if contig in names else -1
        found = self.whole.offset(contig if leave >= 0 else None)
        return {
            **_blocked(self.part, self.frequency), "poly_weights": found.weights, "poly_shift": _by_site(work, found.shift),
            "poly_leave": np.array([leave], np.int64),
        }  # fmt: skip


def without(study: Study) -> dict[str, Any]:
    """The arrays of an offset of 0, before there is a regression; none if the study has none."""
    if study.gwas is None or (plan := study.gwas.polygenic) is None:
        return {}
    no_bytes, columns = np.zeros(0, np.uint8), forms.sizes(study, 0)["K"]
    return {
        "poly_panel": no_bytes, "poly_flips": no_bytes, "poly_frequency": np.zeros(0), "poly_weights": np.zeros((0, plan.folds)),
        "poly_shift": np.zeros((columns, plan.folds)), "poly_leave": np.array([-1], np.int64),
    }  # fmt: skip


def null_of(work: Work, theta: Floats, sums: LikelihoodSums) -> Null:
    """``Null`` from the solution (width, 1) and the pooled sums at it."""
    ones, (rows, columns) = _ones(work), np.triu_indices(work.intercepts.width)
    weight = float(sums.information[(rows == columns) & (ones[rows] > 0), 0].sum())
    return Null(theta[:, 0], weight / float(sums.n[0]), float(sums.n[0]))


def _ones(work: Work) -> Floats:
    """(width,) 1 where a coefficient of the whole model is an intercept."""
    return (np.arange(work.intercepts.width) < (len(work.sites) if work.intercepts.each else 1)).astype(np.float64)


def regress(work: Work, plan: Polygenic, design: dict[str, Any], persons: dict[str, int], null: Null | None) -> Background:
    """Both levels. ``null``: of two classes; ``persons``: site -> persons analysed.

    Raises:
        RunError: too few persons or variants, or level 1 has no solution.
    """
    part, sums = _panel(work, plan, design, persons)
    keys = _keys(part)
    frequency = allele_frequency(work.pooled[:, _places(work, part)])
    level_zero, contigs = _level_zero(work, plan, design, part, frequency, sums)
    ones = _ones(work)
    asked = {
        **design, **_blocked(part, frequency),
        "level": np.concatenate([block.weights.reshape(len(block.weights), -1) for block in level_zero]),
        "level_shift": _by_site(work, np.concatenate([b.shift for b in level_zero], axis=1).reshape(len(ones), -1)),
    }  # fmt: skip
    found = work.take(part.part(slice(0, 0)), Phase.LEVEL, asked)
    level = ridge.scaled(sums, ridge.LevelSums(*_summed(work, found, ("ww", "xw", "wy"))), ones)
    columns, count = level.t.shape[1], float(sums.n.sum())
    if null is None:
        chosen, unit = ridge.level_one(level, ridge.penalties(plan.ridge, columns), count), ridge.trait(sums).deviation
    else:
        chosen, unit = _logistic(work, plan, asked, level, null, part), 1.0
    facts = {
        "polygenic_variants": len(keys), "polygenic_blocks": len(level_zero), "polygenic_ridge": plan.ridge[chosen.chosen],
        "polygenic_errors": chosen.errors.tolist(),
    }  # fmt: skip
    text = f"whole genome: {len(keys)} variants in {len(level_zero)} blocks, ridge parameter {plan.ridge[chosen.chosen]:g}"
    if len(set(contigs)) == 1:
        text += f"; all are on chromosome {contigs[0]}, so tests on it are not adjusted for any"
    emit(work.run, Step(doing=text, done=len(keys), total=len(keys), log=True))
    return Background(part, frequency, ridge.Whole(level_zero, contigs, level, chosen.weights, unit, ones), facts)


def _keys(part: Agreement) -> Keys:
    return columns_of(part.shared.keys if part.shared else ())


def _places(work: Work, part: Agreement) -> npt.NDArray[np.int64]:
    at = {key: number for number, key in enumerate(work.keys)}
    return np.array([at[key] for key in _keys(part)], np.int64)


def _blocked(part: Agreement, frequency: Floats) -> dict[str, Any]:
    return {"poly_panel": np.frombuffer(part.panel, np.uint8), "poly_flips": part.flips(), "poly_frequency": frequency}


def _by_site(work: Work, rows: Floats) -> BySite:
    """Each site's rows of (width, ...) of the whole model."""
    own = work.intercepts
    return BySite({site: np.ascontiguousarray(rows[own.rows(at, own.columns)]) for at, site in enumerate(work.sites)})


def _summed(work: Work, found: dict[str, Arrays], names: tuple[str, ...]) -> list[Floats]:
    """The sums ``names`` of all sites, by fold; those whose first axis within a fold is of covariates at their places in the model."""
    return [
        np.sum([_placed(work, name, site, sums[name]) for site, sums in enumerate(found.values())], axis=0) for name in names
    ]  # fmt: skip


def _placed(work: Work, name: str, site: int, value: Floats) -> Floats:
    own = work.intercepts
    if name == "xx":
        return np.stack([own.matrix(v, site) for v in value])
    if name in ("xy", "xg", "xw"):
        return np.stack([own.vector(v, site) for v in value])
    return np.asarray(value, np.float64)


def _panel(work: Work, plan: Polygenic, design: dict[str, Any], persons: dict[str, int]) -> tuple[Agreement, ridge.FoldSums]:
    """The variants in blocks, and the sums of covariates and trait by fold."""
    smallest = min(persons.values()) // plan.folds
    width = forms.sizes(work.study, 0)["K"] + 1
    allowed = (smallest - width) // len(plan.ridge)
    if plan.block + width > smallest or allowed < 1:
        least = max(plan.block, len(plan.ridge)) + width
        raise RunError(
            f"[gwas.polygenic] needs {least} persons in each fold at each site, more than the columns of its sums; the smallest site has "
            f"{smallest}; lower block or folds, or leave the site out."
        )
    pooled = work.pooled
    autosome = np.array([not has_one_copy(key.contig) and key.contig != "PAR" for key in work.keys], bool)
    common = np.flatnonzero(work.reported.all(0) & autosome & (minor_allele_frequency(pooled) >= max(plan.min_maf, 1e-9)))
    common = spaced(work.keys, common, 1)
    first, seen = list[int](), set[str]()
    for at in sorted(common.tolist(), key=lambda i: (work.keys[i].contig, work.keys[i].position)):
        name = work.keys[at].id
        if name in ("", ".") or name not in seen:
            first.append(at)
            seen.add(name)
    found, used = {}, list[npt.NDArray[np.bool_]]()
    for start in range(0, max(len(first), 1), work.plan.block):
        part = work.agreement.part(np.array(first[start : start + work.plan.block], np.int64))
        found = work.take(part, Phase.FOLDS, design)
        used.append(np.all([sums["used"].astype(bool) for sums in found.values()], axis=0))
    usable = np.array(first, np.int64)[np.concatenate(used)]
    kept = _thinned([work.keys[at] for at in usable], plan.block, allowed)
    if not len(kept):
        raise RunError(
            f"[gwas.polygenic] finds no variants for blocks: {len(usable)} of {len(common)} common autosomal variants are carried by "
            f"enough persons of each fold, and {smallest} persons in a fold of the smallest site allow {allowed} blocks; lower folds or "
            "the number of ridge parameters, or add persons."
        )
    return work.agreement.part(usable[kept]), ridge.FoldSums(*_summed(work, found, ("xx", "xy", "yy", "n")))


def _thinned(keys: list[Any], block: int, allowed: int) -> npt.NDArray[np.int64]:
    """Evenly spaced places of as many ``keys`` as fill at most ``allowed`` blocks."""
    count = min(len(keys), allowed * block)
    while count > 0:
        kept = np.unique(np.linspace(0, len(keys) - 1, count).round().astype(np.int64))
        if len(blocks_of([keys[at] for at in kept], block)) <= allowed:
            return kept
        count -= max(block // 4, 1)
    return np.zeros(0, np.int64)


def _level_zero(
    work: Work, plan: Polygenic, design: dict[str, Any], part: Agreement, frequency: Floats, sums: ridge.FoldSums
) -> tuple[tuple[ridge.Blocked, ...], tuple[str, ...]]:
    keys = _keys(part)
    blocks, each = blocks_of(keys, plan.block), max(1, _MESSAGE // (plan.folds * plan.block**2))
    out, penalty = list[ridge.Blocked](), ridge.penalties(plan.ridge, len(keys))
    for start in range(0, len(blocks), each):
        some = blocks[start : start + each]
        here = slice(some[0].start, some[-1].stop)
        asked = {**design, **_blocked(part, frequency), "frequency": frequency[here]}
        gg, xg, gy = _summed(work, work.take(part.part(here), Phase.BLOCKS, asked), ("gg", "xg", "gy"))
        for block in some:
            at = slice(block.start - here.start, block.stop - here.start)
            own = ridge.BlockSums(gg[:, at, : block.stop - block.start], xg[:, :, at], gy[:, at])
            out.append(ridge.level_zero(sums, own, penalty))
        emit(work.run, Step(doing=f"blocks {len(out)} of {len(blocks)}", done=len(out), total=len(blocks), log=False))
    return tuple(out), tuple(keys[block.start].contig for block in blocks)


def _logistic(work: Work, plan: Polygenic, asked: dict[str, Any], level: ridge.Scaled, null: Null, part: Agreement) -> ridge.Chosen:
    """Level 1 of two classes."""
    penalty = ridge.penalties(plan.ridge, level.t.shape[1]) * 3 / np.pi**2  # of log-odds, whose residual variance is pi^2 / 3
    state = ridge_logistic.start(level, penalty, null.weight)
    while len(state.active):
        ask = state.ask
        given = {**asked, "theta": _by_site(work, null.theta), "beta": ask.beta, "constant": ask.constant, "fold": ask.fold}
        found = work.take(part.part(slice(0, 0)), Phase.RIDGE, given)
        names = ("gradient", "rest", "log_likelihood")
        state = ridge_logistic.step(state, ridge_logistic.LogisticSums(*_summed(work, found, names)))
        emit(work.run, Step(doing=f"level 1, step {state.steps}", done=int(state.converged.sum()), total=len(state.fold), log=False))
    if not state.converged.all():
        raise RunError("level 1 of [gwas.polygenic] has no solution; use larger ridge parameters (smaller shares), or fewer blocks.")
    return ridge_logistic.chosen(state, null.persons)
