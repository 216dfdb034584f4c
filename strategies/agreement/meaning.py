"""One digest of a run's model and of all that gives it its meaning, which the last event of a run has (``fedml.contract.witness``)."""

from __future__ import annotations

from collections.abc import Sequence

from fedml.contract.witness import agreement_digest, meaning_digest
from fedml.runs.events import Final
from fedml.strategies.agreement.agreement import Agreement
from fedml.study.study import Study


def meaning_of(study: Study, agreement: Agreement, first: str, started: Sequence[str] | None, final: Final) -> str:
    """The digest, from the same values that the sites received.

    Args:
        first: SHA-256 of the weights with which the first round began. started: names of those that were taken from ``[model] start``.
    """
    constants = {name: value.numpy() for name, value in agreement.constants.items()}
    agreed = agreement_digest(study.sha256, agreement.panel, agreement.image_shape, constants)
    return meaning_digest(agreed, first, started or (), final.weights_sha256)
