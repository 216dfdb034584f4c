"""The table at a run's end fits 80 columns with many classes, and nothing of it is cut off."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from fedml.experiments.runs.show import final_table
from fedml.runs.events import NO_FINAL, PartScores
from tests.conftest import make_study


def test_many_classes_fit_a_terminal_and_nothing_is_lost() -> None:
    organs = ["spleen", "liver", "right_kidney", "left_kidney", "pancreas", "gallbladder", "stomach", "aorta"]
    own = {"persons": 12.0, "dice": 0.8, "dice_mean_person": 0.7}
    own |= {f"{m}/{c}": 9.5 + k for m in ("dice", "persons", "hd95_mean_mm", "hd95_median_mm", "missed") for k, c in enumerate(organs)}
    scores: PartScores = {"all": own, "sites": {"oslo": own, "porto": {**own, "dice": 0.123}}, "worst": "porto"}
    study = make_study(("image",), model__task="segmentation", cohort__classes=["background", *organs])
    out = io.StringIO()
    Console(file=out, width=80).print(final_table(study, replace(NO_FINAL, metrics={"test": scores}, round=3)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out.getvalue()
    assert sum(line.startswith("│ aorta") and "16.500" in line for line in lines) == 2  # of all, and of the worst site
    assert any("porto (worst)" in line and "0.123" in line for line in lines)
