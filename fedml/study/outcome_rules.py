"""What an analysis of outcomes needs of the other sections of a study, and the columns of its design."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedml.errors import nearest
from fedml.study.cohort_section import ClinicalColumns, Cohort
from fedml.study.federation_section import Federation
from fedml.study.outcomes_section import FAMILIES, CoxModel, Treatment
from fedml.study.sections import Privacy
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
    if cohort.standardise != "all":
        yield f'[{first}] reports covariates in their own units; remove [cohort] standardise = "{cohort.standardise}"'
    if federation.evaluate_only:
        yield f"[{first}] trains no model that [federation] evaluate_only could test; leave evaluate_only out"
    if asked.get("glm") is not None and label not in FAMILIES:
        yield '[glm] needs a number, two classes or a count as target; set [model] task = "regression", "classification" or "count"'
    if asked.get("glm") is not None and label == "classes" and len(cohort.classes) != 2:
        yield f"[glm] compares two classes, [cohort] classes lists {len(cohort.classes)}"
    if (plan := asked.get("treatment")) is not None:
        yield from _treatment_problems(plan, cohort, label, other=next((n for n in given if n not in ("treatment", "describe")), None))
    known = spec.columns if spec is not None else ()
    if (glm := asked.get("glm")) is not None and (name := glm.standardise) is not None:
        own = [c for c in glm.covariates if spec is not None and c in spec.categories]
        if name not in own:
            yield f'[glm] standardise is "{name}", which is no category among [glm] covariates{nearest(name, own)}'
    if (cox := asked.get("survival.cox")) is not None:
        yield from _cox_problems(cox, cohort)
    for name, section in asked.items():
        key = "columns" if name == "describe" else "covariates"
        for column in getattr(section, key, ()):
            if column not in known:
                yield f'[{name}] {key} names "{column}", which is not a column of [cohort.clinical]{nearest(column, known)}'
        groups = getattr(section, "groups", None)
        if groups is not None and (spec is None or groups not in spec.categories):
            categories = () if spec is None else spec.categories
            yield f'[{name}] groups is "{groups}", which [cohort.clinical] categories does not list{nearest(groups, categories)}'


def _cox_problems(plan: CoxModel, cohort: Cohort) -> Iterator[str]:
    spec, target = cohort.clinical, cohort.time_to_event
    known = () if spec is None else spec.columns
    if plan.weights is not None and plan.weights not in known:
        yield f'[survival.cox] weights is "{plan.weights}", which is not a column of [cohort.clinical]{nearest(plan.weights, known)}'
    if plan.weights is not None and spec is not None and plan.weights in spec.categories:
        yield f'[survival.cox] weights is "{plan.weights}", a category; name a column of numbers above 0'
    if plan.hazard == "subdistribution" and len(target.names) < 2:
        yield (
            '[survival.cox] hazard = "subdistribution" needs competing events, and [cohort] target events has one; add the others, such as '
            "{ death = 1, relapse = 2 }, or remove hazard"
        )
    if plan.hazard == "subdistribution" and target.entry is not None:
        yield '[survival.cox] hazard = "subdistribution" is not built with late entry; remove entry from [cohort] target, or hazard'


def _treatment_problems(plan: Treatment, cohort: Cohort, label: Label, *, other: str | None) -> Iterator[str]:
    if other is not None:
        yield f"[treatment] and [{other}] are not built in one study; give each its study"
    if label not in ("number", "classes", "time") or (label == "classes" and len(cohort.classes) != 2):
        yield '[treatment] needs a number, two classes or a time as target; set [model] task = "regression", "classification" or "survival"'
    if label == "time" and plan.trim:
        yield '[treatment] trim is not built for times, whose intervals would be of other persons; use estimand = "overlap", or remove trim'
    if label == "time" and cohort.time_to_event.entry is not None:
        yield "[treatment] is not built with late entry; remove entry from [cohort] target"
    levels = {} if cohort.clinical is None else cohort.clinical.categories
    own = levels.get(plan.column)
    if own is None:
        yield f'[treatment] column is "{plan.column}", which [cohort.clinical] categories does not list{nearest(plan.column, levels)}'
        return
    if len(plan.levels or own) != 2:
        yield f"[treatment] levels must name two levels of {plan.column}, the control first; it has {', '.join(map(str, own))}"
    for level in plan.levels:
        if level not in own:
            yield f'[treatment] levels names "{level}", which [cohort.clinical] categories does not list for {plan.column}'
    if len(set(plan.levels)) < len(plan.levels):
        yield "[treatment] levels names the same level twice"
    if plan.column in plan.covariates:
        yield f'[treatment] covariates names the treatment itself, "{plan.column}"; remove it'
    if plan.trim and plan.estimand == "overlap":
        yield '[treatment] trim is not built for estimand = "overlap", whose weights vanish where trimming cuts; remove trim'
