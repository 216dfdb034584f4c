"""A private study through the sites' own gates: ledgers are charged before anything leaves; a budget that is spent ends it by quorum."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedml.clients.gate import approvals
from fedml.clients.gate.gate import Gate
from fedml.clients.gate.journal import entries
from fedml.clients.gate.ledger import Ledger
from fedml.clients.gate.ledger_view import show
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import Site, read_site
from fedml.clients.work import client
from fedml.errors import RunError
from fedml.flower.grid import InProcessGrid
from fedml.privacy.accounting import epsilon, epsilon_gaussian
from fedml.privacy.releases import training_events
from fedml.strategies.server import app as server_app
from fedml.study.study import Study, validate
from tests.command import quick as command
from tests.conftest import Run, clinical_site, make_plan, to_toml

RANGES = {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}
SITES = ("a", "b")


def plan(**changes: Any) -> dict[str, Any]:
    privacy = {"unit": "patient", "epsilon": 2.0, "delta": 1e-5, "persons": {"a": 140, "b": 90}, "ranges": RANGES}
    return make_plan(sites=SITES, privacy=privacy | changes.pop("privacy", {}), **changes)


def hospitals(folder: Path, **policy: Any) -> list[Site]:
    """Two hospitals whose policies are alike; if not said otherwise, exact counts beside a budget are allowed."""
    policy.setdefault("allow_unprotected", True)
    for i, name in enumerate(SITES):
        clinical_site(folder / name, name, (200, 130)[i], i)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in policy.items())
        with (folder / name / "site.toml").open("a") as file:
            file.write(f"[policy]\n{lines}")
    return [read_site(folder / name) for name in SITES]


def through_gates(study: Study, sites: list[Site], folder: Path, number: int) -> Run:
    """A run whose every message passes the gate of its site; each site approved the study. ``number`` is Flower's for the run."""
    gates = []
    for site in sites:
        approvals.approve(prepare_state(site), study, "Dr. Test")
        gates.append(Gate(site, site.state))
    folder.mkdir()
    config: dict[str, Any] = {"study": study.canonical, "run": str(folder)}

    def answer(message: Any, context: Context) -> Any:
        message.metadata.__dict__["_run_id"] = number
        return gates[context.node_id - 1].handle(message, context)

    grid = InProcessGrid(answer, [{} for _ in sites])
    with suppress(RunError):
        server_app(grid, Context(run_id=number, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return Run.__new__(Run) if not (folder / "model.safetensors").exists() else Run(folder)


def reasons(site: Site) -> list[str]:
    return [e.reason for e in entries(site.state / "journal.jsonl") if e.verdict == "refused"]


def test_what_is_charged_is_what_was_released(tmp_path: Path) -> None:
    sites = hospitals(tmp_path, max_epsilon=8.0)
    study = validate(Study, plan(), "study")
    run = through_gates(study, sites, tmp_path / "run", 1)
    reported = next(e for e in run.events if e["event"] == "privacy")
    for site in sites:
        ledger = Ledger(site.state / "ledger.db")
        assert ledger.spent(1e-5) == pytest.approx(epsilon(training_events(study, site.name), 1e-5))
        assert ledger.spent(1e-5) == pytest.approx(reported["claims"][site.name]["epsilon"])
        assert reasons(site) == []
        text = show(site.state / "ledger.db", 8.0, 1e-5)
        assert "By study" in text
        assert "Without differential privacy" in text, "exact counts about those who are held out are named, with no epsilon"


def test_a_spent_budget_refuses_and_the_run_names_it(tmp_path: Path) -> None:
    sites = hospitals(tmp_path, max_epsilon=2.5)
    study = validate(Study, plan(), "study")
    through_gates(study, sites, tmp_path / "first", 1)
    spent = [Ledger(site.state / "ledger.db").spent(1e-5) for site in sites]
    renamed = validate(Study, plan(study__name="another", study__seed=5), "study")
    through_gates(renamed, sites, tmp_path / "second", 2)
    from fedml.runs.log import read_events

    end = read_events(tmp_path / "second")[0][-1]
    assert end["status"] == "failed"
    assert "a (privacy-budget)" in end["reason"]
    for site, before in zip(sites, spent, strict=True):
        ledger = Ledger(site.state / "ledger.db")
        assert before <= ledger.spent(1e-5) <= 2.5, "what fits is released; what does not is not"
        assert reasons(site)[-1] == "privacy-budget"
    reported = command("fedml-site", "ledger", "show", "--site", "a", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "toy" in reported.stdout
    assert "2.5" in reported.stdout


def test_without_a_granted_budget_no_private_study_runs(tmp_path: Path) -> None:
    sites = hospitals(tmp_path)
    through_gates(validate(Study, plan(), "study"), sites, tmp_path / "run", 1)
    assert all(reasons(site) == ["privacy-budget"] for site in sites)
    assert all(Ledger(site.state / "ledger.db").spent(1e-5) == 0 for site in sites)


def test_with_a_budget_an_unprotected_study_is_refused_unless_allowed(tmp_path: Path) -> None:
    study = validate(Study, make_plan(sites=SITES), "study")
    sites = hospitals(tmp_path / "strict", max_epsilon=3.0, allow_unprotected=False)
    through_gates(study, sites, tmp_path / "one", 1)
    assert all(reasons(site) == ["privacy-budget"] for site in sites)
    sites = hospitals(tmp_path / "open", max_epsilon=3.0, allow_unprotected=True)
    through_gates(study, sites, tmp_path / "two", 2)
    assert all(reasons(site) == [] for site in sites)
    reported = command("fedml-site", "ledger", "show", "--site", "open/a", cwd=tmp_path)
    assert "Without differential privacy" in reported.stdout, reported.stdout
    assert "138 persons, 2 answers" in reported.stdout


def test_noised_sums_and_metrics_are_charged_too(tmp_path: Path) -> None:
    sites = hospitals(tmp_path, max_epsilon=8.0)
    study = validate(Study, plan(privacy={"statistics": "private", "statistics_multiplier": 8.0, "metrics": "private"}), "study")
    through_gates(study, sites, tmp_path / "run", 1)
    for site in sites:
        spent = Ledger(site.state / "ledger.db").spent(1e-5)
        assert epsilon_gaussian(8.0, 1e-5) < spent <= 2.0


def test_the_study_plan_reaches_the_site_whole(tmp_path: Path) -> None:
    """Approving shows the unit and the promise in plain words."""
    hospitals(tmp_path, max_epsilon=8.0)
    (tmp_path / "study.toml").write_text(to_toml(plan()))
    reported = command("fedml-site", "approve", "study.toml", "--site", "a", "--yes", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "one patient of a site; epsilon 2" in reported.stdout


def test_the_charge_is_on_the_disk_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dies in training has been charged: a second look at the file, from the place where the work is done."""
    import fedml.clients.gate.gate

    sites = hospitals(tmp_path, max_epsilon=8.0)
    seen: list[float] = []
    real = fedml.clients.work.known.execute

    def looking(asked: Any, content: RecordDict, memory: Any) -> RecordDict:
        if asked.phase == "round" and asked.name == "a":
            seen.append(Ledger(sites[0].state / "ledger.db").spent(1e-5))
        return real(asked, content, memory)

    monkeypatch.setattr(fedml.clients.work.known, "execute", looking)
    study = validate(Study, plan(), "study")
    through_gates(study, sites, tmp_path / "run", 1)
    assert seen == pytest.approx([epsilon(training_events(study, "a", n), 1e-5) for n in (1, 2)])


def real_hospitals(folder: Path, **policy: Any) -> list[Site]:
    """``hospitals`` whose persons are not declared public."""
    for site in hospitals(folder, **policy):
        site.file.write_text(site.file.read_text().replace("public = true\n", ""))
    return [read_site(folder / name) for name in SITES]


def test_exact_metrics_of_too_few_do_not_leave_a_private_study_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate counts for itself: here the code behind it keeps nothing back, as if the persons were public."""
    monkeypatch.setattr(client, "protected", lambda request: False)
    sites = real_hospitals(tmp_path, max_epsilon=8.0, min_count=40, centre="curious")  # more than anybody's validation persons
    through_gates(validate(Study, plan(), "study"), sites, tmp_path / "exact", 1)
    assert all("too-few-persons" in reasons(site) for site in sites)
    sites = real_hospitals(tmp_path / "noised", max_epsilon=8.0, min_count=40, centre="curious")
    through_gates(validate(Study, plan(privacy={"metrics": "private"}), "study"), sites, tmp_path / "private", 2)
    assert all(reasons(site) == [] for site in sites)
