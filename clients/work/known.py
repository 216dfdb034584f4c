"""What the gate asks about a request besides its reply: the weights with which a study begins, the site's own sums, the persons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from fedml.clients.site.few import without_few
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.clients.work import outcome_people
from fedml.clients.work.client import agreed, device_of, execute, smallest_of, sums_of
from fedml.clients.work.genomics import forget_data as forget_analyses
from fedml.clients.work.genomics import person_sets
from fedml.clients.work.half import Memory
from fedml.clients.work.loaded import model_for, weighed
from fedml.clients.work.request import Request, read_site_once
from fedml.cohort.groups import reportable_groups
from fedml.contract.replies import read_arrays
from fedml.learning.training import train
from fedml.modalities.layout import Layout, make_layout
from fedml.models.fusion import build_model, learned, load
from fedml.seeds import derive_seed
from fedml.study.section import PARTS, PartName
from fedml.study.study import Study
from fedml.study.training_round import training_of_round
from fedml.wire.records import AGREEMENT, ANALYSES, IMAGE_SHAPE, OUTCOMES, PANEL


def first_weights(request: Request, content: RecordDict) -> dict[str, Any]:
    """The arrays with which the study begins, by its seed."""
    model = build_model(request.study, layout_of(request.study, content))
    return {name: tensor.detach().numpy().copy() for name, tensor in learned(model).items()}


def layout_of(study: Study, content: RecordDict) -> Layout:
    """The layout of the model, from a message with the agreement."""
    values = read_arrays(content, AGREEMENT)
    return make_layout(study, tuple(int(n) for n in values[IMAGE_SHAPE]), values[PANEL].tobytes())


def first_update(request: Request, content: RecordDict) -> float:
    """The length of the update that this site's training makes of the study's first weights."""
    cohort, layout, values = agreed(request, content)
    loaded, study = model_for(request.study, layout), request.study
    start = learned(build_model(study, layout))
    loaded = weighed(loaded, study, values)
    load(loaded.fixed, values)
    load(loaded.weights, start)
    seed = derive_seed("training", study.study.seed, 1, request.name)
    train(loaded.model, cohort, training_of_round(study, 1), loaded.task, seed=seed, device=device_of(request))
    return math.sqrt(sum(float(((loaded.weights[name] - value) ** 2).sum()) for name, value in start.items()))


def own_sums(request: Request, content: RecordDict) -> dict[str, Any]:
    """The site's own sums over its training persons, from which the preprocessing constants follow."""
    cohort, _, _ = agreed(request, content)
    return sums_of(request, cohort)


def planned_persons(request: Request) -> list[list[str]]:
    """The sets of persons about whom a run of the study would send exact values: parts, reported subgroups, persons of an
    analysis and of its populations."""
    study, cohort = request.study, load_cohort(request.manifests, request.study)
    if request.phase in OUTCOMES:
        from fedml.clients.work.outcomes import person_sets as analysed  # SciPy's statistics take half a second to import

        return analysed(request)
    if request.phase in ANALYSES or study.gwas is not None or study.frequencies is not None:
        return person_sets(request, smallest_of(request))
    patient = study.privacy.unit == "patient"
    parts: tuple[PartName, ...] = PARTS if not patient else () if study.privacy.metrics == "private" else ("val", "test")
    rows = [cohort.rows(part) for part in parts]
    if cohort.groups:
        rows += [own for _, own in reportable_groups(cohort.groups, study.evaluation, cohort.rows("test"), smallest_of(request))]
    return [[cohort.ids[row] for row in some] for some in rows if len(some)]


def forget_data() -> None:
    """Reads and computes everything anew from now on: a file of the site changed."""
    for cache in (load_cohort, load_aligned, read_site_once, without_few):
        cache.cache_clear()
    forget_analyses()
    outcome_people.forget()


@dataclass(frozen=True)
class Work:
    """Who computes what depends on the model and the images: this process (``HERE``), or a confined one (``fedml.clients.work.apart``)."""

    execute: Callable[[Request, RecordDict, Memory], RecordDict]
    first_weights: Callable[[Request, RecordDict], dict[str, Any]]
    first_update: Callable[[Request, RecordDict], float]
    own_sums: Callable[[Request, RecordDict], dict[str, Any]]


HERE = Work(lambda request, content, memory: execute(request, content, memory), first_weights, first_update, own_sums)
