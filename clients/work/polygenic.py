"""The site's part of a whole-genome regression (``fedml.analytics.ridge``): folds, sums by fold, and its persons' predictions, which are
not sent.

Sums are about the persons of one fold, so each rule for few persons holds within it: a variant of a block is carried by nobody or by enough
persons of each fold and each category; a fold has more persons than its sums have columns, because from as many products of genotypes as
persons the genotypes could be solved for. A variant is in one block only (``_check_blocks``), so that no sums of other blocks add to these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedml.analytics import forms, ridge, ridge_logistic
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.clients.site.remember import remembered
from fedml.clients.work.effective import few_effective
from fedml.clients.work.people import Analysed, Floats, analysed
from fedml.clients.work.request import Request, own_flips, read_site_once
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.frequency import carried_by_few, centred, group_counts
from fedml.cohort.variants.genotypes import person_chunks
from fedml.cohort.variants.keys import Keys, from_text
from fedml.cohort.variants.model import Dosages, blocks_of
from fedml.cohort.variants.ploidy import DIPLOID
from fedml.errors import Reason, SiteError
from fedml.study.gwas_section import Polygenic
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, ANALYSIS, FLIPS, PANEL, Phase, array_record, unpack

Folds = npt.NDArray[np.int64]
_VARIANTS = 2048  # read at a time
_PANELS = 32_000_000  # bytes of the panels that are kept aligned: a million variants
_KEPT = 48  # offsets: the chromosomes of a run or two
_OFFSETS: dict[str, Floats] = {}
_PREDICTIONS: dict[str, Floats] = {}  # of level 0, of one run


def forget() -> None:
    """Computes everything anew from now on: a file of the site changed."""
    folds_of.cache_clear()
    usable.cache_clear()
    _aligned.cache_clear()
    _OFFSETS.clear()
    _PREDICTIONS.clear()


# A panel's blocks are asked for one after the other, and the gate counts each again; all of them would fill the memory.
@remembered(most=_PANELS, size=lambda manifests, study, panel, flips: len(panel) + len(flips))
def _aligned(manifests: tuple[str, ...], study: Study, panel: bytes, flips: bytes) -> Cohort:
    return load_aligned.__wrapped__(manifests, study, panel, flips)


def aligned_panel(request: Request, panel: bytes, flips: Any) -> Dosages:
    """The site's dosages of a panel of the request, in its orientation."""
    cohort: Cohort = _aligned(request.manifests, request.study, panel, own_flips(request, flips))
    if (dosages := cohort.input("variants", Dosages)) is None:
        raise SiteError(Reason.BAD_MESSAGE, "an analysis of genotypes is requested, but the site has no genotypes")
    return dosages


def plan_of(study: Study) -> Polygenic:
    """``[gwas.polygenic]``. Raises ``SiteError`` where the study has none."""
    if study.gwas is None or study.gwas.polygenic is None:
        raise SiteError(Reason.UNDECLARED, "the study has no [gwas.polygenic]")
    return study.gwas.polygenic


@lru_cache(maxsize=32)
def folds_of(manifests: tuple[str, ...], study: Study) -> Folds:
    """(persons of the cohort,) the fold of each person of the analysis, -1 of others: by a hash of seed and id, as equal in size as can
    be."""
    cohort, rows = load_cohort(manifests, study), analysed(manifests, study).rows
    text = [hashlib.sha256(f"folds\0{study.study.seed}\0{cohort.ids[row]}".encode()).digest() for row in rows]
    out = np.full(len(cohort), -1, np.int64)
    out[rows[np.array(sorted(range(len(rows)), key=text.__getitem__), np.int64)]] = np.arange(len(rows)) % plan_of(study).folds
    return out


@lru_cache(maxsize=16)
def usable(manifests: tuple[str, ...], study: Study, panel: bytes, flips: bytes, min_count: int) -> npt.NDArray[np.bool_]:
    """(variants,) which of a panel may be in a block: autosomal, in the site's file, and of each fold and category in it, each allele is
    carried by nobody or by ``min_count`` persons or more."""
    dosages = load_aligned(manifests, study, panel, flips).input("variants", Dosages)
    people, fold = analysed(manifests, study), folds_of(manifests, study)
    if dosages is None:
        return np.zeros(0, bool)
    own = fold[people.rows]
    groups = np.concatenate([people.groups & (own == k) for k in range(plan_of(study).folds)])
    counts, at = np.zeros((len(groups), 4, len(dosages.keys)), np.int64), 0
    for chunk in person_chunks(people.rows, len(dosages.keys)):
        counts += group_counts(np.asarray(dosages.dosage[chunk]), groups[:, at : at + len(chunk)])
        at += len(chunk)
    there = np.ones(len(dosages.keys), bool) if dosages.where is None else dosages.where == DIPLOID
    called: npt.NDArray[np.bool_] = counts[: len(people.groups), :3].sum((0, 1)) > 0
    return there & called & ~carried_by_few(counts, min_count)


def few_columns(study: Study, persons: int, columns: int) -> str:
    """Why a site with so many ``persons`` cannot answer sums of so many ``columns`` by fold; "" if it can."""
    plan = plan_of(study)
    width, fold = forms.sizes(study, 0)["K"] + 1, persons // plan.folds
    if columns + width <= fold:
        return ""
    return (
        f"[gwas.polygenic] needs {columns + width} columns ({columns} of blocks, {width} of covariates) of the {fold} persons of a fold; "
        "lower block or folds, or add persons"
    )


def check(request: Request, given: Mapping[str, Any], min_count: int) -> None:
    """Raises ``SiteError`` if sums by fold would be about too few persons, or if the blocks are not those of one plan."""
    plan, people = plan_of(request.study), analysed(request.manifests, request.study)
    if not given[forms.EVERYONE].all():
        raise SiteError(Reason.OFF_PLAN, "a whole-genome regression of the men alone is requested")
    fold = folds_of(request.manifests, request.study)[people.rows]
    persons = np.bincount(fold, minlength=plan.folds)
    fewest = [request.study.policy.min_persons, *(read_site_once(m).manifest.policy.min_persons for m in request.manifests)]
    if persons.min() < max(fewest):
        raise SiteError(Reason.TOO_FEW, f"a fold would have {persons.min()} persons, fewer than min_persons; lower [gwas.polygenic] folds")
    columns = plan.block if request.phase is Phase.BLOCKS else given["level_shift"].shape[1] // plan.folds if "level" in given else 0
    if why := few_columns(request.study, len(people.rows), columns):
        raise SiteError(Reason.TOO_FEW, why)
    groups = [people.groups] if forms.kind(request.study) == "linear" else [people.groups, people.controls[None], ~people.controls[None]]
    sizes = np.stack([np.concatenate(groups)[:, fold == k].sum(1) for k in range(plan.folds)])
    if ((sizes > 0) & (sizes < min_count)).any():
        raise SiteError(Reason.TOO_FEW, "a fold would have few persons of a category or class; lower [gwas.polygenic] folds")


def _check_blocks(request: Request, given: Mapping[str, Any], min_count: int) -> Keys:
    """The variants in blocks. Raises ``SiteError`` unless each is there once, in the order of the genome, and ``usable``."""
    panel = given["poly_panel"].tobytes()
    keys, last = from_text(panel), dict[str, int]()
    if len(given["poly_flips"]) % max(len(keys), 1) or not keys:
        raise SiteError(Reason.BAD_MESSAGE, "there are no variants in blocks, or their orientations do not match them")
    before, names = "", set[str]()
    for key in keys:
        again = key.contig != before and key.contig in last
        if again or key.position <= last.get(key.contig, -1) or (key.id not in ("", ".") and key.id in names):
            raise SiteError(Reason.OFF_PLAN, "a variant is in two blocks, or the variants are not in the order of the genome")
        before, last[key.contig] = key.contig, key.position
        names.add(key.id)
    flips = own_flips(request, given["poly_flips"])
    if not usable(request.manifests, request.study, panel, flips, min_count).all():
        raise SiteError(Reason.TOO_FEW, "few persons of a fold carry an allele of a variant in a block")
    return keys


def answer(request: Request, content: RecordDict, people: Analysed, design: tuple[Floats, Floats], min_count: int) -> dict[str, Any]:
    """The sums of a step. ``design``: X (persons, K) and the outcome."""
    given, agreement = unpack(array_record(content, ANALYSIS)), unpack(array_record(content, AGREEMENT))
    check(request, given, min_count)
    plan, (x, y) = plan_of(request.study), design
    fold = folds_of(request.manifests, request.study)[people.rows]
    panel, flips = agreement[PANEL].tobytes(), agreement[FLIPS]
    if request.phase is Phase.FOLDS:
        used = usable(request.manifests, request.study, panel, own_flips(request, flips), min_count)
        sums = ridge.fold_sums(x, y, fold, plan.folds)
        return {"used": used.astype(np.uint8), "xx": sums.xx, "xy": sums.xy, "yy": sums.yy, "n": sums.n.astype(np.int64)}
    keys = _check_blocks(request, given, min_count)
    blocks = blocks_of(keys, plan.block)
    if request.phase is Phase.BLOCKS:
        asked = _asked_blocks(keys, blocks, from_text(panel))
        turned = np.frombuffer(own_flips(request, given["poly_flips"]), np.uint8)[asked[0].start : asked[-1].stop]
        if not np.array_equal(turned, np.frombuffer(own_flips(request, flips), np.uint8)):
            raise SiteError(Reason.OFF_PLAN, "the blocks have another orientation than the panel")
        return _block_sums(aligned_panel(request, panel, flips), given["frequency"], asked, people, (x, y, fold), plan)
    if given["level_shift"].shape[1] != len(blocks) * len(plan.ridge) * plan.folds:
        raise SiteError(Reason.UNDECLARED, "level_shift does not have the declared shape and type")
    w = _predictions(request, given, people, x, fold)
    if request.phase is Phase.LEVEL:
        parts = [fold == k for k in range(plan.folds)]
        ww, xw, wy = (np.stack(v) for v in zip(*((w[k].T @ w[k], x[k].T @ w[k], y[k] @ w[k]) for k in parts), strict=True))
        return {"ww": ww, "xw": xw, "wy": wy}
    return _logistic(request, given, w, (x, y, fold), min_count)


def _asked_blocks(keys: Keys, blocks: list[slice], panel: Keys) -> list[slice]:
    """The whole blocks that ``panel`` is. Raises ``SiteError`` if it is not."""
    starts, stops = [b.start for b in blocks], [b.stop for b in blocks]
    first = keys.index(panel[0]) if panel and panel[0] in keys else -1
    stop = first + len(panel)
    if first not in starts or stop not in stops or keys[first:stop] != panel:
        raise SiteError(Reason.OFF_PLAN, "sums of other variants than of whole blocks are requested")
    return blocks[starts.index(first) : stops.index(stop) + 1]


def _block_sums(
    dosages: Dosages, frequency: Floats, blocks: list[slice], people: Analysed, design: tuple[Floats, Floats, Folds], plan: Polygenic
) -> dict[str, Any]:
    x, y, fold = design
    count, start = len(frequency), blocks[0].start
    out = {
        "gg": np.zeros((plan.folds, count, plan.block)), "xg": np.zeros((plan.folds, x.shape[1], count)),
        "gy": np.zeros((plan.folds, count)),
    }  # fmt: skip
    for block in blocks:
        at = slice(block.start - start, block.stop - start)
        sums = ridge.block_sums(centred(_columns(dosages, at, people.rows), frequency[at]), x, y, fold, plan.folds)
        out["gg"][:, at, : block.stop - block.start] = sums.gg
        out["xg"][:, :, at], out["gy"][:, at] = sums.xg, sums.gy
    return out


def _columns(dosages: Dosages, at: slice, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    table = dosages.dosage
    return table[rows, at] if isinstance(table, np.ndarray) else table.block(at.start, at.stop, rows)


def _predictions(request: Request, given: Mapping[str, Any], people: Analysed, x: Floats, fold: Folds) -> Floats:
    """(persons, L) predictions of level 0, block by block and for each ridge parameter. They are not sent."""
    key = _key(request, given, (*forms.DESIGN, *forms.BLOCKED, "level", "level_shift"))
    if key not in _PREDICTIONS:
        plan, dosages = plan_of(request.study), aligned_panel(request, given["poly_panel"].tobytes(), given["poly_flips"])
        width = len(plan.ridge)
        weights = given["level"].reshape(-1, width, plan.folds)
        shift = given["level_shift"].reshape(x.shape[1], -1, plan.folds)
        w = np.empty((len(x), shift.shape[1]))
        for number, block in enumerate(blocks_of(dosages.keys, plan.block)):
            g = centred(_columns(dosages, block, people.rows), given["poly_frequency"][block])
            columns = slice(number * width, (number + 1) * width)
            for k in range(plan.folds):
                own = fold == k
                w[own, columns] = g[own] @ weights[block, :, k] - x[own] @ shift[:, columns, k]
        _PREDICTIONS.clear()
        _PREDICTIONS[key] = w
    return _PREDICTIONS[key]


def _key(request: Request, given: Mapping[str, Any], names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(f"{request.manifests} {request.study.sha256}".encode())
    for name in names:
        digest.update(f"{name}:{given[name].shape}:".encode() + given[name].tobytes())
    return digest.hexdigest()


def _logistic(
    request: Request, given: Mapping[str, Any], w: Floats, design: tuple[Floats, Floats, Folds], min_count: int
) -> dict[str, Any]:
    x, y, fold = design
    folds, ask = plan_of(request.study).folds, ridge_logistic.Ask(given["beta"], given["constant"], given["fold"])
    if forms.kind(request.study) != "logistic" or not ((ask.fold >= 0) & (ask.fold < folds)).all():
        raise SiteError(Reason.OFF_PLAN, "a logistic regression is requested of a number, or without a fold that there is not")
    eta = x @ given["theta"]
    odds = ridge_logistic.log_odds(w, eta, ask)
    for k in range(folds):
        own = odds[:, ask.fold == k]
        if own.size and any(few_effective(own[rows], min_count).any() for rows in (fold != k, fold == k)):
            raise SiteError(Reason.TOO_FEW, "at these coefficients the sums would be about few persons")
    fit = ridge_logistic.likelihood(w, eta, y, fold, ask)
    return {"gradient": fit.gradient, "rest": fit.rest, "log_likelihood": fit.log_likelihood}


def offset(request: Request, given: Mapping[str, Any], people: Analysed, x: Floats, min_count: int) -> Floats | None:
    """(persons,) what the other chromosomes predict, in the outcome's unit or as log-odds; None without a whole-genome regression, or
    before it. It is not sent.

    Raises:
        SiteError: the variants are not those of blocks, or there are too few persons for them.
    """
    if not len(given.get("poly_panel", ())):
        return None
    everyone = {**given, forms.EVERYONE: np.ones(1, np.uint8)}
    check(request, everyone, min_count)
    keys = _check_blocks(request, given, min_count)
    names = list(dict.fromkeys(key.contig for key in keys))
    leave = int(given["poly_leave"][0])
    if not -1 <= leave < len(names):
        raise SiteError(Reason.BAD_MESSAGE, "a chromosome is left out that there is not")
    key = f"{_key(request, given, (*forms.DESIGN, *forms.OFFSET))} {len(people.rows)}"
    if key not in _OFFSETS:
        if len(_OFFSETS) >= _KEPT:
            _OFFSETS.clear()
        fold = folds_of(request.manifests, request.study)[people.rows]
        dosages = aligned_panel(request, given["poly_panel"].tobytes(), given["poly_flips"])
        own, out = np.array([key.contig for key in keys]), -(x * given["poly_shift"][:, fold].T).sum(1)
        weights = np.where((own == (names[leave] if leave >= 0 else ""))[:, None], 0.0, given["poly_weights"])
        for part, rows in _parts(len(keys), people.rows):
            g = centred(_columns(dosages, part, people.rows[rows]), given["poly_frequency"][part])
            out[rows] += np.einsum("ij,ij->i", g, weights[part].T[fold[rows]])
        _OFFSETS[key] = out
    return _OFFSETS[key]


def _parts(variants: int, rows: npt.NDArray[np.int64]) -> Iterator[tuple[slice, slice]]:
    """(variants, persons) in parts of bounded memory."""
    for start in range(0, variants, _VARIANTS):
        at = 0
        for chunk in person_chunks(rows, 8 * _VARIANTS):
            yield slice(start, min(start + _VARIANTS, variants)), slice(at, at + len(chunk))
            at += len(chunk)
