"""``fedml audit``: runs the study of a finished private run again with canaries, and measures how well an adversary can detect them.

Unit ``patient``: canary persons are added to the training persons of every site. A copy of each site's files with the canaries is read and
trained on by the normal client code, and the adversary sees what the server sees: the model of each round and the reply of each site.
Unit ``site``: canary sites join the roster and reply in each round with an update much longer than the clipping norm; the adversary sees
the model of every round, which all participants see. Sampling rates, noise, clipping and rounds are those of the study. The copies are in a
temporary folder that only this account can read, and are deleted before the run, after the client code has read them.

    record = audit(study, sites, canaries=100, seed=None, say=print)      # a dictionary, as in RUN/audit.json
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.clients.work.client import app as client_app
from fedml.clients.work.client import refusal
from fedml.cohort.persons import Cohort, aligned, select
from fedml.cohort.variants.genotypes import shared_panel
from fedml.cohort.variants.keys import to_text
from fedml.cohort.variants.model import Dosages
from fedml.errors import InputError, Reason
from fedml.flower.grid import App, InProcessGrid
from fedml.modalities.layout import make_layout
from fedml.modalities.registry import pool
from fedml.privacy.attack import Evidence, Gradients, Noise, canary_persons, direction, lower_bound, toss
from fedml.privacy.releases import claims, noise_multiplier, sampling
from fedml.privacy.statistics import stated_constants
from fedml.runs.events import NO_END, NO_PRIVACY, Privacy
from fedml.runs.log import STUDY, last, read_log, study_of, write_whole
from fedml.study.study import Study, validate
from fedml.study.training_round import training_of_round
from fedml.synthetic.write_site import write_site
from fedml.wire.records import AGREEMENT, ARRAYS, CONFIG, FLIPS, IMAGE_SHAPE, METRICS, PANEL, REPLY_METRICS, Phase, pack, unpack_tensors

AUDIT = "audit.json"
NO_NOISE = 1e-3  # noise multiplier of --noise-off: a private study cannot have 0
FEWEST = 10
_GROUPS = 48  # groups of known persons at a site, to estimate the spread of their gradients
_DRIFT = 0.05  # assumed error of the gradients at a step, in clipping norms
_LENGTH = 10.0  # length of a canary site's update, in clipping norms
_MOVED = 20_000  # largest number of coordinates that canary sites change; all have the same noise, so a subset loses no power
Say = Callable[[str], None]


def read_run(run: Path) -> tuple[Study, Privacy]:
    """The study of a finished private run and its last privacy event.

    Raises:
        InputError: ``run`` is not a run's folder, has no differential privacy, or did not finish.
    """
    if not (run / STUDY).is_file():
        raise InputError(f"{run}: is not a run's folder, it has no {STUDY}; give a folder from fedml-runs.")
    study = study_of(run)
    if study.privacy.unit == "none":
        raise InputError(f'{run}: the study claims no privacy ([privacy] unit is "none"), so there is nothing to audit.')
    events, _ = read_log(run)
    privacy = last(events, NO_PRIVACY)
    if not privacy.came or last(events, NO_END).status != "finished":
        raise InputError(f"{run}: the run did not finish, so it claims no epsilon for the whole study; give a finished run.")
    return study, privacy


def without_noise(study: Study) -> Study:
    """The same study with almost no noise, in which a working attack must detect the canaries."""
    plan = study.model_dump(mode="json")
    plan["privacy"] |= {"noise_multiplier": NO_NOISE, "epsilon": None}
    return validate(Study, plan, "study")


def check_canaries(canaries: int) -> None:
    """Raises ``InputError`` if they are too few."""
    if canaries < FEWEST:
        raise InputError(f"--canaries {canaries}: too few for a result; give at least {FEWEST}, better 100.")


def audit(study: Study, sites: Mapping[str, Site], *, canaries: int, seed: int | None = None, say: Say = lambda _: None) -> dict[str, Any]:
    """Runs ``study`` with canaries and returns the result, with the coins, scores and seed from which it can be recomputed.

    Args:
        seed: of coins and canaries; None: from the operating system. Sampling and noise do not depend on it.

    Raises:
        InputError: too few canaries, or a site's data cannot be used.
        RunError: the run with canaries failed.
    """
    check_canaries(canaries)
    began = time.monotonic()
    seed = secrets.randbits(62) if seed is None else seed
    coins = toss(canaries, seed)
    torch.set_num_threads(study.training.threads)
    attack = _patients if study.privacy.unit == "patient" else _sites
    with tempfile.TemporaryDirectory(prefix="fedml-audit-") as folder:
        scores = attack(study, sites, coins, seed, Path(folder), say)
    found = asdict(lower_bound(scores, coins, study.privacy.delta))
    if found["estimate"] is not None and not math.isfinite(found["estimate"]):
        found["estimate"] = None
    return {
        "unit": study.privacy.unit, **found, "delta": study.privacy.delta, "rounds": study.federation.rounds, "seed": seed,
        "noise_multiplier": {s: noise_multiplier(study, s) for s in (sites if study.privacy.unit == "patient" else ("",))},
        "included": coins.astype(int).tolist(), "scores": [round(float(s), 6) for s in scores], "study_sha256": study.sha256,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def claimed(study: Study) -> float:
    """The epsilon claimed for the whole study: for unit patient, the largest over sites."""
    return max(claim.epsilon for claim in claims(study).values())


def save(run: Path, kind: str, record: Mapping[str, Any]) -> None:
    """Writes ``record`` to RUN/audit.json under the key ``kind`` (``audit`` or ``noise_off``); the other key is kept."""
    path, before = run / AUDIT, dict[str, Any]()
    with suppress(FileNotFoundError, ValueError):
        before = json.loads(path.read_text(encoding="utf-8"))
    write_whole(path, (json.dumps({**before, kind: record}, indent=1, allow_nan=False) + "\n").encode())


def sentence(record: Mapping[str, Any]) -> str:
    """The result as a sentence; the bound is rounded down."""
    what = "persons" if record["unit"] == "patient" else "sites"
    text = (
        f"epsilon is at least {math.floor(record['epsilon'] * 1000) / 1000:.3f} at delta = {record['delta']!r} "
        f"({record['confidence']:.0%} confidence; {record['correct']} of {record['guesses']} guesses right "
        f"on {record['canaries']} canary {what}, one run)"
    )
    return text if record["estimate"] is None else f"{text}; estimate from the scores (not a bound): {record['estimate']:.3g}"


def _run(study: Study, app: App, nodes: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Runs the study by the local engine with ``app`` at the nodes; writes the run's record to ``folder``."""
    from fedml.strategies.server import app as server_app

    config: dict[str, bool | int | float | str] = {"study": study.canonical, "run": str(folder.resolve())}
    server_app(
        InProcessGrid(app, [dict(n) for n in nodes], config),
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config),
    )


def _phase_and_round(message: Message) -> tuple[str, int]:
    """(phase, round) of a request to a site."""
    config = message.content.config_records[CONFIG]
    return str(config["phase"]), int(str(config["round"]))


def _report_round(say: Say, study: Study, number: int) -> None:
    rounds = study.federation.rounds
    if number == 1 or number % max(1, rounds // 10) == 0:
        say(f"round {number}/{rounds}")


def _patients(study: Study, sites: Mapping[str, Site], coins: Any, seed: int, folder: Path, say: Say) -> Any:
    """(canaries,) scores of canary persons, who are distributed to the sites in turn."""
    cohorts = {name: load_cohort((str(site.file.resolve()),), study) for name, site in sites.items()}
    read = {name: dosages for name, c in cohorts.items() if (dosages := c.input("variants", Dosages)) is not None}
    panel = shared_panel(read, study.cohort.variants, counted=study.privacy.unit == "none") if read else None
    keys = panel.keys if panel else ()
    layout = make_layout(study, next((c.image_shape for c in cohorts.values() if c.image_shape), ()), to_text(keys))
    random = np.random.default_rng([seed, 4])
    gradients = Gradients(study, layout, random)
    assigned = {name: np.arange(at, len(coins), len(sites)) for at, name in enumerate(sites)}
    real, canaries, evidence, nodes = dict[str, Cohort](), dict[str, Cohort](), dict[str, Evidence](), []
    for name, cohort in cohorts.items():
        persons = real[name] = aligned(cohort, panel.keys, panel.flips[name], study) if panel and name in read else cohort
        if count := len(assigned[name]):
            gradients.load(stated_constants(study, layout))
            _, noise = _of_others(study, name, persons, gradients, random)
            canaries[name] = canary_persons(persons, study, layout, count, random, gradients, noise)
            persons = pool([persons, select(canaries[name], np.flatnonzero(coins[assigned[name]]))], study, name)
            evidence[name] = Evidence(count)
        manifest = write_site(folder / name, persons, study)
        load_cohort((str(manifest),), study)  # cached for the client in this process, so that the copy can be deleted before the run
        for file in set((folder / name).iterdir()) - {manifest}:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        nodes.append({"manifest": str(manifest)})
        say(f"{name}: {count} canary persons, {int(coins[assigned[name]].sum())} of them included")

    def watched(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        phase, number = _phase_and_round(message)
        name = Path(str(context.node_config["manifest"])).parent.name
        if phase == Phase.ROUND and not reply.has_error():
            if name == study.federation.sites[-1]:
                _report_round(say, study, number)
            if name in canaries:
                _look(message, reply, study, gradients, _Attacked(real[name], canaries[name], evidence[name]), random)
        return reply

    (folder / "run").mkdir()
    _run(study, watched, nodes, folder / "run")
    scores = np.zeros(len(coins))
    for name, found in evidence.items():
        scores[assigned[name]] = found.scores()
    return scores


def _of_others(study: Study, site: str, real: Cohort, gradients: Gradients, random: np.random.Generator) -> tuple[Any, Noise]:
    """The expected sum of the known persons' clipped gradients in one round, (coordinates,), and its variation from noise and sampling.

    The spread is estimated from the sums of random groups of persons.
    """
    drawn, rows = sampling(study, site), random.permutation(real.rows("train"))
    sums = np.stack([gradients.sum(real, group) for group in np.array_split(rows, min(_GROUPS, len(rows)))])
    times = drawn.rate * drawn.steps
    spread = np.vstack([sums - sums.mean(0), sums.sum(0) / math.sqrt(len(rows))])
    floor = max(noise_multiplier(study, site), _DRIFT)  # gradients change within a round, so the sum is not known more exactly
    noise = Noise(drawn.steps * (floor * gradients.norm) ** 2, spread * math.sqrt(times * (1 - drawn.rate)))
    return sums.sum(0) * times, noise


class _Attacked(NamedTuple):
    """A site under attack: its persons, its canaries, and the evidence so far."""

    real: Cohort
    canaries: Cohort
    evidence: Evidence


def _look(message: Message, reply: Message, study: Study, gradients: Gradients, site: _Attacked, random: np.random.Generator) -> None:
    """Adds the evidence of one round from one site. The adversary knows all persons but not the coins, as in the definition of DP."""
    before = unpack_tensors(message.content.array_records[ARRAYS])
    after = unpack_tensors(reply.content.array_records[ARRAYS])
    constants = unpack_tensors(message.content.array_records[AGREEMENT])
    gradients.load({**before, **{k: v for k, v in constants.items() if k not in (PANEL, FLIPS, IMAGE_SHAPE)}})
    drawn = sampling(study, site.real.site)
    others, noise = _of_others(study, site.real.site, site.real, gradients, random)
    effects = gradients.each(site.canaries)
    sampled = effects * math.sqrt(drawn.rate * (1 - drawn.rate) * drawn.steps / 2)
    effects = effects * drawn.rate * drawn.steps
    noise = Noise(noise.variance, np.vstack([noise.parts, sampled]))
    observed, rate = gradients.vector(before) - gradients.vector(after), training_of_round(study, _phase_and_round(message)[1]).lr
    if study.training.optimizer == "sgd":
        observed = observed * drawn.divisor / rate
    else:  # Adam divides the gradient of each coordinate by its root mean square
        known = (others + effects.sum(0) / 2) / drawn.steps
        size = np.sqrt(known**2 + (noise.variance + (noise.parts**2).sum(0)) / drawn.steps)
        observed = observed * size / rate
    site.evidence.add(observed, others + effects.sum(0) / 2, effects, noise)


def _sites(study: Study, sites: Mapping[str, Site], coins: Any, seed: int, folder: Path, say: Say) -> Any:
    """(canaries,) scores of canary sites, which are added to the roster."""
    names = [f"canary-{n + 1:05d}" for n in range(len(coins))]
    plan = study.model_dump(mode="json")
    plan["federation"] |= {"sites": [*sites, *names], "quorum": study.federation.needed}
    extended = validate(Study, plan, "study")
    first = str(next(iter(sites.values())).file.resolve())
    nodes = [{"manifest": str(site.file.resolve())} for site in sites.values()]
    nodes += [{"manifest": first, "name": name} for name in names]  # a canary site answers "describe" with the data of the first site
    say(f"{len(names)} canary sites, {int(coins.sum())} of them included")
    z, norm, place = noise_multiplier(extended, ""), study.privacy.clipping_norm, {name: at for at, name in enumerate(names)}
    evidence, noise = Evidence(len(coins)), Noise(max(z, _DRIFT) ** 2, np.zeros((0, 0)))
    # The server step of FedAvgM adds earlier releases with known factors; the adversary subtracts them.
    options = study.strategy.options if study.strategy.name == "fedavgm" else {"momentum": 0.0}
    momentum, lr = float(options.get("momentum", 0.9)), float(options.get("server_lr", 1.0))
    seen_models: dict[int, Any] = {}
    moved: list[Any] = []
    last: list[Any] = [0.0]

    def move(number: int, canary: int, arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        step = np.zeros(sum(v.numel() for v in arrays.values()))
        step[moved[0]] = direction(seed, canary, number, len(moved[0])) * _LENGTH * norm
        parts = np.split(step, np.cumsum([v.numel() for v in arrays.values()])[:-1])
        return {k: (v + torch.from_numpy(p).view(v.shape)).float() for (k, v), p in zip(arrays.items(), parts, strict=True)}

    def look(number: int, arrays: Mapping[str, torch.Tensor]) -> None:
        """Adds the evidence of the model at the start of round ``number``, which all participants see."""
        flat = torch.cat([v.flatten() for v in arrays.values()]).double().numpy()
        if not moved:
            moved.append(np.sort(np.random.default_rng([seed, 3]).permutation(len(flat))[:_MOVED]))
        if number - 1 in seen_models:
            effects = np.stack([direction(seed, c, number - 1, len(moved[0])) for c in range(len(coins))])
            step = (flat[moved[0]] - seen_models.pop(number - 1)) / lr
            released, last[0] = step - momentum * last[0], step
            evidence.add(released * len(extended.federation.sites) / norm, effects.sum(0) / 2, effects, noise)
        seen_models[number] = flat[moved[0]]

    def watched(message: Message, context: Context) -> Message:
        phase, number = _phase_and_round(message)
        canary = place.get(str(context.node_config.get("name", "")))
        if canary is None:
            if phase in (Phase.ROUND, Phase.EVALUATE):
                number += phase == Phase.EVALUATE
                if number not in seen_models:
                    look(number, unpack_tensors(message.content.array_records[ARRAYS]))
                    if phase == Phase.ROUND:
                        _report_round(say, study, number)
            return client_app(message, context)
        if not coins[canary] or phase == Phase.EVALUATE:
            return refusal(message, Reason.NOT_APPROVED)
        if phase != Phase.ROUND:
            return client_app(message, context)
        arrays = move(number, canary, unpack_tensors(message.content.array_records[ARRAYS]))
        metrics = MetricRecord({name: kind(0) for name, kind in REPLY_METRICS.items()})
        return Message(RecordDict({ARRAYS: pack(arrays), METRICS: metrics}), reply_to=message)

    (folder / "run").mkdir()
    _run(extended, watched, nodes, folder / "run")
    return evidence.scores()
