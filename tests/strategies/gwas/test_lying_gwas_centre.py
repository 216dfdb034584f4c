"""A centre that chooses the coefficients of an association reads no single person: sums must be about enough persons, by their weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import read_site
from fedml.clients.work.effective import FEWEST_SHARE, effective_persons
from fedml.flower.grid import InProcessGrid
from fedml.wire.records import pack, unpack
from tests.trait import prepared, study_of

NONE = {"panel": np.zeros(0, np.uint8), "flips": np.zeros(0, np.uint8), "image_shape": np.zeros(0, np.int64)}


class Centre:
    """One gate, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.study = study_of("tall")
        text = (folder / "site.toml").read_text().replace("public = true\n", "")
        (folder / "site.toml").write_text(text[: text.index("[policy]")] + '[policy]\ncentre = "curious"\n')
        site = read_site(folder)
        approve(prepare_state(site), self.study, "Dr. Test")
        self.gate, self.run = Gate(site, site.state), 1
        self.grid = InProcessGrid(self._handle, [{}])

    def _handle(self, message: Any, context: Any) -> Any:
        message.metadata.__dict__["_run_id"] = self.run
        return self.gate.handle(message, context)

    def ask(self, phase: str, number: int, run: int, agreement: Any = None, analysis: Any = None) -> tuple[str, dict[str, Any]]:
        """(code, arrays)."""
        self.run = run
        content = RecordDict({"config": ConfigRecord({"study": self.study.canonical, "phase": phase, "round": number})})
        for name, arrays in (("agreement", agreement), ("analysis", analysis)):
            if arrays is not None:
                content[name] = pack(arrays)
        (sent,) = self.grid.push_messages([Message(content, 1, "query")])
        (reply,) = self.grid.pull_messages([sent])
        if reply.has_error():
            return str(reply.error.reason), {}
        return "", {k: v for record in reply.content.array_records.values() for k, v in unpack(record).items()}


@pytest.fixture(scope="module")
def kg1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("trait")) / "kg1"


@pytest.fixture
def centre(kg1: Path, tmp_path: Path) -> Centre:
    folder = tmp_path / "kg1"
    shutil.copytree(kg1, folder, ignore=shutil.ignore_patterns(".fedml"))
    return Centre(folder)


def design(scale: float, age: float = 45.0) -> dict[str, Any]:
    zero = {"loading_panel": np.zeros(0, np.uint8), "loading_flips": np.zeros(0, np.uint8), "loading_frequency": np.zeros(0)}
    return {
        "everyone": np.ones(1, np.uint8),
        "centre": np.array([age, 0, 0.0]),
        "scale": np.array([scale, 1, 1.0]),
        "loadings": np.zeros((0, 4)),
        "loading_values": np.ones(4),
        **zero,
    }


def theta(intercept: float, slope: float, sex: float = 0.0) -> Any:
    out = np.zeros(7)
    out[:3] = intercept, slope, sex
    return out


@pytest.mark.parametrize(
    ("scale", "at"),
    [
        (1e-3, theta(0, 1)),  # the weight of everybody who is not 45.0 vanishes
        (1e-3, theta(-1e3, 1, 200.0)),
        (1e-2, theta(5, 1)),
        (1.0, theta(0, 300.0)),
        (0.1, theta(2, 5.0, 50.0)),
        (1e-6, theta(0, 1e-1)),
    ],
)
def test_coefficients_that_leave_one_person_are_refused(centre: Centre, scale: float, at: Any) -> None:
    code, _ = centre.ask("null", 1, 2, NONE, {**design(scale), "theta": at})
    assert code == "too-few-persons"
    code, described = centre.ask("describe", 0, 3)
    assert not code
    lines = described["panel"].tobytes().decode().splitlines(True)[:200]
    panel = {**NONE, "panel": np.frombuffer("".join(lines).encode(), np.uint8), "flips": np.zeros(2 * len(lines), np.uint8)}
    asked = {**design(scale), "theta": at, "frequency": np.full(len(lines), 0.3)}
    assert centre.ask("association", 1, 3, panel, asked)[0] == "too-few-persons"
    asked = {**design(scale), "frequency": np.full(len(lines), 0.3), "theta_fit": np.tile(np.append(at, 0.0)[:, None], len(lines))}
    code, sums = centre.ask("fit", 1, 3, panel, {**asked, "penalised": np.zeros(1, np.uint8), "inverse": np.zeros((36, len(lines)))})
    assert code or not sums["used"].any()


def test_honest_coefficients_are_answered(centre: Centre) -> None:
    code, sums = centre.ask("null", 1, 2, NONE, {**design(10.0), "theta": theta(-1.0, 0.3, 1.2)})
    assert not code
    assert int(sums["n"][0]) > 500


def test_counts_of_an_exact_age_cannot_be_asked(centre: Centre, kg1: Path) -> None:
    """Each step of the model without variants would count the persons of one age."""
    ages = pd.read_csv(kg1 / "clinical.csv").age.round(1)
    for number, age in enumerate(sorted(ages.unique())[:30], 1):
        code, _ = centre.ask("null", number, 2, NONE, {**design(1.0, 45.0), "theta": theta(-(age - 45.0) * 2e4, 2e4)})
        assert code == "too-few-persons"


def test_effective_persons_are_those_of_equal_weights() -> None:
    """Kish: n equal weights are n persons; one weight among zeros is one."""
    assert effective_persons(np.ones((50, 1)))[0] == pytest.approx(50)
    assert effective_persons(np.eye(50)[:, :1])[0] == pytest.approx(1)
    assert effective_persons(np.zeros((50, 1)))[0] == 0
    two = np.concatenate([np.full((10, 1), 1.0), np.full((1000, 1), 1e-9)])
    assert effective_persons(two)[0] == pytest.approx(10, rel=1e-5)
    assert 0 < FEWEST_SHARE < 1
