"""The server's part of a genome-wide association study over sites, from the agreement to summary statistics.

    counts -> scale of covariates -> principal components -> null model -> each block of variants -> table

Every step requests sums from every site (``fedml.strategies.agreement.step``) and solves the same equations as an analysis of pooled data
(``fedml.analytics``). A site whose policy withholds a variant (too few persons in a cell) is excluded from that variant, and the table
gives each variant's number of sites and persons.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.analytics import forms, linear, logistic, pca
from fedml.analytics.linear import Association
from fedml.analytics.meta import Combined, combine
from fedml.cohort.variants.frequency import allele_frequency, alleles, minor_allele_frequency
from fedml.errors import RunError
from fedml.runs.events import Step
from fedml.runs.log import GWAS_TABLE, emit
from fedml.seeds import derive_seed
from fedml.strategies.agreement.step import BySite, Traffic, take
from fedml.strategies.gwas.panel import enough_persons, spaced, tell_relatives, tested_together
from fedml.strategies.gwas.polygenic import Background, null_of, regress, without
from fedml.strategies.gwas.work import Fitted, Floats, Work, begin
from fedml.study.contigs import has_one_copy
from fedml.study.study import Study
from fedml.wire.records import Phase

_FIT_BLOCK = 2_000  # variants per block of full fits
_LOG_EVERY_SECONDS = 5.0  # between progress lines without a terminal


def associate(study: Study, grid: Grid, run: Path) -> Path:
    """Runs the whole analysis and writes the table, its index and two plots to the folder ``run``; returns the table's path.

    Raises:
        RunError: the sites' variants cannot be harmonised, a site stopped answering, or the model cannot be estimated.
    """
    began = time.monotonic()
    return analyse(begin(study, grid, run, Traffic(run)), began)


def analyse(work: Work, began: float) -> Path:
    """The analysis of ``associate``, from the agreement on. ``began``: by ``time.monotonic``."""
    from fedml.strategies.gwas.table import write_results

    study, run = work.study, work.run
    assert study.gwas is not None  # noqa: S101 - the command has checked
    design, persons = _scale(work)
    components: dict[str, Any] = {}
    if study.gwas.components:
        loadings, components = _components(work, persons)
        design |= loadings
    background = _background(work, design, persons)
    fitted = _fit(work, design, background)
    found = write_results(fitted, {"persons": persons, **fitted.facts, **components})
    emit(run, replace(found, seconds=time.monotonic() - began))
    return run / GWAS_TABLE


class TooRareError(RunError):
    """No variant of an analysis has as many minor alleles as ``min_mac``."""


def _background(work: Work, design: dict[str, Any], persons: dict[str, int]) -> Background | None:
    """The whole-genome regression, if the study has one."""
    if (plan := work.plan.polygenic) is None:
        return None
    null = None
    if forms.kind(work.study) == "logistic":
        theta, sums, _ = _null_model(work, {**design, **without(work.study)})
        null = null_of(work, theta, _total(sums))
    return regress(work, plan, design, persons, null)


def _fit(work: Work, design: dict[str, Any], background: Background | None) -> Fitted:
    """The tests of all variants: those on Y among the men, the others among everyone, with a whole-genome regression chromosome by
    chromosome; with the persons of a binary outcome."""
    fit = _linear if forms.kind(work.study) == "linear" else _logistic
    found, rare, lost, problem = list[Fitted](), 0, 0, None
    for mask, everyone, contig in tested_together(work, by_contig=background is not None):
        if mask.any():
            try:
                own = work if everyone and mask.all() else work.of(mask, everyone=everyone)
                offset = {} if background is None else background.given(work, contig)
                found.append(fit(own, {**design, **offset}))
            except TooRareError as error:  # of one kind; the others may be common
                rare, problem = rare + int(mask.sum()), problem or error
            except RunError as error:
                if everyone or not found:
                    raise
                lost = int(mask.sum())  # such as a site without a man among the cases; the others are tested already
                _step(work, f"variants on Y are not tested: {error}", lost, lost, log=True)
    if problem is not None and not found:
        raise problem
    done = found[0] if len(found) == 1 and not rare and not lost else _together(work, found, rare)
    return done._replace(facts=done.facts | {"on_y": lost} | ({} if background is None else background.facts))


def _together(work: Work, found: list[Fitted], rare: int) -> Fitted:
    """The tests of ``found`` in the order of ``work``, without the variants that were too rare, of which ``rare`` are in none of them."""
    at = {key: number for number, key in enumerate(key for part in found for key in part.work.keys)}
    kept = np.array([key in at for key in work.keys], bool)
    order = np.array([at[key] for key in work.keys if key in at], np.int64)

    def one(parts: Sequence[Any]) -> Any:
        return type(parts[0])(*(values[order] for values in _joined(parts)))

    return Fitted(
        _chosen(work, kept), one([part.result for part in found]), np.concatenate([part.method for part in found])[order],
        one([part.meta for part in found]), found[0].facts | {"rare": rare + sum(part.facts["rare"] for part in found)},
    )  # fmt: skip


def _chosen(work: Work, kept: npt.NDArray[np.bool_]) -> Work:
    """The work on the variants ``kept`` (variants,)."""
    counts = {site: table[:, kept] for site, table in work.counts.items()}
    return replace(work, agreement=work.agreement.part(np.flatnonzero(kept)), counts=counts)


def _step(work: Work, doing: str, done: int, total: int | None, *, log: bool = False) -> None:
    """Emits a progress event; ``log``: print it also without a terminal."""
    emit(work.run, Step(doing=doing, done=done, total=total, log=log))


def _scale(work: Work) -> tuple[dict[str, Any], dict[str, int]]:
    """Centre and scale of covariates and outcome from pooled sums, as the start of the design; and site -> persons analysed."""
    sums = take(work.study, work.grid, work.agreement.part(slice(0, 0)), Phase.COVARIATES, 0, {}, work.traffic)
    persons = {site: int(s["persons"][0]) for site, s in sums.items()}
    tell_relatives(work.run, work.plan, persons, {site: int(s["relatives"][0]) for site, s in sums.items()})
    centre, scale = linear.scaling_from(np.sum([s["moments"] for s in sums.values()], axis=0))
    blank = np.zeros((0, 0))
    design = {
        "centre": centre,
        "scale": scale,
        "loadings": np.zeros((0, work.plan.components)),
        "loading_values": blank[0:0, 0:0].reshape(0),
    }
    if work.plan.components:
        design["loading_values"] = np.ones(work.plan.components)
    no_frequency, no_bytes = np.zeros(0), np.zeros(0, np.uint8)
    return {**design, "loading_frequency": no_frequency, "loading_panel": no_bytes, "loading_flips": no_bytes}, persons


def _components(work: Work, persons: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loadings of the principal components for the design, and a summary of the iteration for the run's record.

    Raises:
        RunError: too few variants, the iteration does not converge, or it needs more columns than a site has persons.
    """
    pooled = work.pooled
    # Components are of autosomes: on X they would be those of the sexes.
    autosome = work.keys.by_contig(lambda contig: not has_one_copy(contig) and contig != "PAR")
    usable = work.reported.all(0) & autosome & (minor_allele_frequency(pooled) >= max(work.plan.pca_min_maf, 1e-9))
    chosen = spaced(work.keys, np.flatnonzero(usable), work.plan.pca_spacing)
    if len(chosen) <= work.plan.components:
        raise RunError(
            f"only {len(chosen)} variants of autosomes are reported by every site with a frequency above [gwas] pca_min_maf, too few for "
            f"{work.plan.components} principal components; lower [gwas] components or pca_min_maf."
        )
    part, frequency = work.agreement.part(chosen), allele_frequency(pooled[:, chosen])
    seed = derive_seed("components", work.study.study.seed) % 2**32
    state = pca.start(len(chosen), work.plan.components, seed=seed, tolerance=work.plan.pca_tolerance)
    while not state.done:
        columns = state.columns_asked + state.basis.shape[1]
        enough_persons(work.plan, columns, persons)
        given = {"frequency": frequency, "basis": state.basis}
        products = take(work.study, work.grid, part, Phase.SUBSPACE, columns, given, work.traffic)
        state = pca.step(state, np.sum([sums["product"] for sums in products.values()], axis=0))
        _step(work, f"components: step {state.steps}, angle at most {state.angle:.1e} rad", state.steps, None)
        if state.steps > 200:
            raise RunError(f"the components still change by {state.moved:.1e} rad after 200 steps; lower [gwas] components.")
    text = f"{len(chosen)} variants, {state.steps} steps, {state.columns_asked} columns, angle at most {state.angle:.1e} rad"
    _step(work, f"{work.plan.components} principal components of {text}", state.steps, None, log=True)
    loadings = {
        "loadings": state.loadings, "loading_values": state.eigenvalues, "loading_frequency": frequency,
        "loading_panel": np.frombuffer(part.panel, np.uint8), "loading_flips": part.flips(),
    }  # fmt: skip
    found = {"pca_variants": len(chosen), "pca_steps": state.steps, "pca_columns": state.columns_asked, "pca_angle_rad": state.angle,
             "eigenvalues": state.eigenvalues.tolist()}  # fmt: skip
    return loadings, found


def _blocks(work: Work) -> Iterator[slice]:
    """The range of each block of variants; emits progress events."""
    total, last = len(work.keys), 0.0
    for start in range(0, total, work.plan.block):
        stop = min(start + work.plan.block, total)
        yield slice(start, stop)
        now = time.monotonic()
        _step(work, f"variants {stop} of {total}", stop, total, log=now - last > _LOG_EVERY_SECONDS)
        last = now if now - last > _LOG_EVERY_SECONDS else last


def _placed(work: Work, block: slice, sums: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> list[list[Any]]:
    """For each site its sums ``names``, one variant per column, with a row for each coefficient of the whole model.

    Raises:
        RunError: a site reports other variants than in its genotype counts.
    """
    for site, local, row in zip(work.sites, sums.values(), work.reported[:, block], strict=True):
        if not np.array_equal(local["used"].astype(bool), row):
            raise RunError(f"{site} reports other variants than in its genotype counts, its data changed during the run; run it again.")
    rows = ("xg", "xwg")
    return [
        [work.intercepts.vector(local[name], site) if name in rows else local[name] for name in names]
        for site, local in enumerate(sums.values())
    ]


def _combined(own: Sequence[Association | linear.Estimates]) -> Combined:
    return combine(np.stack([site.beta for site in own]), np.stack([site.standard_error for site in own]))


def _joined(blocks: Sequence[Any]) -> Any:
    """Results of blocks of variants as one."""
    return type(blocks[0])(*(np.concatenate(field) for field in zip(*blocks, strict=True)))


def _asked(work: Work, theta: Floats) -> BySite:
    """Each site's rows of the coefficients ``theta`` (width,) of the model without a variant."""
    return BySite({site: work.intercepts.theta(theta, at) for at, site in enumerate(work.sites)})


def _likelihood(work: Work, local: Mapping[str, Mapping[str, Any]]) -> list[logistic.LikelihoodSums]:
    """The sites' sums, at their places in the whole model."""
    own = work.intercepts
    return [
        logistic.LikelihoodSums(own.vector(s["gradient"], at), own.triangle(s["information"], at), s["log_likelihood"], s["n"])
        for at, s in enumerate(local.values())
    ]


def _linear(work: Work, design: dict[str, Any]) -> Fitted:
    work, rare = _common(work, 1.0)
    theta, own = np.zeros(work.intercepts.columns), work.intercepts
    empty = work.agreement.part(slice(0, 0))
    null = work.take(empty, Phase.NULL, {**design, "theta": theta})
    sums = [
        linear.NullSums(own.matrix(s["xx"], site), own.vector(s["xy"], site), float(s["yy"][0]), int(s["n"][0]))
        for site, s in enumerate(null.values())
    ]
    frequency, parts, meta = allele_frequency(work.pooled), [], []
    for block in _blocks(work):
        given = {**design, "frequency": np.nan_to_num(frequency[block]), "theta": theta}
        local = work.take(work.agreement.part(block), Phase.ASSOCIATION, given)
        placed, reported = _placed(work, block, local, ("xg", "gg", "gy")), work.reported[:, block]
        parts.append(linear.solve(sums, reported, linear.VariantSums(*(np.sum(same, axis=0) for same in zip(*placed, strict=True)))))
        alone = zip(sums, reported, placed, strict=True)
        meta.append(_combined([linear.estimate([null], has[None], linear.VariantSums(*mine)) for null, has, mine in alone]))
    return Fitted(work, _joined(parts), np.full(len(work.keys), "linear"), _joined(meta), {"rare": rare})


def _common(work: Work, balance: float) -> tuple[Work, int]:
    """The work on the variants with at least ``min_mac`` minor alleles, and how many have fewer. Which they are depends on all sites'
    counts, and not on who of their carriers is a case.

    Args:
        balance: minor alleles are worth so much: 1, or of a binary outcome the effective number of persons divided by all persons.

    Raises:
        TooRareError: no variant has as many.
    """
    alt, called = alleles(work.pooled)
    common = np.minimum(alt, called - alt) * balance >= work.plan.min_mac
    if not common.any():
        worth = "" if balance == 1 else f" (each counts as {balance:.3g}, because cases and controls are not equally many)"
        raise TooRareError(
            f"none of {len(common)} variants has {work.plan.min_mac:g} minor alleles{worth}; lower [gwas] min_mac, or add persons."
        )
    if common.all():
        return work, 0
    return _chosen(work, common), int((~common).sum())


def _logistic(work: Work, design: dict[str, Any]) -> Fitted:
    theta, null, persons = _null_model(work, design)
    cases = persons["cases"]
    controls = int(sum(s.n[0] for s in null)) - cases
    work, rare = _common(work, logistic.balance(cases, controls))
    frequency, reported = np.nan_to_num(allele_frequency(work.pooled)), work.reported
    everywhere, parts, meta = reported.all(0), [], []
    for block in _blocks(work):
        given = {**design, "frequency": frequency[block], "theta": _asked(work, theta[:, 0])}
        local = work.take(work.agreement.part(block), Phase.ASSOCIATION, given)
        placed, told = _placed(work, block, local, ("score", "gwg", "xwg")), reported[:, block]
        total = logistic.ScoreSums(*(np.sum(same, axis=0) for same in zip(*placed, strict=True)))
        parts.append(logistic.score_test(null, told, total))
        alone = zip(null, told, placed, strict=True)
        meta.append(_combined([logistic.score_test([n], has[None], logistic.ScoreSums(*mine)) for n, has, mine in alone]))
    result: Association = _joined(parts)
    method = np.full(len(work.keys), "score")
    few = logistic.needs_firth(frequency, cases, controls) if work.plan.firth == "auto" else np.zeros(len(frequency), bool)
    # If a site is excluded from a variant, the null model of the score test includes persons who are not in that variant's sums: such
    # variants are always fitted in full.
    selected = reported.any(0) & ((result.p <= work.plan.first_pass_p) | ~everywhere)
    fits = _Fits(design, theta, frequency, result, method)
    plain = _fitted(work, fits, np.flatnonzero(selected & ~few), firth=False)
    penalised = np.flatnonzero(selected & few)
    if work.plan.firth == "auto":
        penalised = np.union1d(penalised, plain)
    _fitted(work, fits, penalised, firth=True)
    return Fitted(work, result, method, _joined(meta), {"cases": cases, "controls": controls, "rare": rare})


def _null_model(work: Work, design: dict[str, Any]) -> tuple[Floats, list[Any], dict[str, int]]:
    """Coefficients (K, 1) of the null model (covariates without a variant), each site's sums at them, and the number of cases.

    Raises:
        RunError: the null model has no finite solution, or all persons are of one class.
    """
    state = logistic.start(logistic.null_theta(work.intercepts.width))
    empty, number = work.agreement.part(slice(0, 0)), 0  # number: of steps so far
    while True:
        theta = state.theta
        local = work.take(empty, Phase.NULL, {**design, "theta": _asked(work, theta[:, 0])})
        sums = _likelihood(work, local)
        if number == 0:
            _check_classes(work, {site: (int(s["cases"][0]), int(s["n"][0])) for site, s in local.items()})
        if not len(state.active):  # these are the sums at the solution
            break
        state, number = logistic.step(state, _total(sums)), number + 1
    if not state.converged[0]:
        raise RunError("the null model has no finite solution: the covariates separate cases from controls; remove [gwas] covariates.")
    return theta, sums, {"cases": sum(int(s["cases"][0]) for s in local.values())}


def _check_classes(work: Work, classes: Mapping[str, tuple[int, int]]) -> None:
    """Raises ``RunError`` where the outcome cannot be told from the site. ``classes``: site -> (cases, persons)."""
    cases, persons = (sum(pair[i] for pair in classes.values()) for i in (0, 1))
    if not 0 < cases < persons:
        raise RunError("all persons are of one class; correct [cohort] classes or target.")
    single = {site: "cases" if found else "controls" for site, (found, n) in classes.items() if found in (0, n)}
    names = ", ".join(f"{site} has {kind} only" for site, kind in single.items())
    if len(single) == len(classes):
        raise RunError(f"{names}: a variant that differs between sites looks like one of the disease; add a site that has both.")
    if single and work.intercepts.each:
        advice = "leave such a site out of [federation] sites"
        raise RunError(f'{names}: with an intercept for each site it has no part in any test; {advice}, or set [gwas] intercept = "one".')


def _total(sums: list[Any]) -> Any:
    return sum(sums[1:], sums[0])


class _Fits(NamedTuple):
    """The inputs of full fits, and their results: ``result`` and ``method`` of all variants."""

    design: dict[str, Any]
    theta: Floats
    frequency: Floats
    result: Association
    method: npt.NDArray[np.str_]


def _fitted(work: Work, fits: _Fits, chosen: npt.NDArray[np.int64], *, firth: bool) -> npt.NDArray[np.int64]:
    """Fits the ``chosen`` variants in full and writes the results to ``fits``; returns those without a finite solution."""
    lost = []
    name = "firth" if firth else "wald"
    for start in range(0, len(chosen), _FIT_BLOCK):
        block = chosen[start : start + _FIT_BLOCK]
        state = _iterated(work, fits, block, f"fitting {len(chosen)} variants ({name})", firth=firth)
        fitted, converged = logistic.wald(state), state.converged
        if firth:
            doing = f"testing {len(chosen)} variants ({name})"
            held = _iterated(work, fits, block, doing, firth=True, held=True)
            fitted, converged = logistic.likelihood_ratio(state, held), converged & held.converged
        for field, values in zip(fits.result, fitted, strict=True):
            field[block[converged]] = values[converged]
            field[block[~converged]] = values[~converged] if field.dtype.kind == "i" else np.nan
        fits.method[block] = name
        lost += block[~converged].tolist()
    return np.array(lost, dtype=np.int64)


def _iterated(
    work: Work, fits: _Fits, block: npt.NDArray[np.int64], doing: str, *, firth: bool, held: bool = False
) -> logistic.LogisticState:
    """The solved state of the variants ``block``."""
    state = logistic.start(logistic.with_variant(fits.theta, len(block)), firth=firth, held=held)
    while len(state.active):
        at = block[state.active]
        given: dict[str, Any] = {**fits.design, "frequency": fits.frequency[at], "penalised": np.array([firth], np.uint8)}
        places = work.intercepts
        given["theta_fit"] = BySite({site: places.theta(state.ask, number) for number, site in enumerate(work.sites)})
        given["inverse"] = BySite({site: places.inverse(state.inverse, number) for number, site in enumerate(work.sites)})
        local = work.take(work.agreement.part(at), Phase.FIT, given)
        state = logistic.step(state, _total(_likelihood(work, local)))
        _step(work, f"{doing}, step {state.iteration}", int(len(block) - len(state.active)), len(block))
    return state
