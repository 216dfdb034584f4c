"""Benchmark: the clipped sum of 64 persons' gradients for the small image network (three convolutions with group norm, 28 x 28), one image
a person: fedml against Opacus' hooks and its ghost clipping, on the same batch. Each result must equal that of a loop over persons.

    .venv/bin/python experiments/bench/dpsgd_cnn.py [REPEATS]
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch

from fedml.experiments.bench.dpsgd_wide import PERSONS, TOLERANCE, WAYS, apart, loop, make_step, report
from fedml.experiments.bench.timing import machine
from fedml.modalities.layout import Layout
from fedml.models.fusion import CohortModel, build_model
from fedml.study.study import Study, validate

SHAPE = (1, 28, 28)


def make_model() -> CohortModel:
    """The "cnn" network of a study whose only input is images."""
    plan = {
        "study": {"name": "cnn"},
        "cohort": {"inputs": ["image"], "target": "y"},
        "model": {"image": {"net": "cnn", "norm": "group"}},
        "federation": {"sites": ["a"]},
    }
    return build_model(validate(Study, plan, "the image study"), Layout(SHAPE)).train()


def make_batch() -> dict[str, Any]:
    """A batch of noise."""
    generator = torch.Generator().manual_seed(0)
    images, label = torch.randn(PERSONS, *SHAPE, generator=generator), torch.randint(0, 2, (PERSONS,), generator=generator)
    return {"image": images, "image_person": torch.arange(PERSONS), "image_present": torch.ones(PERSONS), "label": label}


def main() -> None:
    """Measures, compares and prints."""
    warnings.filterwarnings("ignore", message="Full backward hook")
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(machine())
    batch = make_batch()
    reference = loop(make_model(), batch)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        steps = {way: make_step(way, make_model(), batch) for way in WAYS}
        found = {way: apart(step(), reference) for way, step in steps.items()}
        assert max(found.values()) <= TOLERANCE, found
        report(f"cnn with group norm, {SHAPE}", threads, steps, repeats)
    print(f"\nlargest distance from a loop over persons: {max(found.values()):.1e}")


if __name__ == "__main__":
    main()
