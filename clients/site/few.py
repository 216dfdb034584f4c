"""Inputs and columns that few training persons have: what is learned from them is about those persons alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedml.cohort.inputs import Input, Table
from fedml.cohort.persons import Cohort
from fedml.errors import Reason, SiteError


def without_few(cohort: Cohort, smallest: int) -> Cohort:
    """``cohort`` without the inputs, and without the values of the columns of tables, that 1 to ``smallest`` - 1 training persons have:
    they count as missing for everybody.

    Raises:
        SiteError: no input is left.
    """
    rows, inputs = cohort.rows("train"), dict[str, Input]()
    for name, value in cohort.inputs.items():
        if 0 < int(value.has(len(cohort))[rows].sum()) < smallest:
            continue
        if isinstance(value, Table):
            known = (~np.isnan(value.values[rows])).sum(0)
            few = (known > 0) & (known < smallest)
            inputs[name] = Table(name, np.where(few, np.nan, value.values), value.present) if few.any() else value
        else:
            inputs[name] = value
    if not inputs:
        raise SiteError(Reason.TOO_FEW, f"each of the study's inputs is there for fewer than {smallest} training persons")
    same = inputs.keys() == cohort.inputs.keys() and all(inputs[name] is cohort.inputs[name] for name in inputs)
    return cohort if same else replace(cohort, inputs=inputs)
