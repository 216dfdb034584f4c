"""Two sites with variants on an autosome, X, Y and MT, indels among them: one writes VCF with haploid calls, the other PLINK files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.command import quick
from tests.conftest import to_toml, write_bed, write_csv, write_manifest, write_vcf

KEYS = [
    ("22", 17_000_100, "rs10", "A", "G"),
    ("22", 17_000_200, "rs11", "CA", "C"),  # a deletion of the base after the first
    ("22", 17_000_300, "rs12", "G", "GTT"),  # an insertion after the base
    ("22", 17_000_400, "rs13", "AC", "GT"),
    ("22", 17_000_500, ".", "T", "C"),
    *(("22", 17_001_000 + 100 * at, f"rs2{at:02d}", "C", "T") for at in range(30)),
    *(("X", 5_000_000 + 100 * at, f"rs3{at:02d}", "A", "G") for at in range(12)),
    ("X", 2_000_000, "rs40", "A", "G"),  # pseudoautosomal: two copies in men too
    *(("Y", 6_000_000 + 100 * at, f"rs5{at:02d}", "G", "A") for at in range(4)),
    *(("MT", 100 + 100 * at, f"rs6{at:02d}", "T", "C") for at in range(4)),
]
PERSONS = {"north": 180, "south": 220}
SEXES, GROUPS = np.array(["M", "F"]), np.array(["AFR", "EUR", ""])


class People(NamedTuple):
    """All persons: ``copies`` (persons, variants) ALT alleles that each really carries, -1 missing; ``one``: of one copy."""

    site: Any
    sex: Any
    group: Any
    copies: Any
    one: Any


def drawn(seed: int = 4) -> People:
    random = np.random.default_rng(seed)
    count = sum(PERSONS.values())
    site = np.repeat(list(PERSONS), list(PERSONS.values()))
    sex, group = random.choice(2, count), random.choice(3, count, p=[0.55, 0.4, 0.05])
    contig, position = np.array([k[0] for k in KEYS]), np.array([k[1] for k in KEYS])
    frequency = random.uniform(0.02, 0.5, len(KEYS))
    frequency[:5] = 0.2, 0.15, 0.3, 0.25, 0.4
    frequency[5:9] = 0.004  # rare: few persons carry it
    men = (sex == 0)[:, None]
    one = ((contig == "X") & (position > 2_781_479) & men) | ((contig == "Y") & men) | (contig == "MT")
    copies = random.binomial(np.where(one, 1, 2), frequency)
    copies[random.random(copies.shape) < 0.01] = -1
    copies[(contig == "Y") & ~men] = -1
    return People(site, sex, group, copies, one)


def written(folder: Path, people: People, *, public: bool = True) -> Path:
    """The sites' folders; returns ``folder``."""
    for name in PERSONS:
        rows = np.flatnonzero(people.site == name)
        ids = [f"{name}-{at}" for at in rows]
        here = folder / name
        data = '{ path = "cohort.vcf.gz", build = "GRCh38" }' if name == "north" else '{ path = "cohort.bed", build = "GRCh38" }'
        write_manifest(here, name, variants=data, **({} if public else {"public": "false"}))
        write_csv(here / "persons.csv", ids, {
            "seen": [1 + at % 2 for at in range(len(rows))], "sex": SEXES[people.sex[rows]], "ancestry": GROUPS[people.group[rows]],
        })  # fmt: skip
        copies, one = people.copies[rows], people.one[rows]
        if name == "north":
            calls = np.array([["./.", "0/0", "0/1", "1/1"], [".", "0", "1", "1"]])[one.astype(int), copies + 1]
            write_vcf(here / "cohort.vcf.gz", ids, [(*key, calls[:, at].tolist()) for at, key in enumerate(KEYS)])
        else:
            write_bed(here / "cohort.bed", ids, KEYS, np.where(copies < 0, -1, np.where(one, 2 * copies, copies)))
    return folder


def plan(**changes: Any) -> dict[str, Any]:
    """The study; ``changes`` are to [frequencies]."""
    return {
        "study": {"name": "lookup", "question": "How common is each variant?", "purpose": "DUO:0000042"},
        "cohort": {
            "inputs": ["variants"], "target": "seen", "classes": [1, 2],
            "variants": {"build": "GRCh38", "sex": {"column": "sex", "male": "M", "female": "F"}},
        },
        "frequencies": {"population": "ancestry", "populations": ["AFR", "EUR"], "by_sex": True, **changes},
        "federation": {"sites": list(PERSONS), "rounds": 1, "timeout": 60},
    }  # fmt: skip


def study_file(folder: Path, **changes: Any) -> Path:
    path = folder / "lookup.toml"
    path.write_text(to_toml(plan(**changes)))
    return path


def looked_up(folder: Path, *words: object, **changes: Any) -> dict[str, Any]:
    """The last line of `fedml frequencies` over ``folder/sites``, which must end well."""
    given = ("frequencies", study_file(folder, **changes), "--sites", folder / "sites", "--no-track", "--json", *words)
    done = quick("fedml", *given, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
