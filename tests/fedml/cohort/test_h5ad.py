"""AnnData files: the numbers of each way in which ``X`` is stored, ids of each kind, and what is no such file.

Files are written by h5py after the published layout; ``test_files_of_anndata_itself`` (long) has AnnData write them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from fedml.cohort import omics
from fedml.cohort.inputs import Table
from fedml.cohort.omics import read_features, read_omics
from fedml.cohort.wide import cache
from fedml.cohort.wide import h5ad as rows_of
from fedml.cohort.wide.matrix import Matrix
from fedml.errors import InputError

FEATURES = [f"ENSG{k:02d}" for k in range(9)]
IDS = ["007", "b", "c", "d", "e", "f", "stranger"]
PERSONS = ["f", "absent", "007", "c"]
ASKED = ["ENSG07", "ENSG00", "ENSG03"]
WAYS = ["array", "csr_matrix", "csc_matrix"]


def numbers() -> np.ndarray:
    """Half of them 0, one missing."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(len(IDS), len(FEATURES))) * (rng.random((len(IDS), len(FEATURES))) < 0.5)
    values[2, 3] = np.nan
    return values


def write(path: Path, values: np.ndarray, way: str = "array", obs: Callable[[Any], None] = lambda group: None, **texts: list[str]) -> Path:
    """``texts``: ``ids`` and ``features``, in the indices of ``obs`` and ``var``; ``obs`` adds to ``obs``."""
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "anndata"
        for name, index, cells in (("obs", "_index", texts.get("ids", IDS)), ("var", "gene", texts.get("features", FEATURES))):
            group = file.create_group(name)
            group.attrs["encoding-type"], group.attrs["_index"], group.attrs["column-order"] = "dataframe", index, []
            group.create_dataset(index, data=cells, dtype=h5py.string_dtype())
        obs(file["obs"])
        if way == "array":
            file.create_dataset("X", data=values, chunks=(2, 4), compression="gzip")
        else:
            made = sparse.csr_matrix(values) if way == "csr_matrix" else sparse.csc_matrix(values)
            group = file.create_group("X")
            group.attrs["encoding-type"], group.attrs["shape"] = way, values.shape
            for part in ("data", "indices", "indptr"):
                group.create_dataset(part, data=getattr(made, part))
    return path


def expected(persons: list[str] = PERSONS, asked: list[str] = ASKED) -> np.ndarray:
    return pd.DataFrame(numbers(), IDS, FEATURES).reindex(index=persons, columns=asked).to_numpy()


@pytest.mark.parametrize("way", WAYS)
def test_a_small_matrix_is_read_exactly(tmp_path: Path, way: str) -> None:
    found = read_omics(write(tmp_path / "a.h5ad", numbers(), way), ASKED, PERSONS)
    np.testing.assert_array_equal(found.values, expected())
    assert found.present.tolist() == [True, False, True, True]


@pytest.mark.parametrize("block", [1, 20, 1000])
@pytest.mark.parametrize("way", ["array", "csr_matrix"])
def test_a_large_matrix_is_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, block: int) -> None:
    monkeypatch.setattr(omics, "LARGEST", 0)
    monkeypatch.setattr(rows_of, "_BLOCK", block)
    monkeypatch.setattr(cache, "_convert", cache.convert)
    found = read_features(write(tmp_path / "a.h5ad", numbers(), way), ASKED, PERSONS, "id", tmp_path / "cache")
    assert isinstance(found, Matrix)
    np.testing.assert_array_equal(found.floats(np.arange(4)), expected().astype(np.float32))


def test_a_large_matrix_by_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omics, "LARGEST", 0)
    monkeypatch.setattr(rows_of, "_BLOCK", 20)
    monkeypatch.setattr(cache, "_convert", cache.convert)
    with pytest.raises(InputError, match=r"stored by columns.*adata\.X = adata\.X\.tocsr\(\)"):
        read_features(write(tmp_path / "a.h5ad", numbers(), "csc_matrix"), ASKED, PERSONS, "id", tmp_path / "cache")


def text(group: Any) -> None:
    group.create_dataset("patient", data=[f" {person} " for person in IDS], dtype=h5py.string_dtype())


def categorical(group: Any) -> None:
    column = group.create_group("patient")
    column.attrs["encoding-type"] = "categorical"
    column.create_dataset("categories", data=IDS[::-1], dtype=h5py.string_dtype())
    column.create_dataset("codes", data=np.arange(len(IDS), dtype=np.int8)[::-1])


def nullable(group: Any) -> None:
    column = group.create_group("patient")
    column.attrs["encoding-type"] = "nullable-string-array"
    column.create_dataset("values", data=IDS, dtype=h5py.string_dtype())
    column.create_dataset("mask", data=np.zeros(len(IDS), bool))


@pytest.mark.parametrize("obs", [text, categorical, nullable])
@pytest.mark.parametrize("large", [False, True])
def test_ids_may_be_a_column_of_obs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obs: Callable[[Any], None], large: bool) -> None:
    monkeypatch.setattr(omics, "LARGEST", 0 if large else 1 << 20)
    monkeypatch.setattr(cache, "_convert", cache.convert)
    path = write(tmp_path / "a.h5ad", numbers(), obs=obs, ids=[f"sample{k}" for k in range(len(IDS))])
    found = read_features(path, ASKED, PERSONS, "patient", tmp_path / "cache")
    values = found.values if isinstance(found, Table) else found.floats(np.arange(4))
    np.testing.assert_array_equal(values, expected().astype(values.dtype))


def test_ids_may_be_whole_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", numbers(), obs=lambda group: group.create_dataset("patient", data=np.arange(1, 8)))
    found = read_omics(path, ASKED, ["3", "1"], "patient")
    np.testing.assert_array_equal(found.values, expected(["c", "007"]))


def gap(group: Any) -> None:
    nullable(group)
    group["patient"]["mask"][2] = True


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:2000])
    return path


def without(path: Path, name: str) -> Path:
    with h5py.File(path, "a") as file:
        del file[name]
    return path


def beyond(path: Path) -> Path:
    """A file that claims a feature it does not have."""
    with h5py.File(path, "a") as file:
        file["X"]["indices"][0] = 99
    return path


def infinite() -> np.ndarray:
    values = numbers()
    values[0, 0] = np.inf
    return values


REFUSED: list[tuple[Callable[[Path], Path], str, str]] = [
    (lambda path: write(path, numbers()), "patient", 'has no column "patient".*its columns are ENSG00'),
    (lambda path: write(path, numbers(), ids=["b", *IDS[1:]]), "id", 'person "b" has 2 rows'),
    (lambda path: write(path, numbers(), ids=["", *IDS[1:]]), "id", "row 2 has no id"),
    (lambda path: write(path, numbers(), obs=gap), "patient", "row 4 has no id"),
    (lambda path: write(path, numbers(), features=["g", *FEATURES[1:]]), "id", 'has no column "ENSG00"'),
    (lambda path: write(path, numbers(), features=["ENSG03", *FEATURES[1:]]), "id", 'has (no column "ENSG00"|the column "ENSG03" 2 times)'),
    (lambda path: write(path, infinite()), "id", 'column "ENSG00" has no finite number for 1 person'),
    (lambda path: write(path, numbers(), ids=IDS[1:]), "id", "obs has 6 rows, X has 7"),
    (lambda path: write(path, numbers(), features=FEATURES[1:]), "id", "var names 8 features, X has 9"),
    (lambda path: cut(write(path, numbers())), "id", "cannot be read as a table"),
    (lambda path: without(write(path, numbers()), "X"), "id", "not of AnnData's layout"),
    (lambda path: without(write(path, numbers()), "obs"), "id", "not of AnnData's layout"),
    (lambda path: without(write(path, numbers(), "csr_matrix"), "X/indptr"), "id", "not of AnnData's layout"),
    (lambda path: beyond(write(path, numbers(), "csr_matrix")), "id", "cannot be read as a table"),
    (lambda path: beyond(write(path, numbers(), "csc_matrix")), "id", "cannot be read as a table"),
    (lambda path: path, "id", "no such file"),
]


@pytest.mark.parametrize("at", range(len(REFUSED)))
@pytest.mark.parametrize("large", [False, True])
def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, large: bool) -> None:
    monkeypatch.setattr(omics, "LARGEST", 0 if large else 1 << 20)
    monkeypatch.setattr(cache, "_convert", cache.convert)
    make, id_column, said = REFUSED[at]
    path = make(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=said) as refused:
        read_features(path, ["ENSG00", "ENSG03"], PERSONS, id_column, tmp_path / "cache")
    assert str(refused.value).startswith(str(path))


def test_without_h5py_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5ad", numbers())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"needs the package h5py; pip install h5py, or save the table as Parquet"):
        read_omics(path, ASKED, PERSONS)


_WRITER = """
import sys, anndata, numpy, pandas, scipy.sparse
folder = sys.argv[1]
values = numpy.load(folder + "/values.npy")
ids, features = sys.argv[2].split(), sys.argv[3].split()
ways = {"array": lambda v: v, "csr_matrix": scipy.sparse.csr_matrix, "csc_matrix": scipy.sparse.csc_matrix}
for way, make in ways.items():
    obs = pandas.DataFrame({"patient": pandas.Categorical(ids), "age": range(len(ids))}, index=[f"s{k}" for k in range(len(ids))])
    anndata.AnnData(make(values), obs=obs, var=pandas.DataFrame(index=features)).write_h5ad(f"{folder}/{way}.h5ad", compression="gzip")
"""


@pytest.mark.long
def test_files_of_anndata_itself(tmp_path: Path) -> None:
    python = os.environ.get("FEDML_PEERS_PYTHON")
    if not python:
        pytest.skip("FEDML_PEERS_PYTHON names no Python with anndata; it needs pandas < 3, so an environment of its own")
    np.save(tmp_path / "values.npy", numbers())
    subprocess.run([python, "-P", "-c", _WRITER, str(tmp_path), " ".join(IDS), " ".join(FEATURES)], check=True)
    for way in WAYS:
        found = read_omics(tmp_path / f"{way}.h5ad", ASKED, PERSONS, "patient")
        np.testing.assert_array_equal(found.values, expected())
