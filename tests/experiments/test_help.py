"""The help of every command: each positional argument with what it is, and an example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from fedml.cli import with_help
from fedml.clients.cli import app as site_app
from fedml.experiments.cli import app as researcher_app
from tests.command import quick


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    inner = getattr(command, "commands", {})
    for name, part in inner.items():
        yield from commands(part, f"{path} {name}")
    if not inner:
        yield path, command


@pytest.mark.parametrize(("name", "app"), [("fedml", researcher_app), ("fedml-site", site_app)])
def test_every_command_explains_its_positional_arguments(name: str, app: typer.Typer) -> None:
    found = dict(commands(with_help(typer.main.get_command(app)), name))
    assert len(found) > 10
    for path, command in found.items():
        text = command.get_help(click.Context(command, info_name=path))
        assert "Example:" in text, path
        assert "\\[" not in text, path
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                line = next(line for line in text.partition("Arguments:")[2].splitlines() if line.strip())
                assert len(line.replace("[required]", "").split()) > 3, f"{path} {parameter.name}: {line}"


def test_the_help_of_a_command_with_grouped_options_as_a_user_sees_it(tmp_path: Path) -> None:
    done = quick("fedml", "run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "[STUDY]  The study file (TOML)." in done.stdout
    assert "Example: fedml run" in done.stdout
