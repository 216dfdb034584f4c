"""What an analysis of outcomes needs of the other sections of a study, and the columns of its design."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedml.errors import nearest
from fedml.study.cohort_section import ClinicalColumns, Cohort
from fedml.study.outcomes_section import FAMILIES
from fedml.study.sections import Federation, Privacy
from fedml.study.task_traits import Label


def columns_of(spec: ClinicalColumns | None, names: tuple[str, ...]) -> list[str]:
    """The names of the design's columns: each number, and each level but the first of a category, as ``stage=III``."""
    found = list[str]()
    for name in names:
        levels = [] if spec is None else list(spec.categories.get(name, ()))
        found += [f"{name}={level}" for level in levels[1:]] if levels else [name]
    return found


def outcome_problems(
    asked: Mapping[str, Any], cohort: Cohort, privacy: Privacy, federation: Federation, *, label: Label, variants: bool
) -> Iterator[str]:
    """What other sections of the study contradict in the sections of an analysis of outcomes.

    Args:
        asked: section -> its value, None where the study has none. variants: the study has an analysis of variants.
    """
    given = [name for name, section in asked.items() if section is not None]
    if not given:
        return
    first, spec = given[0], cohort.clinical
    if privacy.unit != "none":
        yield (
            f'[{first}] releases exact counts and sums, so it needs [privacy] unit = "none"; with noise neither its intervals nor its '
            "tests would hold, and noised ones are not built"
        )
    if variants:
        yield f"[{first}] and an analysis of variants are about different persons; give each its study"
    if cohort.cluster is not None:
        yield f"[cohort] cluster is not built for [{first}], whose intervals it would not change; remove it"
    if cohort.standardise == "site":
        yield f'[{first}] reports covariates in their own units; remove [cohort] standardise = "site"'
    if federation.evaluate_only:
        yield f"[{first}] trains no model that [federation] evaluate_only could test; leave evaluate_only out"
    if asked.get("glm") is not None and label not in FAMILIES:
        yield '[glm] needs a number, two classes or a count as target; set [model] task = "regression", "classification" or "count"'
    if asked.get("glm") is not None and label == "classes" and len(cohort.classes) != 2:
        yield f"[glm] compares two classes, [cohort] classes lists {len(cohort.classes)}"
    known = spec.columns if spec is not None else ()
    for name, section in asked.items():
        key = "columns" if name == "describe" else "covariates"
        for column in getattr(section, key, ()):
            if column not in known:
                yield f'[{name}] {key} names "{column}", which is not a column of [cohort.clinical]{nearest(column, known)}'
        groups = getattr(section, "groups", None)
        if groups is not None and (spec is None or groups not in spec.categories):
            categories = () if spec is None else spec.categories
            yield f'[{name}] groups is "{groups}", which [cohort.clinical] categories does not list{nearest(groups, categories)}'
