"""The gate answers what a study plans, in its own numbers, and no more, from any sender and in any run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.checks import Limits, check_reply, limits
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import Policy, read_site
from fedml.clients.work.request import Request
from fedml.contract.disclosure import DisclosedPolicy, policy_bytes, read_policy
from fedml.contract.replies import check_form
from fedml.errors import Reason, SiteError
from fedml.flower.grid import InProcessGrid
from fedml.models.fusion import build_model, learned
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.agreement import Agreement
from fedml.study.study import Study
from fedml.wire.packing import bundle
from fedml.wire.records import COUNTS, HISTOGRAM, PERSONS, VOXELS, Phase, pack
from tests.conftest import clinical_site, make_study

PRIVATE = {"unit": "patient", "epsilon": 2.0, "persons": {"a": 80}, "ranges": {f"x{k}": [-10, 300] for k in (1, 2, 3)}}


class Site:
    """A site behind its gate, and what a server knows of it."""

    def __init__(self, folder: Path, study: Study, policy: str = "") -> None:
        clinical_site(folder, "a", 200, 1)
        with (folder / "site.toml").open("a") as file:
            file.write(f"[policy]\nmin_persons = 5\nmax_epsilon = 20\nallow_unprotected = true\n{policy}")
        site = read_site(folder)
        approve(prepare_state(site), study, "Dr. Test")
        self.study, self.run = study, 1
        self.gate = Gate(site, site.state)
        self.grid = InProcessGrid(self._handle, [{}])
        self.agreed: Agreement = agree(study, self.grid)
        self.weights = pack(learned(build_model(study, self.agreed.layout(study))))

    def _handle(self, message: Any, context: Context) -> Any:
        message.metadata.__dict__["_run_id"] = self.run
        return self.gate.handle(message, context)

    def ask(self, phase: str, number: int, run: int = 2, agreed: Agreement | None = None) -> str:
        """The code of the refusal; empty if it was answered."""
        self.run = run
        content = RecordDict({"config": ConfigRecord({"study": self.study.canonical, "phase": phase, "round": number})})
        if phase != "describe":
            content.update((agreed or self.agreed).record())
        if phase in ("round", "evaluate"):
            content["arrays"] = self.weights
        kind = {"round": "train", "evaluate": "evaluate"}.get(phase, "query")
        (sent,) = self.grid.push_messages([Message(content, next(iter(self.agreed.nodes)), kind)])
        (reply,) = self.grid.pull_messages([sent])
        return reply.error.reason if reply.has_error() else ""


def test_test_persons_are_looked_at_once_a_run_at_its_end(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", make_study(sites=("a",), federation__rounds=3))
    for number in (0, 1, 2):
        assert site.ask("evaluate", number) == "rounds-beyond-policy"
    assert site.ask("evaluate", 3) == "not-of-the-plan", "no round was answered"
    assert site.ask("round", 1) == ""
    assert site.ask("evaluate", 3) == ""
    assert site.ask("evaluate", 3) == "replayed"
    assert site.ask("round", 0) == "rounds-beyond-policy"
    for number in (1, 2):
        assert site.ask("statistics", number) == "rounds-beyond-policy"
        assert site.ask("describe", number) == "rounds-beyond-policy"


def test_a_study_that_was_not_approved_is_not_answered(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", make_study(sites=("a",)))
    assert site.ask("describe", 0) == ""
    site.study = make_study(sites=("a",), study__seed=1)  # the same but for its seed
    for run, phase in enumerate(("describe", "statistics", "round"), 3):
        assert site.ask(phase, int(phase == "round"), run) == "not-approved"


def test_a_private_study_gives_out_nothing_that_its_figure_does_not_count(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", make_study(sites=("a",), privacy=PRIVATE))
    for run in range(2, 6):
        for number in (0, 1):
            assert site.ask("statistics", number, run) != ""
    assert site.ask("statistics", 0, 9) == "undeclared-record"
    assert site.ask("genotypes", 0, 9) == "undeclared-record"
    assert site.ask("round", 1, 9) == ""


def test_a_run_goes_on_with_what_was_agreed_on(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", make_study(sites=("a",), federation__rounds=3))
    assert site.ask("round", 1) == ""
    constants = {name: value + 1 for name, value in site.agreed.constants.items()}
    other = replace(site.agreed, constants=constants)
    assert site.ask("round", 2, agreed=other) == "replayed"
    assert site.ask("round", 2) == ""
    assert site.ask("round", 1, run=3, agreed=other) == "", "another run may agree on others"


def test_a_study_is_run_as_often_as_the_policy_allows_also_after_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path / "a", make_study(sites=("a",), federation__rounds=3), "max_runs = 3\n")
    assert [site.ask("round", 1, run) for run in (2, 3)] == ["", ""]  # the first run was that which agreed
    assert site.ask("round", 1, 4) == "replayed"
    assert site.ask("round", 2, 3) == ""
    site.gate = Gate(site.gate.site, site.gate.state)
    assert site.ask("round", 1, 5) == "replayed"
    assert site.ask("round", 3, 3) == ""


@pytest.mark.parametrize("wrong", [{"min_persons": 10**400}, {"max_rounds": -1}, {"max_quarantined": 2.0}, {"delta": 0.0}])
def test_a_policy_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    sound: dict[str, Any] = {"min_persons": 20, "min_count": 5, "max_rounds": 10, "max_epsilon": 0.0, "delta": 1e-5}
    sound |= {"allow_unprotected": False, "deidentification": "refuse", "max_quarantined": 0.1}
    assert read_policy(policy_bytes(DisclosedPolicy(**sound))).min_count == 5
    with pytest.raises(ValueError, match="exactly its keys"):
        read_policy(policy_bytes(DisclosedPolicy.model_construct(**(sound | wrong))))


def test_a_histogram_of_more_voxels_than_there_are_is_refused() -> None:
    image = {"size": [8, 8], "percentiles": [1, 99]}
    study = make_study(("image",), sites=("a",), cohort__image=image)
    for count, fits in ((10, True), (2**45, False), (2**62, False), (-1, False)):
        histogram = np.zeros(4096, np.int64)
        histogram[[7, 9]] = count
        reply = RecordDict({VOXELS: pack({HISTOGRAM: histogram, PERSONS: np.array([30], np.int64)})})
        if fits:
            check_form(study, Phase.VOXELS, "a", reply, None)
        else:
            with pytest.raises(SiteError):
                check_form(study, Phase.VOXELS, "a", reply, None)


@pytest.mark.parametrize(
    ("test", "groups", "code"),
    [
        (100, {"sex:0": 60, "sex:1": 40}, ""),
        (100, {"sex:0": 60}, ""),
        (100, {"sex:0": 95}, Reason.TOO_FEW),  # the five others follow by subtraction
        (100, {"sex:0": 55, "sex:1": 40}, Reason.TOO_FEW),
        (100, {"sex:0": 91, "sex:1": 9}, Reason.TOO_FEW),
        (9, {}, Reason.TOO_FEW),
        (0, {}, ""),
    ],
)
def test_no_metrics_of_few_persons_leave_neither_plainly_nor_by_subtraction(test: int, groups: dict[str, int], code: str) -> None:
    study = make_study(sites=("a",), evaluation={"subgroups": {"sex": [0, 1]}})
    persons = {"test/persons": test} | {f"test@{label}/persons": n for label, n in groups.items()}
    reply = RecordDict({COUNTS: pack({key: np.array([float(n)]) for key, n in persons.items()})})
    question = Request(study, Phase.EVALUATE, study.federation.rounds, {}, "a", ())
    allowed = Limits(min_persons=1, min_count=10, max_rounds=10, max_request_mb=10, max_reply_mb=10)
    if code:
        with pytest.raises(SiteError) as caught:
            check_reply(question, reply, RecordDict(), allowed)
        assert caught.value.reason == code
    else:
        check_reply(question, reply, RecordDict(), allowed)


def test_the_stricter_of_site_and_study_holds() -> None:
    policy = Policy(min_persons=20, min_count=5, max_reply_mb=100)
    strict = limits(policy, make_study(policy={"min_persons": 30, "min_count": 8, "max_reply_mb": 50}))
    assert (strict.min_persons, strict.min_count, strict.max_reply_mb) == (30, 8, 50)
    own = limits(policy, make_study(policy={"min_persons": 10, "min_count": 2, "max_reply_mb": 200}))
    assert (own.min_persons, own.min_count, own.max_reply_mb) == (20, 5, 100)


def test_without_an_approval_nothing_is_unpacked(tmp_path: Path) -> None:
    """An index within the limit, in a message of a study that nobody approved: it is not read, and the journal has its size and digest."""
    site = Site(tmp_path, make_study(sites=("a",)))
    site.study = make_study(sites=("a",), study__seed=8)
    content = RecordDict({"arrays": bundle(RecordDict({"x": pack({f"k{k}": np.zeros(1) for k in range(9_000)})}))["x"]})
    content["config"] = ConfigRecord({"study": site.study.canonical, "phase": "round", "round": 1})
    with patch("fedml.clients.gate.gate.unbundle", side_effect=AssertionError("it was unpacked")):
        (sent,) = site.grid.push_messages([Message(content, 1, "train")])
        (reply,) = site.grid.pull_messages([sent])
    assert reply.error.reason == Reason.NOT_APPROVED
    last = json.loads((tmp_path / ".fedml" / "journal.jsonl").read_text().splitlines()[-1])
    assert last["reason"] == Reason.NOT_APPROVED
    assert any(record["bytes"] > 500_000 for record in last["records"])
