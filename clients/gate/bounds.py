"""Bounds on the plan of a study whose answers are exact: outside of them an answer can hold single persons' values, however the messages
are chosen ("trap weights": Fowl et al. 2022, arXiv:2110.13057; Boenisch et al. 2023, EuroS&P), or the site's machine is used up.

They do not apply to public data, to a trusted centre, or to privacy of one patient, which bounds what each person adds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fedml.clients.site.manifest import Policy
from fedml.cohort.persons import Cohort
from fedml.errors import Reason, SiteError
from fedml.learning.training import planned_steps
from fedml.study.study import Study


def objections(study: Study, policy: Policy, min_count: int, training_persons: int) -> Iterator[str]:
    """Sentences about what exceeds the bounds.

    Args:
        training_persons: of this site.
    """
    plan = study.training
    if plan.lr > policy.max_lr:
        yield f"[training] lr is {plan.lr:g}, [policy] max_lr allows {policy.max_lr:g}"
    if 0 < plan.batch_size < min_count:
        yield f"[training] batch_size is {plan.batch_size}: a step must be of at least {min_count} persons (min_count)"
    steps = planned_steps(study, training_persons)
    if steps > policy.max_local_steps:
        yield f"a round would be {steps} steps, [policy] max_local_steps allows {policy.max_local_steps}"
    for key, width in _widths(study):
        if width > training_persons:
            yield (
                f"{key} has a layer of {width} features for {training_persons} training persons: a unit of a layer wider than the number "
                "of persons can hold one person's values"
            )


def check_bounds(study: Study, policy: Policy, min_count: int, training_persons: int) -> None:
    """Raises ``SiteError`` with the first of the ``objections``."""
    for sentence in objections(study, policy, min_count, training_persons):
        raise SiteError(Reason.BOUNDS, sentence)


def by_class(cohort: Cohort, study: Study) -> npt.NDArray[np.int64]:
    """(classes,) training persons of a site."""
    return np.bincount(cohort.labels[cohort.rows("train")].astype(int), minlength=len(study.cohort.classes))


def check_effective(persons: npt.NDArray[np.int64], weights: npt.ArrayLike, fewest: int) -> None:
    """Raises ``SiteError`` if ``persons`` with ``weights``, (classes,) each, are fewer effective persons (Kish 1965) than ``fewest``."""
    each = np.asarray(weights)
    effective = float((persons * each).sum()) ** 2 / max(float((persons * each.astype(np.float64) ** 2).sum()), 1e-300)
    if effective < fewest:
        raise SiteError(
            Reason.BOUNDS, f"[training] class_weights make this site's persons {effective:.1f} effective ones, min_count is {fewest}"
        )


def _widths(study: Study) -> Iterator[tuple[str, int]]:
    """Dense layers of the study's model: (key, widest layer)."""
    model, inputs = study.model, study.cohort.inputs
    tables = {"clinical": model.clinical, "omics": model.omics, "radiomics": model.radiomics, "variants": model.variants}
    for name, network in tables.items():
        if name in inputs and network is not None and network.hidden:
            yield f"[model] {name} hidden", max(network.hidden)
    if model.hidden:
        yield "[model] hidden", max(model.hidden)
    if len(inputs) > 1:
        yield "[model] width", model.width
