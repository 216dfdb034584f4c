"""A centre that asks about genes as it likes reads no few persons: each request is held against the rules at the gate."""

from __future__ import annotations

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
from fedml.errors import Reason
from fedml.flower.grid import InProcessGrid
from fedml.wire.records import pack, unpack
from tests.rare import Drawn, Sites, run_genes, study_of, write_rare

CURIOUS = '[policy]\ncentre = "curious"\n'
DESIGN: dict[str, Any] = {
    "centre": np.array([55, 0.5, 0.0]), "scale": np.array([10, 0.5, 1.0]), "loadings": np.zeros((0, 0)), "loading_values": np.zeros(0),
    "loading_frequency": np.zeros(0), "loading_panel": np.zeros(0, np.uint8), "loading_flips": np.zeros(0, np.uint8),
}  # fmt: skip


class Centre:
    """One gate, what it answers, and the sites that it is one of."""

    def __init__(self, sites: Sites, **changes: Any) -> None:
        self.sites, self.study = sites, study_of(sites, **changes)
        site = read_site(sites.folder / "sites" / "s0")
        approve(prepare_state(site), self.study, "Dr. Test")
        self.gate, self.run = Gate(site, site.state), 1
        self.grid = InProcessGrid(self._handle, [{}])

    def _handle(self, message: Any, context: Any) -> Any:
        message.metadata.__dict__["_run_id"] = self.run
        return self.gate.handle(message, context)

    def ask(self, columns: dict[int, int], *, number: int = 0, run: int = 1, **changes: Any) -> tuple[str, dict[str, Any]]:
        """(code, sums) of a request in which the variants ``columns`` (place -> column) are of one gene."""
        self.run = run
        places = sorted(columns)
        panel = "".join(f"1\t{1000 + 100 * at}\trs{at + 1}\tA\tG\n" for at in places)
        flips = np.zeros(len(places) * len(self.study.federation.sites), np.uint8)
        agreement = {"panel": np.frombuffer(panel.encode(), np.uint8), "flips": flips, "image_shape": np.zeros(0, np.int64)}
        column = np.array([columns[at] for at in places], np.int64)
        analysis = {**DESIGN, "theta": np.zeros(3), "column": column, "gene": np.zeros(column.max() + 1, np.int64), **changes}
        phase = str(changes.pop("phase", "genes"))
        analysis.pop("phase", None)
        content = RecordDict({"config": ConfigRecord({"study": self.study.canonical, "phase": phase, "round": number})})
        content["agreement"], content["analysis"] = pack(agreement), pack(analysis)
        (sent,) = self.grid.push_messages([Message(content, 1, "query")])
        (reply,) = self.grid.pull_messages([sent])
        if reply.has_error():
            return str(reply.error.reason), {}
        return "", {k: v for record in reply.content.array_records.values() for k, v in unpack(record).items()}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return write_rare(tmp_path_factory.mktemp("rare"), Drawn(persons=(400, 300), genes=3, policy=CURIOUS, low=0.003, share=0.3))


@pytest.fixture
def centre(sites: Sites, tmp_path: Path) -> Centre:
    import shutil

    shutil.copytree(sites.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".fedml"))
    return Centre(sites._replace(folder=tmp_path / "copy"), task="classification")


def carriers(sites: Sites) -> Any:
    """(persons, variants) of the first site, who carries what."""
    return sites.dosage[sites.site == 0] > 0


def test_a_gene_is_answered_and_a_request_may_be_repeated(centre: Centre) -> None:
    code, sums = centre.ask(dict.fromkeys(range(12), 0))
    assert not code
    assert sums["used"].tolist() == [1]
    code, again = centre.ask(dict.fromkeys(range(12), 0), run=2)
    assert not code
    assert np.array_equal(again["score"], sums["score"])


def test_a_single_rare_variant_is_not_told(centre: Centre) -> None:
    counts = carriers(centre.sites).sum(0)
    rare = int(np.flatnonzero((counts > 0) & (counts < 5))[0])
    code, sums = centre.ask({rare: 0})
    assert not code
    assert not any(sums[name].any() for name in ("used", "alleles", "xg", "gram", "score", "third"))


def test_gates_of_public_data_answer_as_the_local_engine_does(tmp_path: Path) -> None:
    """Exact counts of few public persons may leave, but an analysis leaves out few carriers at every site alike."""
    sites = write_rare(tmp_path, Drawn(persons=(200, 200), genes=8, low=0.003, high=0.05, policy="public = true\n"))
    study = study_of(sites, policy=5, max_maf=0.05)
    gates = []
    for name in study.federation.sites:
        site = read_site(sites.folder / "sites" / name)
        approve(prepare_state(site), study, "Dr. Test")
        gates.append(Gate(site, site.state))

    def through(gate: Gate) -> Any:
        def handle(message: Any, context: Any) -> Any:
            message.metadata.__dict__["_run_id"] = 1
            return gate.handle(message, context)

        return handle

    gated = run_genes(study, tmp_path, tmp_path / "gated", [through(gate) for gate in gates])
    assert len(gated) > 4
    pd.testing.assert_frame_equal(gated, run_genes(study, tmp_path, tmp_path / "local"))


def test_a_gene_and_then_the_gene_without_a_variant_is_refused(centre: Centre) -> None:
    """The difference would be the score of one variant's carriers; neither a new run nor a restart of the site helps."""
    assert not centre.ask(dict.fromkeys(range(12), 0))[0]
    for run in (1, 2):
        assert centre.ask(dict.fromkeys(range(11), 0), number=1, run=run)[0] == str(Reason.OFF_PLAN)
    centre.gate = Gate(centre.gate.site, centre.gate.state)
    assert centre.ask(dict.fromkeys(range(11), 0), number=2, run=3)[0] == str(Reason.OFF_PLAN)
    assert not centre.ask(dict.fromkeys(range(12, 24), 0), number=3, run=3)[0]


def test_a_variant_under_two_names_is_refused(centre: Centre) -> None:
    """The same position with REF and ALT exchanged is the same variant."""
    panel = "1\t1000\trs1\tA\tG\n1\t1000\trs1\tG\tA\n"
    agreed = {
        "panel": np.frombuffer(panel.encode(), np.uint8),
        "flips": np.array([0, 1, 0, 1], np.uint8),
        "image_shape": np.zeros(0, np.int64),
    }
    analysis = {**DESIGN, "theta": np.zeros(3), "column": np.array([0, 1]), "gene": np.zeros(2, np.int64)}
    content = RecordDict({"config": ConfigRecord({"study": centre.study.canonical, "phase": "genes", "round": 0})})
    content["agreement"], content["analysis"] = pack(agreed), pack(analysis)
    (sent,) = centre.grid.push_messages([Message(content, 1, "query")])
    (reply,) = centre.grid.pull_messages([sent])
    assert str(reply.error.reason) == str(Reason.OFF_PLAN)


def test_every_split_of_a_gene_gives_sums_of_enough_persons(sites: Sites, tmp_path: Path) -> None:
    """Forty ways to deal 36 variants to columns, each at a site that remembers nothing: whatever linear combination, at least five persons
    have a part in it, because each column has five who carry no other."""
    import shutil

    random = np.random.default_rng(1)
    carried = carriers(sites)
    answered = 0
    for trial in range(40):
        folder = tmp_path / str(trial)
        shutil.copytree(sites.folder, folder, ignore=shutil.ignore_patterns(".fedml"))
        centre = Centre(sites._replace(folder=folder), task="classification")
        chosen = random.permutation(36)[: random.integers(2, 36)]
        dealt = random.integers(0, random.integers(1, 8), len(chosen))
        columns = {int(v): int(c) for v, c in zip(chosen, np.unique(dealt, return_inverse=True)[1], strict=True)}
        code, sums = centre.ask(columns)
        assert not code
        used = sums["used"].astype(bool)
        answered += int(used.sum())
        gram = np.zeros((len(used),) * 2)
        gram[np.triu_indices(len(used))] = sums["gram"] / 0.25  # at these coefficients every weight is 1/4: numbers of alleles
        assert not gram[~used].any()
        cells = gram[np.triu_indices(len(used), 1)].round(6)
        assert ((cells == 0) | (cells >= 5)).all()
        assert (np.diag(gram)[used] >= 5).all()
        possible = [int(carried[:, [v for v in columns if columns[v] == c]].any(1).sum()) for c in range(len(used))]
        assert all(n >= 5 for n, there in zip(possible, used, strict=True) if there)
    assert answered > 40


@pytest.mark.parametrize(("age", "sex", "told"), [(0, 0, True), (12, 0, True), (40, 0, False), (60, 0, False), (8, 20, False)])
def test_coefficients_that_leave_few_carriers_a_weight_are_refused_or_leave_the_column_out(
    centre: Centre, age: float, sex: float, told: bool
) -> None:
    """What is told is about at least five carriers with weights p (1 - p) within a factor of 20, counted here from the data."""
    code, sums = centre.ask(dict.fromkeys(range(12), 0), theta=np.array([0.0, age, sex]))
    assert told == (not code and bool(sums["used"].any()))
    assert told or not code or code == str(Reason.TOO_FEW)
    own = centre.sites.site == 0
    eta = ((centre.sites.x[own] - [55, 0.5]) / [10, 0.5]) @ [age, sex]
    weight = (1 / (2 + np.exp(eta) + np.exp(-eta)))[carriers(centre.sites)[:, :12].any(1)]
    assert not told or (weight * 20 >= weight.max()).sum() >= 5


def test_other_coefficients_in_one_run_are_refused(centre: Centre) -> None:
    assert not centre.ask(dict.fromkeys(range(12), 0))[0]
    assert centre.ask(dict.fromkeys(range(12, 24), 0), number=1, theta=np.array([0.1, 0, 0]))[0] == str(Reason.REPLAYED)


def test_single_variants_are_not_tested_in_a_study_of_genes(centre: Centre) -> None:
    """The sums of a gene less those of its variants would be about few persons."""
    panel = "".join(f"1\t{1000 + 100 * at}\trs{at + 1}\tA\tG\n" for at in range(12))
    agreed = {"panel": np.frombuffer(panel.encode(), np.uint8), "flips": np.zeros(24, np.uint8), "image_shape": np.zeros(0, np.int64)}
    analysis = {**DESIGN, "everyone": np.ones(1, np.uint8), "theta": np.zeros(3), "frequency": np.full(12, 0.01)}
    content = RecordDict({"config": ConfigRecord({"study": centre.study.canonical, "phase": "association", "round": 0})})
    content["agreement"], content["analysis"] = pack(agreed), pack(analysis)
    (sent,) = centre.grid.push_messages([Message(content, 1, "query")])
    (reply,) = centre.grid.pull_messages([sent])
    assert str(reply.error.reason) == str(Reason.UNDECLARED)


@pytest.mark.parametrize(
    "changes",
    [
        {"column": np.array([0, 2] * 6)},
        {"column": np.array([-1, 0] * 6)},
        {"gene": np.array([1, 0]), "column": np.array([0, 1] * 6)},
        {"gene": np.array([0.0, 1.0]), "column": np.array([0, 1] * 6)},
        {"gene": np.zeros((2, 2), np.int64), "column": np.array([0, 1] * 6)},
        {"weight": np.ones(12)},
        {"column": np.zeros(11, np.int64)},
    ],
)
def test_columns_of_another_form_are_undeclared(centre: Centre, changes: dict[str, Any]) -> None:
    assert centre.ask(dict.fromkeys(range(12), 0), **changes)[0] == str(Reason.UNDECLARED)


def test_a_whole_run_passes_the_gates_and_is_that_without_them(sites: Sites, tmp_path: Path) -> None:
    import shutil

    from tests.trait import gates

    for name in ("gated", "plain"):
        shutil.copytree(sites.folder, tmp_path / name, ignore=shutil.ignore_patterns(".fedml"))
    study = study_of(sites._replace(folder=tmp_path / "gated"), task="classification", min_alleles=10)
    gated = run_genes(study, tmp_path / "gated", tmp_path / "a", gates(study, tmp_path / "gated" / "sites"))
    plain = run_genes(study, tmp_path / "plain", tmp_path / "b")
    assert gated.equals(plain)
    assert len(gated) > 2
