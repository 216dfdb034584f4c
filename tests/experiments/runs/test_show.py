"""The table at a run's end fits 80 columns with many classes, and nothing of it is cut off."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fedml.experiments.runs.show import final_table
from fedml.runs.events import NO_FINAL, PartScores
from tests.command import quick
from tests.conftest import clinical_site, make_plan, make_study, to_toml


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


def test_the_line_of_a_round_says_that_its_metric_is_of_the_model_before_that_round(tmp_path: Path) -> None:
    clinical_site(tmp_path / "sites" / "a", "a", 200, 0)
    said: dict[int, str] = {}
    after: dict[int, str] = {}
    for rounds in (0, 1, 2):  # the validation persons' metric after 0, 1 and 2 rounds, from the last evaluation of a run of as many
        plan = make_plan(sites=("a",), federation__rounds=rounds, training__lr=0.5)
        (tmp_path / "study.toml").write_text(to_toml(plan))
        done = quick("fedml", "run", "study.toml", "--sites", "sites", "--no-track", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        after[rounds] = f"{json.loads(done.stdout.splitlines()[-1])['metrics']['val']['auroc']:.3f}"
        for number, value, which in re.findall(r"round (\d)/\d: val auroc ([\d.]+) (.*?), 1 sites", done.stdout + done.stderr):
            assert which == "(before this round)"
            said[int(number)] = value
    assert said == {1: after[0], 2: after[1]}
    assert len(set(after.values())) > 1


def test_a_metric_that_some_sites_cannot_send_is_said_to_be_of_the_others(tmp_path: Path) -> None:
    """Real persons: ``b`` has 10 validation persons, 2 of one class, so it sends no scores; ``c`` has no validation persons."""
    for name, parts in {"a": (60, 30), "b": (40, 10), "c": (40, 0)}.items():
        persons = sum(parts) + 12
        labels = [int(k % 5 == 0) for k in range(persons)] if name == "b" else None
        file = clinical_site(tmp_path / "sites" / name, name, persons, 0, labels=labels)
        rows = "".join(f"{name}{k:04d},{'train' if k < parts[0] else 'val' if k < sum(parts) else 'test'}\n" for k in range(persons))
        (file.parent / "split.csv").write_text(f"id,part\n{rows}")
        file.write_text(file.read_text().replace("public = true", "public = false") + 'split = "split.csv"\n')
    (tmp_path / "study.toml").write_text(to_toml(make_plan(sites=("a", "b", "c"), federation__rounds=3, training__keep="best")))
    words = ("study.toml", "--sites", "sites", "--no-track")
    done = quick("fedml", "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    assert re.fullmatch(
        r"round 2/3: val auroc [\d.]+ \(before this round; 1 of 3 sites have one\), 3 sites, .*",
        next(line for line in lines if line.startswith("round 2/3")),
    )
    sentence = "the choice is by the validation auroc, which 1 of 3 sites have; too few validation persons, or too few of a class: b, c"
    assert f"Hint: {sentence}" in lines
    swept = quick("fedml", "sweep", *words, "--grid", "lr=0.01,0.1", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert f"T{sentence[1:]}." in (swept.stdout + swept.stderr).splitlines()
    last = quick("fedml", "run", *words, "--set", "training.keep=last", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert "the choice is by" not in last.stdout + last.stderr, "nothing was chosen"
