"""One site of five sends numbers that its persons cannot have: it is named, no honest site is, and the run ends as it does without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict

from fedml.clients.work.client import answer
from fedml.contract.plausible import LARGEST, check_plausible
from fedml.errors import Reason, SiteError
from fedml.flower.grid import InProcessGrid
from fedml.runs.events import Agreed, Event, Final, Round
from fedml.runs.log import read_log
from fedml.strategies.rounds import run_study
from fedml.wire.records import Phase, pack, unpack
from tests.conftest import clinical_site, make_study

SITES = ("s0", "s1", "s2", "s3", "s4")
LIAR = "s2"
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return {name: clinical_site(folder / name, name, 60, seed) for seed, name in enumerate(SITES)}


def arrays(record: str, change: Callable[[str, Any], Any]) -> Callable[[RecordDict], None]:
    """A lie about each array of ``record``; one that returns None leaves the array as it is."""

    def lie(content: RecordDict) -> None:
        changed = {name: change(name, value.copy()) for name, value in unpack(content.array_records[record]).items()}
        content[record] = pack({k: unpack(content.array_records[record])[k] if v is None else v for k, v in changed.items()})

    return lie


def counted(name: str, value: Callable[[Any], Any]) -> Callable[[RecordDict], None]:
    """A lie about the array ``name`` of each part's counts."""
    return arrays("counts", lambda key, array: value(array).astype(array.dtype) if key.endswith(f"/{name}") else None)


def metrics(**changes: Any) -> Callable[[RecordDict], None]:
    def lie(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**dict(content.metric_records["metrics"]), **changes})

    return lie


def moment(row: int, value: Any) -> Callable[[RecordDict], None]:
    def change(name: str, sums: Any) -> Any:
        sums[row] = value
        return sums

    return arrays("sums", change)


def described(name: str, change: Callable[[Any], Any]) -> Callable[[RecordDict], None]:
    return arrays("described", lambda key, value: change(value).astype(value.dtype) if key == name else None)


def _noise(value: Any) -> Any:
    return np.random.default_rng(7).normal(0, 20, value.shape).astype(value.dtype)


def _renamed(content: RecordDict, old: str, new: str) -> None:
    content["counts"] = pack({key.replace(old, new): value for key, value in unpack(content.array_records["counts"]).items()})


def first_is(number: float) -> Callable[[str, Any], Any]:
    def change(name: str, value: Any) -> Any:
        value.flat[0] = number
        return value

    return change


LIES: dict[str, tuple[str, Callable[[RecordDict], None]]] = {
    "a weight of 3e38": ("round", arrays("arrays", lambda name, value: np.full_like(value, 3e38))),
    "one weight of -3e38": ("round", arrays("arrays", first_is(-3e38))),
    "a weight that is not finite": ("round", arrays("arrays", lambda name, value: np.full_like(value, np.nan))),
    "2^62 persons trained": ("round", metrics(**{"num-examples": 2**62})),
    "2^63 - 1 persons trained": ("round", metrics(**{"num-examples": 2**63 - 1})),
    "10^9 persons trained": ("round", metrics(**{"num-examples": 10**9})),
    "one person more than described": ("round", metrics(**{"num-examples": 61})),
    "more persons seen than trained": ("round", metrics(seen=10**6)),
    "a negative number of persons seen": ("round", metrics(seen=-1)),
    "a loss of 1e300": ("round", metrics(**{"loss-sum": 1e300})),
    "a sum of 1e308": ("statistics", arrays("sums", lambda name, value: np.full_like(value, 1e308))),
    "a negative count of a sum": ("statistics", moment(0, -5.0)),
    "a negative sum of squares": ("statistics", moment(2, -1.0)),
    "a mean without its square": ("statistics", moment(2, 0.0)),
    "a mean of 1e33": ("statistics", lambda content: (moment(1, 1e35)(content), moment(2, 1e70)(content), None)[2]),
    "sums of no persons": ("statistics", moment(0, 0.0)),
    "negative confusion": ("round", counted("confusion", lambda value: -value - 1)),
    "a perfect score of 10^8 persons": ("evaluate", counted("confusion", lambda value: np.array([[5 * 10**7, 0], [0, 5 * 10**7]]))),
    "10^8 persons counted": ("evaluate", counted("persons", lambda value: value * 0 + 10**8)),
    "one person more in the confusion": ("evaluate", counted("confusion", lambda value: value + np.array([[1, 0], [0, 0]]))),
    "a Brier sum of 1e308": ("evaluate", counted("brier_sum", lambda value: value * 0 + 1e308)),
    "an update of -50 times": ("round", arrays("arrays", lambda name, value: value * -50)),
    "an update of 100 times": ("round", arrays("arrays", lambda name, value: value * 100)),
    "an update of -1000 times": ("round", arrays("arrays", lambda name, value: value * -1000)),
    "one weight of 1e4": ("round", arrays("arrays", first_is(1e4))),
    "weights of 1e6": ("round", arrays("arrays", lambda name, value: np.full_like(value, 1e6))),
    "noise in place of weights": ("round", arrays("arrays", lambda name, value: _noise(value))),
    "all weights at their bound": ("round", arrays("arrays", lambda name, value: np.full_like(value, 9e14))),
    "a negative Brier sum": ("evaluate", counted("brier_sum", lambda value: -value)),
    "a Brier sum above 2 for each person": ("evaluate", counted("brier_sum", lambda value: value * 0 + 200)),
    "a negative log loss": ("evaluate", counted("log_loss_sum", lambda value: -value)),
    "a histogram of ten times as many": ("evaluate", counted("histogram", lambda value: value * 10)),
    "a negative histogram": ("evaluate", counted("histogram", lambda value: -value)),
    "pairs that there are not": ("evaluate", counted("beyond", lambda value: value + 10**9)),
    "fewer pairs than none": ("evaluate", counted("beyond", lambda value: value - 10**9)),
    "counts of training persons": ("evaluate", lambda content: _renamed(content, "test/", "train/")),
    "counts of another part": ("evaluate", lambda content: _renamed(content, "test/", "other/")),
    "2^62 persons described": ("describe", described("persons", lambda value: value * 0 + 2**62)),
    "a negative number described": ("describe", described("persons", lambda value: value - 1000)),
    "negative excluded persons": ("describe", described("excluded", lambda value: value * 0 - 2**62)),
    "2^62 excluded persons": ("describe", described("excluded", lambda value: value * 0 + 2**62)),
}  # fmt: skip


def run_with(
    manifests: Mapping[str, Path], folder: Path, phase: str, lie: Callable[[RecordDict], None] | None, **changes: Any
) -> list[Event]:
    """The events of a run in which ``LIAR`` changes its replies of ``phase``, in the second round of a round."""
    study = make_study(sites=tuple(manifests), federation__rounds=3, federation__quorum=2, **changes)
    places = dict(enumerate(manifests, start=1))

    def app(message: Message, context: Context) -> Message:
        reply = answer(message, context)
        config = message.content.config_records["config"]
        due = config["phase"] == phase and (phase != "round" or config["round"] == 2)
        if lie is not None and due and places[context.node_id] == LIAR and not reply.has_error():
            lie(reply.content)
        return reply

    folder.mkdir()
    run_study(study, InProcessGrid(app, [{"manifest": str(m)} for m in manifests.values()]), folder)
    return read_log(folder)[0]


@pytest.fixture(scope="module")
def without(manifests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """AUROC of the run of the four honest sites, and of the run in which the fifth is honest too, by the phase of a lie: a site that is
    refused in one round is there again in the last evaluation, with its test persons."""
    four = {name: path for name, path in manifests.items() if name != LIAR}
    folder = tmp_path_factory.mktemp("without")
    alone, five = (auroc(run_with(own, folder / str(len(own)), "", None)) for own in (four, manifests))
    return {"round": five, "evaluate": alone, "statistics": alone, "describe": alone}


def auroc(events: list[Event]) -> float:
    final = next(event for event in events if isinstance(event, Final))
    return float(final.metrics["test"]["all"]["auroc"])


@pytest.mark.parametrize("name", LIES)
def test_the_liar_is_named_and_the_run_goes_on(name: str, manifests: dict[str, Path], without: dict[str, float], tmp_path: Path) -> None:
    phase, lie = LIES[name]
    events = run_with(manifests, tmp_path / "run", phase, lie)
    refused = {site: reason for event in events if isinstance(event, Round | Final) for site, reason in event.refused.items()}
    assert refused.keys() == {LIAR}, "the liar, and no honest site"
    assert refused[LIAR] in (Reason.IMPLAUSIBLE, Reason.NON_FINITE, Reason.UNDECLARED)
    agreed = next(event for event in events if isinstance(event, Agreed))
    assert (LIAR in agreed.sites) == (phase not in ("describe", "statistics"))
    assert auroc(events) == pytest.approx(without[phase], abs=0.02)


def test_honest_sites_are_refused_nothing(manifests: dict[str, Path], tmp_path: Path) -> None:
    events = run_with(manifests, tmp_path / "run", "", None)
    assert all(event.refused == {} for event in events if isinstance(event, Round | Final))


@pytest.mark.parametrize(("value", "fits"), [(LARGEST, True), (-LARGEST, True), (1.01 * LARGEST, False), (-1.01 * LARGEST, False)])
def test_the_bound_of_a_weight(value: float, fits: bool) -> None:
    reply = RecordDict({"arrays": pack({"w": np.array([0, value], np.float32)})})
    if fits:
        check_plausible(make_study(), Phase.ROUND, reply, None)
    else:
        with pytest.raises(SiteError, match="a weight above") as refused:
            check_plausible(make_study(), Phase.ROUND, reply, None)
        assert refused.value.reason is Reason.IMPLAUSIBLE


def test_lengths_of_updates_are_in_the_events(manifests: dict[str, Path], tmp_path: Path) -> None:
    """A reply's arrays minus those that were sent, by hand."""
    sent: dict[str, Any] = {}
    study = make_study(sites=tuple(manifests), federation__rounds=2)
    places = dict(enumerate(manifests, start=1))

    def app(message: Message, context: Context) -> Message:
        before = {k: v.copy() for k, v in unpack(message.content.array_records["arrays"]).items()} if "arrays" in message.content else {}
        reply = answer(message, context)
        if message.content.config_records["config"]["phase"] == "round":
            after = unpack(reply.content.array_records["arrays"])
            sent[places[context.node_id]] = float(np.sqrt(sum(((after[k].astype(float) - before[k]) ** 2).sum() for k in after)))
        return reply

    (tmp_path / "run").mkdir()
    run_study(study, InProcessGrid(app, [{"manifest": str(m)} for m in manifests.values()]), tmp_path / "run")
    last = [event for event in read_log(tmp_path / "run")[0] if isinstance(event, Round)][-1]
    assert {site: row["update_norm"] for site, row in last.sites.items()} == pytest.approx(sent)


SMALL, LARGE = 14, 600  # training persons
PRIVATE = {
    "privacy": {
        "unit": "patient", "noise_multiplier": 300.0, "clipping_norm": 0.1,
        "persons": {name: LARGE if name != LIAR else SMALL for name in SITES},
        "ranges": {"x1": [0, 6], "x2": [-7, 5], "x3": [0, 200]},
    },
    "training": {"optimizer": "sgd", "lr": 1.0, "batch_size": 0, "local_epochs": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The liar's site has 40 times fewer persons than each other."""
    folder = tmp_path_factory.mktemp("unequal")
    return {name: clinical_site(folder / name, name, 20 if name == LIAR else 1000, seed) for seed, name in enumerate(SITES)}


def test_a_small_site_of_a_private_study_is_not_taken_for_a_liar(unequal: dict[str, Path], tmp_path: Path) -> None:
    """Its mean has 40 times the noise of the others', and weighs 40 times less."""
    events = run_with(unequal, tmp_path / "run", "", None, **PRIVATE)
    rounds = [event for event in events if isinstance(event, Round)]
    assert all(event.refused == {} for event in rounds)
    lengths = [[row["update_norm"] for site, row in event.sites.items() if site != LIAR] for event in rounds]
    assert max(event.sites[LIAR]["update_norm"] / np.median(others) for event, others in zip(rounds, lengths, strict=True)) > 10


@pytest.mark.parametrize("times", [-2000, 5000])
def test_a_lie_of_a_private_study_is_found(times: int, unequal: dict[str, Path], tmp_path: Path) -> None:
    events = run_with(unequal, tmp_path / "run", "round", arrays("arrays", lambda name, value: value * times), **PRIVATE)
    refused = {event.round: event.refused for event in events if isinstance(event, Round)}
    assert refused == {1: {}, 2: {LIAR: Reason.IMPLAUSIBLE}, 3: {}}


SCAFFOLD = {"strategy": {"name": "scaffold"}, "training__optimizer": "sgd", "training__lr": 0.05}
CONTROL_LIES: dict[str, Callable[[str, Any], Any]] = {
    "-50 times": lambda name, value: value * -50,
    "11 times its own, and noise": lambda name, value: value * 11 + _noise(value),
    "one number of 1e4": first_is(1e4),
    "1e30 everywhere": lambda name, value: np.full_like(value, 1e30),
    "not finite": lambda name, value: np.full_like(value, np.nan),
}


@pytest.mark.parametrize("name", CONTROL_LIES)
def test_a_change_of_the_control_variate_is_judged_like_an_update(name: str, manifests: dict[str, Path], tmp_path: Path) -> None:
    """The model of the liar is honest, only the change is not: it would be in the gradient of every site in all later rounds."""
    honest = run_with(manifests, tmp_path / "honest", "", None, **SCAFFOLD)
    assert all(event.refused == {} for event in honest if isinstance(event, Round | Final))
    events = run_with(manifests, tmp_path / "run", "round", arrays("control-change", CONTROL_LIES[name]), **SCAFFOLD)
    refused = {event.round: event.refused for event in events if isinstance(event, Round)}
    assert refused[1] == refused[3] == {}
    assert refused[2].keys() == {LIAR}
    assert refused[2][LIAR] in (Reason.IMPLAUSIBLE, Reason.NON_FINITE)
    assert auroc(events) == pytest.approx(auroc(honest), abs=0.02)
