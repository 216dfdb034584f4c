"""What a repository such as Zenodo asks of a bundle that gets a DOI: who made it, under which licence, and how to check it.

    # authors.toml, given to `fedml bundle --authors`
    title = "Federated prediction of heart disease at four hospitals"
    license = "CC-BY-4.0"                       # SPDX identifier
    keywords = ["federated learning"]
    [[authors]]
    family = "Novak"
    given = "Ana"
    orcid = "0000-0002-1825-0097"
    affiliation = "University Hospital"

What is not stated there is not made up: the files say that it is not stated. Formats: Citation File Format 1.2.0
(https://citation-file-format.github.io), and the deposit metadata of https://developers.zenodo.org.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedml.errors import InputError
from fedml.experiments.runs.record import TRAININGS, Record

AUTHORS, CITATION, ZENODO, HOW_TO = "authors.toml", "CITATION.cff", "zenodo.json", "HOW_TO_CHECK.md"
NOT_STATED = "not stated"
_LARGEST = 1 << 16  # bytes
_Line = Annotated[str, Field(min_length=1, max_length=300)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isprintable():
                raise ValueError("is one line of printable text")
        return value


class Author(_Form):
    """One person."""

    family: _Line
    given: _Line
    orcid: Annotated[str, Field(pattern=r"^\d{4}-\d{4}-\d{4}-\d{3}[\dX]$")] | None = None
    affiliation: _Line | None = None

    @field_validator("orcid")
    @classmethod
    def _checked(cls, text: str | None) -> str | None:
        if text is not None and _check_digit(text) != text[-1]:
            raise ValueError("is no ORCID iD: its last digit does not fit the others (ISO 7064 11,2)")
        return text


class Publication(_Form):
    """What authors.toml states; everything may be missing."""

    title: _Line | None = None
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{1,60}$")] | None = None
    keywords: Annotated[list[_Line], Field(max_length=30)] = []
    authors: Annotated[list[Author], Field(max_length=200)] = []


def _check_digit(orcid: str) -> str:
    total = 0
    for digit in orcid.replace("-", "")[:-1]:
        total = (total + int(digit)) * 2
    found = (12 - total % 11) % 11
    return "X" if found == 10 else str(found)


def read_publication(data: bytes, name: str = AUTHORS) -> Publication:
    """The contents of authors.toml.

    Raises:
        InputError: it cannot be read; the message names the key.
    """
    try:
        if len(data) > _LARGEST:
            raise ValueError(f"is larger than {_LARGEST} bytes")
        return Publication.model_validate(tomllib.loads(data.decode()))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see docs/evidence.md for the keys.") from error
    except ValueError as error:
        raise InputError(f"{name}: cannot be read ({error}); write TOML in UTF-8, as docs/evidence.md shows.") from error


def publication_of(run: Path) -> Publication:
    """What the authors.toml of a run's folder states; nothing without one."""
    path = run / AUTHORS
    return read_publication(path.read_bytes()) if path.is_file() else Publication()


def title_of(record: Record, stated: Publication) -> str:
    """The stated title, else one from the run's record."""
    return stated.title or f"Evidence of the federated study {record.study.study.name}, run {record.run_id}"


def citation(record: Record, stated: Publication) -> str:
    """CITATION.cff; text is written as JSON strings, which are YAML."""
    lines = ["cff-version: 1.2.0", 'message: "Please cite this record of a run by these metadata."', "type: dataset"]
    lines += [f"title: {json.dumps(title_of(record, stated))}", f"version: {json.dumps(record.run_id)}"]
    lines += [f"date-released: {datetime.fromtimestamp(record.end.time, UTC):%Y-%m-%d}"]
    lines += [f"license: {stated.license}"] if stated.license else [f"# license: {NOT_STATED}"]
    lines += ["keywords:", *(f"  - {json.dumps(word)}" for word in stated.keywords)] if stated.keywords else []
    lines += ["authors:"]
    for author in stated.authors:
        lines += [f"  - family-names: {json.dumps(author.family)}", f"    given-names: {json.dumps(author.given)}"]
        lines += [f'    orcid: "https://orcid.org/{author.orcid}"'] if author.orcid else []
        lines += [f"    affiliation: {json.dumps(author.affiliation)}"] if author.affiliation else []
    lines += [] if stated.authors else [f'  - name: "Authors {NOT_STATED}"']
    return "\n".join(lines) + "\n"


def zenodo(record: Record, stated: Publication) -> str:
    """zenodo.json: ``metadata`` of a deposit, and the names of required fields that nobody stated."""
    study = record.study.study
    creators = [
        {"name": f"{a.family}, {a.given}", **a.model_dump(include={"orcid", "affiliation"}, exclude_none=True)} for a in stated.authors
    ]
    metadata: dict[str, Any] = {
        "title": title_of(record, stated), "upload_type": "dataset", "version": record.run_id,
        "publication_date": f"{datetime.fromtimestamp(record.end.time, UTC):%Y-%m-%d}",
        "description": f"Signed record of a federated study: {study.question or 'no question is stated'} Check it with HOW_TO_CHECK.md.",
    }  # fmt: skip
    metadata |= {"creators": creators} if creators else {}
    metadata |= {"license": stated.license.lower(), "access_right": "open"} if stated.license else {}
    metadata |= {"keywords": list(stated.keywords)} if stated.keywords else {}
    missing = [name for name in ("creators", "license") if name not in metadata]
    return json.dumps({"metadata": metadata, "not_stated": missing}, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def how_to_check(record: Record, signed: Sequence[str] | None = None) -> str:
    """HOW_TO_CHECK.md: one page for somebody who trusts nobody. ``signed``: sites that signed; None: those of the last evaluation."""
    version = record.start.code["version"] if record.start.code is not None else record.start.versions.get("fedml-cohorts", "VERSION")
    digest = "not stated" if record.start.code is None else record.start.code["sha256"]
    signed = [site for site, row in record.final.sites.items() if "witness" in row] if signed is None else signed
    model = record.start.job in TRAININGS
    command = "\n    fedml reproduce run.zip --sites FOLDER" if model else ""
    third = (
        "3. The third, for somebody who has the hospitals' data, trains the model again and compares it bit by bit."
        if model
        else f"3. Somebody who has the hospitals' data runs `fedml {record.start.job} study.toml --sites FOLDER` and compares the tables."
    )
    follow = "hospitals' counts" if model else "sums that the hospitals sent"
    sites = " ".join(f"--site-key {site}=SHA256:..." for site in signed)
    asked = (
        f"Ask each hospital for the fingerprint of its node key (`ssh-keygen -l -f node.key.pub`) and add `{sites}` to the second command."
        if signed
        else "No hospital signed this run, so no key of a hospital can be asked for."
    )
    return f"""# How to check this without us

Nothing here needs our servers, our accounts or our word. The second command takes seconds and no network.

    pip install fedml-cohorts=={version}
    fedml verify run.zip --fingerprint FINGERPRINT --markdown{command}

1. The first command installs the software; the wheel that the centre gives you does as well. The run was made by version {version},
   whose files have the SHA-256 {digest}.
2. The second checks the record: that the key with this fingerprint signed it, that nothing was changed, and that every figure
   follows from the {follow}. Ask the coordinating centre for the fingerprint by another channel than this file. `run.zip`
   is the bundle as you got it. {asked}
{third}

The last line of the second command says what no check can show: what rests on the signer's word alone. The file `report.html` is for
reading; `docs/evidence.md` of the software describes every check.
"""
