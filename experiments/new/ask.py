"""``fedml new`` without its options, on a terminal: questions with the guesses as defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import typer

from fedml.errors import InputError, nearest
from fedml.experiments.new import guess
from fedml.experiments.new.make import NO_COLUMN, Given

if TYPE_CHECKING:
    import pandas as pd

_GENOTYPES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf", ".bed")


def ask(given: Given, out: Path | None) -> tuple[Given, Path]:
    """``given`` and the folder to create, completed by the answers."""
    if given.table is None and given.images is None and given.variants is None:
        given = _with_file(given, "Table of persons (CSV, TSV or Parquet), folder of images, or VCF")
        while (more := _path("Another file of the same persons (Enter: none)", optional=True)) is not None:
            given = _put(given, more)
    if given.variants is not None and given.table is None:
        given = replace(given, table=_path("Table of the persons whose samples these are"))
    if given.table is not None:
        given = _columns(given, given.table)
    if not given.public:
        given = replace(
            given, public=typer.confirm("Are the data published or synthetic, so that exact counts may leave a site?", default=False)
        )
    file = next(path for path in (given.table, given.images, given.variants) if path is not None)
    return given, out or Path(typer.prompt("Folder to create", default=f"{file.name.partition('.')[0]}-study"))


def _with_file(given: Given, question: str) -> Given:
    path = _path(question)
    assert path is not None  # noqa: S101 - not optional
    return _put(given, path)


def _put(given: Given, path: Path) -> Given:
    """``given`` with the file as what it is."""
    if path.is_dir():
        return replace(given, images=path)
    return replace(given, variants=path) if path.name.lower().endswith(_GENOTYPES) else replace(given, table=path)


def _path(question: str, *, optional: bool = False) -> Path | None:
    while True:
        text = str(typer.prompt(question, default="" if optional else None, show_default=False)).strip()
        if not text and optional:
            return None
        path = Path(text).expanduser()
        if path.exists():
            return path
        print(f"{path}: no such file or folder")


def _columns(given: Given, path: Path) -> Given:
    """The columns of ids, of what is predicted and of sites."""
    said: list[str] = []
    try:
        table, own = guess.read_persons(path, given.id, said)
    except InputError as error:
        if given.id:
            raise
        print(error)
        table, own = _indexed(path)
    names = [str(name) for name in table.columns]
    if not given.id and said:  # a guess
        answer = _column("Column of ids", [own, *names], own)
        table, own = (table, own) if answer == own else guess.read_persons(path, answer, [])
        names = [str(name) for name in table.columns]
    target = given.target or _target(table, names, path)
    site = given.site_column
    if not site and given.site_part is None:
        usual = guess.site_column(table, "", [])
        site = _column(f'Column of sites ("{NO_COLUMN}": none)', [NO_COLUMN, *names], usual if usual != target else NO_COLUMN)
    simulate = given.simulate
    if site == NO_COLUMN:
        simulate = typer.prompt("Number of simulated sites", default=simulate, type=click.IntRange(1, 100))
    return replace(given, id=own, target=target, site_column=site, simulate=simulate)


def _indexed(path: Path) -> tuple[pd.DataFrame, str]:
    """The table by a column of ids that the person names."""
    while True:
        name = str(typer.prompt("Column of ids"))
        try:
            return guess.read_persons(path, name, [])
        except InputError as error:
            print(error)


def _target(table: pd.DataFrame, names: Sequence[str], path: Path) -> str:
    def usable(name: str) -> None:
        guess.classes_of(table[name], path, [])

    try:
        usual = guess.target_column(table, "", path, [])
    except InputError:
        usual = ""
    return _column("Column to predict", names, usual, usable)


def _column(question: str, names: Sequence[str], usual: str, check: Callable[[str], None] = lambda name: None) -> str:
    """One of ``names``, by default ``usual``; asked until ``check`` raises no ``InputError``."""
    while True:
        name = str(typer.prompt(question, default=usual or (NO_COLUMN if NO_COLUMN in names else None))).strip()
        if name not in names:
            some = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            print(f'no column "{name}"{nearest(name, names)}; the columns are {some}')
            continue
        try:
            check(name)
        except InputError as error:
            print(error)
            continue
        return name
