"""A genome-wide association study over sites that keep their genotypes: the server's half, from agreement to summary statistics.

    counts -> covariates' scale -> principal components -> the model without variants -> each block of variants -> the table

Every step takes sums from every site (``fedml.strategies.agreement.step``) and solves what pooled data would have given
(``fedml.analytics``). A site that may not tell a variant (too few persons in a cell) is left out of that variant, and the table says how
many sites and persons each is about.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.analytics import forms, linear, logistic, pca
from fedml.analytics.linear import Association
from fedml.cohort.variants.frequency import allele_frequency, minor_allele_frequency
from fedml.cohort.variants.model import Variant
from fedml.errors import RunError
from fedml.runs.events import Step
from fedml.runs.log import GWAS_TABLE, emit
from fedml.seeds import derive_seed
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.step import take
from fedml.strategies.gwas.work import Floats, Work
from fedml.strategies.rounds import agreed_event, told_to
from fedml.study.study import Study
from fedml.wire.records import Phase

_FIT_BLOCK = 2_000  # variants that are fitted together
_TALK = 5.0  # seconds between two lines of progress where there is no terminal


def associate(study: Study, grid: Grid, run: Path) -> Path:
    """Runs the whole analysis and writes the table, its index and the two plots into ``run``; returns the table.

    Raises:
        RunError: the sites' variants do not mean the same, a site stopped answering, or nothing can be estimated.
    """
    from fedml.strategies.gwas.table import write_results

    assert study.gwas is not None  # noqa: S101 - the command has asked
    began = time.monotonic()
    agreement = agree(study, grid, told_to(run), train=False)
    nodes = {node: site for node, site in agreement.nodes.items() if agreement.shared is not None and site in agreement.shared.flips}
    agreement = replace(agreement, nodes=nodes)
    work = Work(study, grid, run, agreement, study.gwas, agreement.counts, {})
    emit(run, replace(agreed_event(agreement, told=None, parameters=0), image_shape=[]))  # nothing of images is read
    design, persons = _scale(work)
    components: dict[str, Any] = {}
    if study.gwas.components:
        loadings, components = _components(work)
        design |= loadings
    fit = _linear if forms.kind(study) == "linear" else _logistic
    result, method, null = fit(work, design)
    found = write_results(work, result, method, {"persons": persons, **null, **components})
    emit(run, replace(found, seconds=time.monotonic() - began))
    return run / GWAS_TABLE


def _step(work: Work, doing: str, done: int, total: int | None, *, told: bool = False) -> None:
    emit(work.run, Step(doing=doing, done=done, total=total, told=told))


def _scale(work: Work) -> tuple[dict[str, Any], dict[str, int]]:
    """Centre and scale of covariates and outcome from pooled sums, and how many persons each site analyses."""
    sums = take(work.study, work.grid, work.agreement.part(slice(0, 0)), Phase.COVARIATES, 0, {}, work.traffic)
    persons = {site: int(s["persons"][0]) for site, s in sums.items()}
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
    none = np.zeros(0)
    text = np.zeros(0, np.uint8)
    return {**design, "loading_frequency": none, "loading_panel": text, "loading_flips": text}, persons


def _components(work: Work) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loadings of the principal components, and what is told of how they were found."""
    pooled = work.pooled
    usable = work.told.all(0) & (minor_allele_frequency(pooled) >= max(work.plan.pca_min_maf, 1e-9))
    chosen = _spaced(work.keys, np.flatnonzero(usable), work.plan.pca_spacing)
    if len(chosen) <= work.plan.components:
        raise RunError(
            f"only {len(chosen)} variants are told by every site and common enough for {work.plan.components} principal components; "
            "lower [gwas] components or pca_min_maf."
        )
    part, frequency = work.agreement.part(chosen), allele_frequency(pooled[:, chosen])
    seed = derive_seed("components", work.study.study.seed) % 2**32
    state = pca.start(len(chosen), work.plan.components, seed=seed, tolerance=work.plan.pca_tolerance)
    while not state.done:
        asked = state.columns_asked + state.basis.shape[1]
        given = {"frequency": frequency, "basis": state.basis}
        products = take(work.study, work.grid, part, Phase.SUBSPACE, asked, given, work.traffic)
        state = pca.step(state, np.sum([own["product"] for own in products.values()], axis=0))
        _step(work, f"components: step {state.steps}, angle at most {state.angle:.1e} rad", state.steps, None)
        if state.steps > 200:
            raise RunError(f"the components still move by {state.moved:.1e} rad after 200 steps; lower [gwas] components.")
    text = f"{len(chosen)} variants, {state.steps} steps, {state.columns_asked} columns, angle at most {state.angle:.1e} rad"
    _step(work, f"{work.plan.components} principal components of {text}", state.steps, None, told=True)
    loadings = {
        "loadings": state.loadings, "loading_values": state.eigenvalues, "loading_frequency": frequency,
        "loading_panel": np.frombuffer(part.panel, np.uint8), "loading_flips": part.flips(),
    }  # fmt: skip
    found = {"pca_variants": len(chosen), "pca_steps": state.steps, "pca_columns": state.columns_asked, "pca_angle_rad": state.angle,
             "eigenvalues": state.eigenvalues.tolist()}  # fmt: skip
    return loadings, found


def _spaced(keys: tuple[Variant, ...], candidates: npt.NDArray[np.int64], spacing: int) -> npt.NDArray[np.int64]:
    """Those of ``candidates`` that are at least ``spacing`` bases from the last one taken on their contig."""
    if not spacing:
        return candidates
    taken, last = list[int](), dict[str, int]()
    for at in sorted(candidates, key=lambda i: (keys[i].contig, keys[i].position)):
        if keys[at].position - last.get(keys[at].contig, -spacing) >= spacing:
            taken.append(at)
            last[keys[at].contig] = keys[at].position
    return np.array(sorted(taken), dtype=np.int64)


def _blocks(work: Work) -> Iterator[tuple[int, slice]]:
    """Number and range of each block of variants; says how far the analysis is."""
    total, last = len(work.keys), 0.0
    for number, start in enumerate(range(0, total, work.plan.block)):
        stop = min(start + work.plan.block, total)
        yield number, slice(start, stop)
        now = time.monotonic()
        _step(work, f"variants {stop} of {total}", stop, total, told=now - last > _TALK)
        last = now if now - last > _TALK else last


def _sum(work: Work, block: slice, sums: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """Over the sites, one variant a column; checks that the sites told what their counts told."""
    told = work.told[:, block]
    for site, own, row in zip(work.sites, sums.values(), told, strict=True):
        if not np.array_equal(own["used"].astype(bool), row):
            raise RunError(f"{site} tells other variants now than when it counted; its data changed while the analysis ran. Run it again.")
    return np.sum([own[name] for own in sums.values()], axis=0)


def _linear(work: Work, design: dict[str, Any]) -> tuple[Association, npt.NDArray[np.str_], dict[str, Any]]:
    theta = np.zeros(forms.sizes(work.study, 0)["K"])
    empty = work.agreement.part(slice(0, 0))
    null = take(work.study, work.grid, empty, Phase.NULL, 0, {**design, "theta": theta}, work.traffic)
    sums = [linear.NullSums(s["xx"], s["xy"], float(s["yy"][0]), int(s["n"][0])) for s in null.values()]
    frequency, told, parts = allele_frequency(work.pooled), work.told, []
    for number, block in _blocks(work):
        given = {**design, "frequency": np.nan_to_num(frequency[block]), "theta": theta}
        got = take(work.study, work.grid, work.agreement.part(block), Phase.ASSOCIATION, number, given, work.traffic)
        total = linear.VariantSums(*(_sum(work, block, got, name) for name in ("xg", "gg", "gy")))
        parts.append(linear.solve(sums, told[:, block], total))
    result = Association(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    return result, np.full(len(work.keys), "linear"), {}


def _logistic(work: Work, design: dict[str, Any]) -> tuple[Association, npt.NDArray[np.str_], dict[str, Any]]:
    theta, null, persons = _null_model(work, design)
    cases = persons["cases"]
    frequency, told = np.nan_to_num(allele_frequency(work.pooled)), work.told
    everywhere, parts = told.all(0), []
    for number, block in _blocks(work):
        given = {**design, "frequency": frequency[block], "theta": theta[:, 0]}
        got = take(work.study, work.grid, work.agreement.part(block), Phase.ASSOCIATION, number, given, work.traffic)
        total = logistic.ScoreSums(*(_sum(work, block, got, name) for name in ("score", "gwg", "xwg")))
        parts.append(logistic.score_test(null, told[:, block], total))
    result = Association(*(np.concatenate(field).copy() for field in zip(*parts, strict=True)))
    method = np.full(len(work.keys), "score")
    controls = int(sum(s.n[0] for s in null)) - cases
    rare = logistic.needs_firth(frequency, cases, controls) if work.plan.firth == "auto" else np.zeros(len(frequency), bool)
    # Where a site is left out the score test's model is not that of the persons who are left: those variants are fitted whatever it said.
    wanted = told.any(0) & ((result.p <= work.plan.first_pass_p) | ~everywhere)
    steps = 0
    plain, steps = _fitted(work, design, theta, frequency, np.flatnonzero(wanted & ~rare), steps, result, method, firth=False)
    penalised = np.flatnonzero(wanted & rare)
    if work.plan.firth == "auto":
        penalised = np.union1d(penalised, plain)
    _fitted(work, design, theta, frequency, penalised, steps, result, method, firth=True)
    return result, method, {"cases": cases, "controls": controls}


def _null_model(work: Work, design: dict[str, Any]) -> tuple[Floats, list[Any], dict[str, int]]:
    """Coefficients (K, 1) of the covariates alone, each site's sums there, and how many cases there are."""
    state = logistic.start(logistic.null_theta(forms.sizes(work.study, 0)["K"]))
    empty, number = work.agreement.part(slice(0, 0)), 0
    while True:
        theta = state.theta
        got = take(work.study, work.grid, empty, Phase.NULL, number, {**design, "theta": theta[:, 0]}, work.traffic)
        own = [logistic.LikelihoodSums(s["gradient"], s["information"], s["log_likelihood"], s["n"]) for s in got.values()]
        if not len(state.active):  # these are the sums at the solution
            break
        state, number = logistic.step(state, _total(own)), number + 1
    if not state.converged[0]:
        raise RunError("the model of the covariates alone has no solution (they separate cases from controls); take covariates away.")
    cases = sum(int(s["cases"][0]) for s in got.values())
    if not 0 < cases < sum(int(s["n"][0]) for s in got.values()):
        raise RunError("all persons are of one class; look at [cohort] classes and target.")
    return theta, own, {"cases": cases}


def _total(own: list[Any]) -> Any:
    return sum(own[1:], own[0])


def _fitted(
    work: Work, design: dict[str, Any], theta: Floats, frequency: Floats, chosen: npt.NDArray[np.int64], steps: int,
    result: Association, method: npt.NDArray[np.str_], *, firth: bool,
) -> tuple[npt.NDArray[np.int64], int]:  # fmt: skip
    """Fits the ``chosen`` variants in full and puts them into ``result``; returns those that have no solution, and the steps taken so
    far."""
    lost = []
    name = "firth" if firth else "wald"
    for start in range(0, len(chosen), _FIT_BLOCK):
        own = chosen[start : start + _FIT_BLOCK]
        state = logistic.start(logistic.with_variant(theta, len(own)), firth=firth)
        while len(state.active):
            at = own[state.active]
            given = {
                **design, "frequency": frequency[at], "theta_fit": state.ask, "inverse": state.inverse,
                "penalised": np.array([firth], np.uint8),
            }  # fmt: skip
            got = take(work.study, work.grid, work.agreement.part(at), Phase.FIT, steps, given, work.traffic)
            sums = [logistic.LikelihoodSums(s["gradient"], s["information"], s["log_likelihood"], s["n"]) for s in got.values()]
            state, steps = logistic.step(state, _total(sums)), steps + 1
            _step(work, f"fitting {len(chosen)} variants ({name}), step {state.iteration}", start, len(chosen))
        fitted = logistic.wald(state)
        good = state.converged
        for field, values in zip(result, fitted, strict=True):
            field[own[good]] = values[good]
            field[own[~good]] = values[~good] if field.dtype.kind == "i" else np.nan
        method[own] = name
        lost += own[~good].tolist()
    return np.array(lost, dtype=np.int64), steps
