"""Do the sites' columns mean the same? From each site's count, sum and sum of squares of a column, which it sends in any case.

A site that has no value of a column, and one whose values are in another unit or of other persons altogether, are named: the mean model
would be trained without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.checks import Check
from fedml.runs.events import SiteDisclosure
from fedml.runs.rows import ColumnRow
from fedml.study.study import Study

Sums = npt.NDArray[np.float64]
APART = 3.0  # standard deviations between a site's mean and the median of all sites' means: another unit is far beyond
SPREAD = 10.0  # ratio of standard deviations
_FEWEST = 10  # values at each side without which a mean says little
MOST_DESCRIBED = 100  # columns of a table in the record; a table of more is not a Table 1
_DIGITS = 4  # of a mean or a standard deviation in the record


def column_checks(study: Study, sums: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Warnings about columns of tables.

    Args:
        sums: site -> name of sums -> (3, columns) count, sum and sum of squares of its training persons' values.
    """
    found = []
    for modality, names in _columns(study).items():
        tables = {site: np.asarray(own[modality], np.float64) for site, own in sums.items() if modality in own}
        for at, (name, number) in enumerate(names):
            found += _column(name, number, {site: table[:, at] for site, table in tables.items()})
    return found


def described_columns(
    study: Study, sums: Mapping[str, Mapping[str, Any]], disclosures: Mapping[str, SiteDisclosure]
) -> dict[str, dict[str, ColumnRow]] | None:
    """Site -> column -> what the record says of its training persons: of clinical columns and a target that is a number, with four digits.

    The sums are those that the server has; the record is for more readers. So of a column of zeros and ones, whose mean is a number of
    persons, nothing is said but how many have a value, where fewer than ``min_count`` persons have one of the two. Sites with public data
    have no such limit. Nothing is said of a site that does not disclose its policy.
    """
    names = {of: columns for of, columns in _columns(study).items() if of in ("preprocess.clinical", "target")}
    if not names or sum(map(len, names.values())) > MOST_DESCRIBED:
        return None
    out: dict[str, dict[str, ColumnRow]] = {}
    for site, own in sums.items():
        policy = disclosures[site]["policy"] if site in disclosures else None
        if policy is None:  # its limits are not known
            continue
        fewest = 1 if policy.get("public") else max(study.policy.min_count, int(policy.get("min_count", 1)))
        tables = {of: np.asarray(own[of], np.float64) for of in names if of in own}
        out[site] = {
            name: _described(table[:, at], number, fewest) for of, table in tables.items() for at, (name, number) in enumerate(names[of])
        }
    return out


def _described(own: Sums, number: bool, fewest: int) -> ColumnRow:
    count, total, squares = own.tolist()
    few_of_two = total == squares and (0 < total < fewest or 0 < count - total < fewest)
    if not number or count < max(fewest, 1) or few_of_two:
        return {"known": int(count) if count >= fewest else 0, "mean": None, "sd": None}
    mean, spread = _moments(own)
    return {"known": int(count), "mean": float(f"{mean:.{_DIGITS}g}"), "sd": float(f"{spread:.{_DIGITS}g}")}


def _columns(study: Study) -> dict[str, list[tuple[str, bool]]]:
    """Name of sums -> its columns, and whether each is a number; the codes of categories have no mean."""
    spec, omics = study.cohort.clinical, study.cohort.omics
    names = {} if spec is None else {"preprocess.clinical": [(c, c not in spec.categories) for c in spec.columns]}
    names |= {"preprocess.omics": [(c, True) for c in omics.columns]} if omics is not None else {}
    if (radiomics := study.cohort.radiomics) is not None:
        names["preprocess.radiomics"] = [(c, True) for c in radiomics.columns]
    return names | ({"target": [(study.cohort.outcome, True)]} if study.traits.standardised else {})


def _column(name: str, number: bool, sums: Mapping[str, Sums]) -> list[Check]:
    found = []
    # Of 0 and 1 alone, sum and sum of squares are equal: a share that differs between sites is no other unit.
    number = number and any(own[1] != own[2] for own in sums.values())
    moments = {site: _moments(own) for site, own in sums.items() if own[0] >= _FEWEST}
    for site, own in sums.items():
        others = [pair for name_of_other, pair in moments.items() if name_of_other != site or len(moments) > 2]
        if own[0] == 0:
            fix = f"look at the column in {site}'s table, or go on without the site's values: the model takes the mean in their place"
            found.append(Check(site, name, "no value", "warn", fix))
        elif number and site in moments and others:
            (mean, spread), (usual, usual_spread) = moments[site], np.median(others, axis=0).tolist()
            apart = abs(mean - usual) > APART * max(usual_spread, spread, 1e-12)
            unlike = usual_spread > 0 and not 1 / SPREAD <= spread / usual_spread <= SPREAD
            if apart or unlike:
                value = f"mean {mean:.4g} (SD {spread:.3g}), most sites {usual:.4g} (SD {usual_spread:.3g})"
                found.append(Check(site, name, value, "warn", "is it in the same unit, and are missing values coded as the study says?"))
    return found


def _moments(sums: Sums) -> tuple[float, float]:
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
