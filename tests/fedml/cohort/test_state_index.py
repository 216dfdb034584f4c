"""Headers are read once for each state of a file; whatever happens to a file is noticed; plain headers are those that pydicom reads."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files

from fedml.cache_entries import SETTLED
from fedml.cohort.dicom.files import is_image, open_dataset, reading
from fedml.cohort.dicom.folders import group_series
from fedml.cohort.dicom.header_index import Header, header_of, walked
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.state_index import remembered, remembering
from tests.dicom_files import write_series

PIXELS = np.zeros((3, 8, 8), np.uint16)


def by_pydicom(path: Path) -> Header | None:
    """The header as ``open_dataset`` reads it; None if that refuses the file."""
    try:
        with reading(path):
            dataset = open_dataset(path, pixels=False, tags=["SeriesInstanceUID", "SOPClassUID", "Modality", "Rows"])
            kind = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
            image = "Rows" in dataset or is_image(dataset)
            return Header(str(dataset.get("SeriesInstanceUID") or ""), kind, str(dataset.get("Modality") or ""), image, True, True)
    except ItemError:
        return None


def test_a_plain_header_is_what_pydicom_reads_in_every_of_its_own_files() -> None:
    files = [Path(path) for path in get_testdata_files() if Path(path).is_file()]
    quick = [(path, found) for path in files if (found := walked(path)) is not None]
    assert len(quick) > 40
    assert [path.name for path, found in quick if found != by_pydicom(path)] == []


def test_a_file_that_is_cut_anywhere_is_left_to_pydicom(tmp_path: Path) -> None:
    (whole,) = write_series(tmp_path, PIXELS[:1])
    data = whole.read_bytes()
    assert walked(whole) is not None
    end = data.index(b"\xe0\x7f\x10\x00")
    for length in range(0, end, 7):
        whole.write_bytes(data[:length])
        assert walked(whole) is None


def settle(folder: Path) -> None:
    """Waits until no file is too young to be remembered."""
    newest = max(path.stat().st_ctime for path in folder.rglob("*"))
    time.sleep(max(newest + SETTLED + 0.1 - time.time(), 0))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    os.replace(other, path)


def changed(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.SeriesInstanceUID = dataset.SeriesInstanceUID[:-1] + "7"  # of the same length
    dataset.save_as(path)


def touched_back(path: Path) -> None:
    before = path.stat()
    changed(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("what", "read", "series"),
    [(lambda path: None, 0, 1), (replaced, 1, 1), (changed, 1, 2), (touched_back, 1, 2), (os.unlink, 0, 1)],
)
def test_only_what_is_new_is_read_again(tmp_path: Path, what: Callable[[Path], None], read: int, series: int) -> None:
    files = write_series(tmp_path / "images" / "p1", PIXELS)
    settle(tmp_path)
    with remembering(tmp_path / "index.db") as first:
        once = group_series(tmp_path / "images" / "p1")
    assert first is not None
    assert (first.read, first.known, len(once)) == (3, 0, 1)
    what(files[1])
    with remembering(tmp_path / "index.db") as again:
        found = group_series(tmp_path / "images" / "p1")
    assert again is not None
    assert (again.read, len(found)) == (read, series)
    assert found == group_series(tmp_path / "images" / "p1")  # as it is without an index
    with sqlite3.connect(tmp_path / "index.db") as store:
        names = {name for (name,) in store.execute("SELECT name FROM files")}
    assert names <= {path.name for path in files if path.exists()}
    assert (tmp_path / "index.db").stat().st_mode & 0o077 == 0


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    write_series(tmp_path / "p1", PIXELS)
    for _ in range(2):
        with remembering(tmp_path / "index.db") as index:
            group_series(tmp_path / "p1")
        assert index is not None
        assert (index.read, index.known) == (3, 0)


@pytest.mark.parametrize("damage", [b"no database at all, but long enough to be read as a page" * 90, b""])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: bytes) -> None:
    write_series(tmp_path / "p1", PIXELS)
    settle(tmp_path)
    (tmp_path / "index.db").write_bytes(damage)
    for known in (0, 3):
        with remembering(tmp_path / "index.db") as index:
            assert len(group_series(tmp_path / "p1")) == 1
        assert index is not None
        assert index.known == known


def test_without_a_place_to_write_everything_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "p1", PIXELS)
    (tmp_path / "file").write_text("not a folder")
    with remembering(tmp_path / "file" / "index.db"):
        assert len(group_series(tmp_path / "p1")) == 1
    assert header_of(tmp_path / "p1" / "0.dcm").modality == "CT"
    with pytest.raises(FileNotFoundError):
        remembered(tmp_path / "absent", (tmp_path / "absent").stat)
