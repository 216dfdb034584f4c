"""``fedml audit``: a finished private run's study once more, with canaries in it, and what the claim's adversary could tell of them.

Unit ``patient``: canary persons stand among the training persons of every site; a copy of each site's files, theirs included, is read and
trained on by the code that serves any study, and the adversary sees what the server sees: each round's model and each site's answer.
Unit ``site``: canary sites join the roster and answer each round with an update far longer than the clipping norm; the adversary sees what
everybody sees: the model of every round. Rates, noise, clipping and rounds are the study's own. The copies lie in a temporary folder that
nobody else can read, and are taken away before the run, once the client's code has read them.

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
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.clients.work.client import app as client_app
from fedml.clients.work.client import refusal
from fedml.cohort.persons import Cohort, aligned, pool, select
from fedml.cohort.variants.genotypes import shared_panel
from fedml.cohort.variants.model import to_text
from fedml.errors import InputError, Reason
from fedml.flower.grid import App, InProcessGrid
from fedml.models.layout import make_layout
from fedml.privacy.attack import Evidence, Gradients, Noise, canary_persons, direction, lower_bound, toss
from fedml.privacy.releases import claims, noise_multiplier, sampling
from fedml.privacy.statistics import stated_constants
from fedml.runs.events import NO_END, NO_PRIVACY, Privacy
from fedml.runs.log import STUDY, last, read_log, write_whole
from fedml.study.study import Study, parse_study, validate
from fedml.synthetic.write_site import write_site
from fedml.wire.records import AGREEMENT, ARRAYS, CONFIG, FLIPS, IMAGE_SHAPE, METRICS, PANEL, REPLY_METRICS, Phase, pack, unpack_tensors

AUDIT = "audit.json"
NO_NOISE = 1e-3  # noise multiplier of --noise-off: a study cannot have none
FEWEST = 10
_GROUPS = 48  # of known persons at a site, to see how their gradients spread
_DRIFT = 0.05  # clipping norms a step by which gradients may be wrong
_LENGTH = 10.0  # of a canary site's update, in clipping norms
_MOVED = 20_000  # coordinates that canary sites move, at most; the noise is the same in each, so fewer lose nothing
Say = Callable[[str], None]


def read_run(run: Path) -> tuple[Study, Privacy]:
    """The study of a finished private run and its last privacy event.

    Raises:
        InputError: no run's folder, a run without differential privacy, or one that did not finish.
    """
    if not (run / STUDY).is_file():
        raise InputError(f"{run}: is no run's folder, it has no {STUDY}; give one from fedml-runs.")
    study = parse_study((run / STUDY).read_text(encoding="utf-8"))
    if study.privacy.unit == "none":
        raise InputError(f'{run}: its study claims no privacy ([privacy] unit is "none"), so there is nothing to audit.')
    events, _ = read_log(run)
    told = last(events, NO_PRIVACY)
    if not told.came or last(events, NO_END).status != "finished":
        raise InputError(f"{run}: the run did not finish, so it claims no epsilon for the whole study; audit one that did.")
    return study, told


def without_noise(study: Study) -> Study:
    """The same study with next to no noise: what an attack that works must see through."""
    plan = study.model_dump(mode="json")
    plan["privacy"] |= {"noise_multiplier": NO_NOISE, "epsilon": None}
    return validate(Study, plan, "study")


def audit(study: Study, sites: Mapping[str, Site], *, canaries: int, seed: int | None = None, say: Say = lambda _: None) -> dict[str, Any]:
    """Runs ``study`` with canaries and returns the finding with all from which it can be counted again (coins, scores, seed).

    Args:
        seed: of coins and canaries; drawn from the operating system if None. Sampling and noise never follow it.

    Raises:
        InputError: too few canaries, or a site's data cannot be used.
        RunError: the run with canaries failed.
    """
    if canaries < FEWEST:
        raise InputError(f"--canaries {canaries}: too few to tell anything; give at least {FEWEST}, better 100.")
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
    """The epsilon claimed for the whole study: the worst site's, or that of a site."""
    return max(claim.epsilon for claim in claims(study).values())


def keep(run: Path, kind: str, record: Mapping[str, Any]) -> None:
    """Puts ``record`` into RUN/audit.json under ``kind`` (``audit``, or ``noise_off``), beside what is there of the other kind."""
    path, before = run / AUDIT, dict[str, Any]()
    with suppress(FileNotFoundError, ValueError):
        before = json.loads(path.read_text(encoding="utf-8"))
    write_whole(path, (json.dumps({**before, kind: record}, indent=1, allow_nan=False) + "\n").encode())


def sentence(record: Mapping[str, Any]) -> str:
    """The finding for a reader; the bound is rounded down, never up."""
    what = "persons" if record["unit"] == "patient" else "sites"
    told = (
        f"epsilon is at least {math.floor(record['epsilon'] * 1000) / 1000:.3f} at delta = {record['delta']!r} "
        f"({record['confidence']:.0%} confidence; {record['correct']} of {record['guesses']} guesses right "
        f"on {record['canaries']} canary {what}, one run)"
    )
    return told if record["estimate"] is None else f"{told}; estimated from the scores, no bound: {record['estimate']:.3g}"


def _run(study: Study, app: App, nodes: Sequence[Mapping[str, str]], folder: Path) -> None:
    """The local engine with ``app`` at the nodes; its record goes into ``folder``."""
    from fedml.strategies.server import app as server_app

    config: dict[str, bool | int | float | str] = {"study": study.canonical, "run": str(folder.resolve())}
    server_app(
        InProcessGrid(app, [dict(n) for n in nodes], config),
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config),
    )


def _asked(message: Message) -> tuple[str, int]:
    """(phase, round) of a message to a site."""
    config = message.content.config_records[CONFIG]
    return str(config["phase"]), int(str(config["round"]))


def _tell(say: Say, study: Study, number: int) -> None:
    rounds = study.federation.rounds
    if number == 1 or number % max(1, rounds // 10) == 0:
        say(f"round {number}/{rounds}")


def _patients(study: Study, sites: Mapping[str, Site], coins: Any, seed: int, folder: Path, say: Say) -> Any:
    """(canaries,) scores of canary persons, dealt to the sites in turn."""
    cohorts = {name: load_cohort((str(site.file.resolve()),), study) for name, site in sites.items()}
    read = {name: c.variants for name, c in cohorts.items() if c.variants is not None}
    panel = shared_panel(read, study.cohort.variants, counted=study.privacy.unit == "none") if read else None
    keys = panel.keys if panel else ()
    layout = make_layout(study, next((c.images.shape for c in cohorts.values() if c.images is not None), ()), to_text(keys))
    random = np.random.default_rng([seed, 4])
    gradients = Gradients(study, layout, random)
    own = {name: np.arange(at, len(coins), len(sites)) for at, name in enumerate(sites)}
    real, canaries, evidence, nodes = dict[str, Cohort](), dict[str, Cohort](), dict[str, Evidence](), []
    for name, cohort in cohorts.items():
        there = real[name] = aligned(cohort, panel.keys, panel.flips[name], study) if panel and name in read else cohort
        if count := len(own[name]):
            gradients.load(stated_constants(study, layout))
            _, noise = _of_others(study, name, there, gradients, random)
            canaries[name] = canary_persons(there, study, layout, count, random, gradients, noise)
            there = pool([there, select(canaries[name], np.flatnonzero(coins[own[name]]))], study, name)
            evidence[name] = Evidence(count)
        manifest = write_site(folder / name, there, study)
        load_cohort((str(manifest),), study)  # the client reads it once in this process: now, so that the copy can go before the run
        for file in set((folder / name).iterdir()) - {manifest}:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        nodes.append({"manifest": str(manifest)})
        say(f"{name}: {count} canary persons, {int(coins[own[name]].sum())} of them in")

    def watched(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        phase, number = _asked(message)
        name = Path(str(context.node_config["manifest"])).parent.name
        if phase == Phase.ROUND and not reply.has_error():
            if name == study.federation.sites[-1]:
                _tell(say, study, number)
            if name in canaries:
                _look(message, reply, study, gradients, real[name], canaries[name], evidence[name], random)
        return reply

    (folder / "run").mkdir()
    _run(study, watched, nodes, folder / "run")
    scores = np.zeros(len(coins))
    for name, found in evidence.items():
        scores[own[name]] = found.scores()
    return scores


def _of_others(study: Study, site: str, real: Cohort, gradients: Gradients, random: np.random.Generator) -> tuple[Any, Noise]:
    """What one round sums up of the known persons, (coordinates,), and how it varies: noise, and who is drawn.

    Persons are looked at in random groups: the spread of the groups' sums is that of the persons.
    """
    drawn, rows = sampling(study, site), random.permutation(real.rows("train"))
    sums = np.stack([gradients.sum(real, group) for group in np.array_split(rows, min(_GROUPS, len(rows)))])
    times = drawn.rate * drawn.steps
    spread = np.vstack([sums - sums.mean(0), sums.sum(0) / math.sqrt(len(rows))])
    floor = max(noise_multiplier(study, site), _DRIFT)  # gradients move within a round: no round is known more exactly
    noise = Noise(drawn.steps * (floor * gradients.norm) ** 2, spread * math.sqrt(times * (1 - drawn.rate)))
    return sums.sum(0) * times, noise


def _look(
    message: Message, reply: Message, study: Study, gradients: Gradients, real: Cohort, canaries: Cohort, evidence: Evidence,
    random: np.random.Generator,
) -> None:  # fmt: skip
    """What the server learns in one round from one site. The adversary knows everybody but the coins, as in the definition."""
    before = unpack_tensors(message.content.array_records[ARRAYS])
    after = unpack_tensors(reply.content.array_records[ARRAYS])
    constants = unpack_tensors(message.content.array_records[AGREEMENT])
    gradients.load({**before, **{k: v for k, v in constants.items() if k not in (PANEL, FLIPS, IMAGE_SHAPE)}})
    drawn = sampling(study, real.site)
    others, noise = _of_others(study, real.site, real, gradients, random)
    effects = gradients.each(canaries)
    own = effects * math.sqrt(drawn.rate * (1 - drawn.rate) * drawn.steps / 2)
    effects = effects * drawn.rate * drawn.steps
    noise = Noise(noise.variance, np.vstack([noise.parts, own]))
    seen = gradients.vector(before) - gradients.vector(after)
    if study.training.optimizer == "sgd":
        seen = seen * drawn.divisor / study.training.lr
    else:  # Adam moves each coordinate by its gradient over that one's usual size
        known = (others + effects.sum(0) / 2) / drawn.steps
        size = np.sqrt(known**2 + (noise.variance + (noise.parts**2).sum(0)) / drawn.steps)
        seen = seen * size / study.training.lr
    evidence.add(seen, others + effects.sum(0) / 2, effects, noise)


def _sites(study: Study, sites: Mapping[str, Site], coins: Any, seed: int, folder: Path, say: Say) -> Any:
    """(canaries,) scores of canary sites that stand in the roster beside the real ones."""
    names = [f"canary-{n + 1:05d}" for n in range(len(coins))]
    plan = study.model_dump(mode="json")
    plan["federation"] |= {"sites": [*sites, *names], "quorum": study.federation.needed}
    wide = validate(Study, plan, "study")
    first = str(next(iter(sites.values())).file.resolve())
    nodes = [{"manifest": str(site.file.resolve())} for site in sites.values()]
    nodes += [{"manifest": first, "name": name} for name in names]  # they describe themselves as the first site does
    say(f"{len(names)} canary sites, {int(coins.sum())} of them in")
    z, norm, place = noise_multiplier(wide, ""), study.privacy.clipping_norm, {name: at for at, name in enumerate(names)}
    evidence, noise = Evidence(len(coins)), Noise(max(z, _DRIFT) ** 2, np.zeros((0, 0)))
    # FedAvgM's server step adds up what was released before, by numbers that everybody knows: it is taken back.
    told = study.strategy.options if study.strategy.name == "fedavgm" else {"momentum": 0.0}
    momentum, lr = float(told.get("momentum", 0.9)), float(told.get("server_lr", 1.0))
    seen: dict[int, Any] = {}
    moved: list[Any] = []
    last: list[Any] = [0.0]

    def move(number: int, canary: int, arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        step = np.zeros(sum(v.numel() for v in arrays.values()))
        step[moved[0]] = direction(seed, canary, number, len(moved[0])) * _LENGTH * norm
        parts = np.split(step, np.cumsum([v.numel() for v in arrays.values()])[:-1])
        return {k: (v + torch.from_numpy(p).view(v.shape)).float() for (k, v), p in zip(arrays.items(), parts, strict=True)}

    def look(number: int, arrays: Mapping[str, torch.Tensor]) -> None:
        """The model that round ``number`` begins with: all that anybody but the server sees."""
        flat = torch.cat([v.flatten() for v in arrays.values()]).double().numpy()
        if not moved:
            moved.append(np.sort(np.random.default_rng([seed, 3]).permutation(len(flat))[:_MOVED]))
        if number - 1 in seen:
            effects = np.stack([direction(seed, c, number - 1, len(moved[0])) for c in range(len(coins))])
            step = (flat[moved[0]] - seen.pop(number - 1)) / lr
            released, last[0] = step - momentum * last[0], step
            evidence.add(released * len(wide.federation.sites) / norm, effects.sum(0) / 2, effects, noise)
        seen[number] = flat[moved[0]]

    def watched(message: Message, context: Context) -> Message:
        phase, number = _asked(message)
        canary = place.get(str(context.node_config.get("name", "")))
        if canary is None:
            if phase in (Phase.ROUND, Phase.EVALUATE):
                number += phase == Phase.EVALUATE
                if number not in seen:
                    look(number, unpack_tensors(message.content.array_records[ARRAYS]))
                    if phase == Phase.ROUND:
                        _tell(say, study, number)
            return client_app(message, context)
        if not coins[canary] or phase == Phase.EVALUATE:
            return refusal(message, Reason.NOT_APPROVED)
        if phase != Phase.ROUND:
            return client_app(message, context)
        arrays = move(number, canary, unpack_tensors(message.content.array_records[ARRAYS]))
        metrics = MetricRecord({name: kind(0) for name, kind in REPLY_METRICS.items()})
        return Message(RecordDict({ARRAYS: pack(arrays), METRICS: metrics}), reply_to=message)

    (folder / "run").mkdir()
    _run(wide, watched, nodes, folder / "run")
    return evidence.scores()
