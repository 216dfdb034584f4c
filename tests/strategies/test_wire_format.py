"""Updates in fewer bytes: close to what they stand for, nothing lost over rounds, no other form is taken, the same bits on every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedml.contract.encoded import plain_reply
from fedml.errors import InputError, Reason, SiteError
from fedml.strategies.algorithms.algorithm import Received
from fedml.strategies.algorithms.registry import algorithm_of, make_strategy
from fedml.strategies.algorithms.wire_format import LEFT_OUT
from fedml.strategies.describe import describe
from fedml.study.study import Study
from fedml.wire.formats import SCALE, decode, encode
from fedml.wire.records import ARRAYS, pack
from tests.clients.gate.centre import Centre, real_site
from tests.clients.gate.test_training_plan import plan
from tests.conftest import clinical_site, federate, make_study

WIRES = ("float16", "bfloat16", "int8")
PARTS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of rounding to 11 and 8 binary digits
# Below the smallest normal number of float16 the error is half of its smallest step, 2**-24.
NUMBERS = arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=st.floats(-1000, 1000, width=32))


@given(NUMBERS)
def test_each_number_is_within_half_a_step(value: Any) -> None:
    update = {"w": torch.from_numpy(value.copy())}
    for wire, part in PARTS.items():
        (back,) = decode(encode(update, wire), wire).values()
        assert (np.abs(back.numpy() - value) <= part * np.abs(value) + 2.0**-25).all(), wire
    sent = encode(update, "int8")
    (back,) = decode(sent, "int8").values()
    rows = value.reshape(len(value), -1) if value.ndim > 1 else value.reshape(1, -1)
    steps = np.abs(rows).max(1, keepdims=True) / 127
    assert sent["w"].dtype == torch.int8
    assert (np.abs(back.numpy().reshape(rows.shape) - rows) <= steps * 0.50001 + 1e-38).all()


def received(study: Study, kept: dict[str, Any]) -> Received:
    return Received({}, {}, kept, {"w": torch.zeros(2)}, study.training)


@pytest.mark.parametrize("wire", WIRES)
def test_what_rounding_leaves_out_is_sent_later(wire: str) -> None:
    """The same small change in each round, beside a large one: without what was left out it would never arrive."""
    study = make_study(federation__wire=wire)
    change = torch.tensor([1.0, 0.001]) if wire == "int8" else torch.tensor([1.0 + 2.0**-12, 0.001])
    kept, total = dict[str, Any](), torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        end = algorithm_of(study).site(received(study, kept)).finish({"w": change}, 1)
        assert end.update is not None
        total += decode(end.update, wire)["w"].double()
        kept = dict(end.keeps)
    lost = (total - 100 * change.double()).abs()
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "int8": 1 / 127}[wire]
    assert (lost <= step).all(), lost
    alone = 100 * decode(encode({"w": change}, wire), wire)["w"].double()
    assert ((alone - 100 * change.double()).abs() > 10 * lost.clamp_min(1e-9)).any(), "rounding each update alone loses more"


@pytest.mark.parametrize("wire", WIRES)
def test_a_study_ends_near_the_model_of_whole_updates_with_fewer_bytes(wire: str, tmp_path: Path) -> None:
    manifests = [clinical_site(tmp_path / name, name, 120, seed) for seed, name in enumerate("ab")]
    keys: dict[str, Any] = {
        "federation__rounds": 15, "training__lr": 0.02, "training__evaluate_every": 0, "training__optimizer": "sgd",
        "model__clinical": {"net": "mlp", "hidden": [256, 64]},
    }  # fmt: skip
    whole = federate(make_study(**keys), manifests, tmp_path / "whole")
    study = make_study(federation__wire=wire, **keys)
    short = federate(study, manifests, tmp_path / "short")
    again = federate(study, manifests, tmp_path / "again")
    assert all(torch.equal(short.arrays[name], value) for name, value in again.arrays.items())
    sent = [[row["bytes_in"] for row in run.rounds[0]["sites"].values()] for run in (whole, short)]
    share = {"float16": 0.55, "bfloat16": 0.55, "int8": 0.35}[wire]
    assert all(b <= share * a for a, b in zip(*sent, strict=True)), sent
    begin = federate(make_study(**keys | {"federation__rounds": 0}), manifests, tmp_path / "begin").arrays
    moved, apart = (sum(float((whole.arrays[n] - other[n]).norm() ** 2) for n in begin) ** 0.5 for other in (begin, short.arrays))
    assert 0 < apart < 0.02 * moved, (apart, moved)


def test_workers_and_one_process_have_the_same_bits(tmp_path: Path) -> None:
    from fedml.experiments.runs.run import run_nodes
    from fedml.runs.log import load_model

    nodes = [{"manifest": str(clinical_site(tmp_path / name, name, 60, seed))} for seed, name in enumerate("ab")]
    study, found = make_study(federation__wire="int8", federation__rounds=3), []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        run_nodes(study, nodes, tmp_path / str(workers), workers=workers)
        found.append(load_model(tmp_path / str(workers))[0])
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


WRONG: dict[str, Any] = {
    "the weights as they are": lambda sent: {"w": np.zeros((2, 3), np.float32)},
    "no steps": lambda sent: {"w": sent["w"]},
    "steps of nothing": lambda sent: {**sent, "x/scale": sent["w/scale"]},
    "too few steps": lambda sent: {**sent, "w/scale": sent["w/scale"][:1]},
    "a step below 0": lambda sent: {**sent, "w/scale": -np.ones(2, np.float32)},
    "a step that is no number": lambda sent: {**sent, "w/scale": np.full(2, np.nan, np.float32)},
    "steps in double precision": lambda sent: {**sent, "w/scale": np.ones(2)},
    "another shape": lambda sent: {"w": sent["w"].T.copy(), "w/scale": np.ones(3, np.float32)},
    "another name": lambda sent: {"v": sent["w"], "v/scale": sent["w/scale"]},
    "nothing": lambda sent: {},
}


@pytest.mark.parametrize("case", WRONG)
def test_an_update_of_another_form_is_refused(case: str) -> None:
    sent = {name: value.numpy() for name, value in encode({"w": torch.ones(2, 3)}, "int8").items()}
    start, study = {"w": np.zeros((2, 3), np.float32)}, make_study(federation__wire="int8")
    assert sent.keys() == {"w", f"w{SCALE}"}
    good = plain_reply(study, RecordDict({ARRAYS: pack(sent)}), start)
    assert np.frombuffer(good[ARRAYS]["w"].data[-24:], np.float32).tolist() == [1.0] * 6  # type: ignore[index,union-attr]
    with pytest.raises(SiteError) as found:
        plain_reply(study, RecordDict({ARRAYS: pack(WRONG[case](sent))}), start)
    assert found.value.reason is Reason.UNDECLARED


def test_a_gate_sends_the_update_that_it_checked(tmp_path: Path) -> None:
    """What leaves is int8, the gate follows the weights that it stands for, and a site that restarts goes on with what was left out."""
    answers = []
    for restart in (False, True):
        centre = Centre(plan({}, federation__wire="int8"), real_site(tmp_path / f"{restart}", 'centre = "curious"\nmax_runs = 1'))
        agreed = centre.agree(1)
        weights = centre.first(agreed)
        for number in (1, 2, 3):
            assert centre.ask("round", number, 1, agreed, weights, {"counted-round": number - 1}) == ""
            record = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
            assert {v.dtype.name for k, v in record.items() if not k.endswith(SCALE)} == {"int8"}
            found = decode({k: torch.from_numpy(v.copy()) for k, v in record.items()}, "int8")
            weights = {name: weights[name] + value.numpy() for name, value in found.items()}
            if restart:
                centre.restart()
        answers.append(weights)
    assert all(np.array_equal(answers[0][name], value) for name, value in answers[1].items())


def test_the_plan_says_it_and_what_does_not_go_with_it_is_refused() -> None:
    assert '"wire"' not in make_study().canonical, "studies of before keep their hash"
    text = describe(make_study(federation__wire="int8"))
    assert "weights as their change in the round, int8, 1 bytes a number in place of 4" in " ".join(text.split())
    assert "what rounding left out of its updates" in text
    with pytest.raises(InputError, match=r"\[federation\] wire = \"int8\" is not built for \[privacy\] unit = \"site\""):
        make_study(federation__wire="int8", privacy={"unit": "site", "noise_multiplier": 1.0, "clipping_norm": 1.0})
    with pytest.raises(InputError, match=r"is not built for Flower's strategies"):
        make_strategy(make_study(federation__wire="float16", strategy__name="flwr.serverapp.strategy:FedYogi"))
    assert LEFT_OUT in algorithm_of(make_study(federation__wire="bfloat16", strategy__name="scaffold", training__optimizer="sgd")).keeps
