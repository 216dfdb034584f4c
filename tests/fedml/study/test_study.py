"""The study: what is accepted, how an error is reported, and an identity that depends on the plan alone."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedml.errors import InputError
from fedml.study.read import read_study
from fedml.study.sections import Privacy
from fedml.study.study import Study, parse_study, validate
from tests.conftest import make_plan, make_study, to_toml

IMAGE_ONLY = """
[study]
name = "pneumonia"
question = "Is there pneumonia?"
seed = 3

[cohort]
inputs = ["image"]
target = "finding"
classes = ["normal", "pneumonia"]
split = { train = 0.6, val = 0.2, test = 0.2 }

[cohort.image]
channels = 1
size = [28, 28]

[model.image]
net = "resnet10"
norm = "group"

[training]
lr = 0.01
local_epochs = 2

[federation]
sites = ["oslo", "rome", "lima"]
rounds = 5
quorum = 2

[strategy]
name = "fedprox"
mu = 0.1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def full_plan() -> dict[str, Any]:
    """A plan that gives every key."""
    plan: dict[str, Any] = make_study(
        ("image", "variants", "clinical"),
        cohort__clinical={
            "columns": ["age", "sex", "dose"],
            "categories": {"sex": ["f", "m"]},
            "missing": {"dose": [-9, 0.5, "unknown"]},
        },
        cohort__image={"size": [8, 8, 8]},
        model__clinical={"net": "mlp", "hidden": [4]},
        strategy={"name": "fedprox", "mu": 0.1},
    ).model_dump(mode="json")
    return plan


def test_image_study_reads_as_written(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, IMAGE_ONLY))
    assert study.study.name == "pneumonia"
    assert study.cohort.inputs == ("image",)
    assert study.cohort.classes == ("normal", "pneumonia")
    assert study.cohort.split.model_dump() == {"train": 0.6, "val": 0.2, "test": 0.2}
    assert study.cohort.image is not None
    assert study.cohort.image.size == (28, 28)
    assert study.model.image.net == "resnet10"
    assert (study.training.lr, study.training.local_epochs, study.training.batch_size) == (0.01, 2, 32)
    assert (study.federation.sites, study.federation.needed) == (("oslo", "rome", "lima"), 2)
    assert (study.strategy.name, study.strategy.options) == ("fedprox", {"mu": 0.1})
    assert study.split_key == "seed-3"


def test_canonical_is_sorted_compact_ascii_json_and_its_sha256_the_identity() -> None:
    study = make_study(study__question="Größe?")
    assert study.canonical.isascii()
    assert study.canonical == json.dumps(json.loads(study.canonical), sort_keys=True, separators=(",", ":"))
    assert study.sha256 == hashlib.sha256(study.canonical.encode()).hexdigest()


@pytest.mark.parametrize("plan", [make_plan(), full_plan(), make_plan(("image",))])
def test_canonical_parses_back_to_the_same_study(plan: dict[str, Any]) -> None:
    study = validate(Study, plan, "study.toml")
    again = parse_study(study.canonical)
    assert again == study
    assert again.canonical == study.canonical
    assert hash(again) == hash(study)


def test_hash_ignores_order_whitespace_comments_and_number_spelling(tmp_path: Path) -> None:
    one = read_study(write(tmp_path, IMAGE_ONLY)).sha256
    blocks = IMAGE_ONLY.strip().split("\n\n")
    for text in (
        "\n\n".join(reversed(blocks)),
        "\n\n".join("\n".join([b.split("\n")[0], *sorted(b.split("\n")[1:], reverse=True)]) for b in blocks),
        IMAGE_ONLY.replace(" = ", "   =\t").replace("\n", "  # a comment\n"),
        IMAGE_ONLY.replace("lr = 0.01", "lr = 1e-2"),
        IMAGE_ONLY.replace("[model.image]\n", "[model]\n").replace('net = "resnet10"\nnorm = "group"', 'image = { net = "resnet10" }'),
    ):
        assert text != IMAGE_ONLY
        assert read_study(write(tmp_path, text)).sha256 == one
    whole = IMAGE_ONLY.replace("lr = 0.01", "lr = 1").replace("train = 0.6, val = 0.2, test = 0.2", "train = 1, val = 0, test = 0")
    point = IMAGE_ONLY.replace("lr = 0.01", "lr = 1.0").replace("train = 0.6, val = 0.2, test = 0.2", "train = 1.0, val = 0e0, test = 0.0")
    assert read_study(write(tmp_path, whole)).sha256 == read_study(write(tmp_path, point)).sha256 != one


def test_hash_ignores_number_spelling_of_strategy_options() -> None:
    assert make_study(strategy={"name": "fedprox", "mu": 1}).sha256 == make_study(strategy={"name": "fedprox", "mu": 1.0}).sha256


def leaves(plan: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values that are no section."""
    if not isinstance(plan, dict):
        return [path]
    return [found for key, value in plan.items() for found in leaves(value, (*path, key))]


def put(plan: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    plan = copy.deepcopy(plan)
    at = plan
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return plan


OTHER: dict[tuple[str, ...], Any] = {
    ("study", "name"): "other",
    ("study", "question"): "why?",
    ("study", "purpose"): "DUO:0000042",
    ("study", "seed"): 1,
    ("cohort", "inputs"): ["clinical", "image", "variants"],
    ("cohort", "target"): "z",
    ("cohort", "classes"): [1, 0],
    ("cohort", "split_key"): "k",
    ("cohort", "clinical", "columns"): ["age", "dose", "sex"],
    ("cohort", "clinical", "categories", "sex"): ["m", "f"],
    ("cohort", "clinical", "missing", "dose"): [-9],
    ("cohort", "image", "size"): [8, 8],
    ("cohort", "image", "orientation"): "RAS",
    ("cohort", "image", "spacing_mm"): [1, 1, 2],
    ("cohort", "image", "window"): [-57, 164],
    ("cohort", "image", "percentiles"): [1, 99],
    ("cohort", "image", "tiles"): None,
    ("cohort", "variants", "match"): "rsid",
    ("cohort", "variants", "build"): "GRCh38",
    ("cohort", "variants", "regions"): ["22"],
    ("cohort", "variants", "listed"): ["rs1"],
    ("model", "variants", "l1"): None,
    ("model", "variants", "intervals"): None,
    ("gwas",): {},
    ("model", "task"): "regression",
    ("model", "image", "norm"): "batch",
    ("model", "image", "channels"): [8],
    ("model", "image", "pooling"): "attention",
    ("model", "segmentation", "norm"): "group",
    ("model", "segmentation", "channels"): [8, 16],
    ("model", "segmentation", "strides"): [2],
    ("model", "segmentation", "window"): [64, 64],
    ("model", "variants", "net"): None,
    ("model", "clinical", "net"): None,
    ("model", "variants", "hidden"): None,
    ("model", "clinical", "hidden"): [5],
    ("model", "hidden"): [3],
    ("training", "optimizer"): "sgd",
    ("training", "momentum"): None,
    ("training", "precision"): "bfloat16",
    ("training", "augment", "flip"): [0],
    **{("training", "augment", key): None for key in ("scale", "shift", "noise")},
    ("federation", "sites"): ["b", "a"],
    **{("privacy", key): None for key in Privacy.model_fields},
    ("strategy", "name"): "fedavg",
    ("cohort", "split", "train"): None,
    ("cohort", "split", "val"): None,
    ("cohort", "split", "test"): None,
}


# Those that are None in OTHER cannot change alone: see the combinations below.
@pytest.mark.parametrize("path", [p for p in leaves(full_plan()) if OTHER.get(p, p) is not None], ids=".".join)
def test_hash_changes_with_any_value(path: tuple[str, ...]) -> None:
    plan = full_plan()
    value: Any = plan
    for key in path:
        value = value[key]
    other = OTHER.get(path, (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else None)
    if other is None:
        other = value + 0.01 if isinstance(value, float) else value + "x"
    assert validate(Study, put(plan, path, other), "s").sha256 != validate(Study, plan, "s").sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort__split": {"train": 0.5, "val": 0.3, "test": 0.2}},
        {"model__variants": {"net": "mlp", "hidden": [4]}},
        {"training": {"optimizer": "sgd", "momentum": 0.5}},
        {"model__variants": {"l1": 0.1}, "training": {"optimizer": "sgd"}},
        {"model__variants": {"net": "genes", "intervals": [["22", 1, 9, "A"]]}},
        {"model__variants": {"net": "genes", "intervals": [["22", 1, 9, "B"]]}},
    ],
)
def test_hash_changes_with_values_that_only_change_together(changes: dict[str, Any]) -> None:
    assert make_study(**changes).sha256 != make_study().sha256


PRIVATE = {
    "unit": "patient",
    "noise_multiplier": 1.1,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "persons": {"a": 100, "b": 90},
    "statistics": "private",
    "statistics_multiplier": 5.0,
    "ranges": {"x1": [0, 5], "x2": [-3, 3], "x3": [0, 200]},
    "metrics": "exact",
}


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1.2},
        {"noise_multiplier": None, "epsilon": 3.0},
        {"delta": 1e-6},
        {"clipping_norm": 2.0},
        {"persons": {"a": 100, "b": 91}},
        {"statistics": "stated"},
        {"statistics_multiplier": 6.0},
        {"ranges": {"x1": [0, 5], "x2": [-3, 3], "x3": [0, 201]}},
        {"image_range": [0.0, 1.0]},
        {"metrics": "private"},
        {"unit": "site", "statistics": "stated", "persons": {}},
    ],
    ids=str,
)
def test_hash_changes_with_any_part_of_a_privacy_plan(change: dict[str, Any]) -> None:
    assert make_study(privacy=PRIVATE | change).sha256 != make_study(privacy=PRIVATE).sha256
    site = {"unit": "site", "epsilon": 3.0, "ranges": PRIVATE["ranges"], "quantile": 0.4}
    one, other = make_study(privacy=site), make_study(privacy=site | {"clipping": "adaptive"})
    assert len({one.sha256, other.sha256, make_study(privacy=site | {"quantile": 0.5}).sha256}) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": "none"}, ["noise_multiplier", "unit"]),
        ({"epsilon": 3.0}, ["exactly one of noise_multiplier and epsilon"]),
        ({"noise_multiplier": None}, ["exactly one of noise_multiplier and epsilon"]),
        ({"clipping": "adaptive"}, ['unit = "site"']),
        ({"unit": "site"}, ["statistics", "patient"]),
        ({"unit": "site", "statistics": "stated"}, ["persons goes with"]),
        ({"unit": "site", "statistics": "stated", "persons": {}, "metrics": "private"}, ["metrics"]),
        ({"ranges": {"x1": [0, 5]}}, ["x2", "ranges"]),
        ({"ranges": {"x1": [5, 0], "x2": [-3, 3], "x3": [0, 200]}}, ["range of x1"]),
        ({"ranges": {"x1": [0, 5], "x2": [-3, 3], "x3": [0, 200], "x4": [0, 1]}}, ["x4", "no numeric column"]),
        ({"persons": {"a": 100}}, ["b", "persons must name every site"]),
        ({"persons": {"a": 100, "b": 0}}, ["persons"]),
        ({"delta": 0}, ["delta"]),
        ({"noise_multiplier": 0}, ["noise_multiplier"]),
    ],
    ids=str,
)
def test_a_privacy_plan_that_cannot_hold_is_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as reported:
        make_study(privacy=PRIVATE | change)
    assert all(word in str(reported.value) for word in words), reported.value


def test_what_mixes_persons_or_weighs_by_them_is_refused_under_privacy() -> None:
    site = {"unit": "site", "epsilon": 3.0}
    with pytest.raises(InputError, match='norm = "group"'):
        make_study(("image",), privacy=site, model__image={"norm": "batch"})
    with pytest.raises(InputError, match='weighting = "equal"'):
        make_study(("image",), privacy=site, strategy={"name": "fedavg", "weighting": "persons"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training__learning_rate": 0.1}, ["[training] learning_rate", "not a known key"]),
        ({"training__lrr": 0.1}, ["[training] lrr", 'did you mean "lr"?']),
        ({"cohort__clinicl": {}}, ["[cohort] clinicl", 'did you mean "clinical"?']),
        ({"cohort__clinical__column": ["x"]}, ["[cohort.clinical] column", 'did you mean "columns"?']),
        ({"trainig": {}}, ["[trainig]", 'did you mean "training"?']),
        ({"training__lr": "fast"}, ["[training] lr", "number", "'fast'"]),
        ({"training__local_epochs": 1.5}, ["[training] local_epochs", "integer", "1.5"]),
        ({"training__lr": 0}, ["[training] lr", "greater than 0"]),
        ({"training__optimizer": "sdg"}, ["[training] optimizer", "'sgd'", 'did you mean "sgd"?']),
        ({"study__name": "Heart Study"}, ["[study] name", 'write "heart-study"']),
        ({"study__seed": True}, ["[study] seed", "integer"]),
        ({"cohort__split": {"train": 0.7, "val": 0.2, "test": 0.2}}, ["[cohort] split", "must be 1, not 1.1"]),
        ({"cohort__inputs": ["clinical", "imag"]}, ["[cohort] inputs", "item 2", 'did you mean "image"?']),
        ({"cohort__inputs": ["clinical", "clinical"]}, ["[cohort]", "listed twice"]),
        ({"cohort__inputs": ["image"]}, ["[cohort]", "[cohort.clinical] is given"]),
        ({"cohort__inputs": ["clinical", "image"], "cohort__clinical": None}, ["[cohort]", "[cohort.clinical]", "is missing"]),
        ({"cohort__image": {"size": [8, 8]}}, ["[cohort]", "[cohort.image] is given"]),
        ({"cohort__target": "x2"}, ["[cohort]", '"x2"', "reveal it to the model"]),
        ({"cohort__classes": [0]}, ["[cohort] classes", "2"]),
        ({"cohort__classes": ["a", "a"]}, ["[cohort]", "class is listed twice"]),
        ({"cohort__clinical__categories": {"x11": ["a"]}}, ["[cohort] clinical", '"x11"', 'did you mean "x1"?']),
        ({"cohort__clinical__columns": ["x1", "x1"]}, ["[cohort] clinical", "listed twice"]),
        ({"cohort__clinical__columns": []}, ["[cohort.clinical] columns", "at least 1"]),
        ({"model__clinical": {"net": "mlp"}}, ["[model] clinical", "hidden"]),
        ({"training__momentum": 0.9}, ["[training]", "momentum", "sgd"]),
        ({"federation__sites": ["a", "a"]}, ["[federation]", "listed twice"]),
        ({"federation__sites": []}, ["[federation] sites"]),
        ({"federation__quorum": 3}, ["[federation]", "quorum is 3", "only 2"]),
        ({"federation__sites": ["A site"]}, ["[federation] sites", "item 1", 'write "a-site"']),
        ({"privacy__unit": "person"}, ["[privacy] unit", "'none'", "'person'"]),
        ({"strategy": {"name": "fedprox", "mu": [1]}}, ["[strategy] mu"]),
    ],
)
def test_a_mistake_is_reported_with_file_section_and_key(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    plan = make_plan(**changes)
    if plan["cohort"].get("clinical", 1) is None:
        del plan["cohort"]["clinical"]
    path = write(tmp_path, to_toml(plan))
    with pytest.raises(InputError) as caught:
        read_study(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["study", "cohort", "federation"])
def test_a_missing_section_is_named(key: str) -> None:
    plan = make_plan()
    del plan[key]
    with pytest.raises(InputError, match=rf"s\.toml: \[{key}\] is missing"):
        validate(Study, plan, "s.toml")


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(InputError, match=r"\(2 more after this one\.\)"):
        make_study(training={"lr": "x", "batch_size": "x", "threads": "x"})


def test_a_key_named_like_a_type_is_named() -> None:
    with pytest.raises(InputError, match=r"\[training\] int is not a known key"):
        make_study(training__int=3)


@pytest.mark.parametrize("classes", [[1, 1.0], [1, "1.0"], ["01", "1"]])
def test_classes_that_no_label_can_tell_apart_are_refused(classes: list[Any]) -> None:
    with pytest.raises(InputError, match="listed twice"):
        make_study(cohort__classes=classes)


@pytest.mark.parametrize("channels", [[0], [-1]])
def test_a_network_without_channels_is_refused(channels: list[int]) -> None:
    with pytest.raises(InputError, match="channels"):
        make_study(("image",), model__image={"channels": channels})


def test_files_that_are_no_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml: cannot be read"):
        read_study(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match=r"study\.toml: is not valid TOML"):
        read_study(write(tmp_path, "[study\nname = 3"))
    (tmp_path / "latin.toml").write_bytes("name = 'Größe'".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.toml: is not UTF-8"):
        read_study(tmp_path / "latin.toml")


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "null", '"x"', '{"study":3}', '{"study":{"name":"\\ud800"}}'])
def test_text_that_is_no_study_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^study: "):
        parse_study(text)


def test_overrides_and_seed(tmp_path: Path) -> None:
    path = write(tmp_path, IMAGE_ONLY)
    study = read_study(path, overrides={"strategy.name": "fedavgm", "training.lr": 1, "cohort.split_key": "k"}, seed=9)
    assert (study.strategy.name, study.training.lr, study.study.seed, study.split_key) == ("fedavgm", 1.0, 9, "k")
    with pytest.raises(InputError, match=r"--set study\.name\.x: name is not a section"):
        read_study(path, overrides={"study.name.x": 1})
    with pytest.raises(InputError, match=r'\[training\] lrr .*did you mean "lr"'):
        read_study(path, overrides={"training.lrr": 1})


def test_a_study_is_frozen() -> None:
    study = make_study()
    for section, key in ((study, "model"), (study.training, "lr"), (study.cohort, "target"), (study.strategy, "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)
    study.strategy.options["mu"] = 5.0  # a copy: the study stays
    assert study.strategy.options == {}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def sections(plan: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys, sections too."""
    return [p for k, v in plan.items() for p in [(*path, k), *(sections(v, (*path, k)) if isinstance(v, dict) else [])]]


@given(data=st.data())
def test_any_mutation_of_a_plan_is_accepted_or_refused_with_a_sentence(data: st.DataObject) -> None:
    plan = full_plan()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sections(plan) or [("study",)]))
        at = plan
        for key in path[:-1]:
            at = at[key]
        value = at.pop(path[-1], None)
        kind = data.draw(st.sampled_from(["delete", "rename", "replace"]))
        if kind == "rename":
            at[data.draw(st.text(min_size=1, max_size=8))] = value
        elif kind == "replace":
            at[path[-1]] = data.draw(ANYTHING)
    try:
        study = validate(Study, plan, "plan.toml")
    except InputError as error:
        sentence = str(error)
    else:
        sentence = "plan.toml: accepted"
        assert parse_study(study.canonical).sha256 == study.sha256
    assert re.match(r"plan\.toml: .", sentence)
