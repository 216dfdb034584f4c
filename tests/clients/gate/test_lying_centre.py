"""A centre that chooses every message reads no single person from the answers: what does not follow from the plan is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.study.study import Study
from tests.clients.gate.centre import BIAS, WEIGHT, Arrays, Centre, isolating, real_site, small_cells
from tests.conftest import clinical_site, make_study, write_csv

SPLIT = {"train": 0.6, "val": 0.2, "test": 0.2}
PRIVATE = {
    "unit": "patient",
    "epsilon": 1.0,
    "persons": {"a": 140},
    "ranges": {f"x{k}": [-10, 300] for k in (1, 2, 3)},
    "metrics": "private",
}


def plan(**changes: Any) -> Study:
    return make_study(sites=("a",), **{"cohort__split": SPLIT, "federation__rounds": 6, **changes})


def mlp(width: int) -> dict[str, Any]:
    return {"model__clinical": {"net": "mlp", "hidden": [width]}}


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    return Centre(plan(), real_site(tmp_path / "a"))


def test_an_honest_run_is_answered_to_its_end(centre: Centre) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    for number in range(1, 7):
        assert centre.ask("round", number, 1, agreed, weights) == ""
        counts = {k: v for k, v in centre.answered[-1][1].items() if k.startswith("counts/")}
        assert not small_cells(counts, 5)
        assert all("train" not in name for name in counts)
        weights = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
    assert centre.ask("evaluate", 6, 1, agreed, weights) == ""
    assert not small_cells(centre.answered[-1][1], 5)


@pytest.mark.parametrize("number", [1, 2, 6])
@pytest.mark.parametrize("digits", [1.0, 30.0, 4096.0])
def test_weights_that_write_columns_into_the_answer_are_refused(centre: Centre, number: int, digits: float) -> None:
    agreed = centre.agree(1)
    honest = centre.first(agreed)
    if number > 1:
        assert centre.ask("round", 1, 1, agreed, honest) == ""
    shape = honest[WEIGHT].shape
    chosen, _ = isolating(shape, 50.0, digits, np.array([0, 7.0, 0.3], np.float32), 1.0)
    assert centre.ask("round", number, 1, agreed, chosen) == "not-of-the-plan"
    assert centre.journal()[-1]["reason"] == "not-of-the-plan"
    if number > 1:  # the federation goes on
        assert centre.ask("round", number, 1, agreed, honest) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {**mlp(2000), "training__batch_size": 0, "training__optimizer": "sgd"},
        {**mlp(64), "training__lr": 1e4, "training__optimizer": "sgd"},
        {"training__lr": 50.0},
        {"training__batch_size": 1},
        {"training__batch_size": 4},
        {"training__local_epochs": 10_000},
        {"model__clinical": {"net": "mlp", "hidden": [16, 400]}},
    ],
    ids=["wide", "fast", "linear-fast", "batch-1", "batch-4", "epochs", "wide-second"],
)
def test_a_plan_that_could_hold_persons_is_refused_though_approved(tmp_path: Path, changes: dict[str, Any]) -> None:
    centre = Centre(plan(**changes), real_site(tmp_path / "a"))
    assert centre.ask("describe", 0, 1) == ""
    agreed = Centre(plan(), real_site(tmp_path / "other")).agree(1)
    assert centre.ask("statistics", 0, 1, agreed=replace(agreed, constants={})) == "plan-beyond-policy"
    assert centre.ask("round", 1, 1, agreed, {}) == "plan-beyond-policy"


@pytest.mark.parametrize("mu", [1e6, -5.0, 1e308, 0.2])
def test_mu_is_that_of_the_study(tmp_path: Path, mu: float) -> None:
    centre = Centre(plan(strategy={"name": "fedprox", "mu": 0.1}), real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, weights, {"proximal-mu": mu}) == "not-of-the-plan"
    assert centre.ask("round", 1, 1, agreed, weights, {"proximal-mu": 0.1}) == ""


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_a_control_variate_is_no_longer_than_what_was_returned(tmp_path: Path, size: float) -> None:
    study = plan(strategy={"name": "scaffold"}, training__optimizer="sgd", training__lr=0.01)
    centre = Centre(study, real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    zeros = {k: np.zeros_like(v) for k, v in weights.items()}
    crafted = {k: np.full_like(v, size) for k, v in weights.items()}
    assert centre.ask("round", 1, 1, agreed, weights, {"counted-round": 0}, control=crafted) == "not-of-the-plan"
    assert centre.ask("round", 1, 1, agreed, weights, {"counted-round": 0}, control=zeros) == ""


def test_rounds_come_in_order_and_in_their_own_number(centre: Centre) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, weights, {"server-round": -99}) == "not-of-the-plan"
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    assert centre.ask("round", 4, 1, agreed, weights) == ""
    for number in (2, 3):
        assert centre.ask("round", number, 1, agreed, weights) == "not-of-the-plan"
    centre.restart()
    assert centre.ask("round", 3, 1, agreed, weights) == "not-of-the-plan", "a restart does not lift it"
    assert centre.ask("round", 5, 1, agreed, weights) == ""


def test_test_persons_are_evaluated_with_one_model_a_study(centre: Centre) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    assert centre.ask("evaluate", 6, 1, agreed, weights) == ""
    other = {k: v + np.float32(1e-4) for k, v in weights.items()}
    for run in range(2, 12):
        assert centre.ask("round", 1, run, agreed, weights) == ""
        assert centre.ask("evaluate", 6, run, agreed, other) == "replayed"
    assert centre.ask("evaluate", 6, 2, agreed, weights) == "", "the same weights reveal nothing new"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: {k: v * 1e-3 if k.endswith("std") else v for k, v in c.items()},
        lambda c: {k: v + 1e4 if k.endswith("mean") else v for k, v in c.items()},
        lambda c: {k: -v if k.endswith("std") else v for k, v in c.items()},
        lambda c: {k: v[:1] for k, v in c.items()},
    ],
    ids=["scaled", "moved", "negative", "short"],
)
def test_constants_fit_the_sites_own_persons(centre: Centre, change: Any) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    crafted = replace(agreed, constants=change(agreed.constants))
    assert centre.ask("round", 1, 2, crafted, weights) in ("not-of-the-plan", "bad-message")


def test_a_distrusted_centre_is_answered_in_private_studies_only(tmp_path: Path) -> None:
    for number, (study, code) in enumerate(
        [
            (plan(), "centre-distrusted"),
            (plan(privacy={**PRIVATE, "metrics": "exact"}), "centre-distrusted"),
            (plan(privacy={"unit": "site", "noise_multiplier": 1.0, "ranges": PRIVATE["ranges"]}), "centre-distrusted"),
            (plan(privacy=PRIVATE), ""),
        ]
    ):
        centre = Centre(study, real_site(tmp_path / f"a{number}", "max_epsilon = 5"))
        assert centre.ask("describe", 0, 1) == code
        assert centre.journal()[-1]["verdict"] == ("refused" if code else "accepted")


def test_trust_is_stated_by_the_approver_and_is_in_the_journal(tmp_path: Path) -> None:
    centre = Centre(plan(), real_site(tmp_path / "a", ""), trust="we run the centre ourselves")
    assert centre.ask("describe", 0, 1) == ""
    assert "we run the centre ourselves" in centre.journal()[0]["reason"]
    untold = Centre(plan(), real_site(tmp_path / "b", ""))
    assert untold.ask("describe", 0, 1) == "centre-distrusted"


def test_an_approval_needs_its_journal_entry_and_a_file_that_others_cannot_write(centre: Centre) -> None:
    path, other = centre.state / "approvals.json", plan(study__seed=7)
    import json

    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {**rows[0], "sha256": other.sha256}]))
    assert centre.ask("describe", 0, 1, study=other) == "not-approved"
    path.write_text(json.dumps([{**rows[0], "trust": "written by hand"}]))
    assert centre.ask("describe", 0, 2) == "not-approved"
    path.write_text(json.dumps(rows))
    assert centre.ask("describe", 0, 3) == ""
    for mode in (0o666, 0o664, 0o622):
        os.chmod(path, mode)
        assert centre.ask("describe", 0, 4) == "not-approved"
    os.chmod(path, 0o600)
    assert centre.ask("describe", 0, 5) == ""


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_journal_that_was_cut_starts_no_replays(centre: Centre, left: int) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    path = centre.state / "journal.jsonl"
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[:left])) if left else path.unlink()
    centre.restart()
    assert centre.ask("round", 1, 1, agreed, weights) == "state-lost"
    path.write_bytes(b"".join(lines))
    centre.restart()
    assert centre.ask("round", 1, 1, agreed, weights) == "replayed"
    assert centre.ask("round", 2, 1, agreed, weights) == ""


def drop_persons(folder: Path, ids: list[str]) -> None:
    for name in ("persons.csv", "clinical.csv"):
        lines = (folder / name).read_text().splitlines(True)
        (folder / name).write_text("".join(line for line in lines if line.split(",")[0] not in ids))


@pytest.mark.parametrize(("persons", "code"), [(1, "too-few-persons"), (2, "too-few-persons"), (4, "too-few-persons"), (60, "")])
def test_a_patient_added_between_two_runs_is_not_told_by_subtraction(tmp_path: Path, persons: int, code: str) -> None:
    folder = real_site(tmp_path / "a")
    centre = Centre(plan(), folder)
    whole = {name: (folder / name).read_text() for name in ("persons.csv", "clinical.csv")}
    cohort = centre.cohort()
    drop_persons(folder, [cohort.ids[row] for row in cohort.rows("train")[:persons]])
    assert centre.agree(1).persons["a"]["train"]
    for name, text in whole.items():
        (folder / name).write_text(text)
    assert centre.ask("describe", 0, 2) == code
    assert centre.ask("describe", 0, 3) == code, "also after a refusal"
    centre.restart()
    assert centre.ask("describe", 0, 4) == code


def test_data_that_change_are_read_anew_and_end_the_run(centre: Centre) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    cohort = centre.cohort()
    withdrawn = [cohort.ids[row] for row in cohort.rows("train")[:100]]
    drop_persons(centre.folder, withdrawn)
    assert centre.ask("round", 2, 1, agreed, weights) == "data-changed"
    before = len(cohort.rows("train"))
    assert centre.ask("describe", 0, 2) == ""
    assert centre.answered[-1][1]["described/persons"][0].sum() == before - 100, "those who withdrew are not in the next run"


def test_the_policy_is_read_anew_when_it_changes(centre: Centre) -> None:
    assert centre.ask("describe", 0, 1) == ""
    text = (centre.folder / "site.toml").read_text()
    (centre.folder / "site.toml").write_text(text.replace("curious", "distrusted"))
    assert centre.ask("describe", 0, 2) == "centre-distrusted"
    (centre.folder / "site.toml").write_text("not = toml = at all")
    assert centre.ask("describe", 0, 3) == "bad-data"
    (centre.folder / "site.toml").write_text(text)
    assert centre.ask("describe", 0, 4) == ""


@pytest.mark.parametrize("edge", [50, 51, 49])
def test_two_studies_with_bands_a_year_apart_are_not_both_answered(tmp_path: Path, edge: int) -> None:
    """Fewer than five persons are of one age."""
    folder = real_site(tmp_path / "a")
    first = Centre(plan(evaluation={"bands": {"x1": [52]}}), folder)
    agreed = first.agree(1)
    assert first.ask("round", 1, 1, agreed, first.first(agreed)) == ""
    second = Centre(plan(evaluation={"bands": {"x1": [edge]}}, study__name="other"), folder)
    between = ((first.cohort().input("clinical", object).values[first.cohort().rows("test"), 0] // 1) >= edge).sum()
    assert between
    assert second.ask("describe", 0, 2) in ("too-few-persons", "")
    told = [entry["reason"] for entry in second.journal() if entry["verdict"] == "refused"]
    ages = first.cohort().input("clinical", object).values[first.cohort().rows("test"), 0]
    few = 0 < ((ages >= edge) & (ages < 52)).sum() < 5
    assert (told == ["too-few-persons"]) == few


def test_sums_of_one_persons_image_do_not_leave(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    clinical_site(folder, "a", 200, 1)
    ids = [f"a{k:04d}" for k in range(200)]
    study = make_study(("clinical", "image"), sites=("a",), cohort__split=SPLIT)
    cohort = Centre(plan(), real_site(tmp_path / "b", persons=200)).cohort()
    one = cohort.ids[cohort.rows("train")[0]]
    np.savez(folder / "images.npz", ids=np.array([one]), images=np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    text = (folder / "site.toml").read_text().replace("public = true\n", 'image = { path = "images.npz", format = "npz" }\n')
    (folder / "site.toml").write_text(f'{text}\n[policy]\ncentre = "curious"\n')
    assert one in ids
    centre = Centre(study, folder)
    assert centre.ask("describe", 0, 1) == ""
    agreed = replace(Centre(plan(), real_site(tmp_path / "c")).agree(1), image_shape=(1, 8, 8), constants={})
    assert centre.ask("statistics", 0, 1, agreed=agreed) == ""
    assert not centre.answered[-1][1].get("sums/preprocess.image", np.zeros(1)).any()


def test_a_budget_covers_exact_metrics_and_delta(tmp_path: Path) -> None:
    exact = plan(privacy={**PRIVATE, "metrics": "exact"})
    centre = Centre(exact, real_site(tmp_path / "a", 'centre = "curious"\nmax_epsilon = 1.0'))
    assert centre.ask("describe", 0, 1) == "privacy-budget"
    from fedml.errors import InputError

    for delta in (0.2, 0.01, 1 / 140):
        with pytest.raises(InputError, match="must be below 1 / 140"):
            plan(privacy={**PRIVATE, "delta": delta})


@pytest.mark.parametrize("persons", [0, 1, 30])
def test_noised_counts_are_sent_of_a_part_without_persons_too(tmp_path: Path, persons: int) -> None:
    folder = real_site(tmp_path / "a", "max_epsilon = 9")
    ids = [f"a{k:04d}" for k in range(240)]
    write_csv(folder / "split.csv", ids, {"part": ["val"] * persons + ["test"] * 40 + ["train"] * (200 - persons)})
    text = (folder / "site.toml").read_text().replace('persons = "persons.csv"\n', 'persons = "persons.csv"\nsplit = "split.csv"\n')
    (folder / "site.toml").write_text(text)
    centre = Centre(plan(privacy=PRIVATE), folder)
    agreed = centre.agree(1)
    assert centre.ask("round", 1, 1, agreed, centre.first(agreed)) == ""
    got = centre.answered[-1][1]
    assert {"counts/val/confusion", "counts/val/histogram"} <= got.keys()
    assert got["counts/val/confusion"].any()


@pytest.mark.parametrize("persons", [1, 4])
def test_a_column_that_few_persons_have_is_not_learned(tmp_path: Path, persons: int) -> None:
    """Its weights would change by those persons alone."""
    folder = real_site(tmp_path / "a")
    known = Centre(plan(), real_site(tmp_path / "b")).cohort()
    kept = {known.ids[row] for row in known.rows("train")[:persons]}
    lines = [line.split(",") for line in (folder / "clinical.csv").read_text().splitlines()]
    rows = [",".join([*line[:3], line[3] if line[0] in kept or line[0] == "id" else ""]) for line in lines]
    (folder / "clinical.csv").write_text("\n".join(rows))
    centre = Centre(plan(training__optimizer="sgd", training__lr=0.1), folder)
    agreed = centre.agree(1)
    constants = {k: v.clone() for k, v in agreed.constants.items()}
    constants["preprocess.clinical.mean"][2], constants["preprocess.clinical.std"][2] = 0.0, 1.0
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, replace(agreed, constants=constants), weights) == ""
    change = centre.answered[-1][1]["arrays/" + WEIGHT] - weights[WEIGHT]
    assert change[:, :2].all()
    assert not change[:, 2].any()


@pytest.mark.parametrize(
    "privacy", [{"unit": "site", "noise_multiplier": 1.0, "ranges": PRIVATE["ranges"]}, {**PRIVATE, "metrics": "exact"}]
)
def test_stated_constants_are_those_of_the_study(tmp_path: Path, privacy: dict[str, Any]) -> None:
    centre = Centre(plan(privacy=privacy), real_site(tmp_path / "a", 'centre = "curious"\nmax_epsilon = 5\nallow_unprotected = true'))
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    crafted = {k: v * 1e-6 if k.endswith("std") else v for k, v in agreed.constants.items()}
    assert centre.ask("round", 1, 2, replace(agreed, constants=crafted), weights) == "not-of-the-plan"
    assert centre.ask("round", 1, 3, agreed, weights) == ""


def test_another_run_does_not_lift_the_order_of_the_first(centre: Centre) -> None:
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    for number in (1, 6):
        assert centre.ask("round", number, 1, agreed, weights) == ""
    assert centre.ask("round", 1, 2, agreed, weights) == ""
    assert centre.ask("round", 2, 1, agreed, weights) == "not-of-the-plan"


def test_missed_rounds_do_not_let_weights_run_away(tmp_path: Path) -> None:
    centre = Centre(plan(federation__rounds=1000), real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    far = {k: v + np.float32(3) for k, v in centre.first(agreed).items()}
    assert centre.ask("round", 1000, 1, agreed, far) == "not-of-the-plan"
    assert centre.ask("evaluate", 1000, 1, agreed, centre.first(agreed)) == "not-of-the-plan"
    assert centre.ask("round", 900, 1, agreed, centre.first(agreed)) == "", "a site that joins late takes part"


def test_a_late_site_takes_part_in_scaffold(tmp_path: Path) -> None:
    study = plan(strategy={"name": "scaffold"}, training__optimizer="sgd", training__lr=0.01)
    centre = Centre(study, real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    small = {k: np.full_like(v, 1e-3) for k, v in weights.items()}
    assert (
        centre.ask("round", 3, 1, agreed, weights, {"counted-round": 0}, control={k: v + 1e6 for k, v in small.items()})
        == "not-of-the-plan"
    )
    assert centre.ask("round", 3, 1, agreed, weights, {"counted-round": 0}, control=small) == ""


def attack(centre: Centre, agreed: Any, honest: Arrays, draw: np.random.Generator) -> tuple[str, float]:
    """One message of the centre's choice: its code, and the largest weight that it held (0: none)."""
    run, at = int(draw.integers(1, 19)), int(draw.integers(1, 7))
    age = float(draw.integers(30, 80))
    scale = float(10.0 ** draw.uniform(-2, 4))
    crafted, _ = isolating(honest[WEIGHT].shape, age, scale, draw.normal(0, 10, 3).astype(np.float32), float(draw.normal()))
    near = {k: v + np.float32(draw.normal(0, 10.0 ** draw.uniform(-4, 1))) for k, v in honest.items()}
    weights = [honest, crafted, near, {WEIGHT: crafted[WEIGHT], BIAS: honest[BIAS]}][int(draw.integers(4))]
    largest = max(float(np.abs(value).max()) for value in weights.values())
    match int(draw.integers(4)):
        case 0:
            return centre.ask("evaluate", 6, run, agreed, weights), largest
        case 1:
            constants = {k: v * float(10.0 ** draw.uniform(-3, 3)) for k, v in agreed.constants.items()}
            return centre.ask("round", at, run, replace(agreed, constants=constants), weights), largest
        case 2:
            return centre.ask(str(draw.choice(["describe", "statistics"])), 0, run, agreed if draw.random() < 0.5 else None), 0.0
        case _:
            return centre.ask("round", at, run, agreed, weights, {"server-round": at} if draw.random() < 0.5 else None), largest


def many_messages(centre: Centre, messages: int, seed: int) -> dict[str, list[float]]:
    """Code ("": answered) -> the largest weight of each message."""
    agreed = centre.agree(1)
    honest, draw, codes = centre.first(agreed), np.random.default_rng(seed), dict[str, list[float]]()
    for _ in range(messages):
        code, largest = attack(centre, agreed, honest, draw)
        codes.setdefault(code, []).append(largest)
    return codes


def rows_read(centre: Centre) -> int:
    """Persons of whom an answer has a cell of their own, or whose age alone decides it: what the attacks of a histogram read from."""
    return sum(len(small_cells({k: v for k, v in got.items() if k.startswith(("counts/", "described/"))}, 5)) for _, got in centre.answered)


@pytest.mark.parametrize("messages", [120, pytest.param(1000, marks=pytest.mark.long)])
def test_messages_of_its_own_choice_read_no_person_at_a_curious_site(centre: Centre, messages: int) -> None:
    codes = many_messages(centre, messages, seed=3)
    assert rows_read(centre) == 0
    assert max(codes[""]) < 5 < max(codes["not-of-the-plan"]), "no weights that write columns into an answer were answered"
    assert sum(map(len, codes.values())) == messages
    sent = [got for phase, got in centre.answered if phase in ("round", "evaluate")]
    spread = [float(np.abs(got["arrays/" + WEIGHT]).max()) for got in sent if "arrays/" + WEIGHT in got]
    assert max(spread, default=0.0) < 5, "no model that saturates was trained or evaluated"


@pytest.mark.parametrize("messages", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_messages_of_its_own_choice_are_all_refused_at_a_distrusting_site(tmp_path: Path, messages: int) -> None:
    centre = Centre(plan(), real_site(tmp_path / "a", ""))
    helper = Centre(plan(), real_site(tmp_path / "b"))
    agreed = helper.agree(1)
    honest, draw = helper.first(agreed), np.random.default_rng(5)
    codes = {attack(centre, agreed, honest, draw)[0] for _ in range(messages)}
    assert codes == {"centre-distrusted"}
    assert not centre.answered
