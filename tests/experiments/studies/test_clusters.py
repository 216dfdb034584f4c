"""``[cohort] cluster`` from the persons table to the report: a family stays in one part, and what is told of it is rounded or hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from rich.console import Console

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.contract.plausible import check_plausible
from fedml.contract.replies import check_form
from fedml.errors import InputError, SiteError
from fedml.experiments.compare.outputs import test_outputs as outputs_of
from fedml.experiments.compare.tables import summarise
from fedml.experiments.compare.train import FEDERATED, plan_training, train_all
from fedml.experiments.report.numbers import figures
from fedml.experiments.report.page import render
from fedml.experiments.runs.record import Record
from fedml.modalities.registry import pool
from fedml.study.study import Study
from fedml.tasks.clusters import CLUSTERS, DESIGN
from fedml.wire.records import COUNTS, Phase, pack
from tests.conftest import make_study, write_csv
from tests.report_runs import record_of

NAMES = ("a", "b", "c")


def study_of(**changes: Any) -> Study:
    plan = {
        "cohort__cluster": "family",
        "cohort__split": {"train": 0.4, "val": 0.2, "test": 0.4},
        "evaluation__subgroups": {"sex": ["f", "m"]},
    }
    return make_study(sites=NAMES, **(plan | changes))


def family_site(folder: Path, name: str, families: int, seed: int) -> Path:
    """Real persons (no ``public``): families of four who share part of x and y; twenty persons without a family."""
    rng = np.random.default_rng(seed)
    family = np.r_[np.repeat(np.arange(families), 4), -np.arange(1, 21)]
    persons = len(family)
    shared = rng.normal(0, 1, families + 20)[family]
    x = shared[:, None] + rng.normal(0, 0.7, (persons, 3))
    y = (x[:, 0] + shared + rng.normal(0, 1, persons) > 0.3 * (seed - 1)).astype(int)
    ids = [f"{name}{k:04d}" for k in range(persons)]
    folder.mkdir(parents=True)
    sex = ["f" if v < (0.5, 0.5, 0.05)[seed] else "m" for v in rng.random(persons)]
    write_csv(folder / "persons.csv", ids, {"y": y, "family": [f"fam{f}" if f >= 0 else None for f in family], "sex": sex})
    write_csv(folder / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
    (folder / "site.toml").write_text(
        f'[site]\nname = "{name}"\n[data]\npersons = "persons.csv"\nclinical = {{ path = "clinical.csv" }}\n'
        "[policy]\nmin_persons = 5\nmin_count = 5\n"
    )
    return folder / "site.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("families")
    manifests = [family_site(folder / "sites" / name, name, 40, k) for k, name in enumerate(NAMES)]
    return folder, record_of(study_of(), manifests, folder / "runs")


def test_a_family_is_in_one_part(made: tuple[Path, Record]) -> None:
    cohort = read_cohort(read_site(made[0] / "sites" / "a"), study_of())
    assert cohort.clusters is not None
    assert len(np.unique(cohort.clusters)) == 60
    assert all(len(np.unique(cohort.parts[cohort.clusters == k])) == 1 for k in np.unique(cohort.clusters))
    assert len(np.unique(cohort.parts)) == 3
    alone = read_cohort(read_site(made[0] / "sites" / "a"), study_of(cohort__cluster=None))
    assert alone.clusters is None
    singles = [k for k in range(160, 180) if cohort.parts[k] != alone.parts[k]]
    assert not singles, "a person without a family stays in the same part"
    both = pool([cohort, cohort], study_of())
    assert both.clusters is not None
    assert len(np.unique(both.clusters)) == 120
    assert cohort.digest != alone.digest


def test_a_split_that_tears_a_family_apart_is_refused(made: tuple[Path, Record], tmp_path: Path) -> None:
    folder = family_site(tmp_path / "a", "a", 40, 0).parent
    parts = ["train" if k % 2 else "test" for k in range(180)]
    write_csv(folder / "split.csv", [f"a{k:04d}" for k in range(180)], {"part": parts})
    text = (folder / "site.toml").read_text().replace('persons = "persons.csv"\n', 'persons = "persons.csv"\nsplit = "split.csv"\n')
    (folder / "site.toml").write_text(text)
    with pytest.raises(InputError, match=r"one cluster in two parts, in 40 clusters") as error:
        read_cohort(read_site(folder), study_of())
    assert "fam1" not in str(error.value), "no name of a family"
    with pytest.raises(InputError, match=r'no column "clan".*\[cohort\] cluster'):
        read_cohort(read_site(folder), study_of(cohort__cluster="clan"))


def test_what_a_site_tells_is_rounded_and_widens_the_intervals(made: tuple[Path, Record]) -> None:
    record = made[1]
    for site, counts in record.counts["test"].items():
        design, clusters = counts[DESIGN], float(counts[CLUSTERS][0])
        each = design[0][design[1] > 0] / design[1][design[1] > 0]
        assert len(each), site
        assert np.allclose(each * 20, np.round(each * 20))
        assert clusters % 5 == 0
        assert 0 < clusters < float(counts["persons"][0])
    found = figures(record)
    auroc = found["scores"]["all"]["metrics"]["auroc"]
    assert "clusters, design effect" in auroc["method"]
    assert "clusters, design effect" in found["across"]["within"]["method"]
    assert "clusters, design effect" in found["scores"]["sites"]["a"]["metrics"]["log_loss"]["method"]


def test_a_group_is_compared_with_the_persons_of_its_sites(made: tuple[Path, Record]) -> None:
    record = made[1]
    found = figures(record)
    groups, counts = found["scores"]["groups"], record.counts["test"]
    assert groups["sex:f"]["sites"] == ["a", "b"], "site c has too few women"
    assert groups["sex:f"]["reference"]["persons"] == sum(float(counts[s]["persons"][0]) for s in "ab")
    assert groups["sex:f"]["reference"]["metrics"]["auroc"]["value"] != found["scores"]["all"]["metrics"]["auroc"]["value"]
    total = sum(float(own["persons"][0]) for own in counts.values())
    assert groups["sex:f"]["share"] == pytest.approx(groups["sex:f"]["persons"] / total, rel=1e-5)
    page = render(record)
    assert "all persons at a and b" in page
    assert "share of test persons" in page
    assert "Within and between sites" in page
    assert "prediction for a further site" in page


def test_the_same_effects_are_computed_where_the_data_are(made: tuple[Path, Record]) -> None:
    """Two models on the same persons: whole families are drawn."""
    folder, record = made
    sites = {name: read_site(folder / "sites" / name) for name in NAMES}
    found = outputs_of(study_of(), sites, record.run)
    assert found.cluster is not None
    assert len(found.cluster) == len(found.person)
    sent = record.counts["test"]
    for name in NAMES:
        exact, told = found.counts[name][DESIGN], sent[name][DESIGN]
        there = told[1] > 0
        assert (told[0][there] >= exact[0][there] - 1e-9).all()
        assert (told[0][there] - exact[0][there] <= 0.05 * exact[1][there]).all()
        assert found.counts[name][CLUSTERS][0] == len(np.unique(found.cluster[found.site == name]))
    plans = [plan_training(study_of(), sites, FEDERATED, list(NAMES), folder / "more")]
    plans += [plan_training(study_of(), sites, "a alone", ["a"], folder / "more")]
    rows = train_all(plans, sites, folder / "more", Console(quiet=True))
    gap = summarise(study_of(), rows)[1]["difference"]
    assert gap["method"].startswith("paired bootstrap of clusters, t with")
    assert gap["p"] == gap["p_adjusted"]


def test_false_effects_are_refused_at_the_server(made: tuple[Path, Record]) -> None:
    record = made[1]
    honest = {f"test/{k}": v for k, v in record.counts["test"]["a"].items() if k in ("persons", DESIGN, CLUSTERS)}
    study = study_of()
    check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack(honest)}), None)
    check_plausible(study, Phase.EVALUATE, RecordDict({COUNTS: pack(honest)}), None)
    false = {**honest, f"test/{DESIGN}": honest[f"test/{DESIGN}"] * np.array([[0.0], [1], [1]])}
    with pytest.raises(SiteError, match="below 1"):
        check_plausible(study, Phase.EVALUATE, RecordDict({COUNTS: pack(false)}), None)
    for wrong in (np.ones((3, 2)), np.full((3, 9), np.nan), np.ones((3, 9), dtype=np.float32)):
        with pytest.raises(SiteError):
            check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack({**honest, f"test/{DESIGN}": wrong})}), None)
    with pytest.raises(SiteError, match="not declared"):
        check_form(study_of(cohort__cluster=None), Phase.EVALUATE, "a", RecordDict({COUNTS: pack(honest)}), None)
