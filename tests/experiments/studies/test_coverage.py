"""Coverage of intervals and level of tests, of the situations in which they used to fail: ``experiments/bench/coverage.py``."""

from __future__ import annotations

import pytest

from fedml.experiments.bench.coverage import COHORTS, SITUATIONS, Row, line

# What cannot be covered from so few persons, or is shown to be wrong without the cluster column or the correction.
KNOWN = ("one person in ten fails", "without the column", "not corrected")


def rows(name: str, cohorts: int) -> list[Row]:
    return list(SITUATIONS[name](cohorts))


def test_a_test_of_too_few_cases_is_refused_and_not_made() -> None:
    found = {row.situation: row for row in rows("paired", 2)}
    assert found["paired test, 8 cases of 300"].refused == 1
    assert found["paired test, 15 cases of 300"].refused == 0


@pytest.mark.long
@pytest.mark.parametrize("name", list(SITUATIONS))
def test_500_cohorts_of_each_situation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Three standard errors of 500 draws about 95 % and 5 %; the rest is in docs/validation.md."""
    found = rows(name, COHORTS)
    with capsys.disabled():
        print("", *map(line, found), sep="\n")
    for row in found:
        if any(text in row.situation for text in KNOWN) or row.refused == 1:
            continue
        low, high = (0.92, 0.98) if row.what == "coverage" else (0.02, 0.08)
        if row.situation.startswith("prediction"):
            high = 0.99  # cautious where sites do not differ, since six sites cannot show that
        assert low <= row.share <= high, line(row)
    for row in found:
        if "without the column" in row.situation and row.situation.startswith(("auroc", "paired")):
            assert row.share < 0.92 if row.what == "coverage" else row.share > 0.07, "the column would not be needed"
