"""The site's half of the study's algorithm, and what the site keeps for it between the rounds of one run.

What is kept lives in the node's ``Context.state``: in memory, at the site, for one run. Two versions stay there: that of the last round in
which the server counted this site's reply (it says which in ``counted-round``), and that of the last round in which the site trained.
A reply may be late or lost, so the server decides which of the two goes on. The rules:

- a site that missed rounds goes on with what it kept when it was last counted;
- a site whose reply was not counted goes on as if it had not trained in that round;
- a site that has lost what it kept (its process or SuperNode restarted) refuses with ``state-lost`` for the rest of the run. To begin again
  with zeros would leave the lost share in the server's sum for good, and the run would end at another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedml.clients.work.request import Request
from fedml.contract.extras import check_message, shapes_of
from fedml.errors import InputError, Reason, SiteError
from fedml.strategies.algorithms.algorithm import Algorithm, Arrays, Received, SiteWork, sent
from fedml.strategies.algorithms.registry import algorithm_of
from fedml.study.study import Study
from fedml.wire.records import ARRAYS, COUNTED_ROUND, Phase, pack, unpack_tensors

_KEPT, _COUNTED, _TRAINED = "kept", "kept-counted/", "kept-trained/"


@dataclass(frozen=True)
class Memory:
    """Where a site keeps state: ``state`` is the node's ``Context.state``, ``run`` Flower's id of the run that asks."""

    state: RecordDict
    run: str


def site_algorithm(study: Study) -> Algorithm:
    """The study's algorithm; ``SiteError`` if this site does not know it."""
    try:
        return algorithm_of(study)
    except InputError as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the study's algorithm is refused: {error}") from error


def check_declared(asked: Request, content: RecordDict) -> None:
    """Raises ``SiteError`` unless a message holds what its phase and the study's algorithm declare, and nothing else."""
    algorithm = site_algorithm(asked.study)
    model = shapes_of(content, ARRAYS) if asked.phase is Phase.ROUND else {}
    check_message(asked.phase, content, sent(algorithm, asked.phase, model))


def begin(asked: Request, content: RecordDict, memory: Memory) -> SiteWork:
    """The site's half of a round, as the message and what was kept have it.

    Raises:
        SiteError: the message holds something that is not declared, or what was kept is lost.
    """
    check_declared(asked, content)
    algorithm = site_algorithm(asked.study)
    records = {name: unpack_tensors(content.array_records[name]) for name in algorithm.sends.records}
    config = {key: asked.config[key] for key in algorithm.sends.config}
    kept = _unpacked(_records(asked, memory)) if algorithm.keeps else {}
    start = unpack_tensors(content.array_records[ARRAYS])
    return algorithm.site(Received(config, records, kept, start, asked.study.training))


def end(asked: Request, work: SiteWork, trained: Mapping[str, torch.Tensor], steps: int, memory: Memory) -> dict[str, ArrayRecord]:
    """Keeps what the site's half keeps, and gives the records that it returns."""
    done = work.finish(trained, steps)
    if site_algorithm(asked.study).keeps:
        _keep(asked, memory, done.keeps)
    return {name: pack(arrays) for name, arrays in done.returns.items()}


def _records(asked: Request, memory: Memory) -> dict[str, ArrayRecord]:
    """The records kept when this site was last counted, by name; empty if it was not counted yet."""
    counted = int(asked.config[COUNTED_ROUND])
    if not 0 <= counted < asked.round:
        raise SiteError(Reason.BAD_MESSAGE, f"round {counted} cannot have been counted before round {asked.round}")
    if not counted:
        return {}
    note = dict(memory.state.config_records.get(_KEPT, {}))
    if note.get("run") == memory.run:
        for version, key in ((_TRAINED, "trained"), (_COUNTED, "counted")):
            if note.get(key) == counted:
                names = [name for name in memory.state.array_records if name.startswith(version)]
                return {name.removeprefix(version): memory.state.array_records[name] for name in names}
    raise SiteError(Reason.STATE_LOST, f"what this site kept in round {counted} of run {memory.run} is gone: it was restarted since")


def _keep(asked: Request, memory: Memory, keeps: Mapping[str, Arrays]) -> None:
    before, state = _records(asked, memory), memory.state
    for name in [name for name in state if name == _KEPT or name.startswith((_COUNTED, _TRAINED))]:
        del state[name]
    for name, record in before.items():
        state[_COUNTED + name] = record
    for name, arrays in keeps.items():
        state[_TRAINED + name] = pack(arrays)
    state[_KEPT] = ConfigRecord({"run": memory.run, "counted": int(asked.config[COUNTED_ROUND]), "trained": asked.round})


def _unpacked(records: Mapping[str, ArrayRecord]) -> dict[str, Arrays]:
    return {name: unpack_tensors(record) for name, record in records.items()}
