"""Sites that only test the final model: they change nothing for the others, and their metrics are those of all their persons."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from fedml.clients.site.manifest import read_site
from fedml.errors import InputError, RunError
from fedml.experiments.evidence.contents import counts_by_site
from fedml.experiments.report.page import figures, render
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.runs.run import new_run
from fedml.experiments.runs.run import run as run_study
from fedml.strategies.rounds import groups_of, metrics_of
from fedml.study.study import Study
from tests.conftest import Run, clinical_site, federate, image_site, make_study, write_csv, write_manifest, write_vcf

PLAN = {"federation__rounds": 2, "cohort__split": {"train": 0.5, "val": 0.1, "test": 0.4}, "training__lr": 0.05}


def study_of(*sites: str, only: tuple[str, ...] = (), **changes: Any) -> Study:
    return make_study(sites=sites, **{**PLAN, **({"federation__evaluate_only": list(only)} if only else {}), **changes})


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Path]:
    return {name: clinical_site(tmp_path / name, name, 120, at) for at, name in enumerate("abcd")}


def recorded(study: Study, manifests: list[Path], runs: Path) -> tuple[Run, Record]:
    """A run with its whole record."""
    found = {name: read_site(path) for name, path in zip(study.federation.sites, manifests, strict=True)}
    folder = new_run(study, runs, None, engine="local", job="train")
    assert run_study(study, found, folder).status == "finished"
    return Run(folder), read_record(folder)


def risks(run: Run, folder: Path, ids: set[str] | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Label and risk of each person of a site, computed by hand from its tables and the saved arrays of a linear model."""
    tables = [list(csv.DictReader((folder / name).open())) for name in ("persons.csv", "clinical.csv")]
    mean, std = (run.arrays[f"preprocess.clinical.{name}"].double().numpy() for name in ("mean", "std"))
    weight, bias = (run.arrays[f"encoder.clinical.{name}"].double().numpy() for name in ("weight", "bias"))
    truth, found = [], []
    for person, row in zip(*tables, strict=True):
        if ids is not None and person["id"] not in ids:
            continue
        x = np.array([float(row[f"x{k}"] or "nan") for k in (1, 2, 3)])
        filled = np.where(np.isnan(x), 0.0, (x - mean) / std)
        logits = weight @ np.concatenate([filled, np.isnan(x)]) + bias
        truth.append(int(person["y"]))
        found.append(1 / (1 + np.exp(logits[0] - logits[1])))
    return np.array(truth), np.array(found)


def same_as_pooled(metrics: dict[str, float], truth: npt.NDArray[Any], risk: npt.NDArray[Any]) -> None:
    assert metrics["persons"] == len(truth)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, risk > 0.5), abs=1e-6)
    assert metrics["brier"] == pytest.approx(brier_score_loss(truth, risk), abs=1e-6)
    assert metrics["log_loss"] == pytest.approx(log_loss(truth, risk), abs=1e-6)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(truth, risk), abs=1e-3)  # of a histogram of 4,096 bins


def test_a_site_that_only_tests_changes_nothing_and_is_tested_on_all_persons(tmp_path: Path, sites: dict[str, Path]) -> None:
    paths = [sites[name] for name in "acb"]
    with_c = federate(study_of("a", "c", "b", only=("c",)), paths, tmp_path / "with")
    without = federate(study_of("a", "b"), [sites["a"], sites["b"]], tmp_path / "without")
    assert with_c.sha256 == without.sha256
    for name, value in without.arrays.items():
        assert (with_c.arrays[name] == value).all()
    assert {part: with_c.final["metrics"][part] for part in ("val", "test")} == without.final["metrics"]
    external = with_c.final["metrics"]["external"]
    assert list(external["sites"]) == ["c"]
    same_as_pooled(external["sites"]["c"], *risks(with_c, tmp_path / "c"))
    assert external["all"] == external["sites"]["c"]
    for event in with_c.rounds:
        assert set(event["sites"]) == {"a", "b"}
        assert event["refused"] == {}
    assert set(with_c.final["sites"]) == {"a", "b", "c"}
    (agreed,) = [e for e in with_c.events if e["event"] == "agreed"]
    assert agreed["sites"] == ["a", "c", "b"]
    assert [sum(agreed["persons"]["c"][part]) for part in ("train", "val", "test")] == [0, 0, 120]


def test_several_such_sites_have_a_pooled_row_of_their_own(tmp_path: Path, sites: dict[str, Path]) -> None:
    run = federate(study_of("a", "b", "c", "d", only=("d", "c")), sites.values(), tmp_path / "run")
    own = {name: risks(run, tmp_path / name) for name in "cd"}
    external = run.final["metrics"]["external"]
    for name in "cd":
        same_as_pooled(external["sites"][name], *own[name])
    same_as_pooled(external["all"], *(np.concatenate([own[name][k] for name in "cd"]) for k in (0, 1)))
    assert external["worst"] == min("cd", key=lambda name: external["sites"][name]["auroc"])


def test_a_split_file_says_who_is_tested(tmp_path: Path, sites: dict[str, Path]) -> None:
    parts = {f"c{k:04d}": ("train", "val", "test")[k % 3] for k in range(120)}
    (tmp_path / "c" / "split.csv").write_text("id,part\n" + "".join(f"{i},{p}\n" for i, p in parts.items()))
    manifest = sites["c"].read_text()
    sites["c"].write_text(manifest.replace("public = true", 'public = true\nsplit = "split.csv"'))
    run = federate(study_of("a", "b", "c", only=("c",)), [sites[name] for name in "abc"], tmp_path / "run")
    tested = {i for i, part in parts.items() if part == "test"}
    same_as_pooled(run.final["metrics"]["external"]["all"], *risks(run, tmp_path / "c", tested))


def test_the_quorum_counts_sites_that_train(tmp_path: Path, sites: dict[str, Path]) -> None:
    """Two of three train; the site that only tests is no stand-in for one of them, and its absence ends nothing."""
    broken = clinical_site(tmp_path / "broken", "c", 120, 5)
    (tmp_path / "broken" / "clinical.csv").write_text("id,x1,x2\nc0000,1,2\n")
    run, record = recorded(study_of("a", "b", "c", only=("c",)), [sites["a"], sites["b"], broken], tmp_path / "runs")
    assert run.final["refused"].keys() == {"c"}
    assert "external" not in run.final["metrics"]
    page = render(record)
    assert "No external validation: no person was evaluated at c." in page
    failing = clinical_site(tmp_path / "failing", "b", 120, 6)
    (tmp_path / "failing" / "clinical.csv").write_text("id,x1,x2\nb0000,1,2\n")
    with pytest.raises(RunError, match=r"describe: 1 of 2 sites answered, the quorum is 2; missing: node 2 \(bad-data\)"):
        federate(study_of("a", "b", "c", only=("c",)), [sites["a"], failing, sites["c"]], tmp_path / "fails")


def test_what_such_a_site_lacks_is_told_by_name(tmp_path: Path) -> None:
    paths = [image_site(tmp_path / name, name, 40, at) for at, name in enumerate("ab")]
    paths.append(image_site(tmp_path / "c", "c", 40, 2, size=(6, 6)))
    run = federate(study_of("a", "b", "c", only=("c",), inputs=("image",)), paths, tmp_path / "run")
    (checks,) = [e["checks"] for e in run.events if e["event"] == "checks"]
    (row,) = [c for c in checks if c["site"] == "c"]
    assert (row["check"], row["verdict"]) == ("image shape", "warn")
    assert "(1, 8, 8)" in row["fix"]
    assert run.final["refused"] == {"c": "bad-message"}
    assert run.final["metrics"]["test"]["sites"].keys() == {"a", "b"}


KEYS = [("chr21", 1000 * k, f"rs{k}", ref, alt) for k, (ref, alt) in enumerate(["AC", "AG", "CT", "GT", "TC", "GA"] * 4, start=1)]


def variant_site(folder: Path, name: str, seed: int, *, turned: bool = False, lacks: int = 0) -> Path:
    """120 persons of one seed, the label from the first variants; ``turned``: every other variant is written with REF and ALT exchanged."""
    rng = np.random.default_rng(seed)
    dosage = rng.integers(0, 3, (120, len(KEYS)))
    ids = [f"{name}{k:04d}" for k in range(120)]
    folder.mkdir(parents=True)
    write_csv(folder / "persons.csv", ids, {"y": (dosage[:, :4].sum(1) + rng.normal(0, 1, 120) > 4).astype(int)})
    records = []
    for at, (contig, place, rs, ref, alt) in enumerate(KEYS[lacks:], start=lacks):
        swap = turned and at % 2
        found = 2 - dosage[:, at] if swap else dosage[:, at]
        records.append((contig, place, rs, *((alt, ref) if swap else (ref, alt)), [("0/0", "0/1", "1/1")[n] for n in found]))
    write_vcf(folder / "cohort.vcf.gz", ids, records)
    return write_manifest(folder, name, variants='{ path = "cohort.vcf.gz", build = "GRCh38" }')


def test_variants_of_such_a_site_are_turned_and_missing_ones_are_counted(tmp_path: Path) -> None:
    study = study_of("a", "b", "c", only=("c",), inputs=("variants",), cohort__variants={"min_shared": 0.5})
    training = [variant_site(tmp_path / name, name, at) for at, name in enumerate("ab")]
    found = {}
    for kind, how in {"plain": {}, "turned": {"turned": True}, "fewer": {"lacks": 3}, "few": {"lacks": 20}}.items():
        site = variant_site(tmp_path / kind / "c", "c", 2, **how)  # type: ignore[arg-type]
        found[kind] = federate(study, [*training, site], tmp_path / f"run-{kind}")
    assert len({run.sha256 for run in found.values()}) == 1, "the panel is that of the sites that train"
    plain, turned = (found[kind].final["metrics"]["external"]["all"] for kind in ("plain", "turned"))
    assert plain == turned
    assert plain["auroc"] > 0.7
    assert found["fewer"].final["metrics"]["external"]["all"] != plain
    (checks,) = [e["checks"] for e in found["fewer"].events if e["event"] == "checks"]
    assert [(c["value"], c["verdict"]) for c in checks if c["check"] == "variants of the model"] == [("21 of 24", "warn")]
    assert found["few"].final["refused"] == {"c": "bad-data"}
    assert "external" not in found["few"].final["metrics"]


def test_record_report_and_recomputation_keep_the_sites_apart(tmp_path: Path, sites: dict[str, Path]) -> None:
    study = study_of("a", "b", "c", "d", only=("c", "d"))
    run, record = recorded(study, list(sites.values()), tmp_path / "runs")
    assert metrics_of(study, counts_by_site(record)) == run.final["metrics"]
    assert groups_of(study, counts_by_site(record)) == {}
    found = figures(record)
    assert list(found["scores"]["sites"]) == ["a", "b"]
    assert found["scores"]["all"]["persons"] == run.final["metrics"]["test"]["all"]["persons"]
    assert found["external"]["all"]["persons"] == 240
    row = found["external"]["sites"]["c"]["metrics"]["auroc"]
    assert row["low"] < row["value"] < row["high"]
    page = render(record)
    for text in ("External validation only, without training: c and d.", "external validation: c", "external validation, merged"):
        assert text in page
    assert "No external validation" not in page


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"only": ("e",)}, 'evaluate_only names "e", which is not in sites'),
        ({"only": ("a", "b", "c")}, "evaluate_only names every site, so none trains"),
        ({"only": ("c",), "federation__quorum": 3}, "quorum is 3 but the sites that train are only 2"),
        ({"only": ("c", "c")}, "a site is listed twice in evaluate_only"),
    ],
)
def test_a_roster_that_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        study_of("a", "b", "c", **changes)


def test_a_study_without_the_key_keeps_its_identity() -> None:
    assert "evaluate_only" not in study_of("a", "b").canonical
    assert '"evaluate_only":["b"]' in study_of("a", "b", only=("b",)).canonical
