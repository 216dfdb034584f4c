"""The ClientApp that runs at a site: it answers a message with sums, counts and trained arrays, and with nothing else.

An exception becomes one of ``fedml.errors.Reason``; its text goes to the site's log (logger ``fedml.site``) and never into a reply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedml.clients.site.few import without_few
from fedml.clients.site.manifest import check_roster, find_sites
from fedml.clients.site.progress import counting
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.clients.work.half import Memory, begin, end, recall, remember, round_training
from fedml.clients.work.loaded import Loaded, model_for, weighed
from fedml.clients.work.request import Request, _study_of, own_flips, read_request, read_site_once
from fedml.cohort.groups import reportable_groups
from fedml.cohort.images.histograms import BINS, HistogramView
from fedml.cohort.images.images import Images
from fedml.cohort.images.mapped import select_images
from fedml.cohort.persons import Cohort, select
from fedml.cohort.variants.keys import to_text
from fedml.cohort.variants.model import stated_keys
from fedml.contract.disclosure import excluded_counts, policy_bytes
from fedml.errors import InputError, Reason, SiteError, disk_is_full, memory_is_full
from fedml.learning.statistics import cohort_sums
from fedml.learning.training import GradientHook, Hooks, evaluate, planned_steps, train
from fedml.modalities.layout import Layout, make_layout
from fedml.modalities.registry import inputs_of
from fedml.models.device import pick_device
from fedml.models.fusion import CohortModel, load
from fedml.privacy.counts import noised
from fedml.privacy.dpsgd import PrivateSteps, private_train
from fedml.privacy.releases import noise_multiplier, sampling
from fedml.privacy.statistics import private_sums
from fedml.quiet import hush, told
from fedml.runs.checkpoints import KEPT
from fedml.runs.software import code_digest
from fedml.seeds import derive_seed
from fedml.study.section import PARTS, PartName
from fedml.study.study import Study
from fedml.tasks.clusters import hidden
from fedml.tasks.counts import rounded_cells
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task
from fedml.wire.packing import bundle, is_bundled, unbundle
from fedml.wire.records import (
    AGREEMENT,
    ANALYSES,
    ARRAYS,
    CLASS_WEIGHTS,
    COUNTS,
    DATASET,
    DESCRIBED,
    EXCLUDED,
    FLIPS,
    HISTOGRAM,
    IMAGE_SHAPE,
    METRICS,
    NOTES,
    NUM_EXAMPLES,
    OUTCOMES,
    PANEL,
    PERSONS,
    POLICY,
    RESUMES,
    SITE,
    SUMS,
    VOXELS,
    WINDOW,
    Phase,
    array_record,
    pack,
    unpack,
    unpack_tensors,
)

log = logging.getLogger("fedml.site")
ERROR_CODE = 600  # outside the range of Flower's codes; the text of the error is the reason code


def app_of(answers: Callable[[Message, Context], Message]) -> ClientApp:
    """The ClientApp in which one function answers every kind of message."""
    made = ClientApp()
    for kind in (made.query, made.train, made.evaluate):
        kind()(answers)
    return made


def answer(message: Message, context: Context, charge: Callable[[Request], None] = lambda _: None) -> Message:
    """The reply to any message: content, or an ``Error`` with a reason code and no other text.

    Args:
        charge: called with the request before anything is computed; what it raises becomes the refusal.
    """
    try:
        config, bundled = context.node_config, is_bundled(message.content)
        message.content = unbundle(message.content)
        request = read_request(message.content, manifests_of(context, message), str(config["name"]) if "name" in config else None)
        charge(request)
        if len(request.manifests) == 1:
            check_roster(read_site_once(request.manifests[0]), request.study)
        with hush():
            memory = Memory(context.state, str(request.config.get(RESUMES, message.metadata.run_id)), _kept_at(context, request))
            recall(request, memory)
            content = execute(request, message.content, memory)
            remember(request, memory)
        return Message(bundle(content) if bundled else content, reply_to=message)
    except Exception as error:  # of any type; the text may name a person, so only a code leaves
        reason = reason_of(error)
        log.error("refused (%s): %s", reason, told(error), exc_info=reason is Reason.INTERNAL)
        return refusal(message, reason)


app = app_of(answer)


def _kept_at(context: Context, request: Request) -> Path | None:
    """Where a site whose data are on the machine of the run keeps its state: in the run's folder, until the run's end."""
    return _folder_of(str(context.run_config["run"]), request.name) if "run" in context.run_config else None


_folder_of = lru_cache(maxsize=4096)(lambda run, name: Path(run) / KEPT / name)


def reason_of(error: BaseException) -> Reason:
    """The code that may leave the site in place of an exception."""
    if isinstance(error, SiteError):
        return error.reason if isinstance(error.reason, Reason) else Reason.INTERNAL
    if isinstance(error, InputError):
        return Reason.BAD_DATA
    known = {
        Reason.NON_FINITE: isinstance(error, FloatingPointError),
        Reason.DISK: disk_is_full(error),
        Reason.MEMORY: memory_is_full(error),
    }
    return next((reason for reason, holds in known.items() if holds), Reason.INTERNAL)


def refusal(message: Message, reason: Reason) -> Message:
    """A reply with only the reason code."""
    return Message(Error(ERROR_CODE, str(reason)), reply_to=message)


def execute(request: Request, content: RecordDict, memory: Memory) -> RecordDict:
    """Executes the request and returns the content of the reply. Exceptions are mapped by ``reason_of``."""
    if request.phase in OUTCOMES:
        from fedml.clients.work.outcomes import analyse as analyse_outcomes

        return analyse_outcomes(request, content)
    if request.phase in ANALYSES:
        from fedml.clients.work.genomics import analyse

        return analyse(request, content)
    return _round(request, content, memory) if request.phase is Phase.ROUND else _PHASES[request.phase](request, content)


def manifests_of(context: Context, message: Message) -> tuple[str, ...]:
    """The node's ``manifest``; several, one on each line, are pooled. In Flower's simulation a node knows only its place in the roster."""
    if "manifest" in context.node_config:
        return tuple(str(context.node_config["manifest"]).split("\n"))
    study, _ = _study_of(message.content)
    place = int(context.node_config["partition-id"])
    if place >= len(study.federation.sites):
        raise SiteError(Reason.NOT_IN_ROSTER, f"node {place} exceeds the roster of {len(study.federation.sites)} sites")
    return (str(_simulated(str(context.run_config["sites"]), study.federation.sites[place])),)


@lru_cache(maxsize=4096)
def _simulated(folder: str, name: str) -> Path:
    return find_sites(Path(folder), (name,))[0][name].file


def _describe(request: Request, content: RecordDict) -> RecordDict:
    cohort = load_cohort(request.manifests, request.study)
    private = request.study.privacy.unit == "patient"
    described: dict[str, Any] = {}
    if not private:
        smallest = smallest_of(request)
        excluded, digest = excluded_counts(cohort.excluded_images, smallest), np.frombuffer(cohort.digest, np.uint8)
        persons = _persons(cohort, request.study)
        if protected(request):
            persons = np.stack([rounded_cells(part, smallest) for part in persons])
        described |= {PERSONS: persons, EXCLUDED: excluded, DATASET: digest}
    sites = [read_site_once(m).manifest for m in request.manifests]
    if len(sites) == 1 and sites[0].policy.disclose:
        trusted = {"centre": "trusted", "trust": request.trust} if request.trust else {}
        disclosed = sites[0].policy.disclosed().model_copy(update={"public": sites[0].data.public, "code_sha256": code_digest(), **trusted})
        described[POLICY] = policy_bytes(disclosed)
    for modality, value in inputs_of(cohort):
        described |= modality.described(value)
    if request.study.privacy.unit != "none" and PANEL in described and (stated := request.study.cohort.variants.stated):
        # Which variants a site has, and what normalisation did to them, would be exact values about persons.
        described |= {PANEL: np.frombuffer(to_text(stated_keys(stated)), np.uint8), NOTES: np.zeros_like(described[NOTES])}
    return RecordDict({SITE: ConfigRecord({"name": request.name}), DESCRIBED: pack(described)})


def _persons(cohort: Cohort, study: Study) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(parts, classes) persons; one column if persons have no classes."""
    classes = len(make_task(study).person_classes)
    if not classes:
        return np.array([[cohort.count(part)] for part in PARTS], dtype=np.int64)
    return np.stack([np.bincount(cohort.labels[cohort.rows(p)].astype(int), minlength=classes) for p in PARTS]).astype(np.int64)


def agreed(request: Request, content: RecordDict) -> tuple[Cohort, Layout, dict[str, torch.Tensor]]:
    """The cohort with the agreed panel and window, the layout of the model, and the preprocessing constants."""
    try:
        values = unpack(array_record(content, AGREEMENT))
        panel, flips = values.pop(PANEL).tobytes(), own_flips(request, values.pop(FLIPS))
        layout = make_layout(request.study, tuple(int(n) for n in values.pop(IMAGE_SHAPE)), panel)
    except (KeyError, ValueError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the agreement cannot be read: {error}") from error
    cohort = load_aligned(request.manifests, request.study, panel, flips, _window(request, values))
    if cohort.image_shape and cohort.image_shape != layout.image_shape:
        raise SiteError(Reason.BAD_MESSAGE, f"the agreed image shape is {layout.image_shape}, this site has {cohort.image_shape}")
    if protected(request) and request.study.privacy.unit != "patient":
        cohort = without_few(cohort, request.study, smallest_of(request))
    return cohort, layout, {k: torch.from_numpy(v) for k, v in values.items()}


def _window(request: Request, values: dict[str, np.ndarray[Any, Any]]) -> tuple[float, float] | None:
    """The agreed intensity window, if the study has percentiles; None in the phase that requests the histograms for it."""
    if request.study.cohort.image is None or not request.study.cohort.image.percentiles or request.phase is Phase.VOXELS:
        return None
    found = values.get(WINDOW, np.zeros(0)).tolist()
    if len(found) != 2 or not found[0] < found[1]:
        raise SiteError(Reason.BAD_MESSAGE, "the agreement has no intensity window (two numbers, the first below the second)")
    return found[0], found[1]


def _voxels(request: Request, content: RecordDict) -> RecordDict:
    """The histogram of raw intensities of the training persons' images."""
    cohort = agreed(request, content)[0]
    histogram, persons = np.zeros(BINS, np.int64), 0
    if (images := cohort.input("image", Images)) is not None:
        training = np.isin(images.person, cohort.rows("train"))
        pixels = select_images(images.pixels, training)
        if not isinstance(pixels, HistogramView):
            raise SiteError(Reason.UNDECLARED, "the study states no percentiles, so it uses no histograms")
        histogram, persons = pixels.histogram(), len(np.unique(images.person[training]))
    if 0 < persons < smallest_of(request):
        raise SiteError(Reason.TOO_FEW, f"a histogram of the voxels of {persons} persons")
    return RecordDict({VOXELS: pack({HISTOGRAM: histogram, PERSONS: np.array([persons], np.int64)})})


def smallest_of(request: Request) -> int:
    """The smallest number of persons behind a released number: the largest min_count of the study and the sites."""
    return max(request.study.policy.min_count, *(read_site_once(m).manifest.policy.min_count for m in request.manifests))


def protected(request: Request) -> bool:
    """Whether the persons are real: a site may declare that its data are public, and then exact counts of them may be sent."""
    return not all(read_site_once(m).manifest.data.public for m in request.manifests)


def sums_of(request: Request, cohort: Cohort) -> dict[str, Any]:
    """The site's sums over its training persons."""
    return dict(cohort_sums(cohort, request.study.model.task, smallest_of(request), request.study.cohort.by_site))


def _statistics(request: Request, content: RecordDict) -> RecordDict:
    cohort, layout, _ = agreed(request, content)
    if request.study.privacy.unit == "patient":
        return RecordDict({SUMS: pack(private_sums(cohort, request.study, layout))})
    return RecordDict({SUMS: pack(sums_of(request, cohort))})


def _filled(request: Request, content: RecordDict) -> tuple[Loaded, Cohort]:
    """The model with the arrays and constants of the message, and the cohort."""
    cohort, layout, values = agreed(request, content)
    loaded = model_for(request.study, layout)
    try:
        if request.phase is Phase.ROUND:
            loaded = weighed(loaded, request.study, values)
        values.pop(CLASS_WEIGHTS, None)
        load(loaded.fixed, values)
        load(loaded.weights, unpack_tensors(array_record(content, ARRAYS)))
    except (KeyError, ValueError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the arrays do not fit the study's model: {error}") from error
    return loaded, cohort


def device_of(request: Request) -> torch.device:
    """The device of the site; the CPU if pooled sites have different ones."""
    wanted = {read_site_once(m).manifest.compute.device for m in request.manifests}
    return pick_device(wanted.pop() if len(wanted) == 1 else "cpu")


def _counts(parts: list[PartName], model: CohortModel, cohort: Cohort, task: Task, request: Request) -> dict[str, Any]:
    study, device = request.study, device_of(request)
    threads, precision = study.training.threads, study.training.precision
    found = {part: evaluate(model, cohort, part, task, threads=threads, device=device, precision=precision) for part in parts}
    if study.privacy.metrics == "private":
        none = {name: np.zeros(shape, dtype) for name, (dtype, shape) in task.fields.items()}
        found = {part: noised(counts or none, study) for part, counts in found.items()}
    elif protected(request):
        smallest = smallest_of(request)
        found = {part: task.grouped(_clustered(counts, cohort, part, smallest), smallest) for part, counts in found.items()}
    return {f"{part}/{key}": v for part, counts in found.items() for key, v in counts.items()}


def _clustered(counts: dict[str, Any], cohort: Cohort, part: PartName, smallest: int) -> dict[str, Any]:
    """``counts`` with the design effects that may leave."""
    if cohort.clusters is None:
        return counts
    return hidden(counts, np.unique(cohort.clusters[cohort.rows(part)], return_counts=True)[1], smallest)


def _evaluated(parts: Sequence[PartName], cohort: Cohort, request: Request) -> list[PartName]:
    """The ``parts`` about which counts are sent. Noised counts are sent of a part without persons too, because their absence would tell
    that there is none; exact ones only of enough persons."""
    if request.study.privacy.metrics == "private":
        return list(parts)
    fewest = smallest_of(request) if protected(request) else 1
    return [part for part in parts if cohort.count(part) >= max(fewest, 1)]


def _round(request: Request, content: RecordDict, memory: Memory) -> RecordDict:
    study = request.study
    loaded, cohort = _filled(request, content)
    work = begin(request, content, memory)
    model, task = loaded.model, loaded.task
    reply = RecordDict()
    every = study.training.evaluate_every
    private = study.privacy.unit == "patient"
    # Of training persons nothing leaves but the update and its loss; without validation persons there is no learning curve.
    if every and (request.round - 1) % every == 0 and (parts := _evaluated(["val"], cohort, request)):
        reply[COUNTS] = pack(_counts(parts, model, cohort, task, request))
    if private:
        _train_private(request, model, cohort, task, work.hooks)
        reply[ARRAYS] = pack(loaded.weights)
        reply[METRICS] = MetricRecord({NUM_EXAMPLES: study.privacy.persons[request.name]})
        return reply
    seed = derive_seed("training", study.study.seed, request.round, request.name)
    told = () if request.tell is None else (counting(request.tell, planned_steps(study, cohort.count("train"))),)
    hooks = Hooks((*work.hooks, *told), _penalty(study), smallest_of(request) if protected(request) else 1, work.optimizer)
    result = train(model, cohort, round_training(request), task, seed=seed, hooks=hooks, device=device_of(request))
    reply[ARRAYS] = pack(loaded.weights)
    reply.update(end(request, work, loaded.weights, result.steps, memory))
    reply[METRICS] = MetricRecord(
        {
            NUM_EXAMPLES: cohort.count("train"),
            "loss-sum": result.loss_sum,
            "seen": result.seen,
            "steps": result.steps,
            "train_loss": result.loss_sum / max(result.seen, 1),  # read by Flower's q-FedAvg
        }
    )
    return reply


def _train_private(request: Request, model: CohortModel, cohort: Cohort, task: Task, hooks: Sequence[GradientHook]) -> None:
    """One round of DP-SGD, in place; rate, noise and steps follow from the study alone."""
    study = request.study
    drawn = sampling(study, request.name)
    noise, device = noise_multiplier(study, request.name), device_of(request)
    privacy = PrivateSteps(study.privacy.clipping_norm, noise, drawn.rate, drawn.divisor, drawn.steps, device=device)
    private_train(model, cohort, round_training(request), task, privacy, hooks=hooks)


def _penalty(study: Study) -> dict[str, float]:
    """The L1 penalty of an elastic net: a proximal step at each site. The server averages afterwards, so few weights stay exactly zero."""
    amount = study.model.variants.l1
    return {"encoder.variants.weight": amount} if amount and "variants" in study.cohort.inputs else {}


def _evaluate(request: Request, content: RecordDict) -> RecordDict:
    loaded, cohort = _filled(request, content)
    counts = _counts(_evaluated(["val", "test"], cohort, request), loaded.model, cohort, loaded.task, request)
    if cohort.groups and request.name not in request.study.federation.evaluate_only:  # subgroups are of the sites that train
        for label, rows in reportable_groups(cohort.groups, request.study.evaluation, cohort.rows("test"), smallest_of(request)):
            group = _counts(["test"], loaded.model, select(cohort, rows), loaded.task, request)
            counts |= {
                f"test@{label}/{key}": v for key, v in loaded.task.coarse({k.removeprefix("test/"): v for k, v in group.items()}).items()
            }
    return RecordDict({COUNTS: pack(counts)})


_PHASES = {
    Phase.DESCRIBE: _describe,
    Phase.VOXELS: _voxels,
    Phase.STATISTICS: _statistics,
    Phase.EVALUATE: _evaluate,
}
