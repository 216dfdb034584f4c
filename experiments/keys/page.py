"""``docs/keys.md``: the reference of all keys as Markdown, from the entries. ``fedml schema --markdown`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from fedml.experiments.keys.entries import Entry, entries
from fedml.experiments.keys.schema import FILES, File

_TOP = """\
# Keys

All keys of a study and of a site's `site.toml`. This page is generated from the code (`fedml schema --markdown`); a test compares the two.

- In the terminal: `fedml check --explain training.lr` prints the entry of one key; `lr` alone is enough where the name is unique.
- In an editor: [below](#in-an-editor).

A section may also be written as an inline table in the section above it: `image = { size = [64, 64] }` in `[cohort]` is `[cohort.image]`.
A key may be left out unless it is required."""

_TITLES = {"study": "Study", "site": "Site: `site.toml`"}

_BOTTOM = """\
## In an editor

Editors that read TOML through [taplo](https://taplo.tamasfe.dev) (VS Code: "Even Better TOML") complete keys, show these descriptions
and mark mistakes while you type. Write the schema once,

    fedml schema study > study.schema.json
    fedml schema site > site.schema.json

and name it in the first line of the file, relative to the file:

```toml
#:schema ./study.schema.json
```

The schema knows each key by itself; rules between keys, such as `momentum needs optimizer = "sgd"`, are checked by `fedml check`."""


def page() -> str:
    """The whole page."""
    return "\n\n".join([_TOP, *(part for file in FILES for part in _file(file)), _BOTTOM]) + "\n"


def _file(file: File) -> Iterator[str]:
    yield f"## {_TITLES[file]}"
    present = [entry for entry in entries() if entry.file == file]
    for section in present:
        if section.type == "section":
            yield f"### `[{section.path}]`\n\n{_sentence(section.text)}"
            # of the section itself, and of its keys that may be tables
            within = {section.path, *(e.path for e in present if e.section == section.path and e.type != "section")}
            rows = [_row(entry, section.path) for entry in present if entry.section in within and entry.type != "section"]
            if rows:
                yield "\n".join(["| Key | Type | Default | Allowed | Meaning |", "|---|---|---|---|---|", *rows])


def _row(entry: Entry, section: str) -> str:
    default = f"`{entry.default}`" if entry.default and entry.default != "required" and "(" not in entry.default else entry.default
    cells = [f"`{entry.path.removeprefix(f'{section}.')}`", entry.type, default, entry.allowed, entry.text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
