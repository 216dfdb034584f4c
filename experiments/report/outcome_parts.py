"""Which section, sentences and cards each kind of result of an analysis of outcomes has in a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedml.experiments.report import outcome_tables as tables
from fedml.experiments.report import outcome_treatment as treatment
from fedml.study.study import Study

Found = Mapping[str, Any]
PARTS: dict[str, Callable[[Study, Found], str]] = {
    "rows": tables.table1, "curves": tables.curves, "weighted_curves": treatment.weighted_curves,
    "cox": lambda study, found: tables.model("cox", study, found), "glm": lambda study, found: tables.model("glm", study, found),
    "treatment": treatment.treatment,
}  # fmt: skip
SENTENCES: dict[str, Callable[[Study, Found], list[str]]] = {
    "rows": tables.say_table, "curves": tables.say_curves, "weighted_curves": treatment.say_weighted_curves,
    "cox": tables.say_model("cox"), "glm": tables.say_model("glm"), "treatment": treatment.say_treatment,
}  # fmt: skip
CARDS: dict[str, Callable[[Found], list[tuple[str, str, str]]]] = {
    "curves": tables.cards_curves, "cox": tables.cards_model("cox"), "glm": tables.cards_model("glm"),
    "treatment": treatment.cards_treatment, "weighted_curves": treatment.cards_weighted_curves,
}  # fmt: skip
