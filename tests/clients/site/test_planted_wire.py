"""What is planted in images, their headers and names leaves by no way: a real federation, its wire recorded, its logs and screens read.

Sites that use even what names a person (``deidentification = "warn"``), one of each kind of file, each with a study of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedml.experiments.federation.centre import read_centre
from tests.clients.site.test_nothing_raw import IDS, NAME, RNG, dicom_site, nifti_site
from tests.command import command
from tests.conftest import make_plan, to_toml, write_csv, write_picture
from tests.planted import PLANTED, WORD
from tests.wire import SENT, captured, find, needles, recording, searchable

NUMBERS = ("19700302", "47110815", "2013030808", "9434765919", "anna@wexfordquill")
KINDS = {"dicom": "dicom ", "nifti": "nifti ", "png": "png ", "jpeg": "jpeg "}
MORE = [f"q{k:02d}" for k in range(40)]
OTHERS = ("file ", "folder ", "sidecar ", "text ")  # of pictures


def pictures(folder: Path) -> Path:
    """Plain pictures; the first person's name is that of a file."""
    rng = np.random.default_rng(3)
    for person in IDS:
        name = f"{NAME}_{person}.png" if person == IDS[0] else "a.png"
        write_picture(folder / "images" / person / name, rng.integers(0, 255, (8, 8, 3)).astype(np.uint8))
    return folder


_VOLUME, _PICTURE = {"size": [8, 8, 2], "crop": True}, {"size": [8, 8], "channels": 3}
IMAGE = {"dicom": _VOLUME, "nifti": _VOLUME, "png": _PICTURE, "jpeg": _PICTURE}
MAKE: dict[str, Callable[[Path], Path]] = {"dicom": dicom_site, "nifti": nifti_site, "png": pictures, "jpeg": pictures}


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A federation that is up behind a wire, with a site and an approved study for each kind of file."""
    home = tmp_path / "sites" / ".federation"
    with recording(tmp_path / "wire", lambda: (read_centre(home).port, home / "ca.pem")) as port:
        for kind, begins in KINDS.items():
            folder = tmp_path / "sites" / kind
            MAKE[kind](folder)
            for person in MORE:
                if kind == "nifti":
                    write_picture(folder / "images" / f"{person}.nii", RNG.random((8, 8, 2)).astype(np.float32))
                elif kind != "dicom":
                    write_picture(folder / "images" / f"{person}.png", RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8))
            labels = [k for k in PLANTED if k.startswith((begins, *(OTHERS if kind == "png" else ())))]
            for number, label in enumerate(labels):
                PLANTED[label](folder / "images" / f"x{number:03d}")
            people = [*IDS, *(MORE if kind != "dicom" else ()), *(f"x{number:03d}" for number in range(len(labels)))]
            write_csv(folder / "persons.csv", people, {"y": [k % 2 for k in range(len(people))]})
            (folder / "wire.pem").write_bytes((tmp_path / "wire" / "ca.pem").read_bytes())
            (folder / "site.toml").write_text(
                f'[site]\nname = "{kind}"\n[data]\npersons = "persons.csv"\npublic = true\n'
                f'image = {{ path = "images", format = "{"png" if kind == "jpeg" else kind}" }}\n'
                '[policy]\ndeidentification = "warn"\nmax_quarantined = 0.9\n'
                f'[connection]\nsuperlink = "127.0.0.1:{port}"\nroot_certificates = "wire.pem"\nkey = "node.key"\n'
            )
            plan = make_plan(("image",), (kind,), study__name=f"planted-{kind}", cohort__image=IMAGE[kind])
            (tmp_path / f"{kind}.toml").write_text(to_toml(plan))
        yield tmp_path
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)


@pytest.mark.long
@pytest.mark.federation
def test_no_identifier_of_an_image_is_sent_logged_or_shown(work: Path) -> None:
    screens = []

    def said(name: str, *words: object) -> str:
        done = command(name, *words, cwd=work)
        assert done.returncode == 0, done.stdout + done.stderr
        screens.append((done.stdout + done.stderr).encode())
        return done.stdout + done.stderr

    used = {}
    for kind in KINDS:
        found = said("fedml-site", "check", f"{kind}.toml", "--site", work / "sites" / kind)
        used[kind] = found
    said("fedml", "federation", "up", "--sites", "sites")
    for kind in KINDS:
        said("fedml-site", "approve", f"{kind}.toml", "--site", work / "sites" / kind, "--yes", "--by", "Dr. Test")
        said("fedml", "run", f"{kind}.toml", "--engine", "deployment", "--superlink", "sites", "--runs", "runs", "--debug")
    said("fedml", "federation", "down", "--sites", "sites")

    wanted = needles([WORD, WORD.lower(), WORD.upper(), *NUMBERS])
    wire = searchable(work / "wire")
    assert find(wire, wanted) == set()
    assert find(screens, wanted) == set()
    kept = {path: path.read_bytes() for path in work.rglob("*") if path.is_file() and _is_said(path.relative_to(work))}
    assert [str(path) for path, data in kept.items() if find([data, *_plain(data)], wanted)] == []

    sent = captured(work / "wire", SENT)
    assert sum(map(len, sent.values())) > 100_000  # the search has teeth: what must be there is found
    studies = {f"planted-{kind}" for kind in KINDS}
    assert find(wire, needles(studies)) == studies
    assert {path.name for path in kept} >= {"site.log", "supernode.log", "events.jsonl"}, sorted({path.name for path in kept})
    print({kind: re.findall(r"(\d+) persons", text) for kind, text in used.items()}, sum(map(len, wire)))


def _is_said(path: Path) -> bool:
    """Whether a file is written by us for others' eyes: logs, runs, MLflow's store; not a site's data and the index of its headers."""
    first = path.parts[0]
    if first == "wire":
        return False
    return first != "sites" or (path.parts[1] == ".federation" or (".fedml" in path.parts and not path.name.startswith("headers.db")))


def _plain(data: bytes) -> Iterator[bytes]:
    import gzip

    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
