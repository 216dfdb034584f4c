"""Synthetic cohorts: same seed, same bytes; a readable layout; and the planted effects are really in the data."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pysam
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fedml.errors import InputError, RunError
from fedml.synthetic import synthetic
from fedml.synthetic.synthetic import Size, write_synthetic
from tests.command import ROOT

SMALL = Size(sites=2, persons=25, variants=30, image_size=10)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of 400 persons: enough for effects to show, with images small enough to write fast."""
    out = tmp_path_factory.mktemp("synthetic") / "cohort"
    write_synthetic(out, Size(sites=3, persons=400, image_size=12), seed=3)
    return out


@pytest.fixture(scope="module")
def truth(cohort: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((cohort / "truth.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def table(cohort: Path, truth: dict[str, Any]) -> pd.DataFrame:
    """One row a person: outcomes, clinical values, true log-odds and radius, and the causal dosages."""
    parts = []
    for site in truth["sites"]:
        part = pd.read_csv(cohort / site / "persons.csv", index_col="id")
        part = part.join(pd.read_csv(cohort / site / "clinical.csv", index_col="id"))
        ids, names, dosage = dosages(cohort / site)
        for k, variant in enumerate(truth["causal_variants"]):
            part[f"v{k}"] = pd.Series(dosage[names.index(variant["id"])], index=ids)
        part["log_odds"] = pd.Series(truth["log_odds"][site])
        part["radius"] = pd.Series(truth["lesion_radius_mm"][site])
        parts.append(part.assign(site=site))
    return pd.concat(parts)


def dosages(site: Path) -> tuple[list[str], list[str], np.ndarray]:
    with pysam.VariantFile(str(site / "cohort.vcf.gz")) as vcf:
        records = [(r.id, [sum(s["GT"]) for s in r.samples.values()]) for r in vcf]
        ids = list(vcf.header.samples)
    return ids, [name for name, _ in records], np.array([row for _, row in records], float)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_gives_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first = write_synthetic(tmp_path / "a", SMALL, seed=5)
    (tmp_path / "b").mkdir()  # an empty folder is filled where it stands
    code = "import sys; from fedml.synthetic.synthetic import Size, write_synthetic as w; from pathlib import Path; "
    code += f"w(Path(sys.argv[1]), {SMALL!r}, seed=5)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True, cwd=ROOT)
    write_synthetic(tmp_path / "c", SMALL, seed=6)
    a, b, c = (hashes(tmp_path / x) for x in "abc")
    assert a == b
    data = [path for path in a if not path.endswith("site.toml")]
    assert all(a[path] != c.get(path) for path in data)
    assert first == json.loads((tmp_path / "a" / "truth.json").read_text())
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_no_global_random_state_is_touched(tmp_path: Path) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (the state that must not move)
    write_synthetic(tmp_path / "a", SMALL)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_layout_is_complete_and_ids_agree(cohort: Path, truth: dict[str, Any]) -> None:
    assert truth["sites"] == ["oslo", "porto", "utrecht"]
    assert sorted(p.name for p in cohort.iterdir()) == ["oslo", "porto", "truth.json", "utrecht"]
    for site in truth["sites"]:
        folder = cohort / site
        wanted = ["clinical.csv", "cohort.vcf.gz", "cohort.vcf.gz.tbi", "images", "persons.csv", "site.toml"]
        assert sorted(p.name for p in folder.iterdir()) == wanted
        persons = pd.read_csv(folder / "persons.csv")
        clinical = pd.read_csv(folder / "clinical.csv")
        assert list(persons.columns) == ["id", "disease", "severity", "time_days", "event"]
        assert list(clinical.columns) == ["id", "age", "sex", "crp", "bmi"]
        assert list(persons["id"]) == list(clinical["id"]) == dosages(folder)[0] == list(truth["log_odds"][site])
        assert persons["id"][0] == f"{site}-0001"
        assert len(persons) == 400
        assert persons.notna().all(axis=None)
        assert set(persons["disease"]) == set(persons["event"]) == set(clinical["sex"]) == {0, 1}
        assert persons["time_days"].min() >= 1


def test_vcf_is_indexed_and_its_variants_are_common_snps(cohort: Path, truth: dict[str, Any]) -> None:
    pooled = np.concatenate([dosages(cohort / site)[2] for site in truth["sites"]], axis=1)
    frequency = pooled.mean(axis=1) / 2
    assert len(frequency) == 200
    assert np.minimum(frequency, 1 - frequency).min() >= 0.02
    with pysam.VariantFile(str(cohort / "oslo" / "cohort.vcf.gz")) as vcf:
        assert vcf.header.contigs["chr22"].length == 50_818_468
        assert list(vcf.header.formats) == ["GT"]
        assert "date" not in str(vcf.header).lower()
        variant = truth["causal_variants"][0]
        (record,) = vcf.fetch("chr22", variant["position"] - 1, variant["position"])  # through the index
        assert (record.id, record.alts) == (variant["id"], (variant["effect_allele"],))
        assert record.ref in "ACGT"


def test_sites_differ_in_allele_frequency(cohort: Path, truth: dict[str, Any]) -> None:
    first, second = (dosages(cohort / site)[2] for site in truth["sites"][:2])
    half = np.random.default_rng(0).permutation(first.shape[1])
    within = hudson_fst(first[:, half[:200]], first[:, half[200:]])
    assert abs(within) < 0.005
    assert 0.01 < hudson_fst(first, second) < 0.15


def hudson_fst(a: np.ndarray, b: np.ndarray) -> float:
    """Ratio of averages, with the sample-size correction (Bhatia et al. 2013)."""
    p, q, n, m = a.mean(axis=1) / 2, b.mean(axis=1) / 2, 2 * a.shape[1], 2 * b.shape[1]
    between = (p - q) ** 2 - p * (1 - p) / (n - 1) - q * (1 - q) / (m - 1)
    return float(between.sum() / (p * (1 - q) + q * (1 - p)).sum())


def test_images_some_absent_some_double_and_a_scanner_of_its_own_per_site(cohort: Path, truth: dict[str, Any]) -> None:
    medians, spreads = [], []
    for site in truth["sites"]:
        paths = sorted((cohort / site / "images").iterdir())
        double = [p for p in paths if p.is_dir()]
        assert (len(paths), len(double)) == (400 - 16, 12)
        assert sorted(p.name for p in double[0].iterdir()) == ["1.nii.gz", "2.nii.gz"]
        one, two = (nib.load(double[0] / f"{k}.nii.gz").get_fdata() for k in (1, 2))
        assert not np.array_equal(one, two)
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.4
        image = nib.load(next(p for p in paths if p.is_file()))
        assert image.shape == (12, 12, 12)
        assert image.header.get_zooms() == (4.0, 4.0, 4.0)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.get_data_dtype() == np.int16
        edges = [nib.load(p).get_fdata()[0] for p in paths[:60] if p.is_file()]  # a face the lesion seldom reaches
        medians.append(np.median(edges))
        spreads.append(truth["scanners"][site]["gain"] * 100 + truth["scanners"][site]["offset"])
    assert np.allclose(medians, spreads, atol=6)
    assert len({s["gain"] for s in truth["scanners"].values()}) == 3


def test_some_clinical_cells_are_empty_at_each_sites_own_rate(table: pd.DataFrame) -> None:
    rates = table[["age", "crp", "bmi"]].isna().groupby(table["site"]).mean().mean(axis=1)
    assert np.allclose(rates[["oslo", "porto", "utrecht"]], [0.02, 0.05, 0.08], atol=0.02)
    assert table["sex"].notna().all()


def test_lesion_size_follows_the_causal_genotype_and_shows_in_the_image(cohort: Path, truth: dict[str, Any], table: pd.DataFrame) -> None:
    known = table.dropna(subset=["age"])
    design = np.column_stack([np.ones(len(known)), known["v0"], (known["age"] - 62) / 10])
    found = np.linalg.lstsq(design, known["radius"].to_numpy(), rcond=None)[0]
    planted = [effect["mm"] for effect in truth["lesion_radius"]["effects"]]
    assert np.allclose(found[1:], planted, atol=0.2)
    folder = cohort / "oslo" / "images"
    ids = [p.name.removesuffix(".nii.gz") for p in folder.iterdir() if p.is_file()]
    scanner = truth["scanners"]["oslo"]
    scans = np.stack([nib.load(folder / f"{i}.nii.gz").get_fdata() for i in ids])
    bright = ((scans - scanner["offset"]) / scanner["gain"] > 140).mean(axis=(1, 2, 3))
    assert np.corrcoef(np.cbrt(bright), table.loc[ids, "radius"])[0, 1] > 0.7
    assert np.corrcoef(np.cbrt(bright), table.loc[ids, "v0"])[0, 1] > 0.2


def test_disease_follows_the_planted_log_odds_and_needs_every_input(truth: dict[str, Any], table: pd.DataFrame) -> None:
    oracle = truth["oracle"]
    assert roc_auc_score(table["disease"], table["log_odds"]) == pytest.approx(oracle["auroc"], abs=1e-4)
    assert 0.85 < oracle["auroc"] < 0.95
    assert all(0.6 < x < 0.85 for x in oracle["auroc_by_input"].values())
    assert all(x < oracle["auroc"] - 0.02 for x in oracle["auroc_without_input"].values())
    known = table.dropna(subset=["age", "crp"])
    units = [(known["age"] - 62) / 10, (np.log(known["crp"]) - 1) / 0.8, (known["radius"] - 7) / 2]
    design = np.column_stack([*units, known[["v0", "v1", "v2"]]])
    planted = np.array([effect["log_odds"] for effect in truth["disease"]["effects"]])
    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(design, known["disease"])
    assert np.allclose(fitted.coef_[0], planted, atol=0.45)
    assert np.corrcoef(design @ planted, known["log_odds"])[0, 1] > 0.999
    assert np.corrcoef(table["severity"], table["log_odds"])[0, 1] > 0.8


def test_hazard_ratio_is_the_planted_one(truth: dict[str, Any], table: pd.DataFrame) -> None:
    known = table.dropna(subset=["age"]).sort_values("time_days", ascending=False)
    x = np.column_stack([known["v0"], (known["age"] - 62) / 10])
    event = known["event"].to_numpy() == 1
    beta = np.zeros(2)
    for _ in range(8):  # Newton steps on Cox's partial likelihood; the few ties are taken as they come
        risk = np.exp(x @ beta)
        total = risk.cumsum()
        mean = (risk[:, None] * x).cumsum(axis=0) / total[:, None]
        square = (risk[:, None, None] * x[:, :, None] * x[:, None, :]).cumsum(axis=0) / total[:, None, None]
        information = (square - mean[:, :, None] * mean[:, None, :])[event].sum(axis=0)
        beta = beta + np.linalg.solve(information, (x - mean)[event].sum(axis=0))
    planted = np.log([effect["hazard_ratio"] for effect in truth["survival"]["effects"]])
    assert np.all(np.abs(beta - planted) < 3 * np.sqrt(np.diag(np.linalg.inv(information))))
    assert np.allclose(beta, planted, atol=0.2)
    assert 0.4 < event.mean() < 0.8


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sites": 0}, "sites = 0"),
        ({"sites": 65}, "sites = 65"),
        ({"persons": 9}, "persons = 9"),
        ({"variants": 9}, "variants = 9"),
        ({"image_size": 7}, "image_size = 7"),
    ],
)
def test_a_size_out_of_range_is_refused_and_leaves_nothing(tmp_path: Path, wrong: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_synthetic(tmp_path / "new" / "out", replace(SMALL, **wrong))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        with pytest.raises(InputError, match="not an empty folder"):
            write_synthetic(out, SMALL)
    assert hashes(tmp_path).keys() == {"out/mine.txt"}


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "new" / "out"
    if existing:
        out.mkdir(parents=True)
    monkeypatch.setattr(synthetic, "_scans", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_synthetic(out, SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == (["new", "out"] if existing else [])


@pytest.mark.parametrize(("sites", "last"), [(1, "oslo"), (11, "site11")])
def test_one_site_and_many(tmp_path: Path, sites: int, last: str) -> None:
    lines: list[str] = []
    truth = write_synthetic(tmp_path / "o", Size(sites, 10, 20, 8), progress=lines.append)
    assert truth["sites"][-1] == last
    assert len(lines) == sites + 1
    assert len(truth["causal_variants"]) == 3


def test_importing_the_module_loads_nothing_heavy() -> None:
    heavy = {"msprime", "pysam", "nibabel", "pandas", "torch"}
    code = f"import sys, fedml.synthetic.synthetic; print(*{heavy!r} & {{*sys.modules}})"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == ""
