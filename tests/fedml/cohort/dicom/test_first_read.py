"""Many headers are read by several processes at the first start: the index then knows what reading one after the other would have said."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files

from fedml.cache_entries import SETTLED
from fedml.cohort.dicom import first_read
from fedml.cohort.dicom.first_read import read_ahead
from fedml.cohort.dicom.headers import candidates
from fedml.cohort.state_index import entries, remembering
from tests.dicom_files import write_series


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pydicom's own files in three folders, series of five persons, a file cut short, two plates, a text."""
    folder = tmp_path_factory.mktemp("images")
    for at, name in enumerate(sorted(str(path) for path in get_testdata_files())):
        place = folder / f"own{at % 3}" / str(at)
        if Path(name).is_file():
            place.mkdir(parents=True)
            shutil.copy(name, place)
    for at in range(5):
        write_series(folder / f"p{at}", np.zeros((3, 8, 8), np.uint16))
    cut = folder / "p4" / "sub" / "0.dcm"
    cut.parent.mkdir()
    cut.write_bytes(next((folder / "p3").glob("*.dcm")).read_bytes()[:300])
    (folder / "p4" / "notes.txt").write_text("none")
    for name in ("plate1.dcm", "plate2.dcm"):
        shutil.copy(next((folder / "p0").glob("*.dcm")), folder / name)
    newest = max(path.stat().st_ctime for path in folder.rglob("*"))
    time.sleep(max(newest + SETTLED + 0.1 - time.time(), 0))
    return folder


PERSONS = ["own0", "own1", "own2", "p0", "p1", "p2", "p3", "p4", "plate1", "plate2", "nobody"]


def test_the_index_knows_what_reading_one_after_the_other_says(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_read, "_FEWEST", 10)
    monkeypatch.setattr(first_read, "workers", lambda: 2)
    places = [images / (f"{person}.dcm" if person.startswith("plate") else person) for person in PERSONS[:-1]]
    plain = [candidates(place) for place in places]
    with caplog.at_level(logging.INFO, "fedml.site"), remembering(tmp_path / "index.db") as index:
        assert index is not None
        count = read_ahead(images, PERSONS)
        assert count > 100
        assert entries(tmp_path / "index.db") == count == index.read
        assert [candidates(place) for place in places] == plain
        broken = sum(len(unread) for _, unread in plain)
        assert (index.read, index.known) == (count, count), "a file that cannot be read is tried again, the others are not"
        assert broken > 0
        assert read_ahead(images, PERSONS) == 0, "nobody is new"
    assert "10 persons for the first time, with 2 processes" in caplog.text


def test_what_is_changed_after_it_is_read_by_its_person(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_read, "_FEWEST", 1)
    monkeypatch.setattr(first_read, "workers", lambda: 2)
    folder = tmp_path / "images"
    shutil.copytree(images / "p1", folder / "p1")
    time.sleep(SETTLED + 0.2)
    one = sorted((folder / "p1").glob("*.dcm"))[0]
    with remembering(tmp_path / "index.db"):
        assert read_ahead(folder, ["p1"]) == 3
        before = one.stat()
        dataset = pydicom.dcmread(one)
        dataset.SeriesNumber = "77"
        dataset.save_as(one)
        os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert candidates(folder / "p1")[0][0].about.number == "77"


def test_a_process_that_ends_early_costs_time_only(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_read, "_FEWEST", 1)
    monkeypatch.setattr(first_read, "workers", lambda: 2)

    def ends(places: object) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", "print('[\"half a l', end='')"], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(first_read, "_process", ends)
    with remembering(tmp_path / "index.db"):
        assert read_ahead(images, ["p0", "p1"]) == 0
        assert candidates(images / "p0")[0][0].about.slices == 3


def test_nothing_is_said_on_standard_error(images: Path) -> None:
    words = [sys.executable, "-P", "-I", "-m", "fedml.cohort.dicom.first_read"]
    done = subprocess.run(words, input=json.dumps([str(images / "own0")]), capture_output=True, text=True, check=True)
    assert done.stderr == "" or done.stderr.startswith("note: ")
    assert len(done.stdout.splitlines()) > 20


@pytest.mark.parametrize(
    ("owner", "group", "element", "value", "expected"),
    [("SIEMENS MR HEADER", 0x0019, 0x100C, "800", 800.0), ("GEMS_PARM_01", 0x0043, 0x1039, ["1000001000", "8", "0", "0"], 1000.0)],
)
def test_a_makers_own_b_value_describes_the_series(
    tmp_path: Path, owner: str, group: int, element: int, value: object, expected: float
) -> None:
    for path in write_series(tmp_path / "p0", np.zeros((3, 8, 8), np.uint16)):
        dataset = pydicom.dcmread(path)
        dataset.private_block(group, owner, create=True).add_new(element & 0xFF, "IS", value)
        dataset.save_as(path)
    assert candidates(tmp_path / "p0")[0][0].about.b_values == (expected,)
