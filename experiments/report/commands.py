"""The commands ``fedml report`` and ``fedml table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.errors import InputError

RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run's folder; with --compare several.", show_default=False)]


def report(
    runs: RunFolders,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write; default: report.html in the (first) run's folder.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Several finished runs of one question, side by side on one page.")] = False,
    figures: Annotated[Path | None, typer.Option("--figures", help="Also write each plot as a vector PDF to this folder.")] = None,
) -> None:
    """Write a run's report: one self-contained HTML page, for a screen, a phone or paper. Of a training run, an association study or an
    analysis of outcomes.

    Example: fedml report fedml-runs/heart-20260131-101500-3fa2b1 -o report.html
    """
    from fedml.experiments.report.association import render_association
    from fedml.experiments.report.outcomes import render_outcomes
    from fedml.experiments.report.page import NAME, write_page, write_report
    from fedml.experiments.report.side_by_side import render_side_by_side
    from fedml.experiments.runs.record import job_of, read_record

    if len(runs) > 1 and not compare:
        raise InputError(f"{runs[1]}: fedml report takes one run; add --compare for several on one page.")
    path = out or runs[0] / ("compare.html" if compare else NAME)
    if compare:
        write_page(path, render_side_by_side([read_record(run) for run in runs]))
    elif render := {"gwas": render_association, **dict.fromkeys(("survival", "glm", "describe"), render_outcomes)}.get(job_of(runs[0])):
        write_page(path, render(runs[0]))
    else:
        write_report(read_record(runs[0]), path)
    print(path)
    if figures is not None:
        from fedml.experiments.report.vector import write_figures

        for file in write_figures(path, figures):
            print(file)


def table(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="docx, latex, csv or html.")] = "csv",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; default: tables.FORMAT in the run's folder.")] = None,
) -> None:
    """Write the tables of a run for a manuscript: participants (Table 1), performance by site, and by subgroup.

    Example: fedml table fedml-runs/heart-20260131-101500-3fa2b1 --format docx -o tables.docx
    """
    from fedml.experiments.report.export import ENDINGS, write_tables
    from fedml.experiments.runs.record import read_record

    if form not in ENDINGS:
        raise InputError(f"--format {form}: is not known; give one of {', '.join(ENDINGS)}.")
    path = out or run_folder / f"tables.{ENDINGS[form]}"
    write_tables(read_record(run_folder), form, path)
    print(path)
