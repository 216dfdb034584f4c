"""A centre that chooses every message, against one site's real gate, and attacks of such a centre."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.flower.grid import InProcessGrid
from fedml.models.fusion import build_model, learned
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.agreement import Agreement
from fedml.study.study import Study
from fedml.wire.records import pack, unpack
from tests.conftest import clinical_site

Arrays = dict[str, npt.NDArray[Any]]
KINDS = {"round": "train", "evaluate": "evaluate"}
WEIGHT, BIAS = "encoder.clinical.weight", "encoder.clinical.bias"


def real_site(folder: Path, policy: str = 'centre = "curious"', persons: int = 240, seed: int = 1) -> Path:
    """A site of persons that are not declared public, with whole years of age as x1, with this policy."""
    manifest = clinical_site(folder, "a", persons, seed, missing=0.0)
    ages = np.random.default_rng(seed).integers(30, 80, persons)
    lines = (folder / "clinical.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    (folder / "clinical.csv").write_text(
        "\n".join([lines[0], *(",".join([r[0], str(a), *r[2:]]) for r, a in zip(rows, ages, strict=True))])
    )
    text = manifest.read_text().replace("public = true\n", "")
    manifest.write_text(f"{text}\n[policy]\n{policy}\n")
    return folder


@dataclass
class Centre:
    """The centre's end. ``ask`` sends one message of its choice; ``answered`` holds what it got."""

    study: Study
    folder: Path
    trust: str = ""
    answered: list[tuple[str, Arrays]] = field(default_factory=list)
    run: int = 1

    def __post_init__(self) -> None:
        self.site = read_site(self.folder)
        self.state = prepare_state(self.site)
        approve(self.state, self.study, "Dr. Test", self.trust)
        self.restart()

    def restart(self) -> None:
        """The site's process starts anew."""
        self.gate = Gate(read_site(self.folder), self.state)
        self.grid = InProcessGrid(self._handle, [{}])

    def _handle(self, message: Any, context: Context) -> Any:
        message.metadata.__dict__["_run_id"] = self.run
        return self.gate.handle(message, context)

    def agree(self, run: int = 1) -> Agreement:
        """The exchanges before the first round, as an honest centre has them."""
        self.run = run
        return agree(self.study, self.grid)

    def first(self, agreed: Agreement) -> Arrays:
        """The weights with which the study begins."""
        return {k: v.numpy().copy() for k, v in learned(build_model(self.study, agreed.layout(self.study))).items()}

    def ask(
        self, phase: str, number: int, run: int, agreed: Agreement | None = None, weights: Arrays | None = None,
        config: dict[str, Any] | None = None, study: Study | None = None, analysis: Arrays | None = None, **more: Arrays,
    ) -> str:  # fmt: skip
        """The code of the refusal; "" if it was answered."""
        self.run = run
        told = {"study": (study or self.study).canonical, "phase": phase, "round": number, **(config or {})}
        content = RecordDict({"config": ConfigRecord(told)})
        if agreed is not None:
            content.update(agreed.record())
        for name, arrays in {"arrays": weights, "analysis": analysis, **more}.items():
            if arrays is not None:
                content[name] = pack(arrays)
        (sent,) = self.grid.push_messages([Message(content, 1, KINDS.get(phase, "query"))])
        (reply,) = self.grid.pull_messages([sent])
        if reply.has_error():
            return str(reply.error.reason)
        got = {f"{name}/{k}": v for name, record in reply.content.array_records.items() for k, v in unpack(record).items()}
        self.answered.append((phase, got))
        return ""

    def journal(self) -> list[dict[str, Any]]:
        """The entries of the site's journal."""
        return [json.loads(line) for line in (self.state / "journal.jsonl").read_text().splitlines()]

    def cohort(self) -> Any:
        """What the site reads: the truth, which no centre has."""
        return load_cohort((str(self.site.file.resolve()),), self.study)


def isolating(shape: tuple[int, ...], age: float, scale: float, direction: npt.NDArray[Any], bias: float) -> tuple[Arrays, float]:
    """Weights that saturate the answer in everybody who is not of this age, and write ``direction`` of those who are into it."""
    weights = np.zeros(shape, np.float32)
    weights[1, : len(direction)] = direction
    weights[1, 0] += scale
    return {WEIGHT: weights, BIAS: np.array([0, bias - scale * age], np.float32)}, scale


def small_cells(counts: Arrays, smallest: int) -> list[str]:
    """The names of counts with a cell from 1 to ``smallest`` - 1."""
    found = []
    for name, value in counts.items():
        kind = name.rpartition("/")[2]
        if kind in ("persons", "confusion", "histogram", "described") and ((value > 0) & (value < smallest)).any():
            found.append(name)
    return found
