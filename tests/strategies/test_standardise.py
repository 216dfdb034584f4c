"""``[cohort] standardise = "site"``: tables by each site's own persons, against a plain PyTorch loop on data that NumPy standardised."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedml.clients.site.manifest import read_site
from fedml.errors import InputError, RunError
from fedml.experiments.models.predictions import predictions
from fedml.runs.log import STUDY
from fedml.runs.restore import restore
from fedml.strategies.describe import describe
from fedml.study.study import Study, parse_study, validate
from fedml.tracking.scoring import score
from tests.clients.gate.centre import Centre, real_site
from tests.conftest import federate, make_plan, make_study, pooled, write_csv, write_manifest

PERSONS, ROUNDS, STEPS, LR = 90, 4, 3, 0.3
SHIFT = {"a": (0.0, 1.0), "b": (500.0, 40.0), "c": (-3.0, 0.01)}  # three units of one quantity
COLUMNS = ["x1", "x2", "stage", "flat"]
PART = np.array((["train"] * 9 + ["val"] * 3 + ["test"] * 3) * 6)


class Site:
    """A site on disk whose quantities have a unit of their own; gaps in x2, one category, a constant column."""

    def __init__(self, folder: Path, name: str, seed: int, persons: int = PERSONS, split: bool = True) -> None:
        rng = np.random.default_rng(seed)
        x, noise, self.stage = rng.normal(size=(persons, 2)), rng.normal(0, 0.7, persons), rng.choice(["I", "II"], persons)
        self.y = (x[:, 0] - x[:, 1] + (self.stage == "II") + noise > 0.3).astype(int)
        self.score = 10 * x[:, 0] + 50 + noise
        low, unit = SHIFT[name]
        self.x = np.column_stack([low + unit * x, np.full(persons, 7.0)])
        self.x[5::11, 1] = np.nan
        self.part, self.name = PART[:persons] if split else np.full(persons, "test"), name
        self.ids = [f"{name}{k:03d}" for k in range(persons)]
        folder.mkdir(parents=True)
        write_csv(folder / "persons.csv", self.ids, {"y": self.y, "score": self.score})
        columns = {"x1": self.x[:, 0], "x2": self.x[:, 1], "stage": self.stage, "flat": self.x[:, 2]}
        write_csv(folder / "clinical.csv", self.ids, columns)
        write_csv(folder / "split.csv", self.ids, {"part": self.part})
        own = {"split": '"split.csv"'} if split else {}
        self.manifest = write_manifest(folder, name, clinical='{ path = "clinical.csv" }', **own)

    def network_input(self) -> torch.Tensor:
        """(persons, 8): three standardised numbers, three indicators of missing ones, two categories."""
        known = self.x[self.part == "train"] if (self.part == "train").any() else self.x
        spread = np.nanstd(known, axis=0)
        z = (self.x - np.nanmean(known, axis=0)) / np.where(spread > 0, spread, 1)
        levels = np.stack([self.stage == "I", self.stage == "II"], axis=1)
        return torch.tensor(np.hstack([np.nan_to_num(z), np.isnan(z), levels]), dtype=torch.float32)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    folder = tmp_path_factory.mktemp("standardise")
    return {name: Site(folder / name, name, seed, split=name != "c") for seed, name in enumerate("abc")}


def study_of(names: str = "ab", **changes: Any) -> Study:
    clinical = {"columns": COLUMNS, "categories": {"stage": ["I", "II"]}}
    training = {"optimizer": "sgd", "lr": LR, "batch_size": 0, "local_epochs": STEPS, "evaluate_every": 0}
    given = {"cohort__standardise": "site", "cohort__clinical": clinical, "training": training, "federation__rounds": ROUNDS}
    return make_study(sites=list(names), **{**given, **changes})


def trained(sites: dict[str, Site], study: Study, folder: Path) -> Path:
    federate(study, [sites[name].manifest for name in study.federation.sites], folder)
    (folder / STUDY).write_text(study.canonical)
    return folder


@pytest.fixture(scope="module")
def run(sites: dict[str, Site], tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = study_of("abc", federation__evaluate_only=["c"])
    return trained(sites, study, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def reference(sites: dict[str, Site], tmp_path_factory: pytest.TempPathFactory) -> nn.Linear:
    """The plain loop of federated averaging, from the first weights of a run of no rounds."""
    first = federate(study_of(federation__rounds=0), [sites[n].manifest for n in "ab"], tmp_path_factory.mktemp("first") / "run").arrays
    layer = nn.Linear(8, 2)
    layer.load_state_dict({"weight": first["encoder.clinical.weight"], "bias": first["encoder.clinical.bias"]})
    for _ in range(ROUNDS):
        begin, after = {k: v.clone() for k, v in layer.state_dict().items()}, []
        for name in "ab":
            layer.load_state_dict(begin)
            rows = torch.from_numpy(sites[name].part == "train")
            x, y = sites[name].network_input()[rows], torch.tensor(sites[name].y)[rows]
            optimizer = torch.optim.SGD(layer.parameters(), lr=LR)
            for _ in range(STEPS):
                optimizer.zero_grad()
                functional.cross_entropy(layer(x), y).backward()
                optimizer.step()
            after.append({k: v.clone() for k, v in layer.state_dict().items()})
        layer.load_state_dict({k: torch.stack([one[k] for one in after]).mean(0) for k in begin})  # as many persons train at both
    return layer


def probability(layer: nn.Linear, x: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return layer(x).softmax(1)[:, 1].double().numpy()


def test_weights_are_those_of_a_plain_loop(run: Path, reference: nn.Linear) -> None:
    model = restore(run)[1].state_dict()
    torch.testing.assert_close(model["encoder.clinical.weight"], reference.weight.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(model["encoder.clinical.bias"], reference.bias.detach(), atol=1e-6, rtol=0)


def test_the_model_holds_no_moment_of_a_site(run: Path) -> None:
    model = restore(run)[1].state_dict()
    assert model["preprocess.clinical.mean"].tolist() == [0] * 4
    assert model["preprocess.clinical.std"].tolist() == [1] * 4


def test_each_site_is_predicted_by_its_own_persons(run: Path, reference: nn.Linear, sites: dict[str, Site]) -> None:
    """Also one that did not train: by all of its persons."""
    found = predictions(run, {name: read_site(site.manifest) for name, site in sites.items()})
    for name, site in sites.items():
        own = found[found["site"] == name]
        assert own["id"].tolist() == site.ids
        np.testing.assert_allclose(own["probability_1"], probability(reference, site.network_input()), atol=1e-6)


def test_the_counts_of_a_site_that_did_not_train_are_of_its_own_moments(run: Path, reference: nn.Linear, sites: dict[str, Site]) -> None:
    site, events = sites["c"], (run / "events.jsonl").read_text()
    right = ((probability(reference, site.network_input()) > 0.5) == site.y).mean()
    told = re.search(r'"external": ?\{.*?"accuracy": ?([0-9.]+)', events)
    assert told is not None
    assert float(told[1]) == pytest.approx(right, abs=1e-9)


def test_a_new_site_is_standardised_by_all_of_its_persons_and_refused_with_few(run: Path, reference: nn.Linear, tmp_path: Path) -> None:
    study, _ = restore(run)
    plain = study.model_dump(mode="json")
    plain["federation"] |= {"sites": ["a", "b"], "evaluate_only": []}
    again = tmp_path / "run"
    again.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (again / file.name).write_bytes(file.read_bytes())
    (again / STUDY).write_text(parse_study(json.dumps(plain)).canonical)
    site = Site(tmp_path / "c", "c", 9, split=False)
    found = predictions(again, {"c": read_site(site.manifest)})
    np.testing.assert_allclose(found["probability_1"], probability(reference, site.network_input()), atol=1e-6)
    few = Site(tmp_path / "few", "c", 9, persons=4, split=False)
    with pytest.raises(InputError, match=r"few.site.toml.*c has clinical of 4 persons.*min_count = 5"):
        predictions(again, {"c": read_site(few.manifest)})


def test_a_saved_model_standardises_the_rows_it_is_given_and_refuses_few(run: Path, reference: nn.Linear, sites: dict[str, Site]) -> None:
    study, model = restore(run)
    site = sites["c"]
    table = pd.DataFrame({"x1": site.x[:, 0], "x2": site.x[:, 1], "stage": site.stage, "flat": site.x[:, 2]})
    found = score(study, model, table)
    np.testing.assert_allclose(found["probability_1"], probability(reference, site.network_input()), atol=1e-6)
    with pytest.raises(InputError, match=r'standardise = "site", so the model standardises .* give at least 5 of them at once, not 4'):
        score(study, model, table.head(4))


def test_pooled_persons_are_standardised_by_their_own_site(sites: dict[str, Site], tmp_path: Path) -> None:
    arrays = pooled(study_of(), [sites[name].manifest for name in "ab"], tmp_path / "pooled").arrays
    first = federate(study_of(federation__rounds=0), [sites[n].manifest for n in "ab"], tmp_path / "first").arrays
    layer = nn.Linear(8, 2)
    layer.load_state_dict({"weight": first["encoder.clinical.weight"], "bias": first["encoder.clinical.bias"]})
    rows = {name: torch.from_numpy(sites[name].part == "train") for name in "ab"}
    x = torch.cat([sites[name].network_input()[rows[name]] for name in "ab"])
    y = torch.cat([torch.tensor(sites[name].y)[rows[name]] for name in "ab"])
    for _ in range(ROUNDS):
        optimizer = torch.optim.SGD(layer.parameters(), lr=LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(arrays["encoder.clinical.weight"], layer.weight.detach(), atol=1e-6, rtol=0)


def test_a_predicted_number_keeps_the_scale_of_all_sites(sites: dict[str, Site], tmp_path: Path) -> None:
    """Of what is predicted, the sums still leave: the model answers in its unit, at every site."""
    slow = {"optimizer": "sgd", "lr": 1e-3, "batch_size": 0, "local_epochs": 1, "evaluate_every": 0}
    study = study_of(cohort__target="score", model__task="regression", training=slow, federation__rounds=1)
    arrays = federate(study, [sites[name].manifest for name in "ab"], tmp_path / "run").arrays
    known = np.concatenate([sites[name].score[sites[name].part == "train"] for name in "ab"])
    assert arrays["target.mean"].item() == pytest.approx(known.mean(), rel=1e-6)
    assert arrays["target.std"].item() == pytest.approx(known.std(), rel=1e-5)
    assert arrays["preprocess.clinical.mean"].tolist() == [0] * 4


def test_what_leaves_a_site_and_the_plan(sites: dict[str, Site]) -> None:
    plan, usual = describe(study_of()), describe(study_of(cohort__standardise="all"))
    assert "clinical standardised at each site by mean and SD of its own training persons" in plan
    assert "sum of squares" in usual
    assert "sum of squares" not in plan
    assert "standardised at each site" not in usual


def test_a_study_without_the_key_keeps_its_identity() -> None:
    assert "standardise" not in make_study().canonical
    assert make_study(cohort__standardise="all").sha256 == make_study().sha256
    assert make_study(cohort__standardise="site").sha256 != make_study().sha256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"unit": "site", "epsilon": 1.0, "ranges": {"x1": [0.0, 1.0]}}}, "computes with exact means of persons"),
        ({"cohort__inputs": ["image"], "cohort__clinical": None}, "inputs lists none"),
        ({"cohort__standardise": "sites"}, "standardise"),
    ],
)
def test_what_it_does_not_go_with(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        validate(Study, make_plan(**{"cohort__standardise": "site", **changes}), "study.toml")


def test_a_site_of_real_persons_sends_no_sum_and_takes_no_other_constants(tmp_path: Path) -> None:
    """Through the gate, with a centre that is not trusted."""
    study = make_study(sites=("a",), cohort__standardise="site", federation__rounds=2)
    centre = Centre(study, real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert "statistics" not in json.dumps(centre.journal())
    crafted = {name: value + 1 for name, value in agreed.constants.items()}
    assert centre.ask("round", 1, 2, replace(agreed, constants=crafted), weights) == "not-of-the-plan"
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    assert centre.ask("statistics", 0, 1, agreed) == ""
    assert [name for name in centre.answered[-1][1] if name.startswith("sums/")] == []


def test_a_site_with_too_few_persons_takes_no_part(tmp_path: Path) -> None:
    few = Site(tmp_path / "a", "a", 3, persons=15)  # 9 train
    with pytest.raises(RunError, match="too-few-persons"):
        federate(study_of("a", policy={"min_count": 10}), [few.manifest], tmp_path / "run")


def test_numbers_that_keep_their_units_lose_the_mean_of_all_sites_alone(sites: dict[str, Site], tmp_path: Path) -> None:
    study = study_of(cohort__standardise="centre", federation__rounds=0)
    found = federate(study, [sites[name].manifest for name in "ab"], tmp_path / "run").arrays
    train = np.concatenate([sites[name].x[sites[name].part == "train"] for name in "ab"])
    numbers = [COLUMNS.index(name) for name in ("x1", "x2", "flat")]
    np.testing.assert_allclose(found["preprocess.clinical.mean"][numbers], np.nanmean(train, axis=0), rtol=1e-5)
    assert (found["preprocess.clinical.std"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"privacy": {"unit": "site", "epsilon": 4.0, "delta": 1e-5, "clipping_norm": 1.0}},
            'standardise = "centre" is not built for a private',
        ),
        ({"cohort__inputs": ["variants"], "cohort__clinical": None}, 'standardise = "centre" is built for clinical, omics and radiomics'),
    ],
)
def test_what_keeping_units_does_not_go_with(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study_of(**{"cohort__standardise": "centre", **changes})
