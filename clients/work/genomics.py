"""The site's part of an analysis of genotypes: sums over its persons for each step, and the checks of the gate on them.

If too few persons of the site (``people.py``) carry one of a variant's alleles (``fedml.cohort.variants.ploidy.site_table``), the variant
is excluded: its sums are 0 (its counts -1), and ``used`` is 0. The outcome has no part in that. Sums about Y are of the men alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedml.analytics import forms, linear, pca
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.clients.work import fractions, frequencies, polygenic
from fedml.clients.work.effective import few_effective
from fedml.clients.work.genes import Site as GeneSite
from fedml.clients.work.genes import check_columns, check_sums, gene_sums, order_of
from fedml.clients.work.people import Analysed, Floats, analysed, asks_men, only_men, relatives, told_relatives
from fedml.clients.work.polygenic import aligned_panel
from fedml.clients.work.request import Request, own_flips, read_site_once
from fedml.clients.work.sums import association_sums, few_in_fit, fit_sums, null_sums, plus
from fedml.cohort.variants.frequency import few, reported
from fedml.cohort.variants.genotypes import dosage_sums, group_counts, out_of_equilibrium
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.ploidy import ABSENT, Y, site_table, two_copies
from fedml.errors import Reason, SiteError
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, ANALYSIS, FLIPS, PANEL, POLYGENIC, Phase, array_record, pack, unpack

NULL_STEPS = 50  # Newton needs fewer than ten; repeated queries at different coefficients could identify persons
CONTIGS = 26  # each has a model without variants of its own after a whole-genome regression


def forget_data() -> None:
    """Computes everything anew from now on: a file of the site changed."""
    analysed.cache_clear()
    relatives.cache_clear()
    _any_small.cache_clear()
    polygenic.forget()
    _COMPONENTS.clear()


def persons(request: Request) -> list[str]:
    """Ids of the persons in an analysis, for the site's ledger."""
    cohort = load_cohort(request.manifests, request.study)
    return [cohort.ids[row] for row in analysed(request.manifests, request.study).rows]


def person_sets(request: Request, min_count: int) -> list[list[str]]:
    """Ids of the persons of each set about whom an analysis releases exact values."""
    if request.study.frequencies is None:
        return [persons(request)]
    cohort, people = load_cohort(request.manifests, request.study), analysed(request.manifests, request.study)
    return [[cohort.ids[row] for row in rows] for rows in frequencies.released_sets(cohort, people, request.study, min_count)]


def check_persons(request: Request, content: RecordDict, fewest: int, columns_before: int) -> int:
    """The number of persons in the analysis. Raises ``SiteError`` if they are too few, or if components need more columns than persons.

    With as many products of its genotypes (columns) as it has persons, a site's genotypes could be solved for. The round number of a
    subspace request is the total number of columns requested in the run, this request included, so the journal shows the earlier total.
    """
    people = analysed(request.manifests, request.study)
    count = len(only_men(people).rows) if asks_men(content) else len(people.rows)
    if count < fewest:
        raise SiteError(Reason.TOO_FEW, f"{count} persons would be analysed, [policy] min_persons requires {fewest}")
    most = NULL_STEPS * (1 if request.study.gwas is None or request.study.gwas.polygenic is None else 1 + CONTIGS)
    if request.phase is Phase.NULL and request.round > most:
        raise SiteError(Reason.ROUNDS, f"the model without variants is requested {request.round} times, at most {most} are allowed")
    if request.phase is Phase.SUBSPACE:
        columns = unpack(array_record(content, ANALYSIS))["basis"].shape[1]
        if not columns_before + columns <= request.round <= count:
            raise SiteError(Reason.TOO_FEW, f"components would need {request.round} columns of {count} persons; reduce [gwas] components")
    return count


def design_digest(request: Request, content: RecordDict) -> str:
    """Digest of the run's design (covariates and components); empty for steps before there is a design. A run has one design, because the
    sums of models with different components would each reveal more of the genotypes."""
    given = unpack(array_record(content, ANALYSIS))
    return _digest(given, *forms.DESIGN) if forms.DESIGN.keys() <= given.keys() else ""


def _digest(given: Mapping[str, Any], *names: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}:{given[name].shape}:".encode())
        digest.update(given[name].tobytes())
    return digest.hexdigest()


def gene_variants(request: Request, content: RecordDict) -> list[int]:
    """Numbers of the variants in a request about genes. Raises ``SiteError`` as ``fedml.clients.work.genes.check_columns``."""
    given = unpack(array_record(content, ANALYSIS))
    return check_columns(request.study, _panel(request, content).keys, given)


def theta_digest(content: RecordDict) -> str:
    """Digest of the coefficients of a request about genes, of which a run has one: they weigh persons."""
    return _digest(unpack(array_record(content, ANALYSIS)), "theta")


def shapes_of_reply(request: Request, content: RecordDict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each array in the reply to ``request``."""
    given = unpack(array_record(content, ANALYSIS))
    variants = unpack(array_record(content, AGREEMENT))[PANEL].tobytes().count(b"\n")
    return forms.reply_shapes(request.study, request.phase, variants, given)


def check_small(request: Request, reply: RecordDict, content: RecordDict, min_count: int) -> None:
    """Raises ``SiteError`` if a number in the reply is about fewer than ``min_count`` persons. Counts the persons independently of the code
    that computed the reply."""
    values = unpack(array_record(reply, ANALYSIS))
    text = f"numbers about fewer than {min_count} persons (min_count) would be sent"
    for name in ("persons", "n", "cases"):
        if name in values and 0 < int(values[name][0]) < min_count:
            raise SiteError(Reason.TOO_FEW, text)
    if "relatives" in values and 0 < int(values["relatives"][0]) < min_count:
        raise SiteError(Reason.TOO_FEW, text)
    if "cases" in values and 0 < int(values["n"][0] - values["cases"][0]) < min_count:
        raise SiteError(Reason.TOO_FEW, text)
    # Sums of components of one variant would reveal its counts: an honest server builds components from variants that no site excludes.
    source = unpack(array_record(content, AGREEMENT if request.phase is Phase.SUBSPACE else ANALYSIS))
    panel, flips = (PANEL, FLIPS) if request.phase is Phase.SUBSPACE else ("loading_panel", "loading_flips")
    local = (source[panel].tobytes(), own_flips(request, source[flips])) if panel in source and min_count > 1 else None
    if local is not None and _any_small(request.manifests, request.study, *local, min_count):
        raise SiteError(Reason.TOO_FEW, f"components: {text}")
    if request.phase is Phase.GENES:
        return check_sums(
            request.study, _gene_site(request, _panel(request, content), min_count), unpack(array_record(content, ANALYSIS)), values
        )
    if request.phase not in (Phase.GENOTYPES, Phase.ASSOCIATION, Phase.FIT, Phase.FREQUENCIES):
        return
    dosages = _panel(request, content)
    small = _small(request, dosages, min_count)
    if "counts" in values and len(values["counts"]) > 7:
        few_fractions = fractions.about_few(dosages, analysed(request.manifests, request.study), min_count)
        if (few_fractions & ~small & ~fractions.whole(values["counts"][7:])).any():
            raise SiteError(Reason.TOO_FEW, f"sums of dosages: {text}")
    if "counts" in values and few(_told_persons(values["counts"]), min_count).any():
        raise SiteError(Reason.TOO_FEW, f"counts: {text}")
    for name, value in values.items():
        blank = -1 if name in ("counts", "alleles") else 0
        if (np.moveaxis(value, -1, 0)[small] != blank).any():
            raise SiteError(Reason.TOO_FEW, f"{name}: {text}")
    if request.phase is Phase.FREQUENCIES:
        frequencies.check_told(request.study, dosages, *_cells(request, dosages), values["alleles"], min_count)


def _cells(request: Request, dosages: Dosages) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """The cells of the table of frequencies (cells, persons), and the genotype counts of each."""
    people = analysed(request.manifests, request.study)
    masks = frequencies.cell_masks(load_cohort(request.manifests, request.study), people, request.study)
    return masks, _group_counts(dosages, people, masks)


def analyse(request: Request, content: RecordDict) -> RecordDict:
    """The reply of a step: its sums over the site's persons."""
    given = unpack(array_record(content, ANALYSIS))
    people = analysed(request.manifests, request.study)
    study, sites = request.study.policy, [read_site_once(m).manifest.policy for m in request.manifests]
    floor = max(study.min_count, *(site.min_count for site in sites))
    dosages = fractions.without_few(_panel(request, content), people, floor)
    fewest_men = max(floor, study.min_persons, *(site.min_persons for site in sites))
    match request.phase:
        case Phase.GENOTYPES:
            groups = np.vstack([people.groups, people.sexes, people.controls, people.sexes[1] & people.controls])
            counts = _group_counts(dosages, people, groups)
            told, hidden = site_table(counts[:-4], counts[-4:-2], dosages.where, floor, fewest_men)
            controls, female = counts[-2:]
            # Of few persons the test would tell which genotypes they have: a study may set any threshold.
            tested = ~few(two_copies(controls, female, dosages.where)[:3], floor).any(0)
            fails = tested & out_of_equilibrium(controls, female, dosages.where, request.study.cohort.variants)
            rows = [told[:4], fails, told[4:]]
            if request.study.cohort.variants.fractions:
                rows.append(dosage_sums(dosages, people.rows))
            return _reply({"counts": np.where(hidden, -1, np.vstack(rows))})
        case Phase.FREQUENCIES:
            hidden = _site_table(dosages, people, floor, fewest_men)[1]
            return _reply(frequencies.told(request.study, dosages, *_cells(request, dosages), hidden, floor))
        case Phase.COVARIATES:
            kin = told_relatives(request, floor)
            moments = linear.scaling_sums(people.covariates, people.outcome)
            return _reply({"moments": moments, "persons": np.array([len(people.rows)]), "relatives": np.array([kin])})
        case Phase.SUBSPACE:
            return _reply({"product": pca.site_product(fractions.values(dosages, people.rows), given["frequency"], given["basis"])})
    if request.phase in POLYGENIC:
        return _reply(polygenic.answer(request, content, people, _design(request, people, given, floor), floor))
    told, hidden = _site_table(dosages, people, floor, fewest_men)
    used = ~hidden & reported(told)
    if asks_men(content):
        people = _checked_men(request, dosages, people, floor, fewest_men)
    x, y = _design(request, people, given, floor)
    known, logistic_ = polygenic.offset(request, given, people, x, floor), forms.kind(request.study) == "logistic"
    if logistic_ and request.phase is not Phase.FIT and few_effective(plus(x @ given["theta"], known), floor):
        raise SiteError(Reason.TOO_FEW, "at these coefficients the model's sums would be about few persons")
    if request.phase is Phase.GENES:
        check_columns(request.study, dosages.keys, given)
        return _reply(gene_sums(request.study, _gene_site(request, dosages, floor), x, y, given))
    y = y if logistic_ or known is None else y - known
    if request.phase is Phase.NULL:
        return _reply(null_sums(request.study, x, y, given["theta"], known))
    if request.phase is Phase.FIT:
        used &= ~few_in_fit(dosages, people, x, given, floor, known)
    sums_of = association_sums if request.phase is Phase.ASSOCIATION else fit_sums
    sums = sums_of(request.study, dosages, people, (x, y), given, known)
    return _reply({**{name: np.where(used, value, 0) for name, value in sums.items()}, "used": used.astype(np.uint8)})


def _gene_site(request: Request, dosages: Dosages, floor: int) -> GeneSite:
    """What the rules about carriers of a gene's variants need."""
    people = analysed(request.manifests, request.study)
    rank = order_of(request.study, load_cohort(request.manifests, request.study).site, len(people.rows))
    return GeneSite(people, dosages, _site_table(dosages, people, floor)[1], floor, rank)


def _design(request: Request, people: Analysed, given: Mapping[str, Any], smallest: int) -> tuple[Floats, Floats]:
    """X (persons, K): ones, standardised covariates, components; and the outcome (persons,), centred if the model is linear."""
    logistic_ = forms.kind(request.study) == "logistic"
    scaling = np.stack([given["centre"], given["scale"]])
    if logistic_:
        scaling[:, -1] = 0.0, 1.0
    scaled, outcome = linear.scaled(people.covariates, people.outcome, scaling)
    columns = [np.ones((len(outcome), 1)), scaled]
    if given["loadings"].shape[1]:
        columns.append(_components(request, people, given, smallest))
    return np.hstack(columns), outcome


_COMPONENTS: dict[str, Floats] = {}  # cache of the persons' components, by digest of their loadings; reused by every step of an analysis


def _components(request: Request, people: Analysed, given: Mapping[str, Any], smallest: int) -> Floats:
    """(persons, k) components of the site's persons. They are not sent."""
    names = ("loadings", "loading_values", "loading_frequency", "loading_panel", "loading_flips")
    key = f"{request.manifests} {request.study.sha256} {_digest(given, *names)} {len(people.rows)}"  # everyone, or the men
    if key not in _COMPONENTS:
        aligned = aligned_panel(request, given["loading_panel"].tobytes(), given["loading_flips"])
        aligned = fractions.without_few(aligned, analysed(request.manifests, request.study), smallest)
        parts = [
            pca.scores(block, given["loading_frequency"], given["loadings"], given["loading_values"])
            for block in fractions.values(aligned, people.rows)
        ]
        if len(_COMPONENTS) >= 64:
            _COMPONENTS.clear()
        _COMPONENTS[key] = np.concatenate(parts) if parts else np.zeros((0, len(given["loading_values"])))
    return _COMPONENTS[key]


def _reply(values: Mapping[str, Any]) -> RecordDict:
    return RecordDict({ANALYSIS: pack({name: np.ascontiguousarray(v) for name, v in values.items()})})


def _panel(request: Request, content: RecordDict) -> Dosages:
    """The site's dosages, aligned to the panel of the request."""
    values = unpack(array_record(content, AGREEMENT))
    return aligned_panel(request, values[PANEL].tobytes(), values[FLIPS])


def _group_counts(dosages: Dosages, people: Analysed, groups: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return group_counts(dosages, people.rows, groups)


def _small(request: Request, dosages: Dosages, min_count: int) -> npt.NDArray[np.bool_]:
    """(variants,) whether fewer than ``min_count`` of the site's persons, or of a group of them, carry one of the alleles."""
    return _site_table(dosages, analysed(request.manifests, request.study), min_count)[1]


def _checked_men(request: Request, dosages: Dosages, people: Analysed, min_count: int, fewest_men: int) -> Analysed:
    """The men of ``people``, for a request about variants on Y.

    Raises:
        SiteError: the site has no variant on Y, another variant is in the request, or the men, or those who are not, are too few.
    """
    own = load_cohort(request.manifests, request.study).input("variants", Dosages)
    if own is None or own.where is None or not (own.where == Y).any():
        raise SiteError(Reason.OFF_PLAN, "sums over the men are requested, and no variant on Y is analysed")
    if len(dosages.keys) and (dosages.where is None or not np.isin(dosages.where, (Y, ABSENT)).all()):
        raise SiteError(Reason.OFF_PLAN, "sums over the men are requested of a variant that is not on Y")
    men = only_men(people)
    if len(men.rows) < fewest_men or few(np.array(len(people.rows) - len(men.rows)), min_count):
        raise SiteError(Reason.TOO_FEW, "sums over the men, or their difference to all persons, would be about few persons")
    return men


def _site_table(
    dosages: Dosages, people: Analysed, min_count: int, fewest_men: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """``fedml.cohort.variants.ploidy.site_table`` of the persons of the analysis."""
    by_sex = np.zeros((2, 4, len(dosages.keys)), np.int64)
    if dosages.where is not None:
        by_sex = _group_counts(dosages, people, people.sexes)
    return site_table(_group_counts(dosages, people, people.groups), by_sex, dosages.where, min_count, fewest_men)


def _told_persons(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of persons in a reply's ``counts`` (at least 7, variants): with each genotype, of them those with one copy, and the
    others."""
    one_copy = counts[5:7]
    return np.vstack([counts[:3], one_copy, counts[0:3:2] - one_copy])


@lru_cache(maxsize=32)
def _any_small(manifests: tuple[str, ...], study: Study, panel: bytes, flips: bytes, min_count: int) -> bool:
    """Whether ``_small`` holds for any variant of a panel. Cached, because many requests have the same panel."""
    dosages = load_aligned(manifests, study, panel, flips).input("variants", Dosages)
    people = analysed(manifests, study)
    return dosages is not None and bool(_site_table(dosages, people, min_count)[1].any())
