"""The ``fedml-site`` command, for the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.cli import guarded
from fedml.errors import InputError

app = typer.Typer(
    name="fedml-site",
    help="A hospital's side of a federation: describe your data, see what a study would read of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: fedml-site init oslo --out site.toml && fedml-site check STUDY.toml --site site.toml",
)

MANIFEST = """\
# What this hospital lets a study read. Paths start from this file's folder.
[site]
name = "{name}" # as the studies' rosters have it

[data]
persons = "persons.csv" # columns: id, then what studies predict; one row a person
# image = {{ path = "images", format = "nifti" }} # png, jpeg, npy, nifti: <id>.<ending>, or <id>/<any>.<ending>; or one npz
# variants = {{ path = "cohort.vcf.gz", build = "GRCh38" }} # .vcf.gz, .bcf or .bed; sample names are the ids
# clinical = {{ path = "clinical.csv" }} # columns: id, then clinical values; an empty cell is missing
# split = "split.csv" # columns: id, part (train, val or test); left out, a keyed hash of the id decides
"""


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name in rosters.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("site.toml"),
) -> None:
    """Write a commented manifest to fill in.

    Example: fedml-site init oslo --out /srv/fedml/site.toml
    """
    from pydantic import TypeAdapter, ValidationError

    from fedml.study import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InputError(f'site name "{name}": use lower-case letters, digits, - and _, such as "oslo-2".') from error
    if out.exists():
        raise InputError(f"{out}: is there already; give another --out, or take it away first.")
    out.write_text(MANIFEST.format(name=name), encoding="utf-8")
    print(f"{out}: fill it in, then: fedml-site check STUDY.toml --site {out}")


@app.command()
def check(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: Annotated[Path, typer.Option("--site", help="This site's manifest.")] = Path("site.toml"),
) -> None:
    """Read this site's data as a study would, and say what it would use. Nothing leaves this machine.

    Example: fedml-site check heart.toml --site /srv/fedml/site.toml
    """
    from clients.site import check_roster, load_cohort, read_site
    from fedml.study import PARTS, read_study

    study, site = read_study(study_file), read_site(site_file)
    check_roster(site, study)
    cohort = load_cohort((str(site.file if site_file.is_dir() else site_file),), study)
    print(f'{site.name}: study "{study.study.name}" would use {len(cohort)} persons')
    for part in PARTS:
        rows = cohort.rows(part)
        told = ""
        if study.model.task == "classification":
            told = ", ".join(f"{c}: {int((cohort.labels[rows] == i).sum())}" for i, c in enumerate(study.cohort.classes))
        print(f"  {part:5} {len(rows):6} persons" + (f"  ({study.cohort.target} {told})" if told else ""))
    for why, count in cohort.left_out.items():
        print(f"  left out {count} persons: {why}")
    if cohort.clinical is not None and study.cohort.clinical is not None:
        for name, missing in zip(study.cohort.clinical.columns, (cohort.clinical != cohort.clinical).mean(0), strict=True):
            print(f"  {name}: {missing:.0%} missing")
    if cohort.images is not None:
        print(f"  images: {len(cohort.images.person)} of {cohort.images.shape} (channels, *size)")
    if cohort.variants is not None:
        print(f"  variants: {len(cohort.variants.keys)}, {(cohort.variants.dosage < 0).mean():.1%} missing")


def main() -> None:
    """Entry point of ``fedml-site``."""
    guarded(app)


if __name__ == "__main__":
    main()
