"""A matrix that is too large for memory: its rows on disk are those that pandas reads, in single precision, and whatever spoils the file or
the cache is told or undone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedml.cohort import omics, sheet
from fedml.cohort.inputs import Table
from fedml.cohort.omics import read_features
from fedml.cohort.wide import cache, matrix
from fedml.cohort.wide import parquet as columns_of
from fedml.cohort.wide.cache import open_rows
from fedml.cohort.wide.matrix import Matrix, matrix_of, pool_numbers
from fedml.errors import InputError
from fedml.flower.parent import descendants
from fedml.modalities.modality import block_sums, table_sums
from fedml.modalities.registry import MODALITIES
from tests.measured import run_process

FEATURES = [f"g{k}" for k in range(40)]
PERSONS = [f"p{k:03d}" for k in range(60)]
OMICS = MODALITIES["omics"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is large, and read in this process in small parts: several batches of rows and columns."""
    monkeypatch.setattr(omics, "LARGEST", 0)
    monkeypatch.setattr(cache, "_convert", cache.convert)
    for module, name, value in (
        (columns_of, "_BLOCK", 150),
        (matrix, "_BLOCK", 130),
        (matrix, "_TOGETHER", 400),
        (sheet, "_BATCH_BYTES", 4096),
    ):
        monkeypatch.setattr(module, name, value)


def table_of(seed: int = 0) -> pd.DataFrame:
    """Persons in another order, with strangers; numbers of different sizes, some missing, a person without any."""
    random = np.random.default_rng(seed)
    ids = [*PERSONS[5:], *(f"stranger{k}" for k in range(7))]
    values = random.normal(size=(len(ids), len(FEATURES))) * 10.0 ** random.integers(-3, 6, len(FEATURES))
    values[random.random(values.shape) < 0.1] = np.nan
    values[3] = np.nan
    table = pd.DataFrame(values, columns=FEATURES)
    table.insert(7, "id", ids)
    return table.iloc[random.permutation(len(table))].reset_index(drop=True)


def write(path: Path, table: pd.DataFrame) -> Path:
    """The table by its path's ending; a row group of a Parquet file has 20 rows."""
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=20)
    else:
        sign = {"comma": ",", "point": "."}.get(path.stem, ".")
        table.to_csv(
            path, sep="\t" if path.suffix == ".tsv" else ";" if path.stem in ("comma", "point") else ",", index=False, decimal=sign
        )
    return path


def read(path: Path, features: list[str] = FEATURES, persons: list[str] = PERSONS, id_column: str = "id") -> Matrix:
    """The matrix from the cache beside the file."""
    found = read_features(path, features, persons, id_column, path.parent / "cache")
    assert isinstance(found, Matrix)
    return found


def everyone(value: Matrix) -> Any:
    return value.floats(np.arange(value.shape[0]))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "point.csv", "comma.csv", "a.csv.gz", "a.parquet"])
def test_the_rows_are_those_that_pandas_reads(tmp_path: Path, name: str) -> None:
    table = table_of()
    features = FEATURES[::-1][:33]
    found = read(write(tmp_path / name, table), features)
    expected = table.set_index("id").reindex(PERSONS)[features].to_numpy()
    assert everyone(found).tobytes() == np.where(np.isnan(expected), np.nan, expected).astype(np.float32).tobytes()
    assert found.present.tolist() == (~np.isnan(expected)).any(1).tolist()
    assert 0 < found.present.sum() < len(PERSONS) - 5, "five have no row, one has no number"
    rows = np.array([40, 3, 3, 59, 0])
    np.testing.assert_array_equal(found.tensors(rows, None)["omics"].numpy(), expected[rows].astype(np.float32))
    np.testing.assert_array_equal(found.floats(rows, 10, 14), expected[rows, 10:14].astype(np.float32))
    chosen = found.select(np.arange(10, 50))
    np.testing.assert_array_equal(everyone(chosen), expected[10:50].astype(np.float32))
    np.testing.assert_array_equal(found.known(), (~np.isnan(expected)).sum(1))
    assert OMICS.summary(found, study(features)) == [  # type: ignore[operator]
        f"omics: 33 features of {int(found.present.sum())} persons, {np.isnan(expected[found.present]).mean():.1%} missing"
    ]


def study(features: list[str]) -> Any:
    from tests.conftest import make_study

    return make_study(("omics",), cohort__omics={"columns": features, "range": [-4, 4]})


def test_columns_of_every_kind_in_parquet(tmp_path: Path) -> None:
    kinds = {
        "id": pa.array([7, 8, 9]), "single": pa.array([1.5, None, 3], pa.float32()), "whole": pa.array([1, None, 3], pa.int32()),
        "text": pa.array([" 1.25", "NA", "3"]), "category": pa.array(["1", "2", "1"]).dictionary_encode(),
        "single.more": pa.array([9.0, 9, 9]), "nothing": pa.array([None, None, None], pa.float64()),
    }  # fmt: skip
    parquet.write_table(pa.table(kinds), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", ["text", "single", "whole", "category", "nothing", "single.more"], ["9", "7"])
    np.testing.assert_array_equal(everyone(found), np.array([[3, 3, 3, 1, np.nan, 9], [1.25, 1.5, 1, 1, np.nan, 9]], np.float32))


def test_sums_are_those_of_numpy(tmp_path: Path) -> None:
    """Of the same single-precision numbers bit for bit, and of the file's own within what their rounding gives."""
    table = table_of()
    found = read(write(tmp_path / "a.parquet", table))
    exact = table.set_index("id").reindex(PERSONS)[FEATURES].to_numpy()
    rows = np.flatnonzero(found.present)[::2]
    values = exact.astype(np.float32).astype(np.float64)[rows]
    sums = OMICS.sums(found, rows)  # type: ignore[operator]
    assert sums.tobytes() == table_sums(values).tobytes()
    assert sums[0].tolist() == (~np.isnan(values)).sum(0).tolist()
    np.testing.assert_allclose(sums[1] / sums[0], np.nanmean(values, 0), rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(sums[2] / sums[0] - (sums[1] / sums[0]) ** 2), np.nanstd(values, 0), rtol=1e-9)
    size = np.nanmax(np.abs(exact[rows]), 0)
    assert (np.abs(sums[1] / sums[0] - np.nanmean(exact[rows], 0)) <= 2.0**-24 * size).all()
    clipped = OMICS.bounded(found, rows, lambda block: np.clip(block, -1, 1))  # type: ignore[operator]
    assert clipped.tobytes() == table_sums(np.clip(values, -1, 1)).tobytes()
    assert block_sums(iter([]), 3).tolist() == [[0, 0, 0]] * 3


def test_the_digest_is_of_each_persons_numbers(tmp_path: Path) -> None:
    table = table_of()
    one = read(write(tmp_path / "a.parquet", table)).content()
    assert read(write(tmp_path / "a.csv", table.iloc[::-1])).content() == one, "another kind of file, in another order"
    at = int(np.flatnonzero(table["id"] == "p020")[0])
    table.loc[at, "g3"] = table["g3"].fillna(1.0)[at] * (1 + 1e-6)
    changed = read(write(tmp_path / "b.csv", table))
    assert changed.content() != one
    assert read(tmp_path / "a.csv", persons=[*PERSONS[1:], PERSONS[0]]).content() != one


def test_sites_are_pooled_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = read(write(tmp_path / "a.csv", table_of(1))), read(write(tmp_path / "b.parquet", table_of(2)))
    random = np.random.default_rng(5)
    small = Table("omics", random.normal(size=(8, len(FEATURES))), np.arange(8) != 2)
    expected = np.concatenate([everyone(first), small.values.astype(np.float32), np.full((3, len(FEATURES)), np.nan), everyone(second)])
    with monkeypatch.context() as patched:
        patched.setattr("fedml.cohort.wide.stored.Stored.read", None)
        pooled = pool_numbers([(first, 60), (small, 8), (None, 3), (second, 60)])
    assert isinstance(pooled, Matrix)
    np.testing.assert_array_equal(everyone(pooled), expected)
    assert pooled.present.tolist() == [*first.present, *small.present, *[False] * 3, *second.present]
    np.testing.assert_array_equal(pooled.known(), (~np.isnan(expected)).sum(1))
    order = random.permutation(131)
    np.testing.assert_array_equal(pooled.floats(order, 4, 9), expected[order, 4:9])
    assert pooled.content() != pooled.select(np.arange(130)).content()
    assert isinstance(pool_numbers([(small, 8), (None, 1)]), Table)


# --- files that cannot be used

CELLS = [("high", "high"), ("inf", "inf"), ("1e300", "1e.300"), ("1,5", "1,5"), ("True", "True")]


@pytest.mark.parametrize(("cell", "shown"), CELLS)
@pytest.mark.parametrize("row", [2, 61])
def test_a_wrong_cell_is_told_with_its_row(tmp_path: Path, cell: str, shown: str, row: int) -> None:
    table = table_of().astype(object)
    table.loc[row - 2, "g11"] = cell
    write(tmp_path / "a.csv", table)
    with pytest.raises(
        InputError, match=rf'a.csv: column "g11" has no finite number for the person in row {row}, such as "?{shown}'
    ) as refused:
        read(tmp_path / "a.csv")
    assert "correct the cell or leave it empty" in str(refused.value)
    assert sorted(os.listdir(tmp_path / "cache")) in ([], ["digests.json"]), "nothing half made is left"


def test_wrong_numbers_in_parquet_are_told_with_their_column(tmp_path: Path) -> None:
    for cell in ("high", np.inf, 1e300, True):
        table = table_of()
        table["g11"] = table["g11"].astype(object)
        table["g11"] = [cell] * len(table) if cell is True else [cell if at == 45 else v for at, v in enumerate(table["g11"])]
        table = table.astype({"g11": str}) if cell == "high" else table.infer_objects()
        with pytest.raises(InputError, match=r'a.parquet: column "g11" has no finite number for \d+ person'):
            read(write(tmp_path / "a.parquet", table))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,g1,g2\np,1,2\nq,1\n", "row 3 has 2 cells, the header has 3; row 1 is the header"),
        ("id,g1,g2\np,1,2\n,1,2\n", "row 3 has no id"),
        ("id,g1,g2\np,1,2\np,3,4\n", 'person "p" has more than one row; keep one row a person'),
        ("id,g1,G2\np,1,2\n", 'has no column "g2".*"G2".*; .cohort.omics. columns needs it'),
        ("id,g1,g2,g2\np,1,2,3\n", 'has the column "g2" 2 times; keep one'),
        ("name,g1,g2\np,1,2\n", 'has no column "id"'),
        ("id,g1,g2\nx1,1,2\n", "names none of the 2 persons of the persons table"),
        ("id,g1,g2\nP,1,2\n", "persons are not in it, 1 of them by their spelling"),
        ("", "it is empty"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=expected) as refused:
        read(tmp_path / "a.csv", ["g1", "g2"], ["p", "q"])
    assert str(refused.value).startswith(str(tmp_path / "a.csv"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as a table"):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"b.csv: no such file; correct the path in site.toml"):
        read(tmp_path / "b.csv")
    for twice, expected in (("p006", "keep one row a person"), ("", "has no id")):
        table = table_of()
        table.loc[4, "id"] = twice
        with pytest.raises(InputError, match=expected):
            read(write(tmp_path / "c.parquet", table))


# --- the cache


def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are converted from now on."""
    seen = list[str]()

    def convert(job: Any) -> None:
        seen.append(Path(job.path).name)
        cache.convert(job)

    monkeypatch.setattr(cache, "_convert", convert)
    return seen


def test_an_entry_is_made_once_for_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, path = made(monkeypatch), write(tmp_path / "a.csv", table_of())
    first = everyone(read(path))
    assert everyone(read(path)).tobytes() == first.tobytes()
    assert seen == ["a.csv"]
    read(path, FEATURES[:5])
    read(path, FEATURES, PERSONS[::-1])
    assert seen == ["a.csv"] * 3
    table = table_of()
    table["g1"] = table["g1"] + 1
    write(path, table)
    assert not np.array_equal(everyone(read(path)), first, equal_nan=True)
    assert seen == ["a.csv"] * 4
    folder = tmp_path / "cache"
    assert folder.stat().st_mode & 0o777 == 0o700
    entries = [place for place in folder.iterdir() if place.is_dir()]
    assert len(entries) == 2, "the older ones of this file are removed"
    for file in (file for place in entries for file in place.glob("*.npy")):
        assert np.load(file, allow_pickle=False).dtype != object


@pytest.mark.parametrize("name", ["values.npy", "digests.npy", "known.npy", "rows.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["byte", "short", "gone"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str) -> None:
    seen, path = made(monkeypatch), write(tmp_path / "a.parquet", table_of())
    first = everyone(read(path))
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 0x5A
        file.write_bytes(data if damage == "byte" else data[:-3])
    assert everyone(read(path)).tobytes() == first.tobytes()
    assert seen == ["a.parquet"] * 2


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", table_of())

    def convert(job: Any) -> None:
        cache.convert(job)
        path.write_text(path.read_text() + "\n")

    monkeypatch.setattr(cache, "_convert", convert)
    with pytest.raises(InputError, match="changed while it was read; start again when the file is complete"):
        read(path)
    assert not list((tmp_path / "cache").glob("*-*"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", table_of())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cache: cannot be written \(.*\); free disk space or set another cache folder"):
        read(path)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr("fedml.cohort.wide.convert.write_header", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        read(path)


def full(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def test_a_file_that_is_cut_off_in_use_is_told(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", table_of()))
    (file,) = (tmp_path / "cache").glob("*/values.npy")
    os.truncate(file, 4000)
    with pytest.raises(InputError, match="is shorter than it was"):
        everyone(found)


# --- the process that converts


def test_it_is_converted_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path, table = tmp_path / "a.parquet", table_of()
    expected = table.set_index("id").reindex(PERSONS)[FEATURES].to_numpy().astype(np.float32)
    monkeypatch.setattr(cache, "convert", None)
    monkeypatch.setattr(cache, "_WORDS", cache._WORDS)
    found = matrix_of("omics", open_rows(tmp_path / "cache", write(path, table), FEATURES, PERSONS, "id"))
    np.testing.assert_array_equal(everyone(found), expected)
    table["g5"] = "high"
    with pytest.raises(InputError, match='column "g5" has no finite number'):
        open_rows(tmp_path / "cache", write(path, table), FEATURES, PERSONS, "id")
    monkeypatch.setattr(cache, "_WORDS", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(InputError, match=r"a.parquet: the process that read it ended with -9; free memory and start again"):
        open_rows(tmp_path / "cache", path, FEATURES[:3], PERSONS, "id")


def test_a_process_that_may_start_none_converts_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cache.subprocess, "run", refused)
    found = matrix_of("omics", open_rows(tmp_path / "cache", write(tmp_path / "a.csv", table_of()), FEATURES, PERSONS, "id"))
    assert found.present.sum() > 50


READER = """
import sys
import numpy as np
from pathlib import Path
from fedml.cohort.wide.cache import open_rows
from fedml.cohort.wide.matrix import matrix_of
from fedml.modalities.modality import block_sums
import torch
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
columns, persons, before = [f"g{k}" for k in range(5000)], [f"p{k}" for k in range(15000)], peak()
found = matrix_of("omics", open_rows(Path(sys.argv[1]) / "cache", Path(sys.argv[1]) / "a.parquet", columns, persons, "id"))
sums = block_sums(found.blocks(np.arange(15000)), 5000)
assert sums[0].min() == 15000 and abs(sums[1] / 15000).max() < 0.1 and abs(sums[2] / 15000 - 1).max() < 0.1
for rows in np.split(np.random.default_rng(0).permutation(15000), 250):
    batch = found.tensors(rows, None)["omics"]
print(f"{before:.0f} {peak():.0f}")
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_matrix(tmp_path: Path) -> None:
    """300 MB of float32 in two row groups: the process that reads it stays 60 MB above its start, the one that converts below 320 MB."""
    random = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), *((f"g{k}", pa.float32()) for k in range(5000))])
    with parquet.ParquetWriter(tmp_path / "a.parquet", schema, use_dictionary=False) as file:
        for begin in (0, 7500):
            ids = pa.array([f"p{k}" for k in range(begin, begin + 7500)])
            file.write_table(pa.table([ids, *(random.standard_normal(7500, dtype=np.float32) for _ in range(5000))], schema=schema))
    ended = run_process([sys.executable, "-c", READER, str(tmp_path)], tmp_path)
    before, peak = map(float, (tmp_path / "output.log").read_text().split())
    print(f"reader {before:.0f} MB before, peak {peak:.0f} MB; of it or the process that converts {ended.peak_mb:.0f} MB")
    assert (tmp_path / "a.parquet").stat().st_size > 290e6
    assert peak - before < 60
    assert ended.peak_mb < max(320, peak + 1)


def test_the_converting_process_ends_with_its_site(tmp_path: Path) -> None:
    """The matrix is a pipe without a writer, so that the conversion is in the midst of it when the site's process is killed."""
    os.mkfifo(tmp_path / "matrix.csv")
    code = (
        "import sys\nfrom fedml.cohort.wide.cache import _convert\nfrom fedml.cohort.wide.convert import Job\n"
        "_convert(Job(sys.argv[1], ('a',), ('p',), 'id', sys.argv[2]))\n"
    )
    site = subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path / "matrix.csv"), str(tmp_path)])
    try:
        found = list[tuple[int, str]]()
        until = time.monotonic() + 60
        while not found and time.monotonic() < until:
            time.sleep(0.1)
            found = descendants(site.pid)
        assert found, "it converts"
        time.sleep(3)  # its imports, after which it waits for the pipe
    finally:
        site.kill()
        site.wait()
    (converter, _), until = found[0], time.monotonic() + 20
    while Path(f"/proc/{converter}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{converter}").exists()
