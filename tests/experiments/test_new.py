"""From a person's own files to a recorded run, with the commands alone: a table of six cohorts, pictures with labels in their names, a VCF
with a table of phenotypes. Data that the project does not know, made here."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.command import quick
from tests.conftest import write_vcf


def made(work: Path, *words: object) -> subprocess.CompletedProcess[str]:
    done = quick("fedml", "new", "mine", *words, cwd=work)
    assert done.returncode == 0, done.stderr
    return done


def ran(work: Path, *words: object) -> dict[str, Any]:
    done = quick("fedml", "run", "mine/study.toml", "--sites", "mine/sites", "--json", *words, cwd=work)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == "finished"
    return told


def cohorts(path: Path, **how: Any) -> pd.DataFrame:
    """600 persons of six cohorts: four useful columns, and the odd ones that an export has."""
    random = np.random.default_rng(3)
    age, marker = random.normal(60, 10, 600).round(1), random.lognormal(1, 0.6, 600).round(2)
    stage, sex = random.choice(["I", "II", "III"], 600), random.choice(["F", "M"], 600)
    risk = 0.2 * (age - 60) + 3 * (np.log(marker) - 1) + 2.5 * (stage == "III")
    table = pd.DataFrame(
        {
            "Patient ID": [f"{k:04d}" for k in range(600)], "Hospital": [f"Centre {c}" for c in "ABCDEF" for _ in range(100)], "Age": age,
            "marker": [-999 if k % 40 == 0 else v for k, v in enumerate(marker)], "stage": stage, "sex": sex,
            "born": pd.date_range("1940-01-01", periods=600).strftime("%Y-%m-%d"), "note": [f"text {k}" for k in range(600)],
            "country": "NL", "Death": np.where(risk + random.logistic(size=600) > 0, "yes", "no"),
        }
    )  # fmt: skip
    table.to_csv(path, index=False, **how)
    return table


def test_a_table_of_six_cohorts(tmp_path: Path) -> None:
    cohorts(tmp_path / "export.csv", sep=";", decimal=",")
    said = made(tmp_path, "--table", "export.csv").stdout
    for words in (
        'ids: column "Patient ID"', 'sites: column "Hospital"', 'predicted: column "Death"', "the classes no, yes",
        'column "born" is left out: dates', 'column "note" is left out', 'column "country" is left out: it has one value',
        '-999 is read as missing (15 persons', "6 sites (centre-a 100,",
    ):  # fmt: skip
        assert words in said
    study = tomllib.loads((tmp_path / "mine" / "study.toml").read_text())
    assert study["cohort"]["clinical"]["columns"] == ["Age", "marker", "stage", "sex"]
    assert study["cohort"]["clinical"]["categories"] == {"stage": ["I", "II", "III"], "sex": ["F", "M"]}
    assert study["federation"]["sites"] == [f"centre-{c}" for c in "abcdef"]
    told = ran(tmp_path)
    assert told["metrics"]["test"]["auroc"] > 0.8
    assert told["mlflow_run_id"]
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700, "tables of persons"


@pytest.mark.long
def test_pictures_with_labels_in_their_names(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    (tmp_path / "pictures").mkdir()
    for k in range(150):
        ill = k % 3 == 0
        pixels = random.integers(0, 120, (24, 24)) + (100 if ill else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / f"scan_{k:03d}_{'tumour' if ill else 'normal'}.png")
    said = made(tmp_path, "--images", "pictures").stdout
    assert "labels: part -1 of the file names" in said
    assert "the classes normal, tumour" in said
    assert "dealt at random to 3 simulated sites" in said
    told = ran(tmp_path, "--set", "federation.rounds=8")
    assert told["metrics"]["test"]["auroc"] > 0.9


def test_pictures_in_a_folder_for_each_class(tmp_path: Path) -> None:
    for k in range(60):
        folder = tmp_path / "pictures" / ("benign" if k % 2 else "malignant")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((40 + 100 * (k % 2) + np.arange(256).reshape(16, 16) % 8).astype(np.uint8)).save(folder / f"{k}.png")
    assert "labels: the folders benign, malignant" in made(tmp_path, "--images", "pictures", "--simulate", 2).stdout
    study = tomllib.loads((tmp_path / "mine" / "study.toml").read_text())
    assert study["cohort"]["classes"] == ["benign", "malignant"]
    assert study["cohort"]["image"] == {"channels": 1, "size": [16, 16]}
    assert quick("fedml-site", "check", "mine/study.toml", "--site", "mine/sites/site-1", cwd=tmp_path).returncode == 0


def pictures(folder: Path) -> None:
    """90 pictures of three sites, numbered within each, named site_number_class."""
    folder.mkdir()
    for site in ("delft", "graz", "lyon"):
        for k in range(30):
            name = f"{site}_{k:03d}_{'oedema' if k % 3 else 'abscess'}.png"
            Image.fromarray((40 + 100 * (k % 3 == 0) + np.arange(256).reshape(16, 16) % 8).astype(np.uint8)).save(folder / name)


def test_sites_in_the_names_of_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    said = made(tmp_path, "--images", "pictures").stdout
    assert "part 1 of the names has 3 values (delft, graz, lyon); if these are sites: --site-part 1\n" in said
    shutil.rmtree(tmp_path / "mine")
    said = made(tmp_path, "--images", "pictures", "--site-part", 1, "--positive", "abscess").stdout
    assert "3 sites (delft 30, graz 30, lyon 30 persons)" in said
    assert "if these are sites" not in said
    assert "the classes oedema, abscess; abscess is the positive one (--positive VALUE" in said
    study = tomllib.loads((tmp_path / "mine" / "study.toml").read_text())
    assert study["cohort"]["classes"] == ["oedema", "abscess"]
    assert study["federation"]["sites"] == ["delft", "graz", "lyon"]
    labels = pd.read_csv(tmp_path / "mine" / "sites" / "graz" / "persons.csv")
    assert labels["id"].str.startswith("graz_").all()
    assert len(labels) == 30


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images", "pictures", "--site-part", "4"], '--site-part 4: the file name "delft_000_abscess" has 3 parts'),
        (["--images", "pictures", "--label-part", "0"], "--label-part 0: parts are counted 1, 2, ... from the start"),
        (["--table", "t.csv", "--site-part", "1"], "--site-part is a part of the images' names; give --images DIR."),
        (["--images", "pictures", "--positive", "absces"], '--positive absces: no such class (did you mean "abscess"?)'),
        (["--table", "t.csv", "--positive", "1"], '--positive 1: "y" is predicted as a number'),
        (
            ["--table", "t.csv", "--images", "pictures"],
            't.csv: no id of column "id" (p0, p1, p2, ...) is the name of an image in pictures (delft_000_abscess,',
        ),
        (
            ["--table", "t.csv", "--variants", "all.vcf.gz"],
            't.csv: no id of column "id" (p0, p1, p2, ...) is a sample of all.vcf.gz (S0, S1, ...); name the right column',
        ),
    ],
)
def test_what_does_not_fit_leaves_no_folder(tmp_path: Path, words: list[str], told: str) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "t.csv").write_text("id,y\n" + "".join(f"p{k},{k}.5\n" for k in range(30)))
    write_vcf(tmp_path / "all.vcf.gz", ["S0", "S1"], [("21", 1000, "rs1", "A", "G", ["0/0", "0/1"])])
    done = quick("fedml", "new", "mine", *words, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr
    assert not (tmp_path / "mine").exists()
    assert not list(tmp_path.glob(".mine*"))


def test_a_vcf_with_phenotypes(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    dosage = random.binomial(2, 0.3, (240, 40))
    ids = [f"S{k}" for k in range(240)]
    height = (dosage[:, 7] * 4 + random.normal(170, 4, 240)).round(1)
    pd.DataFrame({"IID": ids, "age": random.integers(20, 80, 240), "height_cm": height}).to_csv(
        tmp_path / "pheno.tsv", sep="\t", index=False
    )
    calls = np.array(["0/0", "0/1", "1/1"])
    write_vcf(tmp_path / "all.vcf.gz", ids, [("21", 1000 + v, f"rs{v}", "A", "G", calls[dosage[:, v]].tolist()) for v in range(40)])
    words = ["--table", "pheno.tsv", "--variants", "all.vcf.gz", "--target", "height_cm", "--build", "GRCh38", "--simulate", 2]
    said = made(tmp_path, *words).stdout
    assert "is predicted as a number" in said
    assert "variants: 240 of 240 persons are among the 240 samples of all.vcf.gz" in said
    done = quick(
        "fedml", "gwas", "mine/study.toml", "--sites", "mine/sites", "--json", "--no-track", "--set", "gwas.components=0", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert ran(tmp_path, "--set", "federation.rounds=3", "--no-track")["metrics"]["test"]["persons"] > 20


def test_an_imported_table_has_sites_and_no_study(tmp_path: Path) -> None:
    table = cohorts(tmp_path / "export.csv")
    done = quick("fedml", "import", "export.csv", "--site-column", "Hospital", "--id", "Patient ID", "--out", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mine" / "study.toml").exists()
    again = pd.concat(
        [pd.read_csv(tmp_path / "mine" / "sites" / f"centre-{c}" / "clinical.csv", dtype={"id": str}) for c in "abcdef"], ignore_index=True
    )
    assert again["id"].tolist() == table["Patient ID"].tolist()
    np.testing.assert_array_equal(again["Age"], table["Age"])


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("a,b,y\n1,2,0\n1,3,1\n", [], "no column looks like ids of persons, each once; name it: --id NAME, one of: a, b, y"),
        ("id,a,b\n1,2,0\n2,3,1\n", [], "what is to be predicted? Name its column: --target NAME, one of: a, b"),
        ("id,a,y\n1,2,0\n2,3,1\n", ["--target", "z"], 'no column "z"'),
        ("id,a,y\n1,2,1\n2,3,1\n", [], 'column "y" has 1 value(s)'),
        ("id,y\n" + "".join(f"{k},word{k}\n" for k in range(40)), [], "is text of 40 different values"),
    ],
)
def test_what_cannot_be_guessed_names_its_option(tmp_path: Path, text: str, words: list[str], told: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    done = quick("fedml", "new", "mine", "--table", "t.csv", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "mine").exists()
    assert not list(tmp_path.glob(".mine*"))


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.parquet", "."])
def test_a_table_that_is_not_there_is_a_sentence(tmp_path: Path, name: str) -> None:
    done = quick("fedml", "new", "mine", "--table", name, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "unexpected" not in done.stderr
