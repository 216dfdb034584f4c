"""Every plot of a finished run's files as PNG too."""

from __future__ import annotations

from pathlib import Path

from fedml.experiments.tracked.raster import png

PLOTS = "plots"


def draw_plots(folder: Path) -> None:
    """Writes ``plots/NAME.png`` beside each ``plots/NAME.svg`` of a folder; a plot that cannot be drawn whole stays SVG alone."""
    for plot in sorted((folder / PLOTS).glob("*.svg")):
        try:
            plot.with_suffix(".png").write_bytes(png(plot.read_text(encoding="utf-8")))
        except ValueError:
            plot.with_suffix(".png").unlink(missing_ok=True)
