"""Models on variants as a person uses them: gene-wise network and elastic net, from study to saved model; scores in and out; the guide."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.desk.score import score_site, show, stretches, write_scores
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_aligned
from fedml.cohort.scores.scoring_file import read_scoring
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.regions import Inside, merged
from fedml.errors import InputError
from fedml.experiments.models.export_score import export_score
from fedml.learning.training import evaluate
from fedml.models.fusion import build_model, learned
from fedml.runs.log import STUDY, load_model, write_whole
from fedml.study.genes import read_genes
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from fedml.tasks.counts import add_counts
from fedml.tasks.registry import make_task
from fedml.tracking.scoring import restore
from tests.command import ROOT
from tests.command import quick as command
from tests.command import quick_json as run_json
from tests.conftest import Run, federate, make_plan, to_toml, write_bed, write_csv, write_manifest, write_vcf

VARIANTS = 36
LETTERS = (("A", "G"), ("C", "T"), ("A", "C"), ("G", "T"), ("A", "T"), ("C", "G"))
TURNED = str.maketrans("ACGT", "TGCA")
Key = tuple[str, int, str, str, str]
KEYS: list[Key] = [("chr21" if v < 12 else "22", 20_000_000 + 5_000 * v, f"rs{v}", *LETTERS[v % 6]) for v in range(VARIANTS)]
CALLS = {-1: "./.", 0: "0/0", 1: "0/1", 2: "1/1"}


@dataclass(frozen=True)
class Place:
    """A site on disk: its manifest, the ids of who has genotypes, and their ALT copies of ``KEYS`` (persons, variants)."""

    manifest: Path
    ids: list[str]
    dosage: np.ndarray[Any, Any]


def variant_site(
    folder: Path, name: str, seed: int, *, persons: int = 60, keys: Sequence[Key] = KEYS, swap: Sequence[int] = (), bed: bool = False,
    index: bool = True, keep: Sequence[int] = range(VARIANTS), build: str = "GRCh38",
) -> Place:  # fmt: skip
    """A site whose target y (0 or 1) and z (a number) come from three variants. ``swap``: variants with REF and ALT the other way round
    in the file; ``keep``: those that the file has. One person has no genotypes; some calls are missing."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    frequency = np.linspace(0.2, 0.7, VARIANTS)
    dosage = rng.binomial(2, frequency, (persons, VARIANTS)).astype(np.int8)
    risk = dosage[:, [2, 9, 15]] @ [1.5, -1.5, 1.2]
    y = (risk + rng.logistic(0, 0.5, persons) > np.median(risk)).astype(int)
    dosage[rng.random(dosage.shape) < 0.04] = -1
    ids = [f"{name}{k:03d}" for k in range(persons)]
    write_csv(folder / "persons.csv", [*ids, f"{name}-none"], {"y": [*y, 0], "z": [*(50 + 4 * risk + rng.normal(0, 1, persons)), 50]})
    written = [(*key[:3], key[4], key[3]) if v in swap else key for v, key in enumerate(keys)]
    there = np.where((dosage >= 0) & np.isin(np.arange(VARIANTS), list(swap)), 2 - dosage, dosage)
    if bed:
        path = write_bed(folder / "cohort.bed", ids, [written[v] for v in keep], there[:, list(keep)])
    else:
        path = write_vcf(folder / "cohort.vcf.gz", ids, [(*written[v], [CALLS[int(d)] for d in there[:, v]]) for v in keep])
        if index:
            pysam.tabix_index(str(path), preset="vcf", force=True)
    manifest = write_manifest(folder, name, variants=f'{{ path = "{path.name}", build = "{build}" }}')
    return Place(manifest, ids, dosage)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    """Two sites that agree: one writes a VCF, one a PLINK bed with some alleles the other way round."""
    folder = tmp_path_factory.mktemp("sites")
    return {"a": variant_site(folder / "a", "a", 1), "b": variant_site(folder / "b", "b", 2, swap=(0, 3, 9, 13), bed=True)}


def study_file(folder: Path, **changes: Any) -> Path:
    """A study of the two sites' variants, in a file."""
    plan = make_plan(("variants",), **{"cohort__variants": {"build": "GRCh38"}, "training__lr": 0.1, **changes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(to_toml(plan))
    return folder / "study.toml"


def trained(study: Study, places: dict[str, Place], folder: Path) -> Run:
    """A finished run whose folder also holds the study, as that of the command does."""
    done = federate(study, [place.manifest for place in places.values()], folder)
    write_whole(folder / STUDY, study.canonical.encode())
    return done


def outputs(run: Path, place: Place) -> dict[str, Any]:
    """Person -> the saved model's outputs for the persons of a site, whether it took part or not."""
    study, model = restore(run)
    cohort = load_aligned((str(place.manifest),), study, load_model(run)[2])
    with torch.inference_mode():
        found = model(cohort.batch(range(len(cohort)))).double().numpy()
    return dict(zip(cohort.ids, found, strict=True))


def read_scores(path: Path) -> dict[str, tuple[str, int]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "score", "used"]
    return {row["id"]: (row["score"], int(row["used"])) for row in rows}


# --- a gene-wise network, from study to saved model

BED = "chr21\t20000000\t20012000\tONE\n21\t20015000\t20030000\tTWO\nchr22\t20060000\t20099000\tTHREE\nchr22\t20100000\t20110000\tFOUR\n"
GENES = {"net": "genes", "genes": "genes.bed", "width": 2, "hidden": [4]}


def gene_study(folder: Path, bed: str = BED, **changes: Any) -> Study:
    path = study_file(folder, model__variants=GENES, **changes)
    (folder / "genes.bed").write_text(bed)
    return read_study(path)


def test_the_genes_are_part_of_the_study_and_of_its_hash(tmp_path: Path) -> None:
    study = gene_study(tmp_path)
    assert [name for *_, name in study.model.variants.intervals] == ["ONE", "TWO", "THREE", "FOUR"]
    assert parse_study(study.canonical).sha256 == study.sha256  # what a site gets needs no file
    assert gene_study(tmp_path / "moved").sha256 == study.sha256
    assert gene_study(tmp_path, BED.replace("20030000", "20030001")).sha256 != study.sha256
    assert gene_study(tmp_path, BED.replace("TWO", "ZWEI")).sha256 != study.sha256
    assert gene_study(tmp_path, "# the same genes, in another order\n" + "".join(reversed(BED.splitlines(True)))).sha256 == study.sha256


def test_a_gene_wise_network_is_trained_saved_and_predicts_the_same(tmp_path: Path, places: dict[str, Place]) -> None:
    study = gene_study(tmp_path, federation__rounds=6)
    done = trained(study, places, tmp_path / "run")
    weight = done.arrays["encoder.variants.genes.weight"]
    assert weight.shape == (VARIANTS, 2)
    assert done.arrays["encoder.variants.genes.bias"].shape == (5, 2)  # four genes, and what lies between
    first = learned(build_model(study, _layout(study, done)))["encoder.variants.genes.weight"]
    assert ((weight != first).any(1)).all(), "every variant's weight is trained"

    restored, model = restore(tmp_path / "run")
    assert restored == study
    task = make_task(restored)
    cohorts = [load_aligned((str(p.manifest),), restored, done.panel) for p in places.values()]
    again = task.metrics(add_counts(evaluate(model, cohort, "test", task) for cohort in cohorts))
    reported = done.final["metrics"]["test"]["all"]
    assert reported["persons"] > 10
    assert {name: again[name] for name in ("accuracy", "auroc", "brier")} == {
        name: reported[name] for name in ("accuracy", "auroc", "brier")
    }

    other = trained(gene_study(tmp_path, BED.replace("20012000", "20030000"), federation__rounds=6), places, tmp_path / "other")
    assert other.arrays["encoder.variants.genes.bias"].shape == (4, 2)  # all of the second lies in the first
    assert other.sha256 != done.sha256, "other genes, another model"


def _layout(study: Study, done: Run) -> Any:
    from fedml.modalities.layout import make_layout

    return make_layout(study, done.shape, done.panel)


def test_a_gene_wise_network_under_privacy_of_a_patient(tmp_path: Path, places: dict[str, Place]) -> None:
    privacy = {"unit": "patient", "noise_multiplier": 0.8, "delta": 1e-3, "persons": {"a": 40, "b": 40}}
    study = gene_study(tmp_path, privacy=privacy, training__optimizer="sgd", training__batch_size=0)
    done = trained(study, places, tmp_path / "run")
    reported = [e for e in done.events if e["event"] == "privacy"][-1]
    assert 0 < reported["epsilon"] < 100
    _, model = restore(tmp_path / "run")
    first = learned(build_model(study, _layout(study, done)))
    for name, value in learned(model).items():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, first[name]), f"{name} was not released with noise"
    with pytest.raises(InputError, match="the study's model is no score"):
        export_score(tmp_path / "run", tmp_path / "pgs.txt")


@pytest.mark.parametrize(
    ("bed", "network", "sentence"),
    [
        (None, GENES, "genes.bed: cannot be read"),
        (BED, {**GENES, "genes": "genes.txt"}, "genes are read from .gff3, .gtf or .bed"),
        (BED, {"net": "linear", "genes": "genes.bed"}, 'net = "genes" needs genes = "FILE"'),
        (BED, {"net": "genes"}, 'net = "genes" needs genes = "FILE"'),
    ],
)
def test_genes_that_cannot_be_used_are_one_sentence(tmp_path: Path, bed: str | None, network: dict[str, Any], sentence: str) -> None:
    path = study_file(tmp_path, model__variants=network)
    if bed is not None:
        (tmp_path / "genes.bed").write_text(bed)
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_study(path)


def test_commands_refuse_bad_genes_in_one_sentence(tmp_path: Path) -> None:
    study_file(tmp_path, model__variants=GENES)
    (tmp_path / "genes.bed").write_text("chr21\t5\n")
    sentence = "genes.bed, line 1: has 2 columns, a BED line has at least three"
    refused(command("fedml", "check", "study.toml", cwd=tmp_path), sentence)
    refused(command("fedml-site", "approve", "study.toml", "--yes", cwd=tmp_path), sentence)


def refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    """Exit 2 and one sentence, no traceback."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.fullmatch(r"error: [^\n]*\.\n", done.stderr), done.stderr
    assert sentence in done.stderr


def test_the_example_of_genes_holds_what_synth_makes() -> None:
    study = read_study(ROOT / "experiments" / "studies" / "genes.toml")
    assert study.model.variants.intervals == tuple(tuple(i) for i in read_genes(ROOT / "experiments" / "studies" / "genes.bed"))


# --- an elastic net


def test_more_l1_more_zeros_and_the_zeros_are_not_exported(tmp_path: Path, places: dict[str, Place]) -> None:
    zeros, rows = [], []
    for at, l1 in enumerate((0.0, 0.05, 0.2)):
        changes = {"training__optimizer": "sgd", "training__batch_size": 0, "training__local_epochs": 5, "federation__rounds": 6}
        study = read_study(study_file(tmp_path, model__variants={"net": "linear", "l1": l1}, **changes))
        done = trained(study, places, tmp_path / str(at))
        weight = done.arrays["encoder.variants.weight"]
        assert weight.shape == (2, VARIANTS)
        zeros.append(int((weight == 0).sum()))
        export_score(tmp_path / str(at), tmp_path / "pgs.txt")
        rows.append(len(read_scoring(tmp_path / "pgs.txt")))
        assert rows[-1] == int((weight[0] != weight[1]).sum())
    assert zeros[0] == 0 < zeros[1] < zeros[2]
    assert VARIANTS == rows[0] > rows[1] > rows[2] > 0
    study = read_study(study_file(tmp_path, model__variants={"net": "linear", "l1": 50.0}, **changes))
    trained(study, places, tmp_path / "none")
    with pytest.raises(InputError, match=r"every weight of the model is 0, .* with a smaller l1"):
        export_score(tmp_path / "none", tmp_path / "none.txt")
    assert not (tmp_path / "none.txt").exists()


# --- a model out, as a score, and in again


def test_a_run_is_exported_and_scored_by_commands_as_the_model_says(tmp_path: Path, places: dict[str, Place]) -> None:
    folder = next(iter(places.values())).manifest.parent.parent
    study = study_file(tmp_path, study={"name": "risk", "question": "Who gets it?\nAnd who not?"}, federation__rounds=4)
    done = run_json(study, "--sites", folder, "--no-track", cwd=tmp_path)
    reported = command("fedml", "export-score", done["folder"], "--out", "risk.txt.gz", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert (
        reported.stdout
        == f"risk.txt.gz: {VARIANTS} of {VARIANTS} variants have a weight (GRCh38); the score is the log-odds of y 1 against 0\n"
    )
    header = read_scoring(tmp_path / "risk.txt.gz").header
    assert {k: header[k] for k in ("pgs_name", "genome_build", "weight_type", "study_sha256", "run_id", "weights_sha256")} == {
        "pgs_name": "risk", "genome_build": "GRCh38", "weight_type": "log(OR)", "study_sha256": done["study_sha256"],
        "run_id": done["run_id"], "weights_sha256": done["weights_sha256"],
    }  # fmt: skip
    for name, place in places.items():
        reported = command("fedml-site", "score", "risk.txt.gz", "--site", place.manifest.parent, "--out", f"{name}.csv", cwd=tmp_path)
        assert reported.returncode == 0, reported.stderr
        assert re.search(rf"matched    {VARIANTS} \(100\.0%\); of these swapped {4 * (name == 'b')}, strand 0\n", reported.stdout)
        assert f"{name}: 60 persons scored, 1 without genotypes" in reported.stdout
        found, expected = read_scores(tmp_path / f"{name}.csv"), outputs(tmp_path / done["folder"], place)
        assert found.pop(f"{name}-none") == ("", 0)
        assert list(found) == place.ids
        for at, (person, (total, used)) in enumerate(found.items()):
            assert used == (place.dosage[at] >= 0).sum()
            assert float(total) == pytest.approx(expected[person][1] - expected[person][0], abs=1e-4)
        assert np.std([float(total) for total, _ in found.values()]) > 0.3, "a score that tells persons apart"
    assert not list(tmp_path.glob(".*partial*"))


@pytest.fixture(scope="module")
def number(tmp_path_factory: pytest.TempPathFactory, places: dict[str, Place]) -> tuple[Path, Path]:
    """A finished run that predicts a number, and its scoring file."""
    folder = tmp_path_factory.mktemp("number")
    study = read_study(study_file(folder, cohort__target="z", model__task="regression", federation__rounds=4))
    trained(study, places, folder / "run")
    assert export_score(folder / "run", folder / "z.txt.gz").endswith("(GRCh38); the score is z in its unit")
    return folder / "run", folder / "z.txt.gz"


def scores(place: Place, file: Path, **options: Any) -> Any:
    return score_site(read_site(place.manifest), file, **options)


def test_a_number_is_scored_in_its_own_unit(number: tuple[Path, Path], places: dict[str, Place]) -> None:
    run, file = number
    assert read_scoring(file).header["weight_type"] == "beta"
    for place in places.values():
        expected, found = outputs(run, place), scores(place, file)
        here = found.scores.total[found.present]
        np.testing.assert_allclose(here, [expected[i][0] for i in place.ids], rtol=1e-6, atol=1e-4)
        assert 40 < here.mean() < 65
        own = scores(place, file, missing="own").scores.total[found.present]
        complete = (place.dosage >= 0).all(1)
        np.testing.assert_allclose(own[complete], here[complete], rtol=1e-12)
        assert not np.allclose(own[~complete], here[~complete], rtol=1e-9)


@pytest.mark.parametrize("turned", [False, True])
def test_at_a_hospital_that_took_no_part_the_score_is_the_models(tmp_path: Path, number: tuple[Path, Path], turned: bool) -> None:
    """Its file lacks variants, has some alleles in the other order, or is on the other strand as a whole."""
    run, file = number
    keys: list[Key] = [(*key[:3], key[3].translate(TURNED), key[4].translate(TURNED)) for key in KEYS] if turned else KEYS
    other = variant_site(tmp_path / "c", "c", 3, keep=range(5, VARIANTS), swap=(7, 8, 20), keys=keys)
    found, expected = scores(other, file), outputs(run, other)
    assert (found.counts["matched"], found.counts["absent"], found.counts["swapped"]) == (31, 5, 3)
    assert found.counts["strand"] == (20 if turned else 0)
    assert found.expected[0] == 5
    np.testing.assert_allclose(found.scores.total[found.present], [expected[i][0] for i in other.ids], rtol=1e-6, atol=1e-4)
    plain = scores(other, file, missing="own")
    assert plain.expected == (0, 0.0)
    complete = found.present.copy()
    complete[found.present] = (other.dosage[:, 5:] >= 0).all(1)
    assert complete.sum() > 5
    np.testing.assert_allclose((found.scores.total - plain.scores.total)[complete], found.expected[1], rtol=0, atol=1e-9)
    assert "5 without a variant at this site count by their stated frequency" in show(found)


def test_where_the_files_are_of_several_builds_a_score_is_matched_by_rsid(tmp_path: Path) -> None:
    places = {
        "a": variant_site(tmp_path / "a", "a", 1, build="GRCh37"),
        "b": variant_site(tmp_path / "b", "b", 2, keys=[(c, p + 1000, *rest) for c, p, *rest in KEYS], bed=True),  # type: ignore[misc]
    }
    study = read_study(study_file(tmp_path, cohort__variants={"match": "rsid"}))
    trained(study, places, tmp_path / "run")
    assert "(not of one build: match by rsid)" in export_score(tmp_path / "run", tmp_path / "r.txt")
    read = read_scoring(tmp_path / "r.txt")
    assert (read.build, set(read.position.tolist()), read.rsid[:2]) == ("", {0}, ("rs0", "rs1"))
    with pytest.raises(InputError, match="has no positions; match by rsid"):
        scores(places["a"], tmp_path / "r.txt")
    for place in places.values():
        found, expected = scores(place, tmp_path / "r.txt", by="rsid"), outputs(tmp_path / "run", place)
        # With rsIDs the strand is unknown, so A/T and C/G count by their frequency: with the model for who has them so.
        assert (found.counts["matched"], found.counts["ambiguous"], found.expected[0]) == (24, 12, 12)
        weight, ambiguous = read.weight, np.arange(VARIANTS) % 6 >= 4
        own = np.where(place.dosage >= 0, place.dosage - 2 * read.frequency, 0)[:, ambiguous] @ weight[ambiguous]
        logits = np.array([expected[i][1] - expected[i][0] for i in place.ids])
        np.testing.assert_allclose(found.scores.total[found.present] + own, logits, rtol=1e-5, atol=1e-4)


def finished(folder: Path, study: Study, status: str = "finished") -> Path:
    """The folder of a run that left no model."""
    folder.mkdir()
    write_whole(folder / STUDY, study.canonical.encode())
    (folder / "events.jsonl").write_text(json.dumps({"event": "end", "time": 0, "status": status}) + "\n")
    return folder


def test_what_is_no_score_is_not_exported(tmp_path: Path, places: dict[str, Place], number: tuple[Path, Path]) -> None:
    study = read_study(study_file(tmp_path))
    plan = study.model_dump(mode="json")
    plan["cohort"] |= {"inputs": ["clinical"], "clinical": {"columns": ["x"]}, "variants": {}}
    clinical = parse_study(json.dumps(plan))
    network = {"net": "mlp", "hidden": [3]}
    trained(read_study(study_file(tmp_path, model__variants=network, federation__rounds=1)), places, tmp_path / "mlp")
    cases = [
        (tmp_path, "is not a run's folder, it has no study.json"),
        (finished(tmp_path / "failed", study, "failed"), "did not finish, so it has no model"),
        (finished(tmp_path / "preflight", study), r"has no model \(a preflight or an association study has none\)"),
        (tmp_path / "mlp", r'needs \[cohort\] inputs = \["variants"\], \[model.variants\] net = "linear"'),
    ]
    for run, sentence in cases:
        with pytest.raises(InputError, match=sentence) as reported:
            export_score(run, tmp_path / "out.txt")
        assert str(reported.value).startswith(f"{run}: ")
    shutil.copytree(number[0], tmp_path / "clinical")
    write_whole(tmp_path / "clinical" / STUDY, clinical.canonical.encode())
    with pytest.raises(InputError, match=r"reads no variants \(inputs: clinical\)"):
        export_score(tmp_path / "clinical", tmp_path / "out.txt")
    with pytest.raises(InputError, match=r"out\.txt\.gz: cannot be written \(No such file or directory\)"):
        export_score(number[0], tmp_path / "nowhere" / "out.txt.gz")
    assert not (tmp_path / "out.txt").exists()
    refused(command("fedml", "export-score", "mlp", "--out", "out.txt", cwd=tmp_path), "mlp: the study's model is no score")


# --- scores in

HEAD = "#pgs_id=PGS1\n#genome_build={build}\nrsID\tchr_name\tchr_position\teffect_allele\tother_allele\teffect_weight\t{more}\n"
Row = tuple[object, ...]


def scoring_file(path: Path, rows: Sequence[Row], build: str = "GRCh38", more: str = "allelefrequency_effect") -> Path:
    text = HEAD.format(build=build, more=more) + "".join("\t".join(map(str, row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def row(v: int, weight: float, *, ref: bool = False, strand: bool = False, frequency: float | str = "") -> Row:
    """A weight for variant ``v`` of ``KEYS``: of its ALT, or of REF."""
    contig, position, name, *alleles = KEYS[v]
    effect, other = (a.translate(TURNED) if strand else a for a in (alleles if ref else reversed(alleles)))
    return (name, contig, position, effect, other, weight, frequency)


def by_hand(place: Place, rows: Sequence[tuple[int, float, bool, float | None]]) -> Any:
    """(persons,): variant, weight, is the effect allele REF, frequency of it (None: that of the persons here)."""
    total = np.zeros(len(place.ids))
    for v, weight, ref, frequency in rows:
        copies = place.dosage[:, v].astype(float)
        copies = 2 - copies if ref else copies
        there = place.dosage[:, v] >= 0
        total += weight * np.where(there, copies, copies[there].mean() if frequency is None else 2 * frequency)
    return total


def test_a_score_is_that_of_the_genotypes_whatever_the_file(tmp_path: Path, places: dict[str, Place]) -> None:
    rows = [row(0, 0.5), row(5, -1.0, frequency=0.9), row(9, 2.0, ref=True, frequency=0.1), row(13, 0.25, ref=True)]
    file = scoring_file(tmp_path / "s.txt.gz", [*rows, ("rs99", 22, 999, "A", "C", 3.0, 0.5), ("rs98", 22, 998, "A", "C", 3.0, "")])
    for place in places.values():
        found = scores(place, file)
        assert {k: found.counts[k] for k in ("matched", "absent", "ambiguous")} == {"matched": 4, "absent": 2, "ambiguous": 0}
        assert found.expected == (1, 3.0)
        expected = by_hand(place, [(0, 0.5, False, None), (5, -1.0, False, 0.9), (9, 2.0, True, 0.1), (13, 0.25, True, None)])
        np.testing.assert_allclose(found.scores.total[found.present], expected + 3.0, rtol=0, atol=1e-12)
        own = by_hand(place, [(0, 0.5, False, None), (5, -1.0, False, None), (9, 2.0, True, None), (13, 0.25, True, None)])
        np.testing.assert_allclose(scores(place, file, missing="own").scores.total[found.present], own, rtol=0, atol=1e-12)


def test_a_second_weight_of_a_variant_is_not_taken_for_an_absent_one(tmp_path: Path, places: dict[str, Place]) -> None:
    rows = [(*row(0, weight, frequency=0.3), "") for weight in (1.0, 7.0, 9.0)] + [(*row(1, 1.0, frequency=0.3), "")]
    rows += [("rs99", 22, 999, "A", "C", 3.0, 0.25, ""), ("rs98", 22, 998, "A", "C", 5.0, 0.1, "True")]
    file = scoring_file(tmp_path / "s.txt", rows, more="allelefrequency_effect\tis_recessive")
    found = scores(places["a"], file, min_matched=0.3)
    assert (found.counts["matched"], found.counts["duplicate"], found.counts["absent"]) == (2, 2, 2)
    assert found.expected == (2, 2 * 0.25 * 3.0 + 0.1 * 5.0)  # under a recessive weight once the frequency, as PLINK has it
    expected = by_hand(places["a"], [(0, 1.0, False, 0.3), (1, 1.0, False, 0.3)])
    np.testing.assert_allclose(found.scores.total[found.present], found.expected[1] + expected, atol=1e-12)


@pytest.mark.parametrize(("which", "expected"), [("none", (0, 0, 36)), ("all", (24, 0, 36)), ("some", (12, 12, 24))])
def test_letters_that_are_their_own_complement_are_believed_where_the_strand_is_known(
    tmp_path: Path, places: dict[str, Place], which: str, expected: tuple[int, int, int]
) -> None:
    turned = {"none": (), "all": range(6), "some": range(2)}[which]
    file = scoring_file(tmp_path / "s.txt", [row(v, 1.0, strand=v % 6 in turned) for v in range(VARIANTS)])
    found = scores(places["a"], file)
    assert (found.counts["strand"], found.counts["ambiguous"], found.counts["matched"]) == expected
    assert found.counts["swapped"] == 0
    assert found.doubtful is (which == "some")
    assert ("A/T and C/G are excluded" in show(found)) is (which == "some")
    wanted = [(v, 1.0, False, None) for v in range(VARIANTS) if v % 6 < 4 or which != "some"]
    np.testing.assert_allclose(found.scores.total[found.present], by_hand(places["a"], wanted), atol=1e-12)


def test_the_command_gives_the_scores_of_plink(tmp_path: Path, places: dict[str, Place]) -> None:
    if shutil.which("plink2") is None:
        pytest.skip("plink2 is not on this machine")
    rng = np.random.default_rng(4)
    rows = [row(v, round(float(rng.normal()), 3), ref=bool(rng.integers(2)), frequency=0.123) for v in range(0, VARIANTS, 2)]
    file = scoring_file(tmp_path / "s.txt", rows)
    place = places["b"]
    options = ("--site", place.manifest, "--missing", "own", "--out", "own.csv")
    reported = command("fedml-site", "score", file.name, *options, cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    (tmp_path / "weights.txt").write_text("".join(f"{r[0]}\t{r[3]}\t{r[5]}\n" for r in rows))
    bed = place.manifest.parent / "cohort"
    words = ["plink2", "--bfile", bed, "--allow-extra-chr", "--score", "weights.txt", "1", "2", "3", "cols=+scoresums", "--out", "plink"]
    words += ["--bad-freqs"]  # 60 persons are few for frequencies; ours are theirs
    subprocess.run([str(w) for w in words], cwd=tmp_path, check=True, capture_output=True)
    with (tmp_path / "plink.sscore").open() as file_:
        theirs = {r["IID"]: (float(r["SCORE1_SUM"]), int(r["ALLELE_CT"]) // 2) for r in csv.DictReader(file_, delimiter="\t")}
    ours = read_scores(tmp_path / "own.csv")
    assert ours.pop("b-none") == ("", 0)
    assert {i: used for i, (_, used) in ours.items()} == {i: used for i, (_, used) in theirs.items()}
    np.testing.assert_allclose([float(ours[i][0]) for i in theirs], [total for total, _ in theirs.values()], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_scored_is_one_sentence_and_leaves_no_file(tmp_path: Path, places: dict[str, Place]) -> None:
    good = scoring_file(tmp_path / "good.txt", [row(0, 1.0), row(1, 1.0)])
    few = scoring_file(tmp_path / "few.txt", [row(0, 1.0), *(("rs9", 22, 900 + k, "A", "C", 1.0, "") for k in range(3))])
    site = places["a"].manifest

    def said(file: Path, *words: object, out: str = "out.csv") -> subprocess.CompletedProcess[str]:
        return command("fedml-site", "score", file.name, "--out", out, *words, cwd=tmp_path)

    refused(said(scoring_file(tmp_path / "b37.txt", [row(0, 1.0)], "hg19"), "--site", site), "the positions are of GRCh37")
    refused(said(few, "--site", site), "few.txt: 1 of 4 weights match a variant of ")
    refused(said(good, "--site", site, out="nowhere/out.csv"), "nowhere/out.csv: cannot be written (No such file or directory)")
    bare = write_manifest(tmp_path / "bare", "bare", clinical='{ path = "clinical.csv" }')
    refused(said(good, "--site", bare), "[data] has no variants")
    assert not (tmp_path / "out.csv").exists()
    assert scores(places["a"], few, min_matched=0.25).counts["matched"] == 1
    with pytest.raises(InputError, match="weights match a variant of"):
        scores(places["a"], scoring_file(tmp_path / "x.txt", [(*row(0, 1.0)[:3], "G", "C", 1.0, "")]), min_matched=0.0)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="nothing here refuses to be written")
def test_a_table_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, places: dict[str, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scores(places["a"], scoring_file(tmp_path / "s.txt", [row(0, 1.0)]))
    write_scores(tmp_path / "out.csv", found)
    before = (tmp_path / "out.csv").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedml.runs.log.os.fsync", full)
    with pytest.raises(InputError, match=r"out\.csv: cannot be written \(No space left on device\)"):
        write_scores(tmp_path / "out.csv", replace(found, site="other"))
    assert (tmp_path / "out.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


# --- only what is wanted is read


@given(
    st.lists(st.tuples(st.sampled_from(["21", "22", "X", "7"]), st.integers(1, 400)), min_size=1, max_size=40),
    st.integers(1, 30), st.integers(1, 12),
)  # fmt: skip
def test_every_weight_lies_in_a_stretch_and_there_are_few(places: dict[str, Place], at: list[tuple[str, int]], gap: int, most: int) -> None:
    source = open_source(places["b"].manifest.parent / "cohort.bed")  # of chromosomes 21 and 22
    folder = places["b"].manifest.parent
    file = scoring_file(folder / "stretches.txt", [("", contig, position, "A", "C", 1.0, "") for contig, position in at])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedml.clients.desk.score._MAX_GAP", gap)
        patch.setattr("fedml.clients.desk.score._MAX_REGIONS", most)
        patch.setattr("fedml.clients.desk.score._MARGIN_BASES", 0)
        found = stretches(read_scoring(file), source)
    inside = Inside(merged(found))
    here = {place for place in at if place[0] in ("21", "22")}
    assert all(inside(*place) for place in here)
    assert not any(inside(contig, 399) or inside(contig, 400) for contig in ("X", "7"))
    # Gaps as wide as the last one that is cut are cut too, and so is the one between contigs: it is the widest.
    assert len(found.regions) <= most + 1
    for region in found.regions:
        contig, first, last = re.split("[:-]", region)
        assert (contig, int(first)) in here
        assert (contig, int(last)) in here


def test_a_score_by_regions_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedml.clients.desk.score._MAX_GAP", 100)
    monkeypatch.setattr("fedml.clients.desk.score._MARGIN_BASES", 10)
    found = {}
    file = scoring_file(tmp_path / "s.txt", [row(v, float(v)) for v in (3, 4, 14, 22)])
    for name, index, bed in (("index", True, False), ("whole", False, False), ("bed", True, True)):
        place = variant_site(tmp_path / name, name, 5, index=index, bed=bed)
        found[name] = scores(place, file)
        (entry,) = (place.manifest.parent / ".fedml" / "cache").glob("*/keys.tsv")
        assert len(entry.read_text().splitlines()) == (VARIANTS if name == "whole" else 4), name
    for other in ("whole", "bed"):
        np.testing.assert_array_equal(found[other].scores.total, found["index"].scores.total)
        np.testing.assert_array_equal(found[other].scores.used, found["index"].scores.used)


# --- the guide

GUIDE = ROOT / "docs" / "genomes.md"


def guide_blocks() -> list[tuple[str, str, str]]:
    """(the line before, language, text) of each fenced block."""
    found = re.findall(r"([^\n]*)\n\n```(\w*)\n(.*?)```\n", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert GUIDE.read_text(encoding="utf-8").count("\n```") == 2 * len(found), "every block has a line before it"
    return found


def test_the_guide_names_every_key_with_its_default_and_every_step() -> None:
    from fedml.analytics import forms
    from fedml.cohort.variants.normalise import NOTES
    from fedml.study.cohort_section import Variants
    from fedml.study.gwas_section import Gwas

    text = GUIDE.read_text(encoding="utf-8")
    for section in (Variants, Gwas):
        for name, field in section.model_fields.items():
            default = json.dumps(field.default) if not isinstance(field.default, tuple) else "[]"
            assert re.search(rf"^\| `{name}` \| `{re.escape(default)}` \|", text, re.MULTILINE), f"{name} = {default}"
    for phase, replies in forms.REPLY.items():
        (line,) = re.findall(rf"^\| {phase} \|.*$", text, re.MULTILINE)
        for shapes in replies.values():
            for name in shapes:
                assert f"`{name}`" in line, f"{phase}: {name}"
    for note in NOTES:
        assert note in text, note
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (GUIDE.parent / target).exists(), target


@pytest.mark.long
def test_the_guide_is_followed_to_the_letter(tmp_path: Path) -> None:
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    printed = ""
    for before, language, text in guide_blocks():
        if language == "toml" and (name := re.search(r"`(out/\S+\.toml)`", before)):
            (tmp_path / name[1]).parent.mkdir(exist_ok=True)
            (tmp_path / name[1]).write_text(text)
        elif language == "sh":
            done = subprocess.run(["sh", "-euc", text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
            printed += done.stdout + done.stderr
    assert "variants to work with" in printed
    assert "for comparison: each site alone" in printed
    assert "the score is the log-odds of disease 1 against 0" in printed
    assert len(read_scores(tmp_path / "out" / "oslo.csv")) == 120
