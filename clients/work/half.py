"""The site's part of the study's algorithm, and its state between the rounds of one run.

The state is in the node's ``Context.state``, and in a file at the site, for one run. Two versions are kept: from the last round in which
the server counted this site's reply (the server sends its number as ``counted-round``), and from the last round in which the site trained.
A reply may be late or lost, so the server decides which version continues:

- a site that missed rounds continues with the version from its last counted round;
- a site whose reply was not counted continues as if it had not trained in that round;
- a site that restarted (its process, its SuperNode, or the whole run) takes the version of that round from its file (``recall``);
- a site that has lost its state refuses with ``state-lost`` for the rest of the run. Restarting with zeros would leave the lost share in
  the server's sum, and the run would give another model. A version of another round is never used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedml.clients.work.request import Request
from fedml.contract.extras import check_message, shapes_of
from fedml.errors import InputError, Reason, SiteError
from fedml.runs.checkpoints import Keeper, all_whole
from fedml.strategies.algorithms.algorithm import Algorithm, Arrays, Received, SiteWork, sent
from fedml.strategies.algorithms.registry import algorithm_of
from fedml.study.study import Study
from fedml.study.training_round import training_of_round
from fedml.study.training_section import Training
from fedml.wire.records import ARRAYS, COUNTED_ROUND, Phase, array_record, config_record, holds, pack, unpack, unpack_tensors

_KEPT, _COUNTED, _TRAINED = "kept", "kept-counted/", "kept-trained/"
_RUNS = 32  # of which a site keeps state


@dataclass(frozen=True)
class Memory:
    """Where a site keeps state: ``state`` is the node's ``Context.state``, ``run`` Flower's id of the requesting run, or of the run that it
    continues. ``folder``: of the file; None: there is none. ``durable``: the file is on the disk before the reply is sent."""

    state: RecordDict
    run: str
    folder: Path | None = None
    durable: bool = False


def site_algorithm(study: Study) -> Algorithm:
    """The study's algorithm; ``SiteError`` if this site does not know it."""
    try:
        return algorithm_of(study)
    except InputError as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the study's algorithm is refused: {error}") from error


def check_declared(request: Request, content: RecordDict) -> None:
    """Raises ``SiteError`` unless a message has exactly the content that its phase and the study's algorithm declare."""
    algorithm = site_algorithm(request.study)
    model = shapes_of(content, ARRAYS) if request.phase is Phase.ROUND else {}
    check_message(request.phase, content, sent(algorithm, request.phase, model))
    if request.phase is Phase.ROUND:
        round_training(request)


def round_training(request: Request) -> Training:
    """``[training]`` of the request's round; ``SiteError`` if its config goes beyond the study."""
    try:
        return training_of_round(request.study, request.round, request.config)
    except ValueError as error:
        raise SiteError(Reason.OFF_PLAN, f"the strategy {error}") from error


def begin(request: Request, content: RecordDict, memory: Memory) -> SiteWork:
    """The site's part of a round, from the message and the kept state.

    Raises:
        SiteError: the message has undeclared content, or the state is lost.
    """
    check_declared(request, content)
    algorithm = site_algorithm(request.study)
    records = {name: unpack_tensors(array_record(content, name)) for name in algorithm.sends.records}
    config = {key: request.config[key] for key in algorithm.sends.config}
    kept = _unpacked(_records(request, memory)) if algorithm.keeps else {}
    start = unpack_tensors(array_record(content, ARRAYS))
    return algorithm.site(Received(config, records, kept, start, round_training(request)))


def end(request: Request, work: SiteWork, trained: Mapping[str, torch.Tensor], steps: int, memory: Memory) -> dict[str, ArrayRecord]:
    """Stores the state for the next round and returns the records of the reply: those of the algorithm, and an update that is sent in
    place of the weights."""
    done = work.finish(trained, steps)
    if site_algorithm(request.study).keeps:
        _keep(request, memory, done.keeps)
    update = {} if done.update is None else {ARRAYS: done.update}
    return {name: pack(arrays) for name, arrays in {**update, **done.returns}.items()}


def recall(request: Request, memory: Memory) -> None:
    """Takes the state of the round that counts from the site's file, if it is not in memory."""
    counted = request.config.get(COUNTED_ROUND) if request.phase is Phase.ROUND else None
    if not isinstance(counted, int) or not counted or memory.folder is None or _has(memory, counted):
        return
    for _, arrays, note in all_whole(memory.folder):
        if (note["run"], note["study"]) == (memory.run, request.study.sha256) and counted in (note["trained"], note["counted"]):
            _forget(memory)
            records = dict[str, dict[str, Any]]()
            for key, value in arrays.items():
                place, _, name = key.partition(":")
                records.setdefault(place, {})[name] = value
            memory.state.update({place: pack(values) for place, values in records.items()})
            memory.state[_KEPT] = ConfigRecord({"run": memory.run, "counted": note["counted"], "trained": note["trained"]})
            return


def remember(request: Request, memory: Memory) -> None:
    """Writes the state of the round to the site's file; removes it after the last evaluation."""
    if memory.folder is None:
        return
    if request.phase is Phase.EVALUATE:
        shutil.rmtree(memory.folder, ignore_errors=True)
    if request.phase is not Phase.ROUND or not _has(memory, request.round):
        return
    names = [name for name in memory.state if name.startswith((_COUNTED, _TRAINED))]
    arrays = {f"{name}:{key}": value for name in names for key, value in unpack(array_record(memory.state, name)).items()}
    note = dict(config_record(memory.state, _KEPT))
    memory.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in sorted(memory.folder.parent.iterdir(), key=lambda place: place.stat().st_mtime)[:-_RUNS] if memory.durable else ():
        shutil.rmtree(old, ignore_errors=True)  # of runs that never came to their end
    _keeper(memory.folder, memory.durable).write(request.round, arrays, {**note, "study": request.study.sha256})


_keeper = lru_cache(maxsize=256)(lambda folder, durable: Keeper(folder, durable=durable))


def _has(memory: Memory, number: int) -> bool:
    """Whether the state of this round is in memory."""
    note = dict(config_record(memory.state, _KEPT)) if holds(memory.state, _KEPT, ConfigRecord) else {}
    return note.get("run") == memory.run and number in (note.get("trained"), note.get("counted"))


def _forget(memory: Memory) -> None:
    for name in [name for name in memory.state if name == _KEPT or name.startswith((_COUNTED, _TRAINED))]:
        del memory.state[name]


def _records(request: Request, memory: Memory) -> dict[str, ArrayRecord]:
    """The records kept when this site was last counted, by name; empty if it was not counted yet."""
    counted = int(request.config[COUNTED_ROUND])
    if not 0 <= counted < request.round:
        raise SiteError(Reason.BAD_MESSAGE, f"round {counted} cannot have been counted before round {request.round}")
    if not counted:
        return {}
    note = dict(config_record(memory.state, _KEPT)) if holds(memory.state, _KEPT, ConfigRecord) else {}
    if note.get("run") == memory.run:
        for version, key in ((_TRAINED, "trained"), (_COUNTED, "counted")):
            if note.get(key) == counted:
                names = [name for name in memory.state if name.startswith(version)]
                return {name.removeprefix(version): array_record(memory.state, name) for name in names}
    raise SiteError(Reason.STATE_LOST, f"the state of round {counted} of run {memory.run} is lost: no file of this site has it")


def _keep(request: Request, memory: Memory, keeps: Mapping[str, Arrays]) -> None:
    before, state = _records(request, memory), memory.state
    _forget(memory)
    for name, record in before.items():
        state[_COUNTED + name] = record
    for name, arrays in keeps.items():
        state[_TRAINED + name] = pack(arrays)
    state[_KEPT] = ConfigRecord({"run": memory.run, "counted": int(request.config[COUNTED_ROUND]), "trained": request.round})


def _unpacked(records: Mapping[str, ArrayRecord]) -> dict[str, Arrays]:
    return {name: unpack_tensors(record) for name, record in records.items()}
