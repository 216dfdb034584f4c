"""SCAFFOLD against the paper's algorithm 1 in NumPy, against the known minimum, and with sites that miss rounds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.gate.journal import entries
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.clients.work.client import answer, refusal
from fedml.contract.extras import NO_EXTRAS
from fedml.contract.replies import check_form
from fedml.errors import InputError, Reason, SiteError
from fedml.flower.grid import InProcessGrid
from fedml.models.fusion import build_model, learned
from fedml.strategies.agreement.agree import agree
from fedml.strategies.algorithms.algorithm import returned
from fedml.strategies.algorithms.registry import algorithm_of, make_strategy
from fedml.strategies.rounds import run_study
from fedml.study.study import Study
from fedml.wire.records import Phase, pack
from tests.command import quick_json as run_json
from tests.conftest import Run, federate, make_study, to_toml, write_csv, write_manifest

Arrays = dict[str, np.ndarray[Any, Any]]
NAMES = ("a", "b", "c")
STEPS, ROUNDS, LR = 20, 6, 0.05
PLAN: dict[str, Any] = {
    "model__task": "regression",
    "cohort__clinical": {"columns": ["x1", "x2", "x3"], "indicate": False},
    "training": {"optimizer": "sgd", "lr": LR, "batch_size": 0, "local_epochs": STEPS},
    "cohort__split": {"train": 0.8, "val": 0.0, "test": 0.2},
}


def write_sites(folder: Path) -> list[Path]:
    """Three sites with other slopes, other spreads and other sizes: their losses have their minima far apart."""
    rng, manifests = np.random.default_rng(5), []
    for name, persons, slope, spread in (
        ("a", 80, [2, 0, 1], [1, 2, 1]),
        ("b", 40, [-1, 1, 0], [2, 1, 1]),
        ("c", 60, [0, -2, 3], [1, 1, 3]),
    ):
        x = rng.normal(0, spread, (persons, 3))
        y = (x @ slope + rng.normal(0, 0.3, persons)) / 4  # a spread of about 1: the step size is below 2 / L
        ids = [f"{name}{k:03d}" for k in range(persons)]
        place = folder / name
        place.mkdir(parents=True)
        write_csv(place / "persons.csv", ids, {"y": y})
        write_csv(place / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
        manifests.append(write_manifest(place, name, clinical='{ path = "clinical.csv" }'))
    return manifests


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sites(tmp_path_factory.mktemp("three"))


def study_of(strategy: dict[str, Any], rounds: int = ROUNDS, **changes: Any) -> Study:
    return make_study(**{**PLAN, "federation": {"sites": list(NAMES), "rounds": rounds, "quorum": 2}, "strategy": strategy, **changes})


class Losses:
    """The sites' losses as functions of one vector (three slopes, intercept), from their files and the constants of a run."""

    def __init__(self, manifests: Sequence[Path], run: Run) -> None:
        values = {k: v.double().numpy() for k, v in run.constants().items()}
        self.x, self.y, self.scale = [], [], float(values["target.std"][0])
        for manifest in manifests:
            cohort = load_cohort((str(manifest),), study_of({"name": "fedavg"}))
            train = {cohort.ids[row] for row in cohort.rows("train")}  # who trains; the numbers come from the files themselves
            x, y = (
                _column(manifest.parent / file, columns) for file, columns in (("clinical.csv", ["x1", "x2", "x3"]), ("persons.csv", ["y"]))
            )
            chosen = [person for person in x if person in train]
            z = (np.array([x[p] for p in chosen]) - values["preprocess.clinical.mean"]) / values["preprocess.clinical.std"]
            self.x.append(np.column_stack([z, np.ones(len(chosen))]))
            self.y.append(np.array([y[p][0] for p in chosen]) - values["target.mean"][0])

    def gradient(self, site: int, w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x, y = self.x[site], self.y[site]
        out: np.ndarray[Any, Any] = 2 * self.scale * x.T @ (self.scale * x @ w - y) / len(y)
        return out

    def minimum(self) -> np.ndarray[Any, Any]:
        """Of the mean of the three losses: the solution of one linear system."""
        left = sum(self.scale * x.T @ x / len(x) for x in self.x)
        found: np.ndarray[Any, Any] = np.linalg.solve(left, sum(x.T @ y / len(x) for x, y in zip(self.x, self.y, strict=True)))
        return found


def _column(path: Path, names: Sequence[str]) -> dict[str, list[float]]:
    with path.open() as file:
        return {row["id"]: [float(row[name]) for name in names] for row in csv.DictReader(file)}


def vector(run: Run) -> np.ndarray[Any, Any]:
    """The trained model as one vector: three slopes, intercept."""
    arrays = {k: v.double().numpy() for k, v in run.learned().items()}
    weight, bias = sorted(arrays.values(), key=np.ndim, reverse=True)
    return np.concatenate([weight.ravel(), bias.ravel()])


def start(manifests: Sequence[Path], folder: Path) -> np.ndarray[Any, Any]:
    return vector(federate(study_of({"name": "fedavg"}, rounds=0), manifests, folder))


def paper(losses: Losses, x: np.ndarray[Any, Any], taking_part: Sequence[Sequence[int]], lr_g: float = 1.0) -> np.ndarray[Any, Any]:
    """Karimireddy et al. 2020, algorithm 1, option II, with the sites of each round given; in float64."""
    x = x.copy()
    c, own = np.zeros_like(x), [np.zeros_like(x) for _ in NAMES]
    for present in taking_part:
        moves, changes = [], []
        for i in present:
            y = x.copy()
            for _ in range(STEPS):
                y = y - LR * (losses.gradient(i, y) - own[i] + c)
            following = own[i] - c + (x - y) / (STEPS * LR)
            moves.append(y - x)
            changes.append(following - own[i])
            own[i] = following
        x = x + lr_g * np.mean(moves, axis=0)
        c = c + len(present) / len(NAMES) * np.mean(changes, axis=0)
    return x


@pytest.mark.parametrize("server_lr", [1.0, 0.7])
def test_it_equals_the_papers_algorithm_1(tmp_path: Path, sites: list[Path], server_lr: float) -> None:
    run = federate(study_of({"name": "scaffold", "server_lr": server_lr}), sites, tmp_path / "run")
    wanted = paper(Losses(sites, run), start(sites, tmp_path / "start"), [(0, 1, 2)] * ROUNDS, server_lr)
    np.testing.assert_allclose(vector(run), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("rounds", "nearer"), [(20, 10), pytest.param(60, 1000, marks=pytest.mark.long)])
def test_it_finds_the_minimum_that_fedavg_misses(tmp_path: Path, sites: list[Path], rounds: int, nearer: int) -> None:
    """With many local steps on unlike sites FedAvg stays where local minima pull it; the minimum of the mean loss is known exactly."""
    ours = federate(study_of({"name": "scaffold"}, rounds=rounds), sites, tmp_path / "scaffold")
    plain = federate(study_of({"name": "fedavg", "weighting": "equal"}, rounds=rounds), sites, tmp_path / "fedavg")
    best = Losses(sites, ours).minimum()
    missed = float(np.linalg.norm(vector(plain) - best))
    reached = float(np.linalg.norm(vector(ours) - best))
    print(f"distance to the minimum after {rounds} rounds of {STEPS} steps: scaffold {reached:.2e}, fedavg {missed:.2e}")
    assert missed > 0.05
    assert reached < missed / nearer


# --- sites that miss rounds

Fault = Callable[[Message, Context, int], Message | None]


def with_fault(study: Study, manifests: Sequence[Path], folder: Path, fault: Fault) -> Run:
    """Runs ``study``; where ``fault`` gives a reply for (message, context, round of training or 0) it stands for the site's own."""

    def app(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        number = int(str(config["round"])) if config["phase"] == "round" else 0
        return fault(message, context, number) or answer(message, context)

    folder.mkdir()
    run_study(study, InProcessGrid(app, [{"manifest": str(m)} for m in manifests]), folder)
    return Run(folder)


def lost_message(message: Message, context: Context, number: int) -> Message | None:
    return refusal(message, Reason.NO_ANSWER) if (context.node_id, number) == (2, 3) else None


def lost_reply(message: Message, context: Context, number: int) -> Message | None:
    """The site trains and keeps; its reply does not arrive."""
    if (context.node_id, number) != (2, 3):
        return None
    assert answer(message, context).has_content()
    return refusal(message, Reason.NO_ANSWER)


@pytest.mark.parametrize("fault", [lost_message, lost_reply])
def test_a_site_that_missed_a_round_goes_on_from_where_it_was_last_counted(tmp_path: Path, sites: list[Path], fault: Fault) -> None:
    run = with_fault(study_of({"name": "scaffold"}), sites, tmp_path / "run", fault)
    assert [sorted(event["sites"]) for event in run.rounds] == [["a", "b", "c"], ["a", "b", "c"], ["a", "c"], *[["a", "b", "c"]] * 3]
    taking_part = [(0, 1, 2), (0, 1, 2), (0, 2), *[(0, 1, 2)] * 3]
    wanted = paper(Losses(sites, run), start(sites, tmp_path / "start"), taking_part)
    np.testing.assert_allclose(vector(run), wanted, rtol=2e-5, atol=2e-5)


def test_a_site_that_lost_what_it_kept_refuses_by_name_and_the_others_go_on(tmp_path: Path, sites: list[Path]) -> None:
    def restart(message: Message, context: Context, number: int) -> Message | None:
        if (context.node_id, number) == (2, 3):
            context.state = RecordDict()
        return None

    run = with_fault(study_of({"name": "scaffold"}), sites, tmp_path / "run", restart)
    assert [event["refused"] for event in run.rounds] == [{}, {}, *[{"b": "state-lost"}] * 4]
    wanted = paper(Losses(sites, run), start(sites, tmp_path / "start"), [(0, 1, 2)] * 2 + [(0, 2)] * 4)
    np.testing.assert_allclose(vector(run), wanted, rtol=2e-5, atol=2e-5)


def test_what_was_kept_in_another_run_is_not_used(tmp_path: Path, sites: list[Path]) -> None:
    """Flower hands a node's state from run to run of a series."""
    states = {node: RecordDict() for node in (1, 2, 3)}
    hashes = []
    for number in (11, 12):

        def own(message: Message, context: Context, round_number: int, number: int = number) -> Message | None:
            message.metadata.__dict__["_run_id"] = number
            context.state = states[context.node_id]
            return None

        hashes.append(with_fault(study_of({"name": "scaffold"}, rounds=3), sites, tmp_path / str(number), own).sha256)
        assert states[1].config_records["kept"]["run"] == str(number)
    assert hashes[0] == hashes[1]


@pytest.mark.long
def test_local_and_simulation_are_bitwise_equal(tmp_path: Path) -> None:
    write_sites(tmp_path / "sites")
    (tmp_path / "study.toml").write_text(to_toml(study_of({"name": "scaffold"}, rounds=3).model_dump(mode="json", exclude_defaults=True)))
    local = run_json("study.toml", "--sites", "sites", "--no-track", cwd=tmp_path)
    ray = run_json("study.toml", "--sites", "sites", "--no-track", "--engine", "simulation", cwd=tmp_path)
    assert local["weights_sha256"] == ray["weights_sha256"]


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"unit": "patient", "epsilon": 2.0, "persons": {"a": 60, "b": 30, "c": 50}}}, ["scaffold", 'unit = "patient"']),
        ({"privacy": {"unit": "site", "noise_multiplier": 1.0}}, ["scaffold", 'unit = "site"']),
        ({"training": {"optimizer": "adam"}}, ["scaffold", 'optimizer = "sgd"']),
        ({"training": {"optimizer": "sgd", "momentum": 0.9}}, ["scaffold", "without momentum"]),
        ({"training": {"optimizer": "sgd", "precision": "float16"}}, ["scaffold", "float16"]),
    ],
)
def test_what_it_is_not_built_for_is_refused_by_a_sentence(changes: dict[str, Any], words: list[str]) -> None:
    if "privacy" in changes:
        changes["privacy"]["ranges"] = {"x1": [-9, 9], "x2": [-9, 9], "x3": [-9, 9], "y": [-20, 20]}
    with pytest.raises(InputError) as caught:
        make_strategy(study_of({"name": "scaffold"}, **changes))
    assert all(word in str(caught.value) for word in words)
    assert str(caught.value).endswith(".")


class Guarded:
    """Site "a" behind its gate, and messages to it that a test may change."""

    def __init__(self, folder: Path, strategy: dict[str, Any]) -> None:
        write_sites(folder)
        plan = {**PLAN, "federation": {"sites": ["a"], "rounds": 3}, "strategy": strategy}
        self.study, site = make_study(**plan), read_site(folder / "a")
        approve(prepare_state(site), self.study, "Dr. Test")
        self.site, self.gate = site, Gate(site, site.state)
        self.grid = InProcessGrid(self.gate.handle, [{}])
        self.agreed = agree(self.study, self.grid)
        self.model = {k: v.numpy() for k, v in learned(build_model(self.study, self.agreed.layout(self.study))).items()}
        self.zeros = {k: np.zeros_like(v) for k, v in self.model.items()}

    def ask(self, number: int, config: dict[str, Any], **records: Arrays) -> Message:
        own = ConfigRecord({"study": self.study.canonical, "phase": "round", "round": number, **config})
        content = RecordDict(
            {"config": own, **self.agreed.record(), "arrays": pack(self.model), **{k: pack(v) for k, v in records.items()}}
        )
        (sent,) = self.grid.push_messages([Message(content, next(iter(self.agreed.nodes)), "train")])
        (reply,) = self.grid.pull_messages([sent])
        return reply

    def code(self, number: int, config: dict[str, Any], **records: Arrays) -> str:
        reply = self.ask(number, config, **records)
        return reply.error.reason if reply.has_error() else ""


def test_the_gate_lets_in_and_out_what_the_algorithm_declares_and_no_more(tmp_path: Path) -> None:
    site = Guarded(tmp_path, {"name": "scaffold"})
    first = {"counted-round": 0}
    short = {k: v[:0] for k, v in site.zeros.items()}
    assert site.code(1, first) == "undeclared-record"
    assert site.code(1, {}, control=site.zeros) == "undeclared-record"
    assert site.code(1, {"counted-round": 0.0}, control=site.zeros) == "undeclared-record"
    assert site.code(1, {**first, "proximal-mu": 0.1}, control=site.zeros) == "undeclared-record"
    assert site.code(1, first, control=short) == "undeclared-record"
    assert site.code(1, first, control={k: v.astype(np.float64) for k, v in site.zeros.items()}) == "undeclared-record"
    assert site.code(1, first, control={k: v + np.nan for k, v in site.zeros.items()}) == "non-finite"
    assert site.code(1, first, control={"other": np.zeros(3, np.float32)}) == "undeclared-record"
    assert site.code(1, first, control=site.zeros, more=site.zeros) == "undeclared-record"
    assert site.code(1, {"counted-round": 1}, control=site.zeros) == "bad-message"
    reply = site.ask(2, first, control=site.zeros)
    assert set(reply.content) == {"arrays", "metrics", "control-change", "journal"}
    assert site.code(3, {"counted-round": 1}, control=site.zeros) == "state-lost"
    noted = {e.direction: {note.name for note in e.records} for e in entries(site.site.state / "journal.jsonl") if e.verdict == "accepted"}
    assert noted == {"in": {"config", "agreement", "arrays", "control"}, "out": {"arrays", "metrics", "control-change"}}


def test_the_gate_refuses_scaffolds_records_in_a_study_without_it(tmp_path: Path) -> None:
    site = Guarded(tmp_path, {"name": "fedavg"})
    assert site.code(1, {}, control=site.zeros) == "undeclared-record"
    assert site.code(1, {"counted-round": 0}) == "undeclared-record"
    assert site.code(1, {"proximal-mu": 0.5}) == "undeclared-record"
    assert site.code(1, {}) == ""


def test_the_contract_holds_the_reply_to_the_declared_shapes() -> None:
    study = study_of({"name": "scaffold"})
    weights = {"w": (1, 3), "b": (1,)}
    extras = returned(algorithm_of(study), Phase.ROUND, weights)
    zeros = {k: np.zeros(shape, np.float32) for k, shape in weights.items()}
    from flwr.app import MetricRecord

    metrics = MetricRecord({"num-examples": 3, "loss-sum": 1.0, "seen": 3, "steps": 1, "train_loss": 0.3})

    def reply(**records: Arrays) -> RecordDict:
        packed: dict[str, ArrayRecord] = {k: pack(v) for k, v in records.items()}
        return RecordDict({"arrays": pack(zeros), "metrics": metrics, **{k.replace("_", "-"): v for k, v in packed.items()}})

    check_form(study, Phase.ROUND, "a", reply(control_change=zeros), weights, extras)
    wrong: list[tuple[RecordDict, Any]] = [
        (reply(), extras),
        (reply(control_change=zeros, other=zeros), extras),
        (reply(control_change={**zeros, "w": np.zeros((3, 1), np.float32)}), extras),
        (reply(control_change={"w": zeros["w"]}), extras),
        (reply(control_change={**zeros, "b": np.full(1, np.inf, np.float32)}), extras),
        (reply(control_change=zeros), NO_EXTRAS),
    ]
    for content, declared in wrong:
        with pytest.raises(SiteError):
            check_form(study, Phase.ROUND, "a", content, weights, declared)


def test_through_gates_it_is_the_local_run_bit_by_bit(tmp_path: Path, sites: list[Path]) -> None:
    study, gates = study_of({"name": "scaffold"}, rounds=3), []
    for manifest in write_sites(tmp_path / "guarded"):
        site = read_site(manifest.parent)
        approve(prepare_state(site), study, "Dr. Test")
        gates.append(Gate(site, site.state))
    (tmp_path / "run").mkdir()
    grid = InProcessGrid(lambda message, context: gates[context.node_id - 1].handle(message, context), [{} for _ in gates])
    run_study(study, grid, tmp_path / "run")
    assert Run(tmp_path / "run").sha256 == federate(study, sites, tmp_path / "local").sha256
