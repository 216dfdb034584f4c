"""docs/extending.md: its code blocks apply to the source as the page says, and each example does in a run what the page promises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics as sk
import torch
from safetensors.torch import load_file

from fedml.study.read import read_study
from tests.command import ROOT, STUDIES
from tests.conftest import clinical_site, image_site, make_plan, to_toml, write_csv, write_manifest

FLOORS = ("fedml", "strategies", "clients", "experiments")
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
Floats = npt.NDArray[np.float64]


# --- the page as files and changes


@dataclass
class Extension:
    """One section of the page: new files with their text, and (file, old lines, new lines) of each change."""

    files: dict[str, str] = field(default_factory=dict)
    changes: list[tuple[str, list[str], list[str]]] = field(default_factory=list)

    def apply(self, folder: Path) -> list[str]:
        """Writes the new files and makes the changes; returns the names of all files that were touched."""
        for name, text in self.files.items():
            assert not (folder / name).exists(), f"{name} is in the source already"
            (folder / name).write_text(text, encoding="utf-8")
        for name, old, new in self.changes:
            text, anchor = (folder / name).read_text(encoding="utf-8"), "\n".join(["", *old, ""])
            assert text.count(anchor) == 1, f"{name}: these lines occur {text.count(anchor)} times, not once: {old}"
            (folder / name).write_text(text.replace(anchor, "\n".join(["", *new, ""])), encoding="utf-8")
        return [*self.files, *{name: None for name, _, _ in self.changes}]


def _hunks(diff: str) -> Iterator[tuple[str, list[str]]]:
    """(file, lines of a hunk) of a diff without line numbers."""
    name, lines = "", list[str]()
    for line in [*diff.splitlines(), "@@"]:
        if line.startswith(("--- a/", "+++ b/", "@@")):
            if lines:
                yield name, lines
            lines = []
            name = line.removeprefix("+++ b/") if line.startswith("+++ b/") else name
        else:
            lines.append(line)


def _sections() -> dict[str, Extension]:
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        extension = Extension()
        for name, text in re.findall(r"^New file `(.+?)`:\n\n```\w+\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            extension.files[name] = text
        for diff in re.findall(r"^```diff\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            for name, lines in _hunks(diff):
                old, new = ([line[1:] for line in lines if line[:1] != sign] for sign in "+-")
                extension.changes.append((name, old, new))
        found[section.partition("\n")[0]] = extension
    return found


EXTENSIONS = _sections()


def copy_of_the_source(folder: Path) -> Path:
    folder.mkdir()
    for name in FLOORS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def tool(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).parent / name), *words]
    return subprocess.run(line, cwd=cwd, env={**os.environ, "PYTHONPATH": str(cwd)}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the source with all extensions of the page, and the files that they touch."""
    copy = copy_of_the_source(tmp_path_factory.mktemp("extended") / "source")
    return copy, sorted({name for extension in EXTENSIONS.values() for name in extension.apply(copy)})


def test_the_table_states_what_each_extension_touches() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(EXTENSIONS) == len(rows) == 7
    for (title, extension), (name, anchor, *stated) in zip(EXTENSIONS.items(), rows, strict=True):
        assert title.lower() in (f"a {name}", f"an {name}")
        assert anchor == title.lower().replace(" ", "-")
        lines = sum(line not in old for _, old, new in extension.changes for line in new)
        assert [len(extension.files), lines, len({file for file, _, _ in extension.changes})] == [int(n) for n in stated], title
        assert extension.files
        assert all(set(old) - set(new) <= {line for line in old if line.startswith("ALL: ")} for _, old, new in extension.changes)


def test_every_block_applies_and_is_imported(extended: tuple[Path, list[str]]) -> None:
    copy, touched = extended
    files = [name for name in touched if name.endswith(".py")]
    assert (done := tool("ruff", "check", "--no-cache", *files, cwd=copy)).returncode == 0, done.stdout
    assert (done := tool("ruff", "format", "--check", "--no-cache", *files, cwd=copy)).returncode == 0, done.stdout
    assert all((copy / name).read_text(encoding="utf-8").count("\n") <= 400 for name in files)
    found = ask(
        copy,
        """
        from fedml.cohort.images.formats import FORMATS
        from fedml.networks.image import NETWORKS
        from fedml.modalities.registry import MODALITIES
        from fedml.tasks.registry import TASKS
        from fedml.study.task_traits import TRAITS
        from fedml.tasks.classification_measures import MEASURES
        from fedml.strategies.algorithms.registry import STRATEGIES
        tables = [FORMATS, NETWORKS, MODALITIES, TASKS, TRAITS, [m.name for m in MEASURES], STRATEGIES]
        answer = [list(table) for table in tables]
        """,
    )
    for table, name in zip(found, ("metaimage", "patches", "embedding", "events", "events", "youden", "feddyn"), strict=True):
        assert name in table


@pytest.mark.long
def test_the_types_and_the_order_of_imports_hold(extended: tuple[Path, list[str]]) -> None:
    copy, _ = extended
    assert (done := tool("lint-imports", "--no-cache", cwd=copy)).returncode == 0, done.stdout
    assert (done := tool("mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "extended"), cwd=copy)).returncode == 0, done.stdout


# --- commands over a copy


def process(copy: Path, code: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    line = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(line, cwd=copy.parent, env=environment, capture_output=True, text=True, timeout=400, check=False)


def ask(copy: Path, code: str, *words: object) -> Any:
    """``answer`` of a script that runs over the copy."""
    lines = "\n".join(line.removeprefix("        ") for line in code.splitlines())
    here = f"import fedml, json, sys; assert fedml.__file__.startswith({str(copy)!r}), fedml.__file__\n"
    done = process(copy, f"{here}{lines}\nprint(json.dumps(answer))", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def command(copy: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return process(copy, "from fedml.experiments.cli import main; main()", *words)


def ended(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    return " ".join((done.stdout + done.stderr).split())


@dataclass(frozen=True)
class Finished:
    """A run of the copy: the object of ``--json``, the last evaluation's event, and the saved arrays."""

    folder: Path
    reported: dict[str, Any]

    @property
    def final(self) -> dict[str, Any]:
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return next(row for row in map(json.loads, lines) if row["event"] == "final")

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        return dict(load_file(self.folder / "model.safetensors"))


def run(copy: Path, study: Path, sites: Path, *words: object) -> Finished:
    out = ended(command(copy, "run", study, "--sites", sites, "--no-track", "--json", *words))
    reported = json.loads(out.strip().splitlines()[-1])
    assert reported["status"] == "finished"
    return Finished(copy.parent / reported["folder"], reported)


def write_study(path: Path, inputs: Sequence[str] = ("clinical",), **changes: Any) -> Path:
    path.write_text(to_toml(make_plan(inputs, **changes)), encoding="utf-8")
    return path


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the source with the one extension that the test's parameter names."""
    made = copy_of_the_source(tmp_path / "source")
    EXTENSIONS[request.param].apply(made)
    return made


def with_(title: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("copy", [title], indirect=True)


PREDICTIONS = """
        from pathlib import Path
        from fedml.clients.site.read import load_cohort
        from fedml.runs.restore import restore
        from fedml.tasks.registry import make_task
        import torch
        study, model = restore(Path(sys.argv[1]))
        answer = {}
        for site in sys.argv[2:]:
            cohort = load_cohort((site + "/site.toml",), study)
            batch = cohort.batch(cohort.rows("test"))
            with torch.inference_mode():
                columns = make_task(study).answer.columns(model(batch), batch)
            answer[cohort.site] = {"truth": batch["label"].tolist(), **columns}
        """


def found_by_the_doctor(copy: Path, site: Path) -> dict[str, str]:
    """Input -> what ``fedml-site doctor`` finds of it."""
    code = """
        from pathlib import Path
        from fedml.clients.desk.doctor import examine
        from fedml.clients.site.manifest import read_site
        answer = {found.what: found.state for found in examine(read_site(Path(sys.argv[1])))}
        """
    states: dict[str, str] = ask(copy, code, site)
    return states


# --- an image format


def write_metaimage(path: Path, voxels: npt.NDArray[np.int16], affine: Floats) -> None:
    """As ITK writes it: LPS+, an axis a row."""
    columns = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    lines = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": False,
        "TransformMatrix": " ".join(f"{v:g}" for v in (columns[:, :3] / spacing).T.ravel()),
        "Offset": " ".join(f"{v:g}" for v in columns[:, 3]), "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(f"{v:g}" for v in spacing), "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    header = "".join(f"{key} = {value}\n" for key, value in lines.items())
    path.write_bytes(header.encode() + voxels.astype("<i2").tobytes(order="F"))


# How a saved model reads a file, and how a mask is read: differences from NIfTI, and the reason for a mask of another size.
ONE_IMAGE = """
        from pathlib import Path
        import numpy as np
        from fedml.cohort.images import masks
        from fedml.cohort.images.formats import FORMATS
        from fedml.cohort.images.reasons import ItemError
        from fedml.cohort.one_image import read_one
        from fedml.study.read import read_study
        shape, files = read_study(Path(sys.argv[1])).cohort.image, [Path(name) for name in sys.argv[2:]]
        first, second = (read_one(path, shape) for path in files)
        affine = FORMATS["nifti"].read(files[1])[1]
        drawn = [masks.read(path, affine, (7, 6, 5)) for path in files]
        answer = [float(np.abs(first - second).max()), float(np.abs(drawn[0].astype(float) - drawn[1]).max()), ""]
        try:
            masks.read(files[0], affine, (7, 6, 4))
        except ItemError as error:
            answer[2] = str(error.reason)
        """


@pytest.mark.long
@with_("An image format")
def test_images_of_the_new_format_give_the_weights_of_the_same_images_as_nifti(copy: Path, tmp_path: Path) -> None:
    import nibabel

    affine = np.array([[0.0, -2, 0, 10], [-1.5, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    for kind in ("nifti", "metaimage"):
        rng = np.random.default_rng(1)
        for name in "ab":
            folder = tmp_path / kind / name
            (folder / "images").mkdir(parents=True)
            ids = [f"{name}{k:02d}" for k in range(40)]
            y = np.arange(40) % 2
            for person, label in zip(ids, y, strict=True):
                voxels = (rng.normal(100, 20, (7, 6, 5)) + 40 * label).astype(np.int16)
                if kind == "nifti":
                    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "images" / f"{person}.nii")
                else:
                    write_metaimage(folder / "images" / f"{person}.mha", voxels, affine)
            write_csv(folder / "persons.csv", ids, {"y": y})
            write_manifest(folder, name, image=f'{{ path = "images", format = "{kind}" }}')
    image = {"size": [8, 8, 4], "orientation": "RAS", "spacing_mm": [2, 1.5, 3], "window": [0, 250]}
    study = write_study(tmp_path / "study.toml", ("image",), cohort__image=image, model__image={"channels": [4]})
    runs = {kind: run(copy, study, tmp_path / kind) for kind in ("nifti", "metaimage")}
    assert runs["metaimage"].reported["weights_sha256"] == runs["nifti"].reported["weights_sha256"]
    assert found_by_the_doctor(copy, tmp_path / "metaimage" / "a")["image"] == "ok"
    one = tmp_path / "metaimage" / "a" / "images" / "a00.mha"
    differ, mask, wrong = ask(copy, ONE_IMAGE, study, one, tmp_path / "nifti" / "a" / "images" / "a00.nii")
    assert (differ, mask) == (0, 0)
    assert wrong == "mask-mismatch"
    path = next((tmp_path / "metaimage" / "a" / "images").iterdir())
    path.write_bytes(path.read_bytes()[:-2])
    run(copy, study, tmp_path / "metaimage")
    (entry,) = map(json.loads, (tmp_path / "metaimage" / "a" / ".fedml" / "quarantine.jsonl").read_text().splitlines())
    assert (entry["person"], entry["reason"]) == (path.stem, "truncated")
    write_manifest(tmp_path / "metaimage" / "a", "a", image='{ path = "images", format = "metaimge" }')
    assert '(did you mean "metaimage"?)' in refused(command(copy, "run", study, "--sites", tmp_path / "metaimage", "--no-track"))


# --- a network


@pytest.mark.long
@with_("A network")
def test_the_new_network_learns_also_under_privacy_of_a_patient(copy: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        image_site(tmp_path / "sites" / name, name, 120, seed)
    network = {"net": "patches", "channels": [6, 5]}
    plan = {"model__image": network, "training__lr": 0.05, "federation__rounds": 8}
    done = run(copy, write_study(tmp_path / "study.toml", ("image",), **plan), tmp_path / "sites")
    shapes = {name: tuple(value.shape) for name, value in done.arrays.items() if name.startswith("encoder.image") and value.ndim > 1}
    assert sorted(shapes.values()) == [(2, 5), (5, 6, 1, 1), (6, 1, 4, 4)]
    assert done.final["metrics"]["test"]["all"]["auroc"] > 0.95
    privacy = {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 80, "b": 80}}
    private = write_study(tmp_path / "private.toml", ("image",), **{**plan, "federation__rounds": 1}, privacy=privacy)
    for name in "ab":
        with (tmp_path / "sites" / name / "site.toml").open("a") as file:
            file.write("[policy]\nmax_epsilon = 100\n")
    assert run(copy, private, tmp_path / "sites").reported["privacy"]["unit"] == "patient"


# --- an input of a person


def embedding_site(folder: Path, name: str, seed: int) -> tuple[Floats, npt.NDArray[np.int64], list[str]]:
    """120 persons with a clinical column, an embedding that predicts the label, and a part; every seventh has no embedding."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ids = [f"{name}{k:03d}" for k in range(120)]
    vectors = rng.normal(5, 3, (120, 6))
    y = (vectors @ [1, -1, 0, 0, 0, 0] + rng.normal(size=120) > 0).astype(np.int64)
    parts = ["train" if k % 3 else "test" for k in range(120)]
    keep = np.array([bool(k % 7) for k in range(120)])
    write_csv(folder / "persons.csv", ids, {"y": y})
    write_csv(folder / "split.csv", ids, {"part": parts})
    write_csv(folder / "clinical.csv", ids, {f"x{k}": rng.normal(size=120) for k in (1, 2, 3)})
    np.savez(folder / "embedding.npz", ids=np.array(ids)[keep], vectors=vectors[keep])
    write_manifest(folder, name, clinical='{ path = "clinical.csv" }', embedding='{ path = "embedding.npz" }', split='"split.csv"')
    return vectors[keep & (np.array(parts) == "train")], y, ids


@pytest.mark.long
@with_("An input of a person")
def test_the_new_input_is_standardised_learned_rehearsed_and_scored(copy: Path, tmp_path: Path) -> None:
    trained = np.concatenate([embedding_site(tmp_path / "sites" / name, name, seed)[0] for seed, name in enumerate("ab")])
    plan: dict[str, Any] = {"cohort__embedding": {"width": 6}, "training__lr": 0.05, "federation__rounds": 8}
    study = write_study(tmp_path / "study.toml", ("clinical", "embedding"), **plan)
    assert "an embedding of 6 numbers" in ended(command(copy, "check", study))
    done = run(copy, study, tmp_path / "sites")
    np.testing.assert_allclose(done.arrays["preprocess.embedding.mean"], trained.mean(0), rtol=1e-5)
    np.testing.assert_allclose(done.arrays["preprocess.embedding.std"], trained.std(0), rtol=1e-5)
    assert done.final["metrics"]["test"]["all"]["auroc"] > 0.8
    risks = ask(
        copy,
        """
        from pathlib import Path
        import numpy as np
        from fedml.clients.desk.rehearsal import rehearse
        from fedml.clients.site.manifest import read_site
        from fedml.runs.restore import restore
        from fedml.clients.site.read import load_cohort
        from fedml.modalities.registry import pool
        from fedml.tracking.scoring import score
        study, model = restore(Path(sys.argv[1]))
        vectors = np.array([[8, 2, 5, 5, 5, 5], [2, 8, 5, 5, 5, 5], [np.nan] * 6])
        risk = score(study, model, {"clinical": np.zeros((3, 3)), "embedding": vectors})["probability_1"].tolist()
        sent = [e.phase for e in rehearse(read_site(Path(sys.argv[2])), study).entries if e.direction == "out"]
        pooled = pool([load_cohort((site + "/site.toml",), study) for site in sys.argv[2:]], study).inputs["embedding"]
        answer = [risk, sent, int(pooled.present.sum())]
        """,
        done.folder,
        *(tmp_path / "sites" / name for name in "ab"),
    )
    (high, low, without), sent, present = risks
    assert present == 2 * sum(bool(k % 7) for k in range(120))
    assert high > without > low
    assert sent == ["describe", "statistics", "round", "evaluate"]
    ended(command(copy, "report", done.folder, "-o", tmp_path / "report.html"))
    assert found_by_the_doctor(copy, tmp_path / "sites" / "a")["embedding"] == "ok"


@pytest.mark.long
@with_("An input of a person")
def test_what_the_new_input_lacks_is_refused_and_other_studies_keep_their_identity(copy: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        embedding_site(tmp_path / "sites" / name, name, seed)
        with (tmp_path / "sites" / name / "site.toml").open("a") as file:
            file.write("[policy]\nmax_epsilon = 100\n")
    lacking = write_study(tmp_path / "lacking.toml", ("embedding",))
    assert "[cohort.embedding] is missing; add it with width" in refused(command(copy, "check", lacking))
    privacy = {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 80, "b": 80}}
    private = write_study(tmp_path / "private.toml", ("embedding",), cohort__embedding={"width": 6}, privacy=privacy)
    text = refused(command(copy, "run", private, "--sites", tmp_path / "sites", "--no-track"))
    assert "[cohort.embedding] range is missing or not ascending" in text
    plan = {"cohort__embedding": {"width": 6, "range": [-10, 20]}, "federation__rounds": 1}
    done = run(copy, write_study(private, ("embedding",), **plan, privacy=privacy), tmp_path / "sites")
    text = refused(command(copy, "audit", done.folder, "--sites", tmp_path / "sites"))
    assert 'input "embedding": a run that uses it cannot be audited (no canary is designed for embeddings)' in text
    files = sorted(STUDIES.glob("*.toml"))
    found = ask(
        copy,
        """
        from pathlib import Path
        from fedml.study.read import read_study
        answer = [read_study(Path(name)).sha256 for name in sys.argv[1:]]
        """,
        *files,
    )
    assert found == [read_study(path).sha256 for path in files]


# --- a task


@pytest.mark.long
@with_("A task")
def test_the_new_task_learns_what_was_planted_and_its_metrics_are_those_of_the_pooled_persons(copy: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        rng, folder = np.random.default_rng(seed), tmp_path / "sites" / name
        folder.mkdir(parents=True)
        ids, x = [f"{name}{k:04d}" for k in range(300)], rng.normal(0, 1, (300, 3))
        write_csv(folder / "persons.csv", ids, {"y": rng.poisson(np.exp(0.7 + x @ [0.6, -0.4, 0.0]))})
        write_csv(folder / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
        write_manifest(folder, name, clinical='{ path = "clinical.csv" }')
    plan: dict[str, Any] = {"model__task": "events", "training__lr": 0.05, "federation__rounds": 12}
    study = write_study(tmp_path / "study.toml", **plan)
    assert "Predicts y: a number of events" in " ".join(ended(command(copy, "check", study)).split())
    done = run(copy, study, tmp_path / "sites")
    found = done.final["metrics"]["test"]["all"]
    assert set(found) == {"persons", "deviance", "abs_error"}
    answers = ask(copy, PREDICTIONS, done.folder, *(tmp_path / "sites" / name for name in "ab")).values()
    y, expected = (np.concatenate([answer[key] for answer in answers]) for key in ("truth", "expected"))
    assert found["deviance"] == pytest.approx(sk.mean_poisson_deviance(y, expected), rel=1e-5)
    assert found["abs_error"] == pytest.approx(sk.mean_absolute_error(y, expected), rel=1e-5)
    assert found["deviance"] < 0.75 * sk.mean_poisson_deviance(y, np.full(len(y), y.mean()))
    ended(command(copy, "report", done.folder, "-o", tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the expected numbers of events have a deviance of" in page
    assert "the squares of errors are not in the counts" in page
    ranges = {c: [-3, 3] for c in ("x1", "x2", "x3")}
    privacy = {"unit": "patient", "epsilon": 3.0, "persons": {"a": 9, "b": 9}, "ranges": ranges}
    private = write_study(tmp_path / "private.toml", **plan, privacy=privacy)
    assert 'task = "events" is not built for unit = "patient"' in refused(command(copy, "check", private))


# --- a metric


@pytest.mark.long
@with_("A metric")
def test_the_new_metric_is_that_of_scikit_learn_and_is_verified(copy: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        clinical_site(tmp_path / "sites" / name, name, 200, seed)
    study = write_study(tmp_path / "study.toml", training__lr=0.05, federation__rounds=6)
    done = run(copy, study, tmp_path / "sites")
    answers = ask(copy, PREDICTIONS, done.folder, *(tmp_path / "sites" / name for name in "ab"))
    scores = done.final["metrics"]["test"]
    for site, answer in answers.items():
        predicted = [int(v) for v in answer["predicted"]]
        expected = sk.balanced_accuracy_score(answer["truth"], predicted, adjusted=True)
        assert scores["sites"][site]["youden"] == pytest.approx(expected)
    y, predicted = (np.concatenate([np.array(a[key], float) for a in answers.values()]) for key in ("truth", "predicted"))
    value = sk.balanced_accuracy_score(y, predicted, adjusted=True)
    assert done.reported["metrics"]["test"]["youden"] == scores["all"]["youden"] == pytest.approx(value)
    assert 0.2 < value < 1
    ended(command(copy, "report", done.folder, "-o", tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'").replace("&#39;", "'")
    assert "Youden's index" in page
    ended(command(copy, "bundle", done.folder, "-o", tmp_path / "run.zip"))
    ended(command(copy, "verify", tmp_path / "run.zip"))


# --- an algorithm


def feddyn(
    start: Mapping[str, Floats], data: Sequence[tuple[Floats, npt.NDArray[np.int64]]], alpha: float, *, forget: bool = False
) -> dict[str, Floats]:
    """Weights after 6 rounds of 4 full-batch steps with rate 0.3 of multinomial logistic regressions, written from the paper.

    ``forget``: every site starts each round with its first state.
    """
    x, h = dict(start), {key: np.zeros_like(value) for key, value in start.items()}
    kept = [dict(h) for _ in data]
    for _ in range(6):
        models = []
        for number, (features, label) in enumerate(data):
            w, g = dict(x), {key: np.zeros_like(value) for key, value in start.items()} if forget else kept[number]
            for _ in range(4):
                z = features @ w["weight"].T + w["bias"]
                p = np.exp(z - z.max(1, keepdims=True))
                error = (p / p.sum(1, keepdims=True) - np.eye(2)[label]) / len(label)
                gradient = {"weight": error.T @ features, "bias": error.sum(0)}
                w = {key: w[key] - 0.3 * (gradient[key] - g[key] + alpha * (w[key] - x[key])) for key in w}
            kept[number] = {key: g[key] - alpha * (w[key] - x[key]) for key in w}
            models.append(w)
        mean = {key: np.mean([w[key] for w in models], axis=0) for key in x}
        h = {key: h[key] - alpha * (mean[key] - x[key]) for key in x}
        x = {key: mean[key] - h[key] / alpha for key in x}
    return x


@pytest.mark.long
@with_("An algorithm")
def test_the_new_algorithm_gives_the_weights_of_the_paper_and_keeps_state_at_the_sites(copy: Path, tmp_path: Path) -> None:
    rows = {}
    for seed, name in enumerate("ab"):
        rng, folder = np.random.default_rng(seed), tmp_path / "sites" / name
        folder.mkdir(parents=True)
        ids, x = [f"{name}{k:03d}" for k in range(60 + 60 * seed)], rng.normal(seed, 1, (60 + 60 * seed, 3)).round(3)
        y = (x @ [1, -1 + 2 * seed, 0.5] + rng.normal(size=len(x)) > 0).astype(np.int64)
        parts = ["test" if k % 4 == 0 else "train" for k in range(len(ids))]
        write_csv(folder / "persons.csv", ids, {"y": y})
        write_csv(folder / "split.csv", ids, {"part": parts})
        write_csv(folder / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
        write_manifest(folder, name, clinical='{ path = "clinical.csv" }', split='"split.csv"')
        train = np.array(parts) == "train"
        rows[name] = x[train], y[train]
    training = {"optimizer": "sgd", "lr": 0.3, "batch_size": 0, "local_epochs": 4}
    study = write_study(
        tmp_path / "study.toml", training=training, federation__rounds=6, strategy={"name": "feddyn", "alpha": 0.5},
        cohort__clinical={"columns": ["x1", "x2", "x3"], "indicate": False},
    )  # fmt: skip
    plan = " ".join(ended(command(copy, "check", study)).split())
    assert "the gradient of the site's loss at its last model (FedDyn), in memory until the run ends" in plan
    first = weights(run(copy, study, tmp_path / "sites", "--set", "federation.rounds=0"))
    done = run(copy, study, tmp_path / "sites")
    pooled = np.concatenate([x for x, _ in rows.values()])
    data = [((x - pooled.mean(0)) / pooled.std(0), y) for x, y in rows.values()]
    expected, forgotten = feddyn(first, data, 0.5), feddyn(first, data, 0.5, forget=True)
    for key, value in weights(done).items():
        np.testing.assert_allclose(value, expected[key], atol=2e-5)
        assert np.abs(value - forgotten[key]).max() > 0.01, "without what the sites keep, other weights"
    assert 'did you mean "alpha"' in refused(command(copy, "check", study, "--set", "strategy.alpa=1"))
    text = refused(command(copy, "check", study, "--set", "privacy.unit=site", "--set", "privacy.epsilon=3.0", "--set",
                           "privacy.ranges={x1=[-3,3],x2=[-3,3],x3=[-3,3]}"))  # fmt: skip
    assert "keeps gradients from round to round, which epsilon does not count" in text


def weights(done: Finished) -> dict[str, Floats]:
    learned = {name: value for name, value in done.arrays.items() if name.startswith("encoder.")}
    assert len(learned) == 2
    return {name.rpartition(".")[2]: value.double().numpy() for name, value in learned.items()}


# --- a study


@pytest.mark.long
@with_("A study")
def test_the_new_study_runs_on_the_sites_that_it_names(copy: Path, tmp_path: Path) -> None:
    study, sites = copy / next(iter(EXTENSIONS["A study"].files)), tmp_path / "sites"
    ended(command(copy, "synth", sites, "--persons", 80))
    before = read_study(study).sha256
    assert before in ended(command(copy, "check", study))
    done = run(copy, study, sites)
    assert {site: row["rounds"] for site, row in done.reported["sites"].items()} == {"oslo": 5, "porto": 5, "utrecht": 5}
    assert set(done.final["groups"]) == {"sex:0", "sex:1"}
    assert done.reported["study_sha256"] == before
    study.write_text(study.read_text(encoding="utf-8").replace("# general research use", "# another comment"), encoding="utf-8")
    assert read_study(study).sha256 == before
    assert 'did you mean "rounds"' in refused(command(copy, "check", study, "--set", "federation.round=3"))
