"""The ClientApp that runs at a site: it answers a message with sums, counts and trained arrays, and with nothing else.

An exception becomes one of ``fedml.errors.Reason``; its text goes to the site's log (logger ``fedml.site``) and never into a reply.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedml.clients.site.manifest import check_roster, find_sites
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.clients.work.half import Memory, begin, end
from fedml.clients.work.request import Request, _study_of, own_flips, read_request, read_site_once
from fedml.cohort.groups import shown
from fedml.cohort.images.histograms import BINS, HistogramView
from fedml.cohort.images.images import Images
from fedml.cohort.images.mapped import select_images
from fedml.cohort.persons import Cohort, select
from fedml.contract.disclosure import excluded_counts, policy_bytes
from fedml.errors import InputError, Reason, SiteError
from fedml.learning.statistics import cohort_sums
from fedml.learning.training import GradientHook, Hooks, evaluate, train
from fedml.modalities.layout import Layout, make_layout
from fedml.modalities.registry import inputs_of
from fedml.models.device import pick_device
from fedml.models.fusion import CohortModel, build_model, constants, learned, load
from fedml.privacy.counts import noised
from fedml.privacy.dpsgd import PrivateSteps, private_train
from fedml.privacy.releases import noise_multiplier, sampling
from fedml.privacy.statistics import private_sums
from fedml.seeds import derive_seed
from fedml.study.section import PARTS, PartName
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task
from fedml.wire.packing import bundle, is_bundled, unbundle
from fedml.wire.records import (
    AGREEMENT,
    ANALYSES,
    ARRAYS,
    COUNTS,
    DATASET,
    DESCRIBED,
    EXCLUDED,
    FLIPS,
    HISTOGRAM,
    IMAGE_SHAPE,
    METRICS,
    NUM_EXAMPLES,
    PANEL,
    PERSONS,
    POLICY,
    SITE,
    SUMS,
    VOXELS,
    WINDOW,
    Phase,
    pack,
    unpack,
    unpack_tensors,
)

log = logging.getLogger("fedml.site")
app = ClientApp()
ERROR_CODE = 600  # beyond Flower's own codes; the reason tells which


@app.query()
def query(message: Message, context: Context) -> Message:
    """Describe, statistics."""
    return answer(message, context)


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """One round: evaluate the model that arrives, then train it."""
    return answer(message, context)


@app.evaluate()
def evaluate_last(message: Message, context: Context) -> Message:
    """The last evaluation."""
    return answer(message, context)


def answer(message: Message, context: Context) -> Message:
    """The reply to any message: content, or an ``Error`` that carries a code and no text."""
    try:
        config, bundled = context.node_config, is_bundled(message.content)
        message.content = unbundle(message.content)
        asked = read_request(message.content, _manifests(context, message), str(config["name"]) if "name" in config else None)
        if len(asked.manifests) == 1:
            check_roster(read_site_once(asked.manifests[0]), asked.study)
        content = execute(asked, message.content, Memory(context.state, str(message.metadata.run_id)))
        return Message(bundle(content) if bundled else content, reply_to=message)
    except Exception as error:  # whatever it is, its text may name a person
        reason = reason_of(error)
        log.error("refused (%s): %s", reason, error, exc_info=reason is Reason.INTERNAL)
        return refusal(message, reason)


def reason_of(error: BaseException) -> Reason:
    """The code that may leave the site in place of an exception."""
    if isinstance(error, SiteError):
        return error.reason if isinstance(error.reason, Reason) else Reason.INTERNAL
    if isinstance(error, InputError):
        return Reason.BAD_DATA
    return Reason.NON_FINITE if isinstance(error, FloatingPointError) else Reason.INTERNAL


def refusal(message: Message, reason: Reason) -> Message:
    """A reply that carries the code alone."""
    return Message(Error(ERROR_CODE, str(reason)), reply_to=message)


def execute(asked: Request, content: RecordDict, memory: Memory) -> RecordDict:
    """Does what is asked and returns the reply's content. Raises whatever goes wrong: see ``reason_of``."""
    if asked.phase in ANALYSES:
        from fedml.clients.work.genomics import analyse

        return analyse(asked, content)
    return _round(asked, content, memory) if asked.phase is Phase.ROUND else _PHASES[asked.phase](asked, content)


def _manifests(context: Context, message: Message) -> tuple[str, ...]:
    """The node's own ``manifest`` (several, one a line, are pooled). In Flower's simulation a node has only its place in the roster."""
    if "manifest" in context.node_config:
        return tuple(str(context.node_config["manifest"]).split("\n"))
    study, _ = _study_of(message.content)
    place = int(context.node_config["partition-id"])
    if place >= len(study.federation.sites):
        raise SiteError(Reason.NOT_IN_ROSTER, f"node {place} is beyond the roster's {len(study.federation.sites)} sites")
    return (str(_simulated(str(context.run_config["sites"]), study.federation.sites[place])),)


@lru_cache(maxsize=128)
def _simulated(folder: str, name: str) -> Path:
    return find_sites(Path(folder), (name,))[0][name].file


@dataclass(frozen=True)
class Loaded:
    """A model and its tensors that messages fill: ``weights`` (learned) and ``fixed`` (preprocessing constants)."""

    model: CohortModel
    weights: dict[str, torch.Tensor]
    fixed: dict[str, torch.Tensor]
    task: Task


@lru_cache(maxsize=2)
def model_for(study: Study, layout: Layout) -> Loaded:
    """One model for all sites of this process: every message brings all that it is to hold."""
    model = build_model(study, layout)
    return Loaded(model, learned(model), constants(model), make_task(study))


def _describe(asked: Request, content: RecordDict) -> RecordDict:
    cohort = load_cohort(asked.manifests, asked.study)
    private = asked.study.privacy.unit == "patient"
    described: dict[str, Any] = {}
    if not private:
        smallest = _smallest(asked)
        aside, digest = excluded_counts(cohort.excluded_images, smallest), np.frombuffer(cohort.digest, np.uint8)
        described |= {PERSONS: _persons(cohort, asked.study), EXCLUDED: aside, DATASET: digest}
    policies = [read_site_once(m).manifest.policy for m in asked.manifests]
    if len(policies) == 1 and policies[0].disclose:
        described[POLICY] = policy_bytes(policies[0].disclosed())
    for modality, value in inputs_of(cohort):
        described |= modality.described(value)
    return RecordDict({SITE: ConfigRecord({"name": asked.name}), DESCRIBED: pack(described)})


def _persons(cohort: Cohort, study: Study) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(parts, classes) persons; one column where there are no classes of persons."""
    classes = len(make_task(study).person_classes)
    if not classes:
        return np.array([[cohort.count(part)] for part in PARTS], dtype=np.int64)
    return np.stack([np.bincount(cohort.labels[cohort.rows(p)].astype(int), minlength=classes) for p in PARTS]).astype(np.int64)


def _agreed(asked: Request, content: RecordDict) -> tuple[Cohort, Layout, dict[str, torch.Tensor]]:
    """The cohort as the sites agreed to see it, what the model is built for, and the preprocessing constants."""
    try:
        values = unpack(content.array_records[AGREEMENT])
        panel, flips = values.pop(PANEL).tobytes(), own_flips(asked, values.pop(FLIPS))
        layout = make_layout(asked.study, tuple(int(n) for n in values.pop(IMAGE_SHAPE)), panel)
    except (KeyError, ValueError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the agreement cannot be read: {error}") from error
    cohort = load_aligned(asked.manifests, asked.study, panel, flips, _window(asked, values))
    if cohort.image_shape and cohort.image_shape != layout.image_shape:
        raise SiteError(Reason.BAD_MESSAGE, f"the agreed image shape is {layout.image_shape}, the images here are {cohort.image_shape}")
    return cohort, layout, {k: torch.from_numpy(v) for k, v in values.items()}


def _window(asked: Request, values: dict[str, np.ndarray[Any, Any]]) -> tuple[float, float] | None:
    """The agreed window of intensities, where the study has percentiles; there is none yet while it is asked for."""
    if asked.study.cohort.image is None or not asked.study.cohort.image.percentiles or asked.phase is Phase.VOXELS:
        return None
    found = values.get(WINDOW, np.zeros(0)).tolist()
    if len(found) != 2 or not found[0] < found[1]:
        raise SiteError(Reason.BAD_MESSAGE, "the agreement has no window of intensities, low below high")
    return found[0], found[1]


def _voxels(asked: Request, content: RecordDict) -> RecordDict:
    """The histogram of raw intensities of the training persons' images."""
    cohort = _agreed(asked, content)[0]
    histogram, persons = np.zeros(BINS, np.int64), 0
    if (images := cohort.input("image", Images)) is not None:
        training = np.isin(images.person, cohort.rows("train"))
        pixels = select_images(images.pixels, training)
        if not isinstance(pixels, HistogramView):
            raise SiteError(Reason.UNDECLARED, "the study has no percentiles")
        histogram, persons = pixels.histogram(), len(np.unique(images.person[training]))
    if 0 < persons < _smallest(asked):
        raise SiteError(Reason.TOO_FEW, f"voxels of {persons} persons")
    return RecordDict({VOXELS: pack({HISTOGRAM: histogram, PERSONS: np.array([persons], np.int64)})})


def _smallest(asked: Request) -> int:
    """How many persons have to be behind a number that leaves: the stricter of the study's and the sites' own."""
    return max(asked.study.policy.min_count, *(read_site_once(m).manifest.policy.min_count for m in asked.manifests))


def _statistics(asked: Request, content: RecordDict) -> RecordDict:
    cohort, layout, _ = _agreed(asked, content)
    if asked.study.privacy.unit == "patient":
        return RecordDict({SUMS: pack(private_sums(cohort, asked.study, layout))})
    return RecordDict({SUMS: pack(cohort_sums(cohort, asked.study.model.task, _smallest(asked)))})


def _filled(asked: Request, content: RecordDict) -> tuple[Loaded, Cohort]:
    """The model holding the arrays and constants of the message, and the cohort."""
    cohort, layout, values = _agreed(asked, content)
    loaded = model_for(asked.study, layout)
    try:
        load(loaded.fixed, values)
        load(loaded.weights, unpack_tensors(content.array_records[ARRAYS]))
    except (KeyError, ValueError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the arrays do not fit the study's model: {error}") from error
    return loaded, cohort


def _device(asked: Request) -> torch.device:
    """Where the site computes; several sites as one agree, or it is the CPU."""
    wanted = {read_site_once(m).manifest.compute.device for m in asked.manifests}
    return pick_device(wanted.pop() if len(wanted) == 1 else "cpu")


def _counts(parts: list[PartName], model: CohortModel, cohort: Cohort, task: Task, asked: Request) -> dict[str, Any]:
    study, device = asked.study, _device(asked)
    how = study.training.threads, device, study.training.precision
    found = {part: evaluate(model, cohort, part, task, threads=how[0], device=how[1], precision=how[2]) for part in parts}
    private = study.privacy.metrics == "private"
    return {f"{part}/{key}": v for part, counts in found.items() for key, v in (noised(counts, study) if private else counts).items()}


def _round(asked: Request, content: RecordDict, memory: Memory) -> RecordDict:
    study = asked.study
    loaded, cohort = _filled(asked, content)
    work = begin(asked, content, memory)
    model, task = loaded.model, loaded.task
    reply = RecordDict()
    every = study.training.evaluate_every
    private = study.privacy.unit == "patient"
    if every and (asked.round - 1) % every == 0:
        # Without validation persons the curve is that of the training persons: test persons are looked at once, at the end. Of training
        # persons who are protected nothing but the trained model leaves.
        part: PartName = "val" if cohort.count("val") else "train"
        if not (private and part == "train"):
            reply[COUNTS] = pack(_counts([part], model, cohort, task, asked))
    if private:
        _train_private(asked, model, cohort, task, work.hooks)
        reply[ARRAYS] = pack(loaded.weights)
        reply[METRICS] = MetricRecord({NUM_EXAMPLES: study.privacy.persons[asked.name]})
        return reply
    seed = derive_seed("training", study.study.seed, asked.round, asked.name)
    result = train(model, cohort, study.training, task, seed=seed, hooks=Hooks(work.hooks, _penalty(study)), device=_device(asked))
    reply[ARRAYS] = pack(loaded.weights)
    reply.update(end(asked, work, loaded.weights, result.steps, memory))
    reply[METRICS] = MetricRecord(
        {
            NUM_EXAMPLES: cohort.count("train"),
            "loss-sum": result.loss_sum,
            "seen": result.seen,
            "steps": result.steps,
            "train_loss": result.loss_sum / max(result.seen, 1),  # Flower's q-FedAvg reads this one
        }
    )
    return reply


def _train_private(asked: Request, model: CohortModel, cohort: Cohort, task: Task, hooks: Sequence[GradientHook]) -> None:
    """One round of DP-SGD, in place; rate, noise and steps follow from the study alone."""
    study = asked.study
    drawn = sampling(study, asked.name)
    privacy = PrivateSteps(study.privacy.clipping_norm, noise_multiplier(study, asked.name), drawn.rate, drawn.divisor, drawn.steps)
    private_train(model, cohort, study.training, task, privacy, hooks=hooks)


def _penalty(study: Study) -> dict[str, float]:
    """The L1 part of an elastic net: each site's proximal step. Weights are averaged after it, so few sites' zeros are the average's."""
    amount = study.model.variants.l1
    return {"encoder.variants.weight": amount} if amount and "variants" in study.cohort.inputs else {}


def _evaluate(asked: Request, content: RecordDict) -> RecordDict:
    loaded, cohort = _filled(asked, content)
    parts: list[PartName] = [p for p in ("val", "test") if cohort.count(p)]
    counts = _counts(parts, loaded.model, cohort, loaded.task, asked)
    if cohort.groups:
        for label, rows in shown(cohort.groups, asked.study.evaluation, cohort.rows("test"), _smallest(asked)):
            own = _counts(["test"], loaded.model, select(cohort, rows), loaded.task, asked)
            counts |= {
                f"test@{label}/{key}": v for key, v in loaded.task.coarse({k.removeprefix("test/"): v for k, v in own.items()}).items()
            }
    return RecordDict({COUNTS: pack(counts)})


_PHASES = {
    Phase.DESCRIBE: _describe,
    Phase.VOXELS: _voxels,
    Phase.STATISTICS: _statistics,
    Phase.EVALUATE: _evaluate,
}
