"""``fedml schema``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedml.errors import InputError


def schema(
    file: Annotated[str, typer.Argument(metavar="[study|site]", help="study, or site for a site.toml.", show_default=False)] = "study",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference of all keys (docs/keys.md) instead.")] = False,
) -> None:
    """Print the JSON schema of a study or a site.toml, for editors: completion, descriptions, mistakes while typing.

    Example: fedml schema study > study.schema.json
    """
    from fedml.experiments.keys import schema as keys

    if file not in keys.FILES:
        raise InputError(f'fedml schema: "{file}" is not a kind of file; write one of {", ".join(keys.FILES)}.')
    if markdown:
        from fedml.experiments.keys.page import page

        return print(page(), end="")
    print(json.dumps(keys.schema(file), indent=1))
