"""The commands ``fedml frequencies STUDY`` and ``fedml frequencies serve TABLE``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fedml.cli import grouped
from fedml.errors import InputError
from fedml.experiments.options import Json, Listening, Overrides, Seed, StudyFile, Track, Where
from fedml.experiments.runs.launch import closing_line, judge, launch, load_study, make_console

if TYPE_CHECKING:
    import click


class _RunByDefault(TyperGroup):
    """``fedml frequencies STUDY`` is ``fedml frequencies run STUDY``. Final."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Adds the name of the command, where there is none."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="frequencies", cls=_RunByDefault, no_args_is_help=True, rich_markup_mode=None,
    help="Allele frequencies over the persons of all sites: fedml frequencies STUDY; and a Beacon v2 endpoint over the table: serve.",
)  # fmt: skip


@app.command("run")
@grouped
def run(
    study_file: StudyFile, where: Where, changes: Overrides = None, seed: Seed = None, as_json: Json = False, track: Track = True
) -> None:
    """Count the alleles of every variant over the persons of all sites, by population and sex ([frequencies] in the study).

    Writes frequencies.tsv.gz (bgzipped, indexed) to the run's folder.

    Example: fedml frequencies out/frequencies.toml --sites out/sites
    """
    from fedml.runs.events import Frequencies, body
    from fedml.runs.log import FREQUENCIES_TABLE, last

    console = make_console(as_json)
    study = load_study(study_file, changes, seed)
    if study.frequencies is None:
        raise InputError(f"{study_file}: has no [frequencies] section; add one, an empty one for counts of everyone.")
    launched = launch(study_file, study, where, console, "frequencies", track=track)
    outcome = launched.outcome
    none = Frequencies(seconds=0.0, sites={}, build="", groups=[], variants=0, left_out={}, withheld=0)
    found = last(outcome.events, none)
    if found.came:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in found.left_out.items())
        if reasons:
            console.print(f"not in the table: {reasons}", soft_wrap=True)
        console.print(f"{found.variants} variants; some site withholds numbers of {found.withheld}", soft_wrap=True)
        console.print(f"table: {outcome.run / FREQUENCIES_TABLE} (indexed); look up: fedml frequencies serve {outcome.run}", soft_wrap=True)
    closing_line(launched, console)
    if as_json:
        values: dict[str, Any] = {k: v for k, v in body(found).items() if k not in ("seconds", "sites")} if found.came else {}
        size = {"out": sum(r["bytes_out"] for r in found.sites.values()), "in": sum(r["bytes_in"] for r in found.sites.values())}
        print(json.dumps({
            "run_id": outcome.run.name, "status": outcome.status, "reason": outcome.reason, "study_sha256": study.sha256,
            "seconds": outcome.seconds, "folder": str(outcome.run), "mlflow_run_id": launched.mlflow_run,
            "mlflow_error": launched.mlflow_error or None, "metrics": values, "bytes": size, "sites": list(found.sites),
        }), flush=True)  # fmt: skip
    judge(launched)


@app.command("serve")
@grouped
def serve(
    table: Annotated[Path, typer.Argument(metavar="RUN | TABLE", help="A run's folder, or its frequencies.tsv.gz.", show_default=False)],
    where: Listening,
) -> None:
    """Serve a table of frequencies as a Beacon v2 endpoint (GA4GH), until stopped. It reads the table and nothing else.

    Example: fedml frequencies serve fedml-runs/frequencies-20260131-101500-3fa2b1 --port 5050
    """
    from fedml.experiments.frequencies.server import listen

    listen(table, where)
