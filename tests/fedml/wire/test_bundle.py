"""Records on the wire as one array each: nothing is changed, and what is malformed is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedml.errors import SiteError
from fedml.wire.packing import bundle, is_bundled, unbundle
from fedml.wire.records import pack, unpack

arrays = npst.arrays(
    st.sampled_from(["float32", "int8", "uint8", "int64", "float64"]), npst.array_shapes(min_dims=0, max_dims=3, min_side=0)
)


@given(values=st.dictionaries(st.text(max_size=8), arrays, max_size=5))
def test_bundling_changes_nothing(values: dict[str, np.ndarray]) -> None:
    content = RecordDict({"arrays": pack(values), "config": ConfigRecord({"round": 3})})
    sent = bundle(content)
    assert is_bundled(sent)
    assert len(sent.array_records["arrays"]) == 1
    back = unbundle(sent)
    assert list(back) == list(content)
    assert list(back.array_records["arrays"]) == list(values)
    for key, value in unpack(back.array_records["arrays"]).items():
        assert value.dtype == values[key].dtype
        assert value.shape == values[key].shape
        assert value.tobytes() == values[key].tobytes()
    assert dict(back.config_records["config"]) == {"round": 3}


def test_what_is_plain_stays_and_shared_records_stay_shared() -> None:
    shared = pack({"w": np.ones(4, np.float32)})
    assert unbundle(RecordDict({"arrays": shared}))["arrays"] is shared
    made: dict[int, ArrayRecord] = {}
    one, other = (bundle(RecordDict({"arrays": shared}), made) for _ in range(2))
    assert one["arrays"] is other["arrays"]


def broken(index: object, body: bytes = bytes(128), length: int | None = None) -> RecordDict:
    reported = json.dumps(index).encode() if not isinstance(index, bytes) else index
    head = (len(reported) if length is None else length).to_bytes(8, "little") + reported
    data = head + bytes(-len(head) % 64) + body
    return RecordDict({"arrays": ArrayRecord({"bundle": Array("uint8", (len(data),), "fedml.wire.packing", data)})})


@pytest.mark.parametrize(
    "content",
    [
        broken([], length=10**12),
        broken([], length=0),
        broken(b"\x80\x04\x95"),
        broken({"a": 1}),
        broken([["w", "float32", [4], "numpy.ndarray", 0]]),
        broken([["w", "float32", [4], "numpy.ndarray", 0, 10**10]]),
        broken([["w", "float32", [4], "numpy.ndarray", -64, 64]]),
        broken([["w", "float32", [-4], "numpy.ndarray", 0, 64]]),
        broken([["w", "float32", [4], "numpy.ndarray", 0, 64], ["w", "float32", [4], "numpy.ndarray", 64, 64]]),
        broken([["w", "float32", [4], "numpy.ndarray", 0, 64], ["v", "float32", [4], "numpy.ndarray", 0, 64]]),
        broken(b"[" * 100_000),
    ],
)
def test_a_malformed_bundle_is_refused(content: RecordDict) -> None:
    with pytest.raises(SiteError, match="packed record"):
        unbundle(content)


def test_indexes_are_short_together() -> None:
    """Reading 220,000 entries takes ten seconds; nine records of 100,000 bytes each are read, eleven are not."""

    def records(number: int) -> RecordDict:
        rows = [[f"k{k}", "uint8", [0], "numpy.ndarray", 0, 0] for k in range(2_000)]
        return RecordDict({f"r{k}": broken(rows)["arrays"] for k in range(number)})

    assert len(unbundle(records(9)).array_records) == 9
    with pytest.raises(SiteError, match="longer than 1,000,000 bytes"):
        unbundle(records(11))
