"""Relatives at a site: what is told of them, and an analysis of unrelated persons. The persons do not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.clients.work.people import analysed
from fedml.errors import RunError
from fedml.experiments.runs.association import read_table
from fedml.study.study import Study, parse_study, validate
from fedml.wire.records import Phase
from tests.command import quick
from tests.conftest import write_bed, write_csv
from tests.families import families
from tests.trait import observed

SNPS = 3300


def study_of(sites: list[str], **gwas: Any) -> Study:
    plan = {
        "study": {"name": "kin", "seed": 1},
        "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"task": "regression"},
        "gwas": {"components": 0, "min_mac": 0, **gwas},
        "federation": {"sites": sites},
    }
    return parse_study(validate(Study, plan, "the study").canonical)


def write(folder: Path, name: str, dosage: Any, y: Any) -> None:
    place = folder / name
    place.mkdir(parents=True)
    ids = [f"{name}-{at}" for at in range(len(dosage))]
    keys = [("1", 1000 + 100 * at, f"rs{at + 1}", "A", "G") for at in range(dosage.shape[1])]
    write_bed(place / "genotypes.bed", ids, keys, dosage)
    write_csv(place / "persons.csv", ids, {"y": y})
    data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
    (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "family": 30 families of five; "pair": two siblings among strangers; "alone": strangers."""
    folder = tmp_path_factory.mktemp("kin")
    random = np.random.default_rng(8)
    frequency = random.uniform(0.1, 0.5, SNPS)
    many, _ = families(random, frequency, 30, 3)
    strangers = random.binomial(2, frequency, (2, 100, SNPS)).astype(np.int8)
    two, _ = families(random, frequency, 1, 2)
    for name, dosage in (("family", many), ("pair", np.concatenate([strangers[0], two[2:]])), ("alone", strangers[1])):
        write(folder, name, dosage, random.normal(size=len(dosage)))
    return folder


def told(folder: Path, out: Path, *names: str, **gwas: Any) -> tuple[dict[str, int], str, dict[str, int]]:
    """Site -> what it tells of relatives; the sentence of the run; and site -> persons analysed."""
    steps = observed(study_of(list(names), **gwas), folder, out)
    sums = {s.site: s.reported for s in steps if s.phase is Phase.COVARIATES}
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    said = [e["doing"] for e in events if e.get("event") == "step" and e["doing"].startswith("relatives")]
    return {k: int(v["relatives"][0]) for k, v in sums.items()}, "; ".join(said), {k: int(v["persons"][0]) for k, v in sums.items()}


def test_who_changes_nothing_reads_how_many_relatives_there_are_and_never_of_few(sites: Path, tmp_path: Path) -> None:
    counts, text, persons = told(sites, tmp_path / "run", "family", "pair", "alone")
    assert counts == {"family": 90, "pair": -1, "alone": 0}
    assert persons == {"family": 150, "pair": 102, "alone": 100}
    assert "family 90 of 150" in text
    assert "few at pair" in text
    assert 'set [gwas] relatives = "unrelated"' in text


def test_unrelated_persons_are_analysed_whatever_their_outcome(sites: Path, tmp_path: Path) -> None:
    counts, text, persons = told(sites, tmp_path / "run", "family", "pair", "alone", relatives="unrelated")
    assert persons == {"family": 60, "pair": 101, "alone": 100}
    assert counts == {"family": 0, "pair": 0, "alone": 0}
    assert not text
    assert (read_table(tmp_path / "run").n == 261).all()
    study, manifest = study_of(["family"], relatives="unrelated"), (str(sites / "family" / "site.toml"),)
    first = {load_cohort(manifest, study).ids[row] for row in analysed(manifest, study).rows}
    from bed_reader import open_bed

    # Another outcome and another order of the table: the same persons.
    bed = open_bed(sites / "family" / "genotypes.bed")
    write(tmp_path / "other", "family", bed.read(dtype="int8"), -np.arange(150.0))
    table = tmp_path / "other" / "family" / "persons.csv"
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(lines)]) + "\n")
    other = (str(tmp_path / "other" / "family" / "site.toml"),)
    assert read_site(Path(other[0])).name == "family"
    assert {load_cohort(other, study).ids[row] for row in analysed(other, study).rows} == first


def test_a_study_that_says_nothing_of_relatives_keeps_its_sha256() -> None:
    assert {"relatives", "max_kinship", "polygenic"}.isdisjoint(json.loads(study_of(["a"]).canonical)["gwas"])
    assert json.loads(study_of(["a"], polygenic={}).canonical)["gwas"]["polygenic"]["folds"] == 5


def test_where_relatives_cannot_be_found_unrelated_is_refused(sites: Path, tmp_path: Path) -> None:
    from bed_reader import open_bed

    dosage = open_bed(sites / "alone" / "genotypes.bed").read(dtype="int8")[:, :500]
    write(tmp_path / "sites", "alone", dosage, np.arange(100.0))
    assert told(tmp_path / "sites", tmp_path / "keep", "alone")[:2] == (
        {"alone": -2},
        "relatives: not known at alone: too few common autosomal variants",
    )
    study = study_of(["alone"], relatives="unrelated")
    with pytest.raises(RunError, match="bad-data"):
        observed(study, tmp_path / "sites", tmp_path / "run")


def test_the_sites_check_names_them(sites: Path, tmp_path: Path) -> None:
    (tmp_path / "kin.toml").write_text(
        '[study]\nname = "kin"\nquestion = "?"\n[cohort]\ninputs = ["variants"]\ntarget = "y"\n[model]\ntask = "regression"\n'
        '[gwas]\ncomponents = 0\n[federation]\nsites = ["pair"]\n'
    )
    done = quick("fedml-site", "check", "kin.toml", "--site", str(sites / "pair" / "site.toml"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "relatives: 1 pairs, first degree: pair-100 and pair-101 (0.2" in done.stdout
    (tmp_path / "kin.toml").write_text((tmp_path / "kin.toml").read_text() + "[gwas.polygenic]\n")
    done = quick("fedml-site", "check", "kin.toml", "--site", str(sites / "pair" / "site.toml"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "would refuse this study: [gwas.polygenic] needs 102 columns (100 of blocks, 2 of covariates) of the 20 persons" in done.stdout
