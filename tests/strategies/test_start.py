"""A model that begins with pinned weights, and weights that are not trained: as a plain loop, and through the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file, save_file

from fedml.clients.gate.local import app as local_app
from fedml.clients.work.client import refusal
from fedml.errors import InputError, Reason, RunError
from fedml.flower.grid import InProcessGrid
from fedml.strategies.server import app as server_app
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from tests.clients.gate.centre import Centre, real_site
from tests.conftest import Run, clinical_site, federate, make_plan, make_study, to_toml

MLP: dict[str, Any] = {"model__clinical": {"net": "mlp", "hidden": [4]}}
FIRST, LAST = "encoder.clinical.0", "encoder.clinical.2"


def sites_of(folder: Path) -> list[Path]:
    return [clinical_site(folder / name, name, 60, seed, missing=0.0) for seed, name in enumerate("ab")]


def started(folder: Path, file: Path, patterns: list[str] | None = None, **changes: Any) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    plan = make_plan(**{**MLP, **changes})
    plan["model"]["start"] = str(file)
    if patterns is not None:
        plan["model"]["start_arrays"] = patterns
    (folder / "study.toml").write_text(to_toml(plan))
    return read_study(folder / "study.toml")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The model of an earlier run, of another seed."""
    federate(make_study(study__seed=7, **MLP), sites_of(tmp_path / "earlier sites"), tmp_path / "earlier")
    return tmp_path / "earlier" / "model.safetensors"


def names_of(arrays: Any) -> list[str]:
    return [name for name in arrays if not name.startswith(("preprocess.", "target."))]


def test_the_first_round_begins_with_the_pinned_weights(tmp_path: Path, earlier: Path) -> None:
    study = started(tmp_path / "s", earlier, federation__rounds=0)
    run = federate(study, sites_of(tmp_path), tmp_path / "run")
    given = load_file(earlier)
    assert names_of(given)
    for name in names_of(given):
        assert np.array_equal(run.arrays[name].numpy(), given[name])
    agreed = next(event for event in run.events if event["event"] == "agreed")
    assert sorted(agreed["started"]) == sorted(names_of(given))
    part = federate(started(tmp_path / "p", earlier, [f"{FIRST}.*"], federation__rounds=0), sites_of(tmp_path / "x"), tmp_path / "part")
    assert np.array_equal(part.arrays[f"{FIRST}.weight"].numpy(), given[f"{FIRST}.weight"])
    assert not np.array_equal(part.arrays[f"{LAST}.weight"].numpy(), given[f"{LAST}.weight"])
    fresh = federate(make_study(federation__rounds=0, **MLP), sites_of(tmp_path / "y"), tmp_path / "fresh")
    assert torch.equal(part.arrays[f"{LAST}.weight"], fresh.arrays[f"{LAST}.weight"])


def test_the_identity_covers_the_arrays_and_a_plain_study_has_none(tmp_path: Path, earlier: Path) -> None:
    study = started(tmp_path / "s", earlier)
    arrays = {name: array.copy() for name, array in load_file(earlier).items()}
    arrays[f"{LAST}.bias"][0] += 1
    other = tmp_path / "other.safetensors"
    save_file(arrays, other)
    assert started(tmp_path / "t", other).sha256 != study.sha256
    assert parse_study(study.canonical) == study
    assert "start" not in make_study(**MLP).model_dump()["model"]


def test_frozen_weights_stay_and_the_others_train_as_in_a_plain_loop(tmp_path: Path, earlier: Path) -> None:
    site = clinical_site(tmp_path / "a", "a", 60, 0, missing=0.0)
    changes: dict[str, Any] = {
        "sites": ["a"], "training__optimizer": "sgd", "training__lr": 0.1, "training__batch_size": 0, "federation__rounds": 3,
        "training__freeze": [f"{FIRST}.*"],
    }  # fmt: skip
    study = started(tmp_path / "s", earlier, **changes)
    run = federate(study, [site], tmp_path / "run")
    given = load_file(earlier)
    assert np.array_equal(run.arrays[f"{FIRST}.weight"].numpy(), given[f"{FIRST}.weight"])
    assert np.array_equal(run.arrays[f"{FIRST}.bias"].numpy(), given[f"{FIRST}.bias"])
    weight, bias = plain_loop(study, site, run, given)
    np.testing.assert_allclose(run.arrays[f"{LAST}.weight"], weight, atol=1e-6)
    np.testing.assert_allclose(run.arrays[f"{LAST}.bias"], bias, atol=1e-6)
    assert not np.allclose(weight, given[f"{LAST}.weight"], atol=1e-3)


def plain_loop(study: Study, site: Path, run: Run, given: dict[str, Any]) -> tuple[Any, Any]:
    """Three full-batch steps on the last layer, the features being fixed."""
    from fedml.clients.site.read import load_cohort

    cohort = load_cohort((str(site),), study)
    rows = cohort.rows("train")
    batch = cohort.batch(rows)
    mean, std = (run.arrays[f"preprocess.clinical.{what}"].double() for what in ("mean", "std"))
    x = (batch["clinical"][:, : len(mean)].double() - mean) / std
    inputs = given[f"{FIRST}.weight"].shape[1]
    x = torch.cat([x, torch.zeros(len(x), inputs - x.shape[1], dtype=torch.float64)], 1)  # indicators of missing numbers: none is missing
    features = torch.relu(x @ torch.tensor(given[f"{FIRST}.weight"]).double().T + torch.tensor(given[f"{FIRST}.bias"]).double())
    weight, bias = (torch.tensor(given[f"{LAST}.{what}"]).double().requires_grad_() for what in ("weight", "bias"))
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, batch["label"].long())
        for tensor, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            tensor.data -= 0.1 * gradient
    return weight.detach(), bias.detach()


def test_the_gate_takes_the_pinned_weights_and_no_others(tmp_path: Path, earlier: Path) -> None:
    study = started(tmp_path / "s", earlier, sites=["a"], federation__rounds=4)
    centre = Centre(study, real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    by_seed = centre.first(agreed)
    pinned = {name: array for name, array in load_file(earlier).items() if name in by_seed}
    assert pinned.keys() == by_seed.keys()
    changed = {**pinned, f"{LAST}.bias": pinned[f"{LAST}.bias"] + np.float32(0.5)}
    assert centre.ask("round", 1, 1, agreed, changed) == "not-of-the-plan"
    centre.run = 2
    agreed = centre.agree(2)
    assert centre.ask("round", 1, 2, agreed, pinned) == ""
    weights = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
    assert centre.ask("round", 2, 2, agreed, weights) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__freeze": ["encoder.image.*"]}, "matches no weight"),
        ({"training__freeze": ["*"]}, "matches every weight"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_ends_the_run(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        federate(make_study(**MLP, **changes), sites_of(tmp_path), tmp_path / "run")


def test_a_start_that_does_not_fit_is_told(tmp_path: Path, earlier: Path) -> None:
    with pytest.raises(InputError, match=r'no array matches start_arrays "encoder.image'):
        started(tmp_path / "s", earlier, ["encoder.image.*"])
    with pytest.raises(InputError, match="cannot be read"):
        started(tmp_path / "s", tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(InputError, match="is not a file of weights"):
        started(tmp_path / "s", tmp_path / "text.safetensors")
    save_file({f"{LAST}.bias": np.zeros(2, np.float16)}, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="is float16; save the weights as float32"):
        started(tmp_path / "s", tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="is in MLflow; here give a file"):
        started(tmp_path / "s", Path("models:/heart@champion"))
    wider = started(tmp_path / "w", earlier, model__clinical={"net": "mlp", "hidden": [6, 5]}, model__start_arrays=[f"{FIRST}.*"])
    with pytest.raises(InputError, match="none of its arrays has a name and shape"):
        federate(wider, sites_of(tmp_path), tmp_path / "run")


def test_a_run_that_fails_keeps_the_weights_of_its_last_round_and_another_goes_on_from_them(tmp_path: Path) -> None:
    manifests, folder = sites_of(tmp_path), tmp_path / "failed"
    folder.mkdir()
    study = make_study(federation__rounds=4, **MLP)
    config: dict[str, Any] = {"study": study.canonical, "run": str(folder), "job": "train"}

    def app(message: Message, context: Context) -> Message:
        gone = message.content.config_records["config"]["round"] == 3 and context.node_id == 2
        return refusal(message, Reason.NO_ANSWER) if gone else local_app(message, context)

    grid = InProcessGrid(app, [{"manifest": str(m)} for m in manifests], config)
    with pytest.raises(RunError, match=r"round 3: 1 of 2 sites answered"):
        server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    kept = load_file(folder / "unfinished.safetensors")
    two = federate(make_study(federation__rounds=2, **MLP), manifests, tmp_path / "two")
    for name in names_of(kept):
        assert np.array_equal(kept[name], two.arrays[name].numpy())
    further = federate(started(tmp_path / "s", folder / "unfinished.safetensors", federation__rounds=0), manifests, tmp_path / "on")
    assert all(np.array_equal(kept[name], further.arrays[name].numpy()) for name in names_of(kept))
