"""What may leave a site: nothing that is not declared, and no small number of persons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedml.cohort.images.reasons import Unusable
from fedml.contract.disclosure import HIDDEN, excluded_counts
from fedml.contract.replies import check_form
from fedml.errors import Reason, SiteError
from fedml.wire.records import Phase, pack
from tests.conftest import make_study

SHAPES = {"layer.weight": (2, 3), "layer.bias": (2,)}
METRICS = {"num-examples": 5, "loss-sum": 1.5, "seen": 5, "steps": 1, "train_loss": 0.3}


def trained(**changes: Any) -> RecordDict:
    """The reply to a round, with ``changes`` of its arrays or metrics."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()} | changes.get("arrays", {})
    return RecordDict({"arrays": pack(arrays), "metrics": MetricRecord(METRICS | changes.get("metrics", {}))})


def refused(reply: RecordDict, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> str:
    """The code of the refusal, empty if the reply passes."""
    try:
        check_form(make_study(), Phase.ROUND, "a", reply, shapes)
    except SiteError as error:
        return str(error.reason)
    return ""


def test_a_record_that_is_not_declared_does_not_pass() -> None:
    reply = trained()
    assert refused(reply) == ""
    reply["persons"] = ConfigRecord({"id": "P0001"})
    assert refused(reply) == Reason.UNDECLARED
    del reply["persons"], reply["metrics"]
    assert refused(reply) == Reason.UNDECLARED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arrays": {"layer.bias": np.array([0, np.nan], np.float32)}}, Reason.NON_FINITE),
        ({"arrays": {"layer.bias": np.array([0, np.inf], np.float32)}}, Reason.NON_FINITE),
        ({"arrays": {"layer.bias": np.zeros(2)}}, Reason.UNDECLARED),
        ({"arrays": {"layer.bias": np.zeros(3, np.float32)}}, Reason.UNDECLARED),
        ({"arrays": {"another": np.zeros(2, np.float32)}}, Reason.UNDECLARED),
        ({"metrics": {"age of the oldest": 97}}, Reason.UNDECLARED),
        ({"metrics": {"num-examples": 5.0}}, Reason.UNDECLARED),
        ({"metrics": {"loss-sum": float("nan")}}, Reason.NON_FINITE),
        ({"metrics": {"num-examples": -1}}, Reason.NON_FINITE),
    ],
)
def test_arrays_and_metrics_are_those_that_are_declared(changes: dict[str, Any], reason: Reason) -> None:
    assert refused(trained(**changes)) == reason


def test_few_persons_without_an_image_are_not_counted() -> None:
    reasons = list(Unusable)[:4]
    counts = excluded_counts({str(reason): persons for reason, persons in zip(reasons, (0, 1, 4, 5), strict=True)}, 5)
    assert counts[:4].tolist() == [0, HIDDEN, HIDDEN, 5]
    assert not counts[4:].any()
