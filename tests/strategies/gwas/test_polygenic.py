"""A whole-genome regression over sites is the published algorithm on the pooled matrix: predictions and tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from fedml.clients.site.read import load_cohort
from fedml.clients.work import polygenic
from fedml.errors import RunError
from fedml.experiments.runs.association import read_table
from fedml.study.study import Study, parse_study, validate
from fedml.wire.records import Phase
from tests.conftest import write_bed, write_csv
from tests.dense_regenie import linear_tests, step_one
from tests.trait import observed

SITES, PERSONS = ("oslo", "porto", "utrecht"), (330, 380, 450)
H2 = [0.1, 0.5, 0.9]
BLOCK, FOLDS = 20, 4
CONTIGS = ["1"] * 150 + ["2"] * 120 + ["11"] * 70 + ["X"] * 10


class World:
    """Persons who do not exist, at three sites: dosages with missing calls, a covariate, a heritable trait."""

    def __init__(self, folder: Path, *, binary: bool) -> None:
        random = np.random.default_rng(11)
        total, count = sum(PERSONS), len(CONTIGS)
        dosage = random.binomial(2, random.uniform(0.15, 0.5, count), (total, count)).astype(np.int8)
        dosage[:, CONTIGS.index("X") :] = 2 * (dosage[:, CONTIGS.index("X") :] > 0)
        self.age = random.normal(50, 10, total).round(3)
        self.site = np.repeat(np.arange(3), PERSONS)
        y = (dosage - dosage.mean(0)) @ random.normal(0, 0.12, count) + 0.03 * self.age + 0.5 * self.site + random.normal(size=total)
        self.y = (y > np.quantile(y, 0.6)).astype(int) if binary else y.round(6)
        dosage[random.random(dosage.shape) < 0.01] = -1
        self.dosage = np.where(dosage < 0, np.nan, dosage.astype(float))
        self.folder, self.binary = folder, binary
        keys = [(c, 1000 + 10 * at, f"rs{at + 1}", "A", "G") for at, c in enumerate(CONTIGS)]
        for number, name in enumerate(SITES):
            rows, place = np.flatnonzero(self.site == number), folder / name
            place.mkdir(parents=True)
            ids = [f"{name}-{at}" for at in range(len(rows))]
            write_bed(place / "genotypes.bed", ids, keys, dosage[rows])
            fam = pd.read_csv(place / "genotypes.fam", sep=r"\s+", header=None)
            fam[4] = 2  # women, so that a call on X is a person's
            fam.to_csv(place / "genotypes.fam", sep="\t", header=False, index=False)
            write_csv(place / "persons.csv", ids, {"y": self.y[rows]})
            write_csv(place / "clinical.csv", ids, {"age": self.age[rows]})
            data = 'persons = "persons.csv"\nclinical = { path = "clinical.csv" }\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
            (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')

    def study(self, **gwas: Any) -> Study:
        section = {"block": BLOCK, "ridge": H2, "folds": FOLDS, "min_maf": 0.05}
        plan = {
            "study": {"name": "poly", "seed": 3},
            "cohort": {"inputs": ["variants", "clinical"], "target": "y", "clinical": {"columns": ["age"]}},
            "model": {"task": "classification" if self.binary else "regression"},
            "gwas": {"components": 0, "covariates": ["age"], "min_mac": 0, "block": 70, "polygenic": section, **gwas},
            "federation": {"sites": list(SITES)},
        }
        return parse_study(validate(Study, plan, "the study").canonical)

    def folds(self, study: Study) -> Any:
        """The folds that each site draws: an input of the algorithm, not its result."""
        out = []
        for name in SITES:
            manifest = (str((self.folder / name / "site.toml").resolve()),)
            cohort, own = load_cohort(manifest, study), polygenic.folds_of(manifest, study)
            order = [int(i.rpartition("-")[2]) for i in cohort.ids]
            out.append(own[np.argsort(order)])
        return np.concatenate(out)

    def covariates(self) -> Any:
        each = [(self.site == s).astype(float) for s in range(3)] if self.binary else [np.ones(len(self.y))]
        return np.column_stack([*each, (self.age - self.age.mean()) / self.age.std()])


def used_in_blocks(steps: list[Any]) -> list[int]:
    """The variants in blocks, in their order."""
    blocks = [s for s in steps if s.phase is Phase.BLOCKS and s.site == SITES[0]]
    return [int(rsid[2:]) - 1 for s in blocks for rsid in s.rsid]


def compared(found: pd.DataFrame, names: list[int]) -> pd.DataFrame:
    return found.set_index("rsid").loc[[f"rs{at + 1}" for at in names]]


def test_linear_steps_are_the_published_ones_on_the_pooled_matrix(tmp_path: Path) -> None:
    world = World(tmp_path / "sites", binary=False)
    study = world.study()
    steps = observed(study, tmp_path / "sites", tmp_path / "run")
    inside = used_in_blocks(steps)
    # The smallest site has 82 persons in a fold: (82 - 3) / 3 predictions a block are 26 blocks, more than there are variants for.
    assert sorted(inside) == [at for at, c in enumerate(CONTIGS) if c != "X"]
    x = world.covariates()
    contigs = [CONTIGS[at] for at in inside]
    dense = step_one(world.dosage[:, inside], contigs, x, world.y, world.folds(study), block=BLOCK, h2=H2)
    table = read_table(tmp_path / "run")
    for contig in dict.fromkeys(CONTIGS):
        names = [at for at, c in enumerate(CONTIGS) if c == contig]
        expected = linear_tests(world.dosage[:, names], x, world.y - dense.loco.get(contig, dense.loco[""]))
        ours = compared(table, names)
        assert np.abs(ours.beta - expected[:, 0]).max() < 1e-6 * expected[:, 1].max(), contig
        assert np.abs(ours.standard_error / expected[:, 1] - 1).max() < 1e-6, contig
    plain = linear_tests(world.dosage, x, world.y)
    assert np.median(plain[:, 1] / compared(table, list(range(len(CONTIGS)))).standard_error) > 1.05, "the offset explains much"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    said = [e["doing"] for e in events if e.get("event") == "step" and e["doing"].startswith("whole genome")]
    assert said == [f"whole genome: 340 variants in 18 blocks, ridge parameter {H2[dense.chosen]:g}"]


def test_the_run_says_before_step_one_what_the_sites_would_refuse(tmp_path: Path) -> None:
    world = World(tmp_path / "sites", binary=False)
    section = {"block": 81, "ridge": H2, "folds": FOLDS}
    with pytest.raises(RunError, match=r"needs 84 persons in each fold at each site.* the smallest site has 82; lower block or folds"):
        observed(world.study(polygenic=section), tmp_path / "sites", tmp_path / "run")


@pytest.mark.parametrize("firth", ["never", "auto"])
def test_logistic_steps_are_the_published_ones_on_the_pooled_matrix(tmp_path: Path, firth: str) -> None:
    world = World(tmp_path / "sites", binary=True)
    study = world.study(first_pass_p=1.0, firth=firth)
    steps = observed(study, tmp_path / "sites", tmp_path / "run")
    inside = used_in_blocks(steps)
    x = world.covariates()
    dense = step_one(
        world.dosage[:, inside], [CONTIGS[at] for at in inside], x, world.y, world.folds(study), block=BLOCK, h2=H2, binary=True
    )
    table = read_table(tmp_path / "run")
    for contig in dict.fromkeys(CONTIGS):
        names = [at for at, c in enumerate(CONTIGS) if c == contig][:12]
        ours = compared(table, names)
        offset = dense.loco.get(contig, dense.loco[""])
        for at, (_, row) in zip(names, ours.iterrows(), strict=True):
            g = np.where(np.isnan(world.dosage[:, at]), np.nanmean(world.dosage[:, at]), world.dosage[:, at])
            fitted = sm.GLM(world.y, np.column_stack([x, g]), sm.families.Binomial(), offset=offset).fit(tol=1e-14, maxiter=50)
            assert row.method == "wald"
            assert abs(row.beta - fitted.params[-1]) < 1e-6 * fitted.bse[-1]
            assert abs(row.standard_error / fitted.bse[-1] - 1) < 1e-6
