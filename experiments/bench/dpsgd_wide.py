"""Benchmark: the clipped sum of 64 persons' gradients for a network on 20,000 variants (int8 dosages -> 64 -> 2), as in each step of
DP-SGD: fedml against Opacus' hooks, which store every person's gradient, and its ghost clipping, which makes two backward passes. All three
start with the same int8 batch and end with one clipped sum, which must equal that of a loop over persons.

These times exclude noise; the last table has it: fedml's from the operating system, Opacus' from torch's generator.
Memory is measured in a separate process for each: peak resident memory above that before the first step.

    .venv/bin/python experiments/bench/dpsgd_wide.py [REPEATS]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedml.experiments.bench.timing import machine, table

PERSONS, VARIANTS, HIDDEN, CLIP = 64, 20_000, 64, 1.0
WAYS = ("ours", "hooks", "ghost")
TOLERANCE = 1e-4


def make_study() -> Any:
    """A study whose only input is variants."""
    from fedml.study.study import Study, validate

    plan = {
        "study": {"name": "wide"},
        "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"variants": {"net": "mlp", "hidden": [HIDDEN]}},
        "federation": {"sites": ["a"]},
    }
    return validate(Study, plan, "the wide study")


def make_batch() -> dict[str, Any]:
    """Random dosages, some missing."""
    import torch

    generator = torch.Generator().manual_seed(0)
    dosage = torch.randint(-1, 3, (PERSONS, VARIANTS), generator=generator).to(torch.int8)
    label = torch.randint(0, 2, (PERSONS,), generator=generator)
    return {"variants": dosage, "variants_present": torch.ones(PERSONS), "label": label}


def make_model() -> Any:
    """The study's model, with realistic preprocessing constants."""
    import torch

    from fedml.modalities.layout import Layout
    from fedml.models.fusion import build_model

    model = build_model(make_study(), Layout(variants=VARIANTS)).train()
    model.get_buffer("preprocess.variants.mean").fill_(0.9)
    model.get_buffer("preprocess.variants.std").fill_(0.8)
    torch.manual_seed(0)
    return model


def make_step(way: str, model: Any, batch: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A function that computes one clipped sum by ``way``: parameter name -> gradient."""
    if way == "ours":
        return lambda: ours(model, batch)
    return opacus_step(model, batch, way)


def ours(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The clipped sum as ``fedml.privacy.dpsgd`` computes it."""
    from fedml.privacy.dpsgd import person_losses
    from fedml.privacy.persongrad import clipped_gradient_sum
    from fedml.tasks.registry import make_task

    task, label = make_task(make_study()), batch["label"]
    rows_of = {"encoder.image": batch["image_person"]} if "image" in batch else None
    return clipped_gradient_sum(model, lambda: person_losses(task, model(batch), label), clipping_norm=CLIP, rows_of=rows_of).total


def opacus_step(model: Any, batch: dict[str, Any], way: str) -> Callable[[], dict[str, Any]]:
    """The clipped sum by Opacus. Opacus wraps the network only; the preprocessing, which has buffers, runs before it and is timed too."""
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    kind = next(iter(model.encoder))
    network, preprocess, label = model.encoder[kind], model.preprocess[kind], batch["label"]
    options = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "expected_batch_size": PERSONS, "loss_reduction": "sum"}
    plain = torch.optim.SGD(network.parameters(), lr=0.0)
    sum_loss = torch.nn.CrossEntropyLoss(reduction="sum")
    if way == "hooks":
        wrapped = GradSampleModule(network, loss_reduction="sum")
        optimizer: Any = DPOptimizer(plain, **options)
        loss: Any = sum_loss
    else:
        wrapped = GradSampleModuleFastGradientClipping(network, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum")
        optimizer = DPOptimizerFastGradientClipping(plain, **options)
        loss = DPLossFastGradientClipping(wrapped, optimizer, sum_loss, loss_reduction="sum")

    def step() -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        loss(wrapped(preprocess(batch[kind])), label).backward()
        optimizer.pre_step()
        return {f"encoder.{kind}.{name}": p.grad for name, p in network.named_parameters()}

    return step


def loop(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The reference: a loop over persons."""
    import torch
    from torch.nn import functional

    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses = functional.cross_entropy(model(batch), batch["label"], reduction="none")
    for one in losses:
        found = torch.autograd.grad(one, list(parameters.values()), retain_graph=True)
        norm = sum(float(g.double().square().sum()) for g in found) ** 0.5
        for name, g in zip(parameters, found, strict=True):
            total[name] += g * min(1.0, CLIP / norm)
    return total


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The L2 distance of two sums, relative to the norm of the second."""
    assert a.keys() == b.keys(), (sorted(a), sorted(b))
    size = sum(float(v.double().square().sum()) for v in b.values())
    return float((sum(float((a[k].double() - v.double()).square().sum()) for k, v in b.items()) / size) ** 0.5)


def interleaved(
    steps: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step, in turn, ``repeats`` times after one warm-up."""
    times: dict[str, list[float]] = {way: [] for way in steps}
    for at in range(repeats + 1):
        for way, step in steps.items():
            began = clock()
            step()
            if at:
                times[way].append(clock() - began)
    return times


def compared(times: dict[str, list[float]], persons: int) -> list[tuple[str, ...]]:
    """Rows: way, median milliseconds, persons a second, its time divided by ours."""
    middle = {way: statistics.median(each) for way, each in times.items()}
    return [(way, f"{1e3 * t:.2f}", f"{persons / t:,.0f}", f"{t / middle['ours']:.2f}") for way, t in middle.items()]


def report(what: str, threads: int, steps: Mapping[str, Callable[[], object]], repeats: int) -> None:
    """Prints wall time; with one thread also CPU time, which depends less on other processes."""
    for name, clock in (("wall", time.perf_counter), ("CPU", time.process_time))[: 3 - threads]:
        rows = compared(interleaved(steps, repeats, clock), PERSONS)
        title = f"clipped sum, {PERSONS} persons, {what}, {threads} thread(s), {name} time, median of {repeats}"
        table(title, ("", "ms", "persons/s", "ours is x faster"), rows)


def extra_memory(way: str) -> None:
    """Prints the peak resident memory of three steps, minus that before them, in MB."""
    import torch

    torch.set_num_threads(1)
    model, batch = make_model(), make_batch()
    small = torch.nn.Linear(4, 2)  # the first backward pass allocates memory once, which is not counted
    small(torch.ones(1, 4)).sum().backward()
    if way == "ours":
        pass
    else:
        import opacus.optimizers  # noqa: F401 - imports are not counted
    step = make_step(way, model, batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.1f}")


def in_a_process(way: str) -> float:
    """``extra_memory`` in a new process, whose parent has little memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Measures, compares and prints."""
    warnings.filterwarnings("ignore", message="Full backward hook")  # the input of Opacus' first layer has no gradient
    if "--memory" in sys.argv:
        extra_memory(sys.argv[-1])
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    memory = {way: in_a_process(way) for way in WAYS}  # before this process imports torch
    import torch

    from fedml.privacy.noise import add_gaussian

    print(machine())
    batch = make_batch()
    reference = loop(make_model(), batch)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        steps = {way: make_step(way, make_model(), batch) for way in WAYS}
        found = {way: apart(step(), reference) for way, step in steps.items()}
        assert max(found.values()) <= TOLERANCE, found
        report(f"{VARIANTS:,} variants -> {HIDDEN} -> 2", threads, steps, repeats)
    print(f"largest distance from a loop over persons: {max(found.values()):.1e}")
    rows = [(way, f"{mb:.0f}", f"{mb / max(memory['ours'], 0.1):.1f}") for way, mb in memory.items()]
    table("peak resident memory above that before the first step (MB)", ("", "MB", "x ours"), rows)
    size = reference[f"encoder.variants.{0}.weight"]
    torch.set_num_threads(1)
    noises: dict[str, Callable[[], object]] = {
        "ours": lambda: add_gaussian(size, 1.0),
        "torch.normal": lambda: size + torch.normal(0.0, 1.0, size.shape),
        "four torch.normal (Opacus' secure mode)": lambda: size + sum(torch.normal(0.0, 1.0, size.shape) for _ in range(4)) / 2,
    }
    table(
        f"noise for {size.numel():,} coordinates",
        ("", "ms", "a second", "ours is x faster"),
        compared(interleaved(noises, repeats), size.numel()),
    )


if __name__ == "__main__":
    main()
