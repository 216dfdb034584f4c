"""A site's reply with its update in the study's format, as the reply with the trained weights that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from fedml.errors import Reason, SiteError
from fedml.study.study import Study
from fedml.wire.formats import as_weights
from fedml.wire.records import ARRAYS, array_record, holds, pack, unpack


def plain_reply(study: Study, reply: RecordDict, start: Mapping[str, Any]) -> RecordDict:
    """``reply`` with float32 weights; itself where the study's updates are float32, or it has none.

    Args:
        start: the arrays of the model that the site received.

    Raises:
        SiteError: the update is not in the study's format, or does not fit ``start``.
    """
    if study.federation.wire == "float32" or not holds(reply, ARRAYS, ArrayRecord):
        return reply
    try:
        weights = as_weights(start, unpack(array_record(reply, ARRAYS)), study.federation.wire)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SiteError(Reason.UNDECLARED, str(error)) from error
    return RecordDict({**reply, ARRAYS: pack(weights)})
