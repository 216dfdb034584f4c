"""``fedml new`` and ``fedml import``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from fedml.cli import grouped
from fedml.errors import InputError

_OUT = typer.Argument(metavar="DIR", help="Folder to create; asked for on a terminal.", show_default=False)


@dataclass(frozen=True)
class Files:
    """Options of both commands."""

    id: Annotated[str, typer.Option("--id", help="Column of ids; default: one with a usual name.")] = ""
    site_column: Annotated[
        str, typer.Option("--site-column", help="Column of the site of each person; default: one with a usual name; - for none.")
    ] = ""
    simulate: Annotated[int, typer.Option("--simulate", min=1, max=100, help="Without such a column: number of simulated sites.")] = 3
    public: Annotated[bool, typer.Option("--public", help="The data are published or synthetic: exact counts may leave a site.")] = False


@dataclass(frozen=True)
class Inputs:
    """The inputs of ``fedml new``."""

    table: Annotated[Path | None, typer.Option("--table", help="Persons: CSV, TSV or Parquet.")] = None
    images: Annotated[Path | None, typer.Option("--images", help="Folder of images named <id>, or with a folder for each class.")] = None
    variants: Annotated[Path | None, typer.Option("--variants", help="VCF, BCF or PLINK bed whose samples are the persons.")] = None
    target: Annotated[str, typer.Option("--target", help="Column of what is predicted; default: one with a usual name.")] = ""
    label_part: Annotated[
        int | None, typer.Option("--label-part", help="Label in the images' names: part 1, 2, ... or -1, -2, ... from the end.")
    ] = None
    site_part: Annotated[int | None, typer.Option("--site-part", help="Site in the images' names: a part, as of --label-part.")] = None
    positive: Annotated[str, typer.Option("--positive", help="The positive class; default: the last; no, control, 0 come first.")] = ""
    build: Annotated[str, typer.Option("--build", help="Genome build of the variants; default: from the file's header.")] = ""


@grouped
def new(inputs: Inputs, files: Files, out: Annotated[Path | None, _OUT] = None) -> None:
    """Write a study and site folders from your own table, images or VCF; what was guessed is printed, so that you can correct it.
    On a terminal, fedml new alone asks for each, and offers to run the study.

    Example: fedml new work --table cohort.csv --target death && fedml run work/study.toml --sites work/sites
    """
    from fedml.experiments.new.make import Given, make

    asked = False
    given = Given(**{field.name: getattr(group, field.name) for group in (inputs, files) for field in fields(group)})
    if out is None or not (inputs.table or inputs.images or inputs.variants):
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise InputError(_missing(out, inputs))
        from fedml.experiments.new.ask import ask

        (given, out), asked = ask(given, out), True
    make(given, out, print)
    words = ["run", str(out / "study.toml"), "--sites", str(out / "sites")]
    print(f"next: fedml check {out / 'study.toml'}; fedml {' '.join(words)}")
    if asked and typer.confirm("Run it now?", default=True):
        done = subprocess.run([sys.executable, "-P", "-m", "fedml.experiments.cli", *words], check=False, stderr=sys.stderr)
        raise SystemExit(done.returncode)


def _missing(out: Path | None, inputs: Inputs) -> str:
    """Which words of the command are missing where nobody can be asked."""
    words = ["DIR, the folder to create"] if out is None else []
    if not (inputs.table or inputs.images):
        words.append("--table FILE (persons and their columns), --images DIR, or both" + (", beside --variants" if inputs.variants else ""))
    also = "; --id, --target and --site-column name columns that have no usual name"
    return f"fedml new: give {' and '.join(words)}{also}. On a terminal, fedml new asks for them."


@grouped
def import_table(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Persons: CSV, TSV or Parquet.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.", show_default=False)],
    files: Files,
) -> None:
    """Write a folder for each site from one table with a column of sites: persons.csv, clinical.csv and site.toml. No study.

    Example: fedml import cohorts.csv --site-column cohort --id patient --out work
    """
    from fedml.experiments.new.make import Given, make

    make(Given(table, None, None, files.id, "", files.site_column, files.simulate, public=files.public), out, print, study=False)
