"""Where the data are on the same machine, the commands ask each site's budget and charge its ledger as a deployment does."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedml.clients.gate.ledger import Ledger
from fedml.privacy.accounting import epsilon
from fedml.privacy.releases import evaluation_events, training_events
from fedml.study.read import read_study
from tests.command import quick as command
from tests.conftest import clinical_site, make_plan, to_toml

DELTA = 1e-4
PRIVATE = {
    "unit": "patient", "noise_multiplier": 4.0, "delta": DELTA, "persons": {"a": 80, "b": 80}, "metrics": "private",
    "ranges": {"x1": [-5, 10], "x2": [-10, 10], "x3": [0, 250]},
}  # fmt: skip
PLAN = {"privacy": PRIVATE, "training__optimizer": "sgd", "training__batch_size": 0, "federation__rounds": 3}


def sites(folder: Path, policy: str | None) -> Path:
    """Two sites of persons that are not public; without ``policy``, public ones."""
    for seed, name in enumerate("ab"):
        manifest = clinical_site(folder / "sites" / name, name, 120, seed, missing=0.0)
        if policy is not None:
            manifest.write_text(manifest.read_text().replace("public = true\n", "") + f"\n[policy]\ndelta = {DELTA}\n{policy}\n")
    return folder / "sites"


def study(folder: Path, **changes: Any) -> Path:
    path = folder / "study.toml"
    path.write_text(to_toml(make_plan(**{**PLAN, **changes})))
    return path


def spent(folder: Path, site: str = "a") -> float:
    return Ledger(folder / "sites" / site / ".fedml" / "ledger.db").spent(DELTA)


def charges(folder: Path, site: str = "a") -> list[tuple[str, str, int, bool]]:
    """(run, phase, round, has an epsilon) of each row."""
    with closing(sqlite3.connect(folder / "sites" / site / ".fedml" / "ledger.db")) as db:
        return db.execute("SELECT run, phase, round, events IS NOT NULL FROM charge ORDER BY id").fetchall()


def test_a_run_is_charged_as_its_plan_says_until_the_budget_is_spent(tmp_path: Path) -> None:
    plan = study(tmp_path)
    once = epsilon(training_events(read_study(plan), "a"), DELTA)
    sites(tmp_path, f"max_epsilon = {1.2 * once}")
    words = ("run", plan, "--sites", "sites", "--no-track")
    first = command("fedml", *words, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert once <= spent(tmp_path) == spent(tmp_path, "b") <= 1.2 * once
    rounds = [row for row in charges(tmp_path) if row[1] == "round"]
    assert {row[2] for row in rounds} == {1, 2, 3}
    assert all(row[3] for row in charges(tmp_path))
    assert {row[0] for row in rounds} == {f"local {next((tmp_path / 'fedml-runs').glob('toy-*')).name}"}
    before, runs = charges(tmp_path), len(list((tmp_path / "fedml-runs").iterdir()))
    second = command("fedml", *words, cwd=tmp_path)
    assert second.returncode == 2, "nothing is started"
    assert "the privacy budget does not suffice" in second.stderr
    assert "site.toml" in second.stderr
    assert charges(tmp_path) == before
    assert len(list((tmp_path / "fedml-runs").iterdir())) == runs
    other = command("fedml", *words, "--set", "study.name=other", "--seed", 9, cwd=tmp_path)
    assert other.returncode == 2, "another name or seed has the same budget"


@pytest.mark.parametrize(
    ("policy", "changes", "said"),
    [
        ("", {}, "max_epsilon is 0"),
        ("max_epsilon = 50", {"privacy": PRIVATE | {"metrics": "exact"}}, "exact counts of held-out persons"),
        ("max_epsilon = 50", {"privacy": {}}, "has no privacy of a patient"),
        ("max_epsilon = 50", {"privacy": PRIVATE | {"persons": {"a": 20, "b": 20}, "delta": 0.02}}, "it must be below 1 / "),
    ],
)
def test_what_a_policy_forbids_is_not_started(policy: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    sites(tmp_path, policy)
    done = command("fedml", "run", study(tmp_path, **changes), "--sites", "sites", "--no-track", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr, done.stderr
    assert not (tmp_path / "fedml-runs").exists()


def test_public_data_and_studies_without_a_unit_need_no_ledger(tmp_path: Path) -> None:
    for folder, policy, changes in ((tmp_path / "one", None, {}), (tmp_path / "two", "", {"privacy": {}})):
        sites(folder, policy)
        done = command("fedml", "run", study(folder, **changes), "--sites", "sites", "--no-track", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert not list(folder.glob("sites/*/.fedml/ledger.db"))


def test_a_comparison_is_charged_for_each_seed_and_states_the_total(tmp_path: Path) -> None:
    plan = study(tmp_path)
    sites(tmp_path, "max_epsilon = 40\nallow_unprotected = true")
    words = ("compare", plan, "--sites", "sites", "--baselines", "pooled,local", "--seeds", "0-1", "--json")
    done = command("fedml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout.splitlines()[-1])["privacy"]
    # Each seed: federated, pooled, and each of the two sites alone; a person of a site is in three of the four trainings.
    assert cost["a"]["trainings"] == 6
    assert cost["a"]["evaluations"] == 8
    one = training_events(read_study(plan), "a")
    assert spent(tmp_path) == cost["a"]["spent"] > epsilon(4 * one, DELTA)
    assert spent(tmp_path) <= cost["a"]["epsilon"]
    assert "Privacy: a: 6 trainings and 8 evaluations cost each person at most epsilon" in done.stderr
    trained = {row[0] for row in charges(tmp_path) if row[1] == "round"}
    assert len(trained) == 6
    assert any(row[1] == "compare" and not row[3] for row in charges(tmp_path)), "exact outputs of test persons are listed"


def test_a_comparison_that_exceeds_the_budget_is_not_begun(tmp_path: Path) -> None:
    plan = study(tmp_path)
    once = epsilon(training_events(read_study(plan), "a"), DELTA)
    sites(tmp_path, f"max_epsilon = {1.9 * once}\nallow_unprotected = true")
    words = ("compare", plan, "--sites", "sites", "--baselines", "", "--seeds", "0-4")
    done = command("fedml", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "the privacy budget does not suffice" in done.stderr
    assert not list(tmp_path.glob("sites/*/.fedml/ledger.db")) or not charges(tmp_path)


def test_a_comparison_whose_cost_cannot_be_computed_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of public data too, which have no ledger: afterwards it would be too late."""
    from fedml.clients.site.manifest import read_site
    from fedml.errors import InputError
    from fedml.experiments.compare.train import compare

    plan, folder = read_study(study(tmp_path)), sites(tmp_path, None)
    found = {name: read_site(folder / name) for name in "ab"}
    monkeypatch.setattr("fedml.privacy.accounting.MOST_STEPS", 3)
    with pytest.raises(InputError, match="all runs together cannot be computed"):
        compare([plan], found, ("pooled",), None, tmp_path / "runs", Console())
    assert not (tmp_path / "runs").exists()


def test_a_budget_that_another_study_spends_meanwhile_ends_the_run(tmp_path: Path) -> None:
    """The reply is charged when it is computed, not only when the run begins: the site refuses, and the log says why."""
    from fedml.clients.gate.local import ledger_of
    from fedml.clients.site.manifest import read_site
    from fedml.errors import RunError
    from fedml.experiments.runs.run import run_nodes
    from fedml.privacy.accounting import gaussian

    folder, plan = sites(tmp_path, "max_epsilon = 4"), read_study(study(tmp_path))
    people = [line.split(",")[0] for line in (folder / "a" / "persons.csv").read_text().splitlines()[1:]]
    about = {"run": "x", "study": "0" * 64, "study_name": "other", "phase": "round", "round": 1, "max_epsilon": 99.0, "delta": DELTA}
    ledger_of(read_site(folder / "a")).charge_all([(people, gaussian(0.5))], **about)  # type: ignore[arg-type]
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"a \(privacy-budget\)"):
        run_nodes(plan, [{"manifest": str((folder / name / "site.toml").resolve())} for name in "ab"], tmp_path / "run")


def test_an_audit_is_another_training_of_the_same_persons(tmp_path: Path) -> None:
    plan = study(tmp_path, federation__sites=["a"], privacy={**PRIVATE, "persons": {"a": 80}})
    each = (training_events(read_study(plan), "a"), evaluation_events(read_study(plan)))
    two, three = (max(epsilon(times * events, DELTA) for events in each) for times in (2, 3))
    sites(tmp_path, f"max_epsilon = {(two + three) / 2}")
    assert command("fedml", "run", plan, "--sites", "sites", "--no-track", cwd=tmp_path).returncode == 0
    before, run = spent(tmp_path), next((tmp_path / "fedml-runs").glob("toy-*"))
    without = command("fedml", "audit", run, "--sites", "sites", "--canaries", 10, "--noise-off", cwd=tmp_path)
    assert without.returncode == 2, "without noise no budget suffices"
    assert spent(tmp_path) == before
    done = command("fedml", "audit", run, "--sites", "sites", "--canaries", 10, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert spent(tmp_path) == pytest.approx(two, rel=0.01)
    again = command("fedml", "audit", run, "--sites", "sites", "--canaries", 10, cwd=tmp_path)
    assert again.returncode == 2
    assert "the privacy budget does not suffice" in again.stderr
