"""Benchmark: a report's learning curves as SVG: fedml's plots against matplotlib, with the same points drawn.

    python -m fedml.experiments.bench.report_plots [--repeats 7] [--rounds 200]

Both draw three sites' curves over the rounds with axes, labels and a key. matplotlib writes text as text (``svg.fonttype``), without a date
and with a fixed salt, so that equal numbers give equal bytes. The points of each curve must be equal once both drawings are scaled to their
own ends, within the half unit to which fedml rounds.
"""

from __future__ import annotations

import argparse
import io
import re

import numpy as np
import numpy.typing as npt

from fedml.experiments.bench.timing import machine, paired, seconds, table
from fedml.experiments.report.plots import COLOURS, DASHES, Series, curves

SITES = ("oslo", "porto", "utrecht")
Curves = dict[str, list[float]]


def ours(data: Curves) -> str:
    """fedml's SVG."""
    rounds = list(range(1, 1 + len(next(iter(data.values())))))
    series = [Series(name, rounds, y, COLOURS[k], DASHES[k]) for k, (name, y) in enumerate(data.items())]
    return curves(series, "round", "AUROC", "AUROC of three sites over the rounds")


def peer(data: Curves) -> str:
    """matplotlib's SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "fedml", "svg.fonttype": "none", "path.simplify": False}):
        figure = Figure(figsize=(420 / 72, 290 / 72), layout="constrained")
        axes = figure.add_subplot()
        for k, (name, y) in enumerate(data.items()):
            axes.plot(range(1, 1 + len(y)), y, color=COLOURS[k], label=name)
        axes.set_xlabel("round")
        axes.set_ylabel("AUROC")
        axes.grid(axis="y")
        axes.legend()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def points(svg: str, length: int) -> list[npt.NDArray[np.float64]]:
    """(points, 2) of each curve of ``length`` points, scaled to 0..1 along each axis."""
    texts = re.findall(r'points="([^"]+)"', svg) + re.findall(r' d="(M [^"]+)"', svg)
    found = [np.array([float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text)]).reshape(-1, 2) for text in texts]
    kept = [one for one in found if len(one) == length]
    return [(one - one.min(0)) / np.ptp(one, axis=0) for one in kept]


def main() -> None:
    """Compares the points, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=200)
    chosen = parser.parse_args()
    print(machine())
    rng = np.random.default_rng(0)
    data = {site: (0.9 - 0.4 * np.exp(-np.arange(chosen.rounds) / 20) + rng.normal(0, 0.01, chosen.rounds)).tolist() for site in SITES}
    first = seconds(lambda: peer(data))  # with the import of matplotlib and its fonts
    drawn = {"ours": ours(data), "peer": peer(data)}
    mine, theirs = points(drawn["ours"], chosen.rounds)[::-1], points(drawn["peer"], chosen.rounds)  # the first site is drawn last
    assert len(mine) == len(theirs) == len(SITES), "each draws every curve"
    apart = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    assert apart < 0.01, f"the curves differ by {apart:.3f} of their height"
    pairs = paired(lambda: seconds(lambda: ours(data)), lambda: seconds(lambda: peer(data)), chosen.repeats)
    head = ("", "ours (ms)", "matplotlib (ms)", "ratio", "range")
    table(
        f"learning curves of {len(SITES)} sites over {chosen.rounds} rounds, median of {chosen.repeats}", head, [pairs.row("one plot", 1e3)]
    )
    sizes = {name: len(svg.encode()) / 1e3 for name, svg in drawn.items()}
    print(f"\nbytes of the SVG: ours {sizes['ours']:.1f} kB, matplotlib {sizes['peer']:.1f} kB; matplotlib's first plot {first:.2f} s")


if __name__ == "__main__":
    main()
