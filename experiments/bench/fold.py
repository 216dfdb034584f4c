"""Benchmark: averaging 20 replies of a ResNet-50's 161 arrays (25.6 million parameters): ``Averaging.aggregate_train``, which reads replies
one at a time, against Flower's ``aggregate_arrayrecords``, which reads a list of all replies.

For times, the replies share a few buffers, so that creating them takes no time. For memory, measured in a separate process for each, every
reply has separate bytes, created when the reply is read (ours) or when the list is built (Flower), as in a real run. The two means must
agree. Flower adds by NumPy on one thread; fedml adds by torch, with the threads of the process.

    .venv/bin/python experiments/bench/fold.py [REPEATS]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedml.experiments.bench.timing import PeakMemory, machine, paired, seconds, table
from fedml.flower.grid import InProcessGrid
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.fedavg import fedavg
from fedml.wire.records import ARRAYS, METRICS, NUM_EXAMPLES, pack, unpack

SITES = 20
TOLERANCE = 1e-6
Model = dict[str, npt.NDArray[np.float32]]


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of a ResNet-50's parameters: convolutions, each with the two arrays of its norm, and the last layer."""
    convolutions, before = [(64, 3, 7, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions += [(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [] if block else [(4 * width, before, 1, 1)]
            before = 4 * width
    return [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])] + [(1000, before), (1000,)]


def buffers(count: int) -> list[Model]:
    """``count`` models of random numbers."""
    generator = np.random.default_rng(0)
    return [{f"array.{i}": generator.standard_normal(s, dtype=np.float32) for i, s in enumerate(resnet50())} for _ in range(count)]


def content(arrays: ArrayRecord, site: int) -> RecordDict:
    """A site's reply; site ``i`` has 100 + 37 i persons."""
    return RecordDict({ARRAYS: arrays, METRICS: MetricRecord({NUM_EXAMPLES: 100 + 37 * site})})


def shared(records: list[ArrayRecord], sites: int) -> Iterator[RecordDict]:
    """Replies that share the buffers of ``records``."""
    return (content(records[site % len(records)], site) for site in range(sites))


def fresh(models: list[Model], sites: int) -> Iterator[RecordDict]:
    """Replies with separate bytes, each created when it is read."""
    return (content(pack(models[site % len(models)]), site) for site in range(sites))


def ours(replies: Iterator[RecordDict]) -> ArrayRecord:
    """The mean by fedml's strategy, which reads the replies as a stream."""
    mean, _ = Averaging(fedavg(), 1).aggregate_train(1, (Message(reply, 1, "train") for reply in replies))
    assert mean is not None
    return mean


def flower(replies: Iterator[RecordDict]) -> ArrayRecord:
    """The mean by Flower's function, which takes a list of all replies."""
    mean: ArrayRecord = aggregate_arrayrecords(list(replies), NUM_EXAMPLES)
    return mean


def apart(our: ArrayRecord, theirs: ArrayRecord) -> float:
    """The largest difference of two means, relative to the largest number of the array."""
    a, b = unpack(our), {key: array.numpy() for key, array in theirs.items()}
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max() / np.abs(b[key]).max()) for key in a)


FOLDS: dict[str, Callable[[Iterator[RecordDict]], ArrayRecord]] = {"ours": ours, "flower": flower}


def extra_memory(which: str, sites: int) -> None:
    """Prints the peak memory of one aggregation, minus that at the start, in MB."""
    models = buffers(3)
    FOLDS[which](fresh(buffers(1), 1))  # warm-up: imports and one-time allocations are not counted
    with PeakMemory() as memory:
        FOLDS[which](fresh(models, sites))
    print(round(memory.extra_mb))


def in_a_process(which: str, sites: int) -> str:
    """``extra_memory`` in a new process, because memory freed by an earlier aggregation would hide the peak."""
    command = [sys.executable, str(Path(__file__).resolve()), which, str(sites)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measures, compares and prints."""
    InProcessGrid(ClientApp(), [])  # sets the run that Flower's Message requires
    if len(sys.argv) == 3:
        extra_memory(sys.argv[1], int(sys.argv[2]))
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(machine())
    records = [pack(model) for model in buffers(3)]
    difference = apart(ours(shared(records, SITES)), flower(shared(records, SITES)))
    assert difference <= TOLERANCE, f"the means differ by {difference:.1e}"

    timed = []
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        pairs = paired(
            lambda: seconds(lambda: ours(shared(records, SITES))), lambda: seconds(lambda: flower(shared(records, SITES))), repeats
        )
        timed.append(pairs.row(str(threads), digits=3))
    millions = sum(int(np.prod(shape)) for shape in resnet50()) / 1e6
    head = ("torch threads", "ours (s)", "Flower (s)", "ratio", "range")
    table(f"{SITES} replies of {millions:.2f} million parameters, median of {repeats}", head, timed)
    rows = [(str(sites), in_a_process("ours", sites), in_a_process("flower", sites)) for sites in (5, 10, 20)]
    table(f"peak memory above that at the start (MB); one reply is {millions * 4e6 / 2**20:.0f} MB", ("sites", "ours", "Flower"), rows)
    print(f"\nmeans agree: largest difference {difference:.1e} of the largest number")


if __name__ == "__main__":
    main()
