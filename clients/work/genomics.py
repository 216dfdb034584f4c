"""The site's half of an analysis of genotypes: sums over its persons, step by step, and what the gate has to know about them.

Persons are those of the cohort who have genotypes and, where the study has ``[gwas]``, the target and every covariate. Sums of a variant of
which too few persons here have one of the genotypes (``fedml.cohort.variants.frequency.small_cells_of``) are left at nothing and marked
as not told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedml.analytics import forms, linear, logistic, pca
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.clients.work.request import Request, own_flips, read_site_once
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.frequency import group_counts, small_cells_of
from fedml.cohort.variants.genotypes import person_chunks
from fedml.cohort.variants.model import Dosages
from fedml.errors import Reason, SiteError
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, ANALYSIS, FLIPS, PANEL, Phase, pack, unpack

Floats = npt.NDArray[np.float64]
NULL_STEPS = 50  # Newton needs fewer than ten; sums at ever other coefficients would tell about single persons
_VARIANTS = 4096  # of a block, whose sums are taken together


@dataclass(frozen=True, eq=False)
class Analysed:
    """The persons of an analysis: ``rows`` of the cohort, ``covariates`` (persons, C) raw, ``outcome`` (persons,), ``groups`` (groups,
    persons) within which a genotype's persons are counted before anything leaves."""

    rows: npt.NDArray[np.int64]
    covariates: Floats
    outcome: Floats
    groups: npt.NDArray[np.bool_]


@lru_cache(maxsize=32)
def analysed(manifests: tuple[str, ...], study: Study) -> Analysed:
    """Who is analysed at the site with these ``manifests``."""
    cohort = load_cohort(manifests, study)
    has = np.zeros(len(cohort), dtype=bool) if cohort.variants is None else cohort.variants.present.copy()
    raw, levels = _covariates(cohort, study)
    if study.gwas is not None:
        has &= np.isfinite(raw).all(1) & np.isfinite(cohort.labels)
    rows = np.flatnonzero(has)
    everybody = np.ones(len(rows), dtype=bool)
    groups = [everybody, *(level[rows] for level in levels)]
    if study.gwas is not None and forms.kind(study) == "logistic":
        case = cohort.labels[rows] == 1
        groups += [case, ~case]
    return Analysed(rows, raw[rows], cohort.labels[rows], np.stack(groups))


def _covariates(cohort: Cohort, study: Study) -> tuple[Floats, list[npt.NDArray[np.bool_]]]:
    """(persons, C) columns, NaN where missing, and for each column of few values a mask of the persons who have each of them."""
    spec, columns, levels = study.cohort.clinical, [], []
    for name in study.gwas.covariates if study.gwas else ():
        assert spec is not None  # noqa: S101 - the study was validated
        values = np.full(len(cohort), np.nan) if cohort.clinical is None else cohort.clinical[:, spec.columns.index(name)]
        known = np.unique(values[np.isfinite(values)])
        if name in spec.categories:
            columns += [np.where(np.isfinite(values), values == code, np.nan) for code in range(1, len(spec.categories[name]))]
        else:
            columns.append(values)
        if name in spec.categories or len(known) == 2:
            levels += [values == code for code in known]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((len(cohort), 0)), levels


def persons(asked: Request) -> list[str]:
    """Ids of those whom an answer is about, for the site's own ledger."""
    cohort = load_cohort(asked.manifests, asked.study)
    return [cohort.ids[row] for row in analysed(asked.manifests, asked.study).rows]


def check_persons(asked: Request, content: RecordDict, fewest: int, columns_before: int) -> int:
    """How many persons are analysed. Raises ``SiteError`` where they are too few, or components would take more columns than persons.

    With as many products of its genotypes as it has persons, a site's genotypes could be solved for. The step's number is how many columns
    have been asked with it, so those asked before can be told from the journal.
    """
    here = len(analysed(asked.manifests, asked.study).rows)
    if here < fewest:
        raise SiteError(Reason.TOO_FEW, f"{here} persons would be analysed, the policy wants {fewest}")
    if asked.phase is Phase.NULL and asked.round > NULL_STEPS:
        raise SiteError(Reason.ROUNDS, f"the model of the covariates alone is asked for the {asked.round}th time")
    if asked.phase is Phase.SUBSPACE:
        columns = unpack(content.array_records[ANALYSIS])["basis"].shape[1]
        if not columns_before + columns <= asked.round <= here:
            raise SiteError(Reason.TOO_FEW, f"components would take {asked.round} columns of {here} persons; ask for fewer components")
    return here


def design_digest(asked: Request, content: RecordDict) -> str:
    """What a run's model is made of besides the variants; empty for steps before there is one. With ever other components each model's sums
    would tell something new of the genotypes, so a run has one design."""
    given = unpack(content.array_records[ANALYSIS])
    return _digest(given, *forms.DESIGN) if forms.DESIGN.keys() <= given.keys() else ""


def _digest(given: Mapping[str, Any], *names: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}:{given[name].shape}:".encode())
        digest.update(given[name].tobytes())
    return digest.hexdigest()


def shapes_of_reply(asked: Request, request: RecordDict) -> dict[str, tuple[int, ...]]:
    """What the reply to ``request`` has to look like."""
    given = unpack(request.array_records[ANALYSIS])
    variants = unpack(request.array_records[AGREEMENT])[PANEL].tobytes().count(b"\n")
    return forms.reply_shapes(asked.study, asked.phase, variants, given["basis"].shape[1] if "basis" in given else 0)


def check_small(asked: Request, reply: RecordDict, request: RecordDict, min_count: int) -> None:
    """Raises ``SiteError`` if a number that leaves is about fewer than ``min_count`` persons. Counted anew, not as the answer was made."""
    values = unpack(reply.array_records[ANALYSIS])
    text = f"numbers about fewer than {min_count} persons would leave"
    for name in ("persons", "n", "cases"):
        if name in values and 0 < int(values[name][0]) < min_count:
            raise SiteError(Reason.TOO_FEW, text)
    if "cases" in values and 0 < int(values["n"][0] - values["cases"][0]) < min_count:
        raise SiteError(Reason.TOO_FEW, text)
    # Sums of components of one variant would tell its counts: an honest server makes components of variants that every site tells.
    made = unpack(request.array_records[AGREEMENT if asked.phase is Phase.SUBSPACE else ANALYSIS])
    panel, flips = (PANEL, FLIPS) if asked.phase is Phase.SUBSPACE else ("loading_panel", "loading_flips")
    own = (made[panel].tobytes(), own_flips(asked, made[flips])) if panel in made and min_count > 1 else None
    if own is not None and _any_small(asked.manifests, asked.study, *own, min_count):
        raise SiteError(Reason.TOO_FEW, f"components: {text}")
    if asked.phase not in (Phase.GENOTYPES, Phase.ASSOCIATION, Phase.FIT):
        return
    small = _small(asked, _panel(asked, request), min_count)
    for name, value in values.items():
        blank = -1 if name == "counts" else 0
        if (np.moveaxis(value, -1, 0)[small] != blank).any():
            raise SiteError(Reason.TOO_FEW, f"{name}: {text}")


def analyse(asked: Request, content: RecordDict) -> RecordDict:
    """The sums that a step asks for."""
    given = unpack(content.array_records[ANALYSIS])
    own = _panel(asked, content)
    people = analysed(asked.manifests, asked.study)
    floor = max(asked.study.policy.min_count, *(read_site_once(m).manifest.policy.min_count for m in asked.manifests))
    match asked.phase:
        case Phase.GENOTYPES:
            counts = _group_counts(own, people)
            out = np.where(small_cells_of(counts, floor), -1, counts[0])
            return _reply({"counts": out})
        case Phase.COVARIATES:
            return _reply({"moments": linear.scaling_sums(people.covariates, people.outcome), "persons": np.array([len(people.rows)])})
        case Phase.SUBSPACE:
            return _reply({"product": pca.site_product(_blocks(own, people.rows), given["frequency"], given["basis"])})
    x, y = _design(asked, people, given)
    if asked.phase is Phase.NULL:
        return _reply(_null(asked.study, x, y, given["theta"]))
    used = ~_small(asked, own, floor)
    sums = _association if asked.phase is Phase.ASSOCIATION else _fit
    told = sums(asked.study, own, people, x, y, given)
    return _reply({**{name: np.where(used, value, 0) for name, value in told.items()}, "used": used.astype(np.uint8)})


def _design(asked: Request, people: Analysed, given: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """X (persons, K): ones, covariates on the pooled scale, components; and the outcome, centred where it is a number."""
    logistic_ = forms.kind(asked.study) == "logistic"
    scaling = np.stack([given["centre"], given["scale"]])
    if logistic_:
        scaling[:, -1] = 0.0, 1.0
    scaled, outcome = linear.scaled(people.covariates, people.outcome, scaling)
    columns = [np.ones((len(outcome), 1)), scaled]
    if given["loadings"].shape[1]:
        columns.append(_components(asked, people, given))
    return np.hstack(columns), outcome


_KEPT: dict[str, Floats] = {}  # components of this site's persons by what they were made of: the same for every step of an analysis


def _components(asked: Request, people: Analysed, given: Mapping[str, Any]) -> Floats:
    """(persons, k) components of this site's persons. They never leave it."""
    names = ("loadings", "loading_values", "loading_frequency", "loading_panel", "loading_flips")
    key = f"{asked.manifests} {asked.study.sha256} {_digest(given, *names)}"
    if key not in _KEPT:
        own = _aligned(asked, given["loading_panel"].tobytes(), given["loading_flips"])
        parts = [
            pca.scores(block, given["loading_frequency"], given["loadings"], given["loading_values"]) for block in _blocks(own, people.rows)
        ]
        if len(_KEPT) >= 64:
            _KEPT.clear()
        _KEPT[key] = np.concatenate(parts) if parts else np.zeros((0, len(given["loading_values"])))
    return _KEPT[key]


def _null(study: Study, x: Floats, y: Floats, theta: Floats) -> dict[str, Any]:
    """Sums of the model without any variant."""
    if forms.kind(study) == "linear":
        own = linear.null_sums(x, y)
        return {"xx": own.xx, "xy": own.xy, "yy": np.array([own.yy]), "n": np.array([own.n])}
    told = logistic.likelihood_sums(None, None, x, y, theta[:, None])
    return {
        "gradient": told.gradient, "information": told.information, "log_likelihood": told.log_likelihood,
        "n": np.asarray(told.n, np.int64), "cases": np.array([int(y.sum())]),
    }  # fmt: skip


def _pieces(own: Dosages, people: Analysed) -> Iterator[tuple[slice, slice, npt.NDArray[np.int8]]]:
    """(persons, variants, their dosages) piece by piece, each of bounded memory."""
    at = 0
    for chunk in person_chunks(people.rows, min(len(own.keys), _VARIANTS)):
        for start in range(0, len(own.keys), _VARIANTS):
            stop = min(start + _VARIANTS, len(own.keys))
            dosage = own.dosage[chunk][:, start:stop] if isinstance(own.dosage, np.ndarray) else own.dosage.block(start, stop, chunk)
            yield slice(at, at + len(chunk)), slice(start, stop), dosage
        at += len(chunk)


def _association(study: Study, own: Dosages, people: Analysed, x: Floats, y: Floats, given: Mapping[str, Any]) -> dict[str, Any]:
    """Sums of every variant: of the linear model, or of the score test beside the logistic one."""
    out: dict[str, Any] = {}
    for persons_, variants, dosage in _pieces(own, people):
        frequency = given["frequency"][variants]
        if forms.kind(study) == "linear":
            one = linear.variant_sums(dosage, frequency, x[persons_], y[persons_])
            sums = {"xg": one.xg, "gg": one.gg, "gy": one.gy}
        else:
            two = logistic.score_sums(dosage, frequency, x[persons_], y[persons_], given["theta"][:, None])
            sums = {"xwg": two.xwg, "gwg": two.gwg, "score": two.score}
        _add(out, sums, variants, len(own.keys))
    return out or _nothing(study, Phase.ASSOCIATION, len(own.keys))


def _fit(study: Study, own: Dosages, people: Analysed, x: Floats, y: Floats, given: Mapping[str, Any]) -> dict[str, Any]:
    """Sums of each variant's own logistic model at its own coefficients; with leverages where Firth's penalty is asked for."""
    out: dict[str, Any] = {}
    penalised = bool(given["penalised"][0]) and bool(given["inverse"].any())
    for persons_, variants, dosage in _pieces(own, people):
        inverse = given["inverse"][:, variants] if penalised else None
        told = logistic.likelihood_sums(
            dosage, given["frequency"][variants], x[persons_], y[persons_], given["theta_fit"][:, variants], inverse
        )
        sums = {"gradient": told.gradient, "information": told.information, "log_likelihood": told.log_likelihood, "n": told.n}
        _add(out, sums, variants, len(own.keys))
    return out or _nothing(study, Phase.FIT, len(own.keys))


def _add(out: dict[str, Any], sums: Mapping[str, Any], variants: slice, total: int) -> None:
    for name, value in sums.items():
        if name not in out:
            out[name] = np.zeros((*value.shape[:-1], total), dtype=value.dtype)
        out[name][..., variants] += value


def _nothing(study: Study, phase: Phase, variants: int) -> dict[str, Any]:
    """Sums over nobody."""
    shapes = forms.reply_shapes(study, phase, variants)
    return {name: np.zeros(shape, np.int64 if name == "n" else np.float64) for name, shape in shapes.items() if name != "used"}


def _reply(values: Mapping[str, Any]) -> RecordDict:
    return RecordDict({ANALYSIS: pack({name: np.ascontiguousarray(v) for name, v in values.items()})})


def _panel(asked: Request, content: RecordDict) -> Dosages:
    """The site's dosages of the message's panel."""
    values = unpack(content.array_records[AGREEMENT])
    return _aligned(asked, values[PANEL].tobytes(), values[FLIPS])


def _aligned(asked: Request, panel: bytes, flips: Any) -> Dosages:
    cohort = load_aligned(asked.manifests, asked.study, panel, own_flips(asked, flips))
    if cohort.variants is None:
        raise SiteError(Reason.BAD_MESSAGE, "an analysis of genotypes is asked of a site without any")
    return cohort.variants


def _blocks(own: Dosages, rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int8]]:
    """The persons' dosages, all variants, in pieces of bounded memory."""
    return (own.dosage[chunk] for chunk in person_chunks(rows, len(own.keys)))


def _group_counts(own: Dosages, people: Analysed) -> npt.NDArray[np.int64]:
    total = np.zeros((len(people.groups), 4, len(own.keys)), dtype=np.int64)
    at = 0
    for block in _blocks(own, people.rows):
        total += group_counts(block, people.groups[:, at : at + len(block)])
        at += len(block)
    return total


def _small(asked: Request, own: Dosages, min_count: int) -> npt.NDArray[np.bool_]:
    """(variants,): a group of persons with one genotype is smaller than ``min_count`` here."""
    return small_cells_of(_group_counts(own, analysed(asked.manifests, asked.study)), min_count)


@lru_cache(maxsize=32)
def _any_small(manifests: tuple[str, ...], study: Study, panel: bytes, flips: bytes, min_count: int) -> bool:
    """``_small`` of any variant of a panel that many messages bring."""
    own = load_aligned(manifests, study, panel, flips).variants
    return own is not None and bool(small_cells_of(_group_counts(own, analysed(manifests, study)), min_count).any())
