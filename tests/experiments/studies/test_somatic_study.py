"""A study of mutations and copy numbers at a site with a table and one with the pipelines' files, as processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedml.experiments.prepare import lung
from tests.command import quick, run_json
from tests.conftest import make_plan, public_data, to_toml, write_csv, write_manifest

CLASSES = {"_mut": ["Missense_Mutation", "Nonsense_Mutation", "Frame_Shift_Del", "Splice_Site"]}
MAF = (
    '{ path = "data_mutations.txt", format = "maf", copy_number = "data_cna.txt", sequenced = "cases_sequenced.txt", genes = "genes.txt", '
    'samples = "tcga" }'
)


def write_somatic(folder: Path, persons: dict[str, dict[str, str]], columns: list[str]) -> None:
    """The 0, 1 and levels of ``persons`` as a MAF, a table of copies and lists; an empty cell of all mutations: not sequenced."""
    mutated = [name for name in columns if name.endswith("_mut")]
    copies = [name for name in columns if name.endswith("_cnv")]
    sequenced = [case for case, cells in persons.items() if any(cells[name] for name in mutated)]
    rows, random = ["#version 2.4", "Hugo_Symbol\tVariant_Classification\tTumor_Sample_Barcode"], np.random.default_rng(3)
    for case in sequenced:
        for name in mutated:
            kind = str(random.choice(CLASSES["_mut"])) if float(persons[case][name]) else "Silent"
            rows += [f"{name.removesuffix('_mut')}\t{kind}\t{case}-01A-11D-2036-08"] * int(random.integers(1, 3))
    (folder / "data_mutations.txt").write_text("\r\n".join(rows) + "\r\n")
    (folder / "cases_sequenced.txt").write_text("case_list_ids: " + "\t".join(f"{case}-01" for case in sequenced) + "\n")
    (folder / "genes.txt").write_text("\n".join(name.removesuffix("_mut") for name in mutated) + "\n")
    lines = ["\t".join(["Hugo_Symbol", "Entrez_Gene_Id", *(f"{case}-01" for case in persons)])]
    lines += ["\t".join([name.removesuffix("_cnv"), "", *(cells[name] or "NA" for cells in persons.values())]) for name in copies]
    (folder / "data_cna.txt").write_text("\n".join(lines) + "\n")


def test_tcga_from_its_files_is_the_run_of_the_table(tmp_path: Path) -> None:
    source = public_data("tcga_lung_genomics")
    persons = lung.read(source / lung.FILES["LUAD"])
    names = sorted(set(next(iter(persons.values()))) - {lung.TARGET})
    columns = [name for kind in ("_mut", "_cnv") for name in [n for n in names if n.endswith(kind)][:20]]
    assert len(columns) == 40
    order = sorted(case for case, cells in persons.items() if cells[lung.TARGET])
    weights = []
    for kind in ("table", "files"):
        for at, name in enumerate(("a", "b")):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            some = {case: persons[case] for case in order[at::2]}
            write_csv(folder / "persons.csv", list(some), {"y": [int(float(cells[lung.TARGET])) for cells in some.values()]})
            if kind == "table" or name == "b":
                table = {column: [float(cells[column]) if cells[column] else None for cells in some.values()] for column in columns}
                write_csv(folder / "omics.csv", list(some), table)
                write_manifest(folder, name, omics='{ path = "omics.csv" }')
            else:
                write_somatic(folder, some, columns)
                write_manifest(folder, name, omics=MAF)
        plan = make_plan(("omics",), cohort__omics={"columns": columns}, federation__rounds=3)
        (tmp_path / "study.toml").write_text(to_toml(plan))
        weights.append(run_json("study.toml", "--sites", kind, "--no-track", cwd=tmp_path, by=quick))
    assert weights[0]["weights_sha256"] == weights[1]["weights_sha256"]
    assert weights[0]["metrics"] == weights[1]["metrics"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Persons of whom half have a mutation of KRAS, which tells their label; a tenth were not sequenced."""
    random, folder = np.random.default_rng(1), tmp_path / "sites" / "a"
    folder.mkdir(parents=True)
    ids = [f"TCGA-05-{k:04d}" for k in range(120)]
    kras = random.random(120) < 0.5
    write_csv(folder / "persons.csv", ids, {"y": np.where(random.random(120) < 0.1, ~kras, kras).astype(int)})
    cells = {i: {"KRAS_mut": str(int(k)), "TP53_mut": "0", "MYC_cnv": "1"} for i, k in zip(ids, kras, strict=True)}
    write_somatic(folder, {i: row for n, (i, row) in enumerate(cells.items()) if n % 10}, ["KRAS_mut", "TP53_mut", "MYC_cnv"])
    write_manifest(folder, "a", omics=MAF)
    return folder


def test_patterns_are_resolved_and_what_is_missing_ends_the_run_with_a_sentence(tmp_path: Path, site: Path) -> None:
    plan = make_plan(("omics",), sites=("a",), cohort__omics={"columns": ["*_mut"], "names": "genes.txt"}, training__lr=0.5)
    (tmp_path / "study.toml").write_text(to_toml(plan))
    done = quick("fedml", "check", "study.toml", "--sites", "sites", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "genes.txt").read_text().splitlines()[1:] == ["KRAS_mut", "TP53_mut"]
    ran = run_json("study.toml", "--sites", "sites", "--no-track", cwd=tmp_path, by=quick)
    assert ran["metrics"]["test"]["auroc"] > 0.8
    checked = quick("fedml-site", "check", "study.toml", "--site", "sites/a/site.toml", cwd=tmp_path)
    assert "2 features of 108 persons, 0.0% missing" in checked.stdout
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace('sequenced = "cases_sequenced.txt", ', ""))
    done = quick("fedml", "run", "study.toml", "--sites", "sites", "--no-track", cwd=tmp_path)
    assert done.returncode == 2
    assert 'format = "maf" needs sequenced = "FILE", the list of sequenced samples' in done.stderr
    assert "Traceback" not in done.stderr
