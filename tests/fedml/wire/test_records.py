"""Arrays on the wire: what goes in comes out, Flower reads them as its own, and bytes that lie are refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedml.wire.records import pack, pack_array, size_bytes, unpack, unpack_array, unpack_tensors

DTYPES = st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes())
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@given(ARRAYS, st.sampled_from(["as is", "transposed", "strided", "reversed", "fortran"]))
def test_round_trip(values: np.ndarray[Any, Any], layout: str) -> None:
    if layout == "transposed":
        values = values.T
    elif layout == "strided" and values.ndim:
        values = values[::2]
    elif layout == "reversed" and values.ndim:
        values = values[..., ::-1]
    elif layout == "fortran":
        values = np.asfortranarray(values)
    array = pack_array(values)
    back = unpack_array(array)
    assert (back.dtype, back.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(back, values)
    assert not back.flags.writeable
    flower = array.numpy()
    assert (flower.dtype, flower.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(flower, values)
    if values.flags.c_contiguous:  # Flower keeps Fortran's order; ours is always C's
        np.testing.assert_array_equal(unpack_array(Array(values)), values)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 5)])
def test_bytes_are_those_of_numpys_own_format(shape: tuple[int, ...]) -> None:
    values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    assert pack_array(values).data == out.getvalue() == Array(values).data


def test_records_of_arrays_and_tensors() -> None:
    module = torch.nn.Linear(3, 2)
    values = {"w": module.weight, "t": torch.arange(6).reshape(2, 3).T, "n": np.float64(2.5), "list": [1, 2]}
    record = pack(values)
    back = unpack(record)
    assert list(back) == list(values)
    np.testing.assert_array_equal(back["w"], module.weight.detach().numpy())
    np.testing.assert_array_equal(back["t"], [[0, 3], [1, 4], [2, 5]])
    assert back["n"] == 2.5
    assert torch.equal(unpack_tensors(record)["w"], module.weight)
    content = RecordDict({"arrays": record, "config": ConfigRecord({"k": "x" * 100})})
    assert size_bytes(content) == sum(len(a.data) for a in record.values())


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([1j]), np.array([b"x"]), np.array(["2020"], "M8[Y]")])
def test_arrays_of_no_plain_numbers_are_refused_where_they_arrive(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="not a plain number array"):
        unpack_array(Array(values))


@pytest.mark.parametrize("values", [np.array([object()]), np.array([], dtype=object)])
def test_objects_are_refused_before_they_leave(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        pack_array(values)


def test_pickles_objects_and_fortran_order_are_refused() -> None:
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a plain number array"):
        unpack_array(Array("object", (1,), "numpy.ndarray", objects.getvalue()))
    with pytest.raises(ValueError, match="not a plain number array"):
        unpack_array(Array(np.asfortranarray(np.ones((2, 3)))))


@given(ARRAYS, st.integers(1, 40))
def test_bytes_missing_or_left_over_are_refused(values: np.ndarray[Any, Any], count: int) -> None:
    data = pack_array(values).data
    for wrong in (data[:-count], data + bytes(count)):
        with pytest.raises(ValueError, match=r"."):
            unpack_array(Array(str(values.dtype), values.shape, "numpy.ndarray", wrong))


def with_header(text: str, body: bytes = bytes(8), version: tuple[int, int] = (1, 0)) -> Array:
    """An array whose header says whatever ``text`` says."""
    header = text.encode("latin-1") + b"\n"
    return Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY" + bytes(version) + len(header).to_bytes(2, "little") + header + body)


def header(descr: str = "'<f4'", fortran: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def test_the_header_maker_makes_a_good_header() -> None:
    assert unpack_array(with_header(header())).tolist() == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        header(shape="(3,)"),
        header(shape="(1,)"),
        header(shape="(-2,)"),
        header(shape="(-1, -2)"),
        header(shape="(4611686018427387904, 4)"),
        header(shape="2"),
        header(shape="(2.0,)"),
        header(descr="'<f8'"),
        header(descr="'|O'"),
        header(descr="'<U2'"),
        header(descr="[('a', '<f4')]"),
        header(descr="'nonsense'"),
        header(descr="None"),
        header(fortran="True"),
        header(fortran="1"),
        "{'descr': '<f4'}",
        "__import__('os').getcwd()",
        "[1, 2]",
        "",
        "\x00\x01",
        header(shape="(1180591620717411303424,)"),
        pytest.param(header(shape="(True, 2)")),
        pytest.param(header(descr="()")),
        pytest.param("{[]: 1}"),
        pytest.param("(((("),
        pytest.param("-" * 4000 + "1"),
    ],
    ids=lambda text: text[:60],
)
def test_a_header_that_lies_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_array(with_header(text))


@pytest.mark.parametrize("version", [(2, 0), (3, 0), (0, 0), (9, 9)])
def test_other_versions_of_the_format_are_refused(version: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_array(with_header(header(), version=version))


def test_other_formats_are_refused() -> None:
    good = pack_array(np.ones(3)).data
    for stype, data in (("torch.pt", good), ("numpy.ndarray", b""), ("numpy.ndarray", b"PK\x03\x04" + bytes(40))):
        with pytest.raises(ValueError, match=r"."):
            unpack_array(Array("float64", (3,), stype, data))


def test_unpack_names_keep_their_order() -> None:
    record = ArrayRecord({k: pack_array(np.full(1, i)) for i, k in enumerate("zyx")})
    assert list(unpack(record)) == ["z", "y", "x"]
