"""The reference of all keys (docs/keys.md, ``fedml schema``, ``fedml check --explain``) against the studies and the models."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel

from fedml.clients.site.manifest import Manifest
from fedml.errors import InputError
from fedml.experiments.keys.entries import entries, find
from fedml.strategies.algorithms.registry import STRATEGIES, make_strategy
from fedml.study.study import Study
from fedml.synthetic.synthetic import Size, write_synthetic
from tests.command import ROOT, STUDIES, quick
from tests.conftest import make_study

STUDY_TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in STUDIES.glob("*.toml")}


# In a file a path or the name of a package, in its place the reader puts sections; the page describes what a file has.
PATHS = {"model.start", "code.packages"}


def keys_of(kind: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """(path, description) of every key and section of a model, without its schema."""
    for key, field in kind.model_fields.items():
        yield f"{path}{key}", "" if f"{path}{key}" in PATHS else field.description or ""
        if f"{path}{key}" in PATHS:
            continue
        for choice in (field.annotation, *get_args(field.annotation)):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                yield from keys_of(choice, f"{path}{key}.")


# Tables whose keys are names of the study's own.
NAMED = {
    "privacy.persons",
    "privacy.ranges",
    "evaluation.subgroups",
    "evaluation.bands",
    "cohort.clinical.categories",
    "cohort.clinical.missing",
    "cohort.clinical.dates",
}


def written(plan: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of the keys that a TOML text sets."""
    for key, value in plan.items():
        if isinstance(value, dict) and f"{path}{key}" not in NAMED:
            yield from written(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Draft7Validator]:
    """What the command prints, as validators."""
    found = {}
    for file in ("study", "site"):
        done = quick("fedml", "schema", file, cwd=tmp_path_factory.mktemp("schema"))
        assert done.returncode == 0, done.stderr
        Draft7Validator.check_schema(json.loads(done.stdout))
        found[file] = Draft7Validator(json.loads(done.stdout))
    return found


def test_the_page_is_what_the_models_give(tmp_path: Path) -> None:
    done = quick("fedml", "schema", "--markdown", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    hint = "docs/keys.md is out of date; run: fedml schema --markdown > docs/keys.md"
    assert done.stdout == (ROOT / "docs" / "keys.md").read_text(encoding="utf-8"), hint


@pytest.mark.parametrize(("file", "kind"), [("study", Study), ("site", Manifest)])
def test_every_key_has_one_line_of_description_and_is_on_the_page(file: str, kind: type[BaseModel]) -> None:
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8").partition("\n## Site")
    part = page[0] if file == "study" else page[2]
    expected = dict(keys_of(kind))
    assert len(expected) > {"study": 90, "site": 40}[file]
    for path, text in expected.items():
        assert text or path in PATHS, f"{path} has no description"
        assert "\n" not in text
        assert not text.endswith("."), path
        section, _, key = path.rpartition(".")
        if f"### `[{path}]`" in part:
            continue
        below = part.partition(f"### `[{section}]`\n")[2].partition("\n### ")[0]
        assert re.search(rf"^\| `{key}` \|.*{re.escape(text.replace('|', chr(92) + '|'))}", below, re.MULTILINE), path


def test_every_option_of_every_algorithm_is_on_the_page() -> None:
    below = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8").partition("### `[strategy]`\n")[2].partition("\n### ")[0]
    for name, make in STRATEGIES.items():
        code = make.__code__
        for key, default in zip(code.co_varnames[: code.co_argcount], make.__defaults__ or (), strict=True):
            row = next(line for line in below.splitlines() if line.startswith(f"| `{key}` |"))
            assert re.search(rf"{re.escape(json.dumps(default))} \([^)]*\b{name}\b", row), (name, key)


@pytest.mark.parametrize("name", STUDY_TEXTS)
def test_a_study_of_the_project_fits_the_schema_and_each_of_its_keys_has_an_entry(name: str, schemas: dict[str, Draft7Validator]) -> None:
    plan = tomllib.loads(STUDY_TEXTS[name])
    assert [error.message for error in schemas["study"].iter_errors(plan)] == []
    for path in written(plan):
        assert [entry.path for entry in find(path) if entry.file == "study"] == [path]


def test_manifests_fit_the_schema(tmp_path: Path, schemas: dict[str, Draft7Validator]) -> None:
    write_synthetic(tmp_path / "sites", Size(sites=2, persons=12, variants=10, image_size=16), seed=1)
    manifests = list((tmp_path / "sites").glob("*/site.toml"))
    assert len(manifests) == 2
    for path in manifests:
        assert [error.message for error in schemas["site"].iter_errors(tomllib.loads(path.read_text()))] == []
    guide = (ROOT / "docs" / "join-a-federation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert [error.message for error in schemas["site"].iter_errors(tomllib.loads(blocks[0]))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr = 0.01", "lr = 0"),
        ("lr = 0.01", "lrr = 0.01"),
        ("lr = 0.01", 'lr = "fast"'),
        ("local_epochs = 1", "local_epochs = 1.5"),
        ("rounds = 30", "rounds = -1"),
        ('inputs = ["clinical"]', 'inputs = ["clinic"]'),
        ('net = "linear"', 'net = "linea"'),
        ('"cleveland"', '"Cleveland"'),
    ],
)
def test_the_schema_refuses_what_the_check_refuses(tmp_path: Path, schemas: dict[str, Draft7Validator], old: str, new: str) -> None:
    text = STUDY_TEXTS["heart"]
    assert old in text
    broken = tmp_path / "broken.toml"
    broken.write_text(text.replace(old, new, 1))
    assert not schemas["study"].is_valid(tomllib.loads(broken.read_text()))
    assert quick("fedml", "check", broken, cwd=tmp_path).returncode == 2


def test_files_of_features_and_genes_fit_the_schema(schemas: dict[str, Draft7Validator]) -> None:
    plan = tomllib.loads(STUDY_TEXTS["heart"])
    plan["cohort"] |= {"inputs": ["omics"], "omics": {"features": "genes.txt"}}
    plan["model"] = {"variants": {"net": "genes", "genes": "genes.gff3.gz"}}
    assert schemas["study"].is_valid(plan)
    plan["cohort"]["omics"] = {"range": [0, 1]}
    assert not schemas["study"].is_valid(plan)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("training.lr", ["[training] lr of study", "learning rate", "number", "above 0, up to 1,000,000", "default: 0.001"]),
        ("lr", ["[training] lr of study"]),
        ("[cohort.image] size", ["[cohort.image] size of study", "2 to 3 items"]),
        ("data.image.format", ["[data.image] format of site.toml", '"nifti"', "required"]),
        ("strategy.server_lr", ["0.01 (fedadam, fedyogi, fedadagrad), 1.0 (fedavgm, scaffold)"]),
        ("mu", ["[strategy] mu", "0.01 (fedprox)", "from 0"]),
        ("policy.min_persons", ["of study", "default: 1\n", "of site.toml", "default: 20"]),
        ("min_persons", ["of study", "of site.toml"]),
        ("privacy.persons.oslo", ["[privacy] persons of study", "1 to 100,000,000"]),
        ("connection", ["[connection] of site.toml", "keys: superlink, root_certificates, key, proxy"]),
        ("model.variants.genes", ["GFF3"]),
    ],
)
def test_a_key_is_explained_without_a_study(tmp_path: Path, key: str, words: list[str]) -> None:
    done = quick("fedml", "check", "--explain", key, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in words:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("traning.lr", ['did you mean "training.lr"?']),
        ("data.imge.format", ['did you mean "data.image.format"?']),
        ("local_epoch", ['did you mean "local_epochs"?']),
        ("learning_rate", ["these are about learning rate: training.lr (study)", "policy.max_lr (site)"]),
        (
            "name",
            [
                "several keys",
                "study.name (study), cohort.image.channel_files.name (study), cohort.image.transforms.name (study), "
                "strategy.name (study), site.name (site)",
            ],
        ),
        ("momentum", ["training.momentum (study), strategy.momentum (study)"]),
        ("variants", ["cohort.variants (study), model.variants (study), data.variants (site)"]),
        ("zzzzz", ["no section or key", "docs/keys.md"]),
    ],
)
def test_a_wrong_key_gets_a_suggestion_and_an_ambiguous_one_its_candidates(tmp_path: Path, key: str, words: list[str]) -> None:
    done = quick("fedml", "check", "--explain", key, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_a_key_is_explained_with_the_studys_value(tmp_path: Path) -> None:
    done = quick("fedml", "check", STUDIES / "heart.toml", "--set", "training.lr=0.25", "--explain", "lr", cwd=tmp_path)
    assert done.returncode == 0
    assert 'in study "heart": 0.25' in done.stdout


def test_every_path_and_every_unique_key_is_found() -> None:
    assert len(entries()) > 150
    for entry in entries():
        assert entry in find(entry.path)
        same = {other.path for other in entries() if other.key == entry.key or other.path == entry.key}
        if len(same) == 1:
            assert entry in find(entry.key)
        elif entry.key not in {other.path for other in entries()}:
            with pytest.raises(InputError, match=re.escape(entry.path)):
                find(entry.key)


def test_check_without_a_study_and_schema_of_another_file_say_what_to_write(tmp_path: Path) -> None:
    done = quick("fedml", "check", cwd=tmp_path)
    assert done.returncode == 2
    assert "give a study file" in done.stderr
    done = quick("fedml", "schema", "manifest", cwd=tmp_path)
    assert done.returncode == 2
    assert "study, site" in done.stderr


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"name": "fedadam", "beta_1": 5}, r"\[strategy\] beta_1 is 5; it must be less than 1"),
        ({"name": "fedyogi", "server_lr": -0.1}, r"\[strategy\] server_lr is -0.1; it must be greater than 0"),
        ({"name": "fedavgm", "momentum": 1.0}, r"\[strategy\] momentum is 1; it must be less than 1"),
        ({"name": "fedprox", "mu": -1}, r"\[strategy\] mu is -1; it must be greater than or equal to 0"),
    ],
)
def test_an_option_beyond_the_range_on_the_page_is_refused(strategy: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_strategy(make_study(strategy=strategy))


def test_the_page_is_linked() -> None:
    assert "(docs/keys.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(keys.md" in (ROOT / "docs" / "join-a-federation.md").read_text(encoding="utf-8")
