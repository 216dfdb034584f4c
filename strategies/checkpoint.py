"""What a training needs to go on after a round: model, the strategy's state, the chosen model, the agreement, and the round's own event.

    saver = Saver(study, run, strategy, agreement, begun)
    saver.save(state, chosen, line)                     # after each round; ``line``: of its event, "" before the first
    saved = load(study, grid, run, strategy)            # of a run that stopped; None: it stopped before the agreement was complete

Nodes are kept by the names of their sites, because a node may have another number in the next process. Everything that a round draws at
random follows from the study's seed and the round's number, or comes from the operating system (noise), so no generator is kept. The
round's event is kept with it and written to the log afterwards: the log never has a round that the checkpoint lacks
(``fedml.runs.checkpoints``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid

from fedml.cohort.variants.harmonise import Panel
from fedml.cohort.variants.keys import from_text
from fedml.contract.witness import agreement_digest
from fedml.errors import RunError, disk_is_full
from fedml.runs.checkpoints import CHECKPOINTS, KEPT, Keeper, newest
from fedml.strategies.agreement.agree import ask_who
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.algorithms.algorithm import StepState
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.flower_state import put_back, taken
from fedml.strategies.algorithms.flower_strategy import FlowerStrategy
from fedml.strategies.chosen import Chosen
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, CLASS_WEIGHTS, COUNTED_ROUND, FLIPS, IMAGE_SHAPE, PANEL, array_record, unpack

log = logging.getLogger("fedml")
_MODEL, _STATE, _CHOSEN, _AGREED, _FLOWER = "model/", "state/", "chosen/", "agreed/", "strategy"
_NOT_CONSTANTS = (PANEL, FLIPS, IMAGE_SHAPE, CLASS_WEIGHTS)


@dataclass(frozen=True)
class RunState:
    """The state of a run after a round. With study and agreement, it determines the next round."""

    round: int
    arrays: dict[str, torch.Tensor]
    strategy: StepState


@dataclass(frozen=True)
class Begun:
    """With which weights the first round begins: their SHA-256, and the names of those of ``[model] start`` (None: it has none)."""

    first: str
    names: Sequence[str] | None


@dataclass(frozen=True)
class Saved:
    """A training as it was after a round."""

    state: RunState
    chosen: Chosen
    agreement: Agreement
    begun: Begun


def digest_of(study: Study, agreement: Agreement) -> str:
    """The digest of panel, image shape and constants of a study's run."""
    constants = {name: value.numpy() for name, value in agreement.constants.items()}
    return agreement_digest(study.sha256, agreement.panel, agreement.image_shape, constants)


class Saver:
    """Writes the checkpoints of one run. Final."""

    def __init__(self, study: Study, run: Path, strategy: Any, agreement: Agreement, begun: Begun) -> None:
        self.strategy, self.names, self.run = strategy, {str(node): site for node, site in agreement.nodes.items()}, run
        self.keeper = Keeper(run / CHECKPOINTS, durable=study.privacy.unit != "none")
        self.works = True
        self.agreed = {_AGREED + name: value for name, value in unpack(array_record(agreement.record(), AGREEMENT)).items()}
        note = {
            "study": study.sha256, "run": run.name, "agreement": digest_of(study, agreement),
            "first": begun.first, "names": None if begun.names is None else list(begun.names),
            "sites": list(agreement.nodes.values()), "external": list(agreement.external.values()), "roster": list(agreement.roster),
            "persons": agreement.persons, "refused": {site: str(reason) for site, reason in agreement.refused.items()},
            "build": agreement.build, "turned": list(agreement.shared.flips) if agreement.shared else None,
            "datasets": {site: row["dataset"] for site, row in agreement.disclosures.items()},
        }  # fmt: skip
        self.note = json.dumps(note)  # once, because it is the same in each round

    def save(self, state: RunState, chosen: Chosen, line: str) -> None:
        """Writes the checkpoint of a round, whose event has this line; "": before the first. A strategy that remembers what cannot
        be kept has none, and the log says so once.

        Raises:
            RunError: it cannot be written.
        """
        if not self.works:
            return
        arrays: dict[str, Any] = {_MODEL + name: value for name, value in state.arrays.items()}
        for place, inner in state.strategy.items():
            named = {self.names.get(key, key): value for key, value in inner.items()} if place == COUNTED_ROUND else inner
            arrays |= {f"{_STATE}{place}/{name}": value for name, value in named.items()}
        if chosen.arrays is not None:
            arrays |= {_CHOSEN + name: value for name, value in chosen.arrays.items()}
        note: dict[str, Any] = {"run": self.note, "best": chosen.best, "score": chosen.score, "event": line}
        try:
            if isinstance(self.strategy, FlowerStrategy):
                note["strategy"] = [taken(self.strategy.inner, _FLOWER, arrays), taken(self.strategy.config, "", {})]
            self.keeper.write(state.round, {**arrays, **self.agreed}, note)
        except ValueError as error:
            self.works = False
            self.keeper.remove()
            log.warning("no checkpoint is written, so a run that stops has to begin anew: [strategy] name keeps %s", error)
        except OSError as error:
            why = f"the disk is full: {error.strerror}" if disk_is_full(error) else error.strerror
            raise RunError(
                f"round {state.round}: the checkpoint cannot be written ({why}); make room in {self.run} or permit "
                f"writing there, then go on with `fedml run --resume {self.run}`."
            ) from error

    def done(self) -> None:
        """Removes the checkpoints, and what sites kept in the run's folder."""
        self.keeper.remove()
        Keeper(self.run / KEPT).remove()


def load(study: Study, grid: Grid, run: Path, strategy: Any) -> Saved | None:
    """The newest checkpoint, with the sites that answer now; the strategy gets its state.

    Raises:
        InputError: no file is whole. RunError: it is of another study, a site's data changed since, or fewer sites than the quorum answer.
    """
    found = newest(run / CHECKPOINTS)
    if found is None:
        return None
    number, arrays, of_round = found
    note = json.loads(of_round["run"])
    if note["study"] != study.sha256:
        raise RunError(f"{run / CHECKPOINTS}: the checkpoint is of another study; restore the run's folder or start a new run.")
    agreement = _agreement(study, grid, note, _part(arrays, _AGREED))
    if digest_of(study, agreement) != note["agreement"]:
        raise RunError(f"{run / CHECKPOINTS}: the checkpoint's agreement does not have its digest; start a new run.")
    nodes = {site: str(node) for node, site in agreement.nodes.items()}
    state = dict[str, dict[str, torch.Tensor]]()
    for key, value in _part(arrays, _STATE).items():
        place, _, name = key.partition("/")
        if place != COUNTED_ROUND or name in nodes:
            state.setdefault(place, {})[nodes[name] if place == COUNTED_ROUND else name] = torch.from_numpy(value)
    if isinstance(strategy, Averaging):
        strategy.state = state
    elif isinstance(strategy, FlowerStrategy):
        put_back(strategy.inner, of_round["strategy"][0], arrays)
        strategy.config.update(dict(of_round["strategy"][1]["of"]))
    kept = {name: torch.from_numpy(value) for name, value in _part(arrays, _CHOSEN).items()} or None
    model = {name: torch.from_numpy(value) for name, value in _part(arrays, _MODEL).items()}
    best = Chosen(of_round["best"], of_round["score"], kept)
    return Saved(RunState(number, model, state), best, agreement, Begun(note["first"], note["names"]))


def _part(arrays: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {name.removeprefix(place): value for name, value in arrays.items() if name.startswith(place)}


def _agreement(study: Study, grid: Grid, note: Mapping[str, Any], agreed: Mapping[str, Any]) -> Agreement:
    """The agreement as it was, with the nodes that the sites have now."""
    who, _ = ask_who(study, grid)
    for site, row in who.disclosures.items():
        before = note["datasets"].get(site)
        if before is not None and row["dataset"] is not None and row["dataset"] != before:
            raise RunError(f"{site}: its data changed since the run began, so the run cannot go on; restore the data or start a new run.")
    shared = None
    if note["turned"] is not None:
        keys = from_text(agreed[PANEL].tobytes())
        rows = np.asarray(agreed[FLIPS]).reshape(len(note["roster"]), -1)
        flips = {site: rows[note["roster"].index(site)] for site in note["turned"]}
        shared = Panel(keys, flips, {}, {}, {})
    return replace(
        who,
        nodes={node: site for node, site in who.nodes.items() if site in note["sites"]},
        external={node: site for node, site in who.external.items() if site in note["external"]},
        image_shape=tuple(int(n) for n in agreed[IMAGE_SHAPE]),
        shared=shared,
        constants={name: torch.from_numpy(value) for name, value in agreed.items() if name not in _NOT_CONSTANTS},
        persons=note["persons"],
        refused={**note["refused"], **who.refused},
        roster=tuple(note["roster"]),
        build=note["build"],
        class_weights=agreed.get(CLASS_WEIGHTS),
    )
