"""What a bundle says for a DOI: as stated, never made up, read by others; and whose repository is whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fedml.errors import InputError
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.publication import CITATION, HOW_TO, ZENODO, read_publication
from fedml.experiments.evidence.verify import summary, verify
from tests.evidence import KEY, local

AUTHORS = b"""title = "Disease at three hospitals"
license = "CC-BY-4.0"
keywords = ["federated learning", "a: b"]
[[authors]]
family = "Nov\xc3\xa1k"
given = "Ana"
orcid = "0000-0002-1825-0097"
affiliation = "University Hospital"
[[authors]]
family = "O'Neil"
given = "#1 \\"B\\""
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local(tmp_path_factory.mktemp("published"))[0]


def bundled(run: Path, out: Path, authors: bytes | None) -> dict[str, bytes]:
    write_bundle(run, out, KEY, authors=authors)
    found = verify(out)
    assert found.ok, summary(found)
    assert ("the authors, title and licence" in found.word) == (authors is not None)
    return unpack(out)


def test_what_is_stated_is_in_every_file(run: Path, tmp_path: Path) -> None:
    files = bundled(run, tmp_path / "run.zip", AUTHORS)
    cited = yaml.safe_load(files[CITATION])
    assert (cited["title"], cited["license"], cited["cff-version"]) == ("Disease at three hospitals", "CC-BY-4.0", "1.2.0")
    assert [a["family-names"] for a in cited["authors"]] == ["Novák", "O'Neil"]
    assert cited["authors"][1]["given-names"] == '#1 "B"'
    assert cited["keywords"] == ["federated learning", "a: b"]
    deposit = json.loads(files[ZENODO])
    assert deposit["not_stated"] == []
    assert deposit["metadata"]["creators"][0] == {
        "name": "Novák, Ana",
        "orcid": "0000-0002-1825-0097",
        "affiliation": "University Hospital",
    }
    root = next(entity for entity in graph(files) if entity["@id"] == "./")
    assert root["license"] == {"@id": "https://spdx.org/licenses/CC-BY-4.0"}
    assert {"@id": "https://orcid.org/0000-0002-1825-0097"} in root["author"]


def test_what_is_not_stated_is_not_made_up(run: Path, tmp_path: Path) -> None:
    files = bundled(run, tmp_path / "run.zip", None)
    cited = yaml.safe_load(files[CITATION])
    assert cited["authors"] == [{"name": "Authors not stated"}]
    assert "license" not in cited
    assert b"# license: not stated" in files[CITATION]
    deposit = json.loads(files[ZENODO])
    assert deposit["not_stated"] == ["creators", "license"]
    assert not {"creators", "license"} & deposit["metadata"].keys()


def test_how_to_check_has_three_commands(run: Path, tmp_path: Path) -> None:
    page = bundled(run, tmp_path / "run.zip", None)[HOW_TO].decode()
    assert sum(line.startswith("    ") for line in page.splitlines()) == 3
    assert "No hospital signed this run" in page


def test_the_repository_of_the_study_is_not_that_of_the_software(run: Path, tmp_path: Path) -> None:
    """Two commits: of the folder in which the study's file lay, and of the software; the software has its own."""
    start = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    by_id = {entity["@id"]: entity for entity in graph(bundled(run, tmp_path / "run.zip", None))}
    software = by_id["#fedml-cohorts"]
    assert software["identifier"] == f"sha256:{start['code']['sha256']}"
    commit = start["git_commit"].partition("+")[0]
    assert ("#study-repository" in by_id) == (commit != "none")
    if commit != "none":
        assert by_id["#study-repository"]["version"] == commit
        assert by_id["study.json"]["isPartOf"] == {"@id": "#study-repository"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('orcid = "0000-0002-1825-0097"', "orcid"),
        ('[[authors]]\nfamily = "A"\ngiven = "B"\norcid = "0000-0002-1825-0098"', "last digit"),
        ('license = "see the website"', "license"),
        ('title = "a\\nb"', "printable"),
        ("[[authors]]\nfamily = 3\ngiven = 'B'", "family"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_file_of_authors_that_cannot_be_used_is_refused_by_its_key(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_publication(text.encode())


def graph(files: dict[str, bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(files["ro-crate-metadata.json"])["@graph"]
    return found
