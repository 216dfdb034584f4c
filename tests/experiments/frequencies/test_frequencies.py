"""`fedml frequencies` over two sites: every number of the table is the count over all persons, and what is not told is what must not be."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.experiments.frequencies.table import open_table
from fedml.runs.events import NOT_AGREED, Frequencies
from fedml.runs.log import last, read_log
from fedml.study.frequencies_section import Frequencies as Section
from tests.command import ROOT, quick
from tests.conftest import write_bed
from tests.experiments.frequencies.sites import KEYS, PERSONS, People, drawn, looked_up, study_file, written

GROUPS = {"": (None, None), "_XY": (None, 0), "_XX": (None, 1)}
GROUPS |= {f"_{name}{end}": (at, sex) for at, name in enumerate(("AFR", "EUR")) for end, sex in (("", None), ("_XY", 0), ("_XX", 1))}


@pytest.fixture(scope="module")
def people() -> People:
    return drawn()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, people: People) -> Path:
    found = tmp_path_factory.mktemp("frequencies")
    written(found / "sites", people)
    return found


def table_of(run: Path) -> pd.DataFrame:
    lines = gzip.decompress((run / "frequencies.tsv.gz").read_bytes()).decode().splitlines()
    text = "\n".join(line.removeprefix("#") for line in lines if not line.startswith("##"))
    return pd.read_csv(io.StringIO(text), sep="\t", na_values=["."], keep_default_na=False, dtype={"chrom": str}).set_index(
        ["chrom", "pos", "ref", "alt"]
    )


def counted(people: People, at: int, rows: Any) -> tuple[int, int, int, int]:
    copies, one = people.copies[rows, at], people.one[rows, at]
    has = copies >= 0
    return (
        int(copies[has].sum()), int(np.where(one, 1, 2)[has].sum()), int((has & ~one & (copies == 2)).sum()),
        int((has & one & (copies == 1)).sum()),
    )  # fmt: skip


def members(people: People, group: str) -> Any:
    population, sex = GROUPS[group]
    return (
        (people.group == population if population is not None else True)
        & (people.sex == sex if sex is not None else True)
        & (people.site != "")
    )


@pytest.fixture(scope="module")
def run_folder(folder: Path) -> Path:
    done = looked_up(folder)
    assert done["status"] == "finished"
    return folder / str(done["folder"])


def test_each_number_is_the_count_over_all_persons(run_folder: Path, people: People) -> None:
    table = table_of(run_folder)
    told = 0
    for at, (contig, position, _, ref, alt) in enumerate(KEYS):
        if (contig, position, ref, alt) not in table.index:
            continue
        row = table.loc[(contig, position, ref, alt)]
        for group in GROUPS:
            if np.isnan(row[f"AC{group}"]):
                continue
            ac, an, homozygotes, hemizygotes = counted(people, at, members(people, group))
            assert (row[f"AC{group}"], row[f"AN{group}"], row[f"nhemi{group}"]) == (ac, an, hemizygotes), (KEYS[at], group)
            assert row[f"AF{group}"] == pytest.approx(ac / an, abs=1e-6)
            assert np.isnan(row[f"nhomalt{group}"]) or row[f"nhomalt{group}"] == homozygotes
            told += 1
    assert told > 200
    on_x = table.loc["X"]
    assert (on_x.nhemi > 0).sum() >= 10
    assert on_x.loc[2_000_000].nhemi.item() == 0  # pseudoautosomal
    assert (table.loc["MT"].nhemi == table.loc["MT"].AC).all()


def test_a_variant_of_few_carriers_at_a_site_is_not_in_the_table_and_its_neighbours_are(run_folder: Path, people: People) -> None:
    table = table_of(run_folder)
    few = 0
    for at, (contig, position, _, ref, alt) in enumerate(KEYS):
        carriers = [int((people.copies[people.site == name, at] > 0).sum()) for name in PERSONS]
        if any(0 < n < 5 for n in carriers) or sum(carriers) == 0:
            few += 1
            assert (contig, position, ref, alt) not in table.index
    assert few >= 3
    events, _ = read_log(run_folder)
    (event,) = [e for e in events if isinstance(e, Frequencies)]
    agreed = last(events, NOT_AGREED).variants  # without those of which every site withholds the counts
    assert event.variants == len(table) == agreed - sum(event.left_out.values())
    assert len(KEYS) - event.variants >= few
    assert event.groups == list(GROUPS)
    opened = open_table(run_folder)
    assert opened.build == "GRCh38"
    assert [row.position for row in opened.rows("22", 17_000_299, 17_000_300) if row.position == 17_000_300] == [17_000_300]


def test_partial_sums_are_those_of_the_sites_that_tell(folder: Path, run_folder: Path, people: People) -> None:
    done = looked_up(folder, partial=True)
    table, whole = table_of(folder / str(done["folder"])), table_of(run_folder)
    assert len(table) >= len(whole)
    groups = [group for group in GROUPS if (table[f"withheld{group}"] > 0).any()]
    assert groups
    checked = 0
    for key, row in table.iterrows():
        at = next(i for i, (c, p, _, r, a) in enumerate(KEYS) if (c, p, r, a) == key)
        for group in groups:
            if row[f"sites{group}"] == 1:
                rows = members(people, group)
                one_site = [counted(people, at, rows & (people.site == name))[:2] for name in PERSONS]
                assert (row[f"AC{group}"], row[f"AN{group}"]) in one_site
                checked += 1
    assert checked > 0


@pytest.mark.skipif(shutil.which("plink2") is None, reason="plink2 is not installed")
def test_totals_are_those_of_plink2(folder: Path, run_folder: Path, people: People) -> None:
    """PLINK 2 on the pooled calls: allele counts on autosomes, X (men one copy), Y and MT."""
    ids = [f"p{at}" for at in range(len(people.sex))]
    calls = np.where(people.copies < 0, -1, np.where(people.one, 2 * people.copies, people.copies))
    keys = [(c, p, f"v{at}", r, a) for at, (c, p, _, r, a) in enumerate(KEYS)]
    order = sorted(range(len(keys)), key=lambda at: (["22", "X", "Y", "MT"].index(keys[at][0]), keys[at][1]))
    write_bed(folder / "pooled.bed", ids, [keys[at] for at in order], calls[:, order])
    fam = pd.read_csv(folder / "pooled.fam", sep=r"\s+", header=None)
    fam[4] = np.where(people.sex == 0, 1, 2)
    fam.to_csv(folder / "pooled.fam", sep="\t", header=False, index=False)
    words = ["plink2", "--bfile", "pooled", "--freq", "counts", "--split-par", "b38", "--out", "pooled", "--silent"]
    assert subprocess.run(words, cwd=folder, check=False).returncode == 0
    theirs = pd.read_csv(folder / "pooled.acount", sep="\t").set_index("ID")
    table, compared = table_of(run_folder), 0
    for at, (contig, position, _, ref, alt) in enumerate(KEYS):
        if (contig, position, ref, alt) in table.index:
            row = table.loc[(contig, position, ref, alt)]
            assert (theirs.loc[f"v{at}", "ALT_CTS"], theirs.loc[f"v{at}", "OBS_CT"]) == (row.AC, row.AN), KEYS[at]
            compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"population": "ancestry", "populations": []}, "population and populations go together"),
        ({"populations": ["AFR", "AFR"]}, 'populations has "AFR" twice'),
        ({"populations": ["A F"]}, "ASCII letters, digits, - and ."),
        ({"populations": ["AFR"]}, "EUR"),  # the persons table has another value
        ({"population": "region", "populations": ["N"]}, "region"),
        ({"min_sites": 9}, "min_sites is 9"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder: Path, change: dict[str, Any], words: str) -> None:
    done = quick("fedml", "frequencies", study_file(folder, **change), "--sites", folder / "sites", "--no-track", cwd=folder)
    assert done.returncode == (1 if "min_sites" in words else 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2


def test_a_study_without_the_section_is_refused(folder: Path) -> None:
    path = study_file(folder)
    text = path.read_text()
    (folder / "none.toml").write_text(text[: text.index('["frequencies"]')] + text[text.index('["federation"]') :])
    done = quick("fedml", "frequencies", folder / "none.toml", "--sites", folder / "sites", cwd=folder)
    assert done.returncode == 2
    assert "has no [frequencies] section" in done.stderr
    text = text.replace('["frequencies"]', '[gwas]\ncomponents = 0\n["frequencies"]')
    (folder / "both.toml").write_text(text)
    done = quick("fedml", "check", folder / "both.toml", cwd=folder)
    assert done.returncode == 2
    assert "[frequencies] and [gwas] are about different persons" in done.stderr


def test_the_plan_says_what_leaves_a_site(folder: Path) -> None:
    done = quick("fedml", "check", study_file(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "allele frequencies (`fedml frequencies`)" in done.stdout
    assert "ancestry: AFR, EUR" in done.stdout


GUIDE = ROOT / "docs" / "frequencies.md"


def test_the_guide_names_every_key_and_its_example_runs(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for name, field in Section.model_fields.items():
        if name not in ("population", "populations"):
            assert f"| `{name}` | `{json.dumps(field.default)}` |" in text, name
    synth, write, run = re.findall(r"```(?:sh|toml)\n(.*?)```", text, re.DOTALL)[:3]
    assert quick(*synth.split(), cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "lookup.toml").write_text(write)
    done = quick(*run.split(), "--no-track", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "variants; some site withholds numbers of" in done.stdout
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (GUIDE.parent / target).exists(), target
