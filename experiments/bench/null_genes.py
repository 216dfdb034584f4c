"""Benchmark: tests of genes without an effect at the shipped defaults.

    .venv/bin/python experiments/bench/null_genes.py [GENES] [SEED] [linear|half|tenth|twentieth]

Three sites of 2,000 persons; genes of 12 variants with frequencies from 0.02 to 0.9 %, evenly on the logarithm, a third of them losses of
function, a twentieth of the carriers of a variant also carry the next; age and sex are covariates and go with the outcome. A row gives, of
the genes with enough alleles, the shares of p below .05 and below .001 of each test, and the median alleles counted
of those that there are.
"""

from __future__ import annotations

import gzip
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from bed_reader import to_bed

from fedml.experiments.runs.run import run_nodes
from fedml.study.annotation import provide, write_annotation
from fedml.study.study import Study, parse_study, validate

KINDS: tuple[str, str] = ("regression", "classification")
SHARES = {"linear": None, "half": 0.5, "tenth": 0.1, "twentieth": 0.05}
_PERSONS, _VARIANTS = (2000, 2000, 2000), 12


def simulate(folder: Path, share: float | None, genes: int, seed: int) -> tuple[pd.DataFrame, float]:
    """The table of one simulation, and the median of the ALT alleles of a gene."""
    random = np.random.default_rng(seed)
    count = genes * _VARIANTS
    frequency = np.exp(random.uniform(np.log(2e-4), np.log(9e-3), count))
    names, total = [f"s{at}" for at in range(len(_PERSONS))], np.zeros(count)
    for number, (name, persons) in enumerate(zip(names, _PERSONS, strict=True)):
        dosage = random.binomial(2, frequency, (persons, count)).astype(np.int8)
        follows = np.arange(1, count)[np.arange(1, count) % _VARIANTS > 0]
        linked = (dosage[:, follows - 1] > 0) & (random.random((persons, len(follows))) < 0.05)
        dosage[:, follows] = np.maximum(dosage[:, follows], linked)
        total += dosage.sum(0)
        age, sex = random.normal(55, 10, persons), random.integers(0, 2, persons)
        line = 0.03 * (age - 55) + 0.4 * (sex - 0.5) + 0.2 * number
        y = line + random.normal(size=persons)
        if share is not None:
            y = (line + random.logistic(size=persons) > np.quantile(line + random.logistic(size=persons), 1 - share)).astype(int)
        ids, place = [f"{name}-{at}" for at in range(persons)], folder / "sites" / name
        place.mkdir(parents=True)
        keys = {"chromosome": ["1"] * count, "bp_position": list(range(1000, 1000 + count)), "sid": [f"rs{at}" for at in range(count)]}
        alleles = {"allele_1": ["G"] * count, "allele_2": ["A"] * count}
        to_bed(place / "g.bed", dosage, properties={"fid": ids, "iid": ids, **keys, **alleles})
        pd.DataFrame({"id": ids, "y": y}).to_csv(place / "persons.csv", index=False)
        pd.DataFrame({"id": ids, "age": age.round(1), "sex": sex}).to_csv(place / "clinical.csv", index=False)
        data = 'persons = "persons.csv"\nvariants = { path = "g.bed", build = "GRCh38" }\nclinical = { path = "clinical.csv" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    kinds = ("stop_gained", "missense_variant", "missense_variant")
    rows = [f"rs{at}\tG{at // _VARIANTS}\t{kinds[at % 3]}" for at in range(count)]
    (folder / "annotation.tsv").write_text("\n".join(["variant\tgene\tconsequence", *rows]) + "\n")
    plan = {
        "study": {"name": "null-genes", "seed": seed},
        "cohort": {"inputs": ["variants", "clinical"], "target": "y", "clinical": {"columns": ["age", "sex"]}},
        "model": {"task": KINDS[share is not None]},
        "gwas": {"components": 0, "covariates": ["age", "sex"], "genes": {"sha256": provide(folder / "annotation.tsv")}},
        "federation": {"sites": names},
    }  # fmt: skip
    study = parse_study(validate(Study, plan, "the null study").canonical)
    run = folder / "run"
    run.mkdir()
    write_annotation(study, run)
    run_nodes(study, [{"manifest": str(folder / "sites" / name / "site.toml")} for name in names], run, "genes")
    table = pd.read_csv(io.BytesIO(gzip.decompress((run / "genes.tsv.gz").read_bytes())), sep="\t")
    return table, float(np.median(total.reshape(genes, -1).sum(1)))


def main(words: list[str]) -> None:
    genes, seed = int(words[0]) if words else 1000, int(words[1]) if len(words) > 1 else 1
    for name in words[2:] or SHARES:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            table, there = simulate(Path(folder), SHARES[name], genes, seed)
        for mask, rows in table.groupby("mask"):
            texts = []
            for test in ("burden", "skat", "skat_o", "acat_v", "combined"):
                p = rows[f"{test}_p"].to_numpy(float)
                texts.append(f"{test} {np.mean(p < 0.05):.4f} {np.sum(p < 0.001)}")
            alleles = (
                f"alleles {rows.alleles.median():.0f} of {there:.0f}" if mask == "pLoF_missense" else f"alleles {rows.alleles.median():.0f}"
            )
            print(f"{name} {mask}: n {len(rows)}, {alleles}, {'; '.join(texts)}; {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
