"""Benchmark: models on variants against their alternatives, after a check that results are equal.

Genes: a forward and backward pass through the layer with separate weights for each gene, against a dense layer with a mask (the same
function, with genes x width x variants weights). Scores: reading a bed file and a scoring file, matching and scoring, against
``plink2 --score`` on one thread, both to one sum for each person.

    .venv/bin/python -m fedml.experiments.bench.variant_models [REPEATS]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedml.experiments.bench.timing import machine, paired, seconds, table

PERSONS, VARIANTS, GENES, WIDTH = 64, 20_000, 1_500, 4
COHORT, MARKERS = 2_000, 100_000


def gene_passes() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Functions for the forward and backward pass of fedml's layer and of the masked dense layer, with the same weights and inputs."""
    import torch
    from torch.nn import functional

    from fedml.networks.variants import GeneLayer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    groups = np.random.default_rng(0).integers(0, GENES, VARIANTS)
    groups[:GENES] = np.arange(GENES)
    layer, x, out = GeneLayer(groups.tolist(), WIDTH), torch.randn(PERSONS, VARIANTS), torch.randn(PERSONS, GENES * WIDTH)
    rows = (torch.from_numpy(groups)[:, None] * WIDTH + torch.arange(WIDTH)).flatten()
    columns = torch.arange(VARIANTS).repeat_interleave(WIDTH)
    mask = torch.zeros(GENES * WIDTH, VARIANTS)
    mask[rows, columns] = 1
    dense = torch.zeros_like(mask)
    dense[rows, columns] = layer.weight.detach().flatten()
    dense.requires_grad_()

    def ours() -> Any:
        layer.weight.grad = None
        y = layer(x)
        y.backward(out)
        return y.detach(), layer.weight.grad

    def peer() -> Any:
        dense.grad = None
        y = functional.linear(x, dense * mask, layer.bias.flatten())
        y.backward(out)  # type: ignore[no-untyped-call]
        assert dense.grad is not None
        return y.detach(), dense.grad[rows, columns].view(VARIANTS, WIDTH)

    for a, b in zip(ours(), peer(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    return ours, peer


def score_runs(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Functions for fedml's and PLINK's scores of one cohort on disk."""
    from bed_reader import open_bed, to_bed

    from fedml.cohort.scores.scores import match, score
    from fedml.cohort.scores.scoring_file import LinearModel, read_scoring, write_scoring
    from fedml.cohort.variants.keys import Variant

    random = np.random.default_rng(1)
    frequency = random.uniform(0.05, 0.95, MARKERS)
    dosage = random.binomial(2, frequency, (COHORT, MARKERS)).astype(np.int8)
    dosage[random.random(dosage.shape) < 0.01] = -1
    keys = [Variant("1", 100 + 20 * v, f"rs{v}", "A", "G") for v in range(MARKERS)]
    names = [f"p{k}" for k in range(COHORT)]
    columns = {"sid": [k.id for k in keys], "bp_position": [k.position for k in keys]}
    shared = {"fid": names, "iid": names, "chromosome": ["1"] * MARKERS, "allele_1": ["G"] * MARKERS, "allele_2": ["A"] * MARKERS}
    to_bed(folder / "cohort.bed", np.where(dosage < 0, -127, dosage).astype(np.int8), properties={**shared, **columns})
    weight = random.normal(0, 1, MARKERS)
    write_scoring(folder / "score.txt", LinearModel(keys, weight, np.zeros(MARKERS), np.ones(MARKERS)), name="bench", build="GRCh38")

    def ours() -> Any:
        with open_bed(folder / "cohort.bed", num_threads=1) as bed:
            read = bed.read(dtype="int8")
            fields = zip(bed.chromosome, bed.bp_position.tolist(), bed.sid, bed.allele_2, bed.allele_1, strict=True)
            panel = [Variant(*f) for f in fields]
        return score(np.maximum(read, -1, out=read), match(read_scoring(folder / "score.txt"), panel, "GRCh38")).total

    def peer() -> Any:
        options = ["1", "4", "6", "header", "cols=+scoresums", "--threads", "1", "--out", str(folder / "plink")]
        lines = (folder / "score.txt").read_text().splitlines()
        (folder / "plain.txt").write_text("\n".join(line for line in lines if not line.startswith("#")) + "\n")
        command = ["plink2", "--bfile", str(folder / "cohort"), "--score", str(folder / "plain.txt"), *options]
        subprocess.run(command, check=True, capture_output=True)
        rows = [line.split("\t") for line in (folder / "plink.sscore").read_text().splitlines()]
        at = rows[0].index("SCORE1_SUM")
        return np.array([float(row[at]) for row in rows[1:]])

    np.testing.assert_allclose(ours(), peer(), rtol=5e-6, atol=1e-3)  # PLINK prints six digits
    return ours, peer


def main() -> None:
    """Prints two tables."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(machine())
    head = ("", "ours ms", "peer ms", "ratio", "range")
    ours, peer = gene_passes()
    pairs = paired(lambda: seconds(ours), lambda: seconds(peer), repeats)
    title = f"{PERSONS} persons, {VARIANTS:,} variants, {GENES:,} genes, {WIDTH} numbers a gene: forward and backward"
    table(title, head, [pairs.row("masked dense layer", 1e3, 1)])
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = score_runs(Path(folder))
        pairs = paired(lambda: seconds(ours), lambda: seconds(peer), repeats)
    table(f"{COHORT:,} persons, {MARKERS:,} weights, from files", head, [pairs.row("plink2 --score", 1e3, 0)])


if __name__ == "__main__":
    main()
