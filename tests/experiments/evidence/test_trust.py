"""How far each site trusted the centre, and why, is in the run's evidence: events, bundle, report and model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import read_site
from fedml.contract.disclosure import DisclosedPolicy, policy_bytes, read_policy, trust_text
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.evidence.verify import verify
from fedml.experiments.report.page import render
from fedml.experiments.runs.record import read_record
from fedml.experiments.runs.run import new_run
from fedml.flower.grid import InProcessGrid
from fedml.strategies.server import app as server_app
from tests.conftest import clinical_site, make_study
from tests.evidence import KEY
from tests.report_runs import parsed

REASON = "the centre is our own hospital's"
SITES = {"a": "curious", "b": "trusted", "c": "public", "d": "hidden"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through four gates: of real data at two levels, of public data, and of a site that does not disclose its policy."""
    folder = tmp_path_factory.mktemp("trust")
    study, gates = make_study(sites=tuple(SITES), training__batch_size=0), []
    for seed, (name, level) in enumerate(SITES.items()):
        manifest = clinical_site(folder / name, name, 200, seed, missing=0.0)
        text = manifest.read_text() if level == "public" else manifest.read_text().replace("public = true\n", "")
        policy = {"curious": 'centre = "curious"', "hidden": 'centre = "curious"\ndisclose = false'}.get(level, "")
        manifest.write_text(f"{text}\n[policy]\n{policy}\n")
        site = read_site(folder / name)
        approve(prepare_state(site), study, "Dr. Test", REASON if level == "trusted" else "")
        gates.append(Gate(site, site.state))
    made = new_run(study, folder / "runs", None, engine="deployment", job="train")
    grid = InProcessGrid(lambda message, context: gates[context.node_id - 1].handle(message, context), [{} for _ in SITES])
    config: dict[str, bool | int | float | str] = {"study": study.canonical, "run": str(made)}
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return made


def test_levels_and_the_reason_are_in_events_bundle_report_and_card(run: Path) -> None:
    record = read_record(run)
    assert record.status == "finished"
    policies = {site.name: site.policy for site in record.sites}
    assert policies["d"] is None
    assert [(p["centre"], p["public"], p["trust"]) for p in policies.values() if p] == [
        ("curious", False, ""), ("trusted", False, REASON), ("distrusted", True, ""),
    ]  # fmt: skip
    write_bundle(run, run.parent / "run.zip", KEY)
    checked = verify(run.parent / "run.zip")
    assert checked.ok, [check for check in checked.checks if not check.ok]
    assert json.loads(unpack(run.parent / "run.zip")["policies.json"])["b"]["trust"] == REASON
    page = parsed(render(record)).section("flow")
    assert "the centre is" in page
    for text in (f"trusted: {REASON}", "curious", "public data", "not disclosed"):
        assert text in page
    card = model_card(record)
    assert f"the centre: trusted: {REASON}" in card
    assert "the centre: curious" in card


def test_what_a_site_says_of_its_trust_is_of_the_declared_form() -> None:
    sound = {"min_persons": 20, "min_count": 5, "max_rounds": 10, "max_epsilon": 0.0, "delta": 1e-5, "allow_unprotected": False}
    sound |= {"deidentification": "refuse", "max_quarantined": 0.1}
    old = read_policy(policy_bytes(DisclosedPolicy(**sound)))  # type: ignore[arg-type]
    assert trust_text(old.model_dump()) == "not stated"
    assert trust_text(old.model_dump() | {"centre": "trusted"}) == "trusted: no reason is given"
    for wrong in ({"centre": "loved"}, {"trust": "x" * 121}, {"trust": "\x1b[2J"}, {"public": "yes"}):
        with pytest.raises(ValueError, match="exactly its keys"):
            read_policy(policy_bytes(DisclosedPolicy.model_construct(**(sound | wrong))))  # type: ignore[arg-type]
