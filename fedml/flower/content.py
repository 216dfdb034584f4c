"""A message's content as bytes and back, for a pipe between two processes of a site. Uses the private serialisation of flwr 1.42."""

from __future__ import annotations

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto


def to_bytes(content: RecordDict) -> bytes:
    """The records as bytes (protobuf)."""
    data: bytes = recorddict_to_proto(content).SerializeToString(deterministic=True)
    return data


def from_bytes(data: bytes) -> RecordDict:
    """The inverse of ``to_bytes``.

    Raises:
        ValueError: the bytes are no records.
    """
    proto = Proto()
    try:
        proto.ParseFromString(data)
        return recorddict_from_proto(proto)
    except Exception as error:  # protobuf's own types, and Flower's of a record that it refuses
        raise ValueError(f"the bytes are no records: {type(error).__name__}") from error
