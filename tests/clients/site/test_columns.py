"""``fedml check --resolve``: which names columns by pattern mean at sites whose tables are here, and that a run with them is the run of
the study that names each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.study.read import read_study
from tests.command import quick, run_json
from tests.conftest import make_plan, public_data, to_toml, write_manifest

PERSONS = 60
TABLE = '{ path = "table.csv", id = "pid" }'


def site(folder: Path, name: str, seed: int, **more: Any) -> None:
    """A site with one table of persons that also has its label, under another name of its ids."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    ids, x = [f"{name}{k:03d}" for k in range(PERSONS)], rng.normal(size=(PERSONS, 4)).round(3)
    y = (x[:, 1] + rng.normal(size=PERSONS) > 0).astype(int)
    table: dict[str, Any] = {"pid": ids, "g1": x[:, 0], "g2": x[:, 1], "y": y, "age": x[:, 2], "note": [f"n{k}" for k in range(PERSONS)]}
    pd.DataFrame(table | {"g3": x[:, 3]} | more).to_csv(folder / name / "table.csv", index=False)
    pd.DataFrame({"id": ids, "y": y}).to_csv(folder / name / "persons.csv", index=False)


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """Two sites: b's g3 is text, and only b has g4."""
    for name, seed in (("a", 1), ("b", 2)):
        site(tmp_path / "sites", name, seed, **({"g3": "low", "g4": 1.5} if name == "b" else {}))
        write_manifest(tmp_path / "sites" / name, name, clinical=TABLE, omics=TABLE)
    return tmp_path / "sites"


def study(folder: Path, inputs: tuple[str, ...] = ("clinical",), **changes: Any) -> Path:
    (folder / "study.toml").write_text(to_toml(make_plan(inputs, **changes)))
    return folder / "study.toml"


def test_resolved_at_the_sites_and_run(tmp_path: Path, sites: Path) -> None:
    asked = {"columns": ["age", "g*"], "names": "columns.txt"}
    path = study(tmp_path, cohort__clinical=asked)
    done = quick("fedml", "check", "study.toml", "--sites", "sites", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "clinical: 3 columns that every site has (columns.txt)" in done.stdout
    assert "clinical: left out 1 not there at a: g4" in done.stdout
    assert "clinical: left out 1 not numbers at b: g3" in done.stdout
    assert "3 clinical columns (age, g1, g2)" in done.stdout
    resolved = read_study(path)
    ran = run_json("study.toml", "--sites", "sites", "--no-track", cwd=tmp_path, by=quick)
    named = study(tmp_path, cohort__clinical={"columns": ["age", "g1", "g2"]})
    assert read_study(named).sha256 == resolved.sha256
    same = run_json("study.toml", "--sites", "sites", "--no-track", cwd=tmp_path, by=quick)
    assert ran["weights_sha256"] == same["weights_sha256"]


@pytest.mark.parametrize("section", ["clinical", "omics"])
def test_all_is_every_number_but_ids_target_and_part(tmp_path: Path, sites: Path, section: str) -> None:
    path = study(tmp_path, (section,), **{f"cohort__{section}": {"columns": "all", "names": "names.txt"}})
    for name in ("a", "b"):
        table = pd.read_csv(sites / name / "table.csv")
        table["part"] = "train"
        table.rename(columns={"pid": "id"}).to_csv(sites / name / "table.csv", index=False)
        write_manifest(sites / name, name, split='"table.csv"', **{section: '{ path = "table.csv" }'})
    done = quick("fedml", "check", "study.toml", "--sites", "sites", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spec = getattr(read_study(path).cohort, section)
    assert spec.columns == ("g1", "g2", "age")
    assert f"{section}: left out 2 not numbers at b: note, g3" in done.stdout


@pytest.mark.parametrize(
    ("spec", "words", "told"),
    [
        ({"columns": ["zz*"], "names": "n.txt"}, ["--sites", "sites", "--resolve"], "mean no column that is a number at every site"),
        ({"columns": ["g*"]}, ["--sites", "sites", "--resolve"], 'needs names = "clinical_columns.txt"'),
        ({"columns": ["age"]}, ["--sites", "sites", "--resolve"], "has no columns by pattern"),
        ({"columns": ["g*"], "names": "n.txt"}, ["--resolve"], "--resolve and --sites go together"),
        ({"columns": ["g*"], "names": "n.txt"}, [], "n.txt: no such file, and columns by pattern need it"),
    ],
)
def test_what_cannot_be_resolved_is_a_sentence(tmp_path: Path, sites: Path, spec: dict[str, Any], words: list[str], told: str) -> None:
    study(tmp_path, cohort__clinical=spec)
    done = quick("fedml", "check", "study.toml", *words, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert told in done.stderr


def test_a_site_that_lost_a_column_since_refuses_by_its_name(tmp_path: Path, sites: Path) -> None:
    study(tmp_path, cohort__clinical={"columns": ["age", "g*"], "names": "columns.txt"})
    assert quick("fedml", "check", "study.toml", "--sites", "sites", "--resolve", cwd=tmp_path).returncode == 0
    table = pd.read_csv(sites / "b" / "table.csv").drop(columns="g2")
    table.to_csv(sites / "b" / "table.csv", index=False)
    done = quick("fedml-site", "check", "study.toml", "--site", "sites/b", cwd=tmp_path)
    assert done.returncode == 2
    assert 'has no column "g2"' in done.stderr


def test_expression_of_lung_cancer_by_pattern(tmp_path: Path) -> None:
    """Real data: every ``_rnaseq`` column of the two cohorts, which pandas finds alike."""
    data = public_data("tcga_lung_genomics")
    expected: list[str] = []
    for name, file in (("a", "luad"), ("b", "lusc")):
        table = pd.read_csv(data / f"tcga_{file}_all_clean.csv.zip").drop_duplicates("case_id").dropna(subset=["case_id"]).head(80)
        wanted = [c for c in table.columns if c.endswith("_rnaseq")]
        expected = wanted if not expected else [c for c in expected if c in wanted]
        (tmp_path / "sites" / name).mkdir(parents=True)
        table.to_csv(tmp_path / "sites" / name / "table.csv", index=False)
        pd.DataFrame({"id": table["case_id"], "y": np.arange(len(table)) % 2}).to_csv(
            tmp_path / "sites" / name / "persons.csv", index=False
        )
        write_manifest(tmp_path / "sites" / name, name, omics='{ path = "table.csv", id = "case_id" }')
    path = study(tmp_path, ("omics",), cohort__omics={"columns": ["*_rnaseq"], "names": "genes.txt"})
    done = quick("fedml", "check", "study.toml", "--sites", "sites", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    omics = read_study(path).cohort.omics
    assert omics is not None
    assert list(omics.columns) == expected
    assert len(expected) > 500
