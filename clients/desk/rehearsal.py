"""``fedml-site start --dry-run``: one round of a study through the site's gate, on placeholder persons with the shapes of the site's data.

No other machine is contacted, and no value of a real person is used: the real files are read for their shapes and to check that they are
readable. The rehearsal's journal lists the records that a real round would send, and their sizes. Own code of the study runs where it would
run in a round: in confined processes, which here get the placeholder persons. The server's part needs nothing of it but the first weights.
"""

from __future__ import annotations

import json
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import RecordDict

from fedml.clients.gate import approvals
from fedml.clients.gate.code_store import keep, stored
from fedml.clients.gate.gate import Gate
from fedml.clients.gate.journal import Entry, entries
from fedml.clients.gate.trust import check_level, level_of
from fedml.clients.site.manifest import Site, check_roster, read_site
from fedml.clients.site.read import load_cohort
from fedml.code.load import forbidden
from fedml.errors import InputError, RunError, SiteError
from fedml.flower.grid import InProcessGrid
from fedml.strategies.agreement.agree import agree
from fedml.strategies.algorithms.fedprox import MU
from fedml.strategies.algorithms.registry import algorithm_of, make_strategy
from fedml.strategies.checkpoint import RunState
from fedml.strategies.exchange import request
from fedml.strategies.lateness import Lateness, persons_of
from fedml.strategies.rounds import begun, evaluate, one_round
from fedml.study.sources import provide
from fedml.study.study import Study, for_roster, parse_study, without_transforms
from fedml.synthetic.placeholder import make_placeholder
from fedml.synthetic.write_site import write_site
from fedml.wire.records import CONFIG, Phase


@dataclass(frozen=True)
class Rehearsal:
    """Time and traffic of one round: seconds of the training request, all entries of the rehearsal's journal, peak memory in MB."""

    persons: int
    seconds: float
    entries: tuple[Entry, ...]
    memory_mb: int
    replaced: str = ""  # the import path of a server's strategy, in whose place a built-in one ran
    as_if: str = ""  # why the site would refuse the study as it is approved now; it was rehearsed as if its centre were trusted


def studies_of(site: Site) -> list[Study]:
    """The studies of a rehearsal without ``--study``: those approved at this site.

    Raises:
        InputError: no study is approved.
    """
    found = approvals.approved_studies(site.state)
    if not found:
        raise InputError(f"{site.state}: no approved study to rehearse; approve a study first, or give a file with --study.")
    return found


def _without_imports(study: Study) -> Study:
    """``study``, with a built-in strategy of the same messages in the place of one that the study names by an import path: that module is
    code of the study's author, which only the server runs."""
    if ":" not in study.strategy.name:
        return study
    replies = algorithm_of(study)  # the site's part, which imports nothing that the study names
    sent = {"name": "fedprox", "mu": replies.sends.values[MU]} if MU in replies.sends.config else {"name": "fedavg"}
    return parse_study(json.dumps(study.model_dump(mode="json") | {"strategy": sent}))


def _provided(site: Site, study: Study, given: bool) -> None:
    """Makes the files of own code known to this process: of an approved study those of the site's store.

    Raises:
        InputError: the study is not approved, and its files were not given. SiteError: the store was changed.
    """
    if study.code is None:
        return
    if site.state.exists() and approvals.approval_of(site.state, study.sha256) is not None:
        for data in stored(site.state, study.code).files.values():
            provide(data)
    elif not given:
        raise InputError(
            f'study "{study.study.name}" has code of its own ({study.code.names()}) and is not approved here; to let it run in a '
            "confined process, on placeholder persons, give the folder of its files with --code DIR."
        )


def _trust(site: Site, study: Study) -> tuple[str, str]:
    """(why the rehearsal's gate trusts the centre, why the real one would refuse the study), each "" if there is no reason."""
    approved = approvals.approval_of(site.state, study.sha256) if site.state.exists() else None
    if approved is None and study.code is not None:  # the approver will be asked; the code is to be tried before
        try:
            check_level(level_of(site), study, site)
        except SiteError as error:
            return "rehearsal", str(error)
    return approved.trust if approved else "", ""


def _play(gate: Gate, study: Study, run: Path) -> float:
    """The exchanges of one round, and of the last evaluation; seconds of the round."""
    grid = InProcessGrid(gate.handle, [{}])
    agreement = agree(study, grid)
    content = RecordDict({CONFIG: request(study, Phase.ROUND, 1), **agreement.record()})
    weights = {name: torch.from_numpy(value) for name, value in gate.first_weights(content).items()}
    state = RunState(0, begun(study, weights, run)[0], {})
    lateness = Lateness(study, persons_of(study, agreement.persons))
    state, event = one_round(study, grid, run, make_strategy(study), agreement, state, lateness)
    evaluate(study, grid, agreement, state)
    return event.seconds


def rehearse(site: Site, study: Study, *, code: bool = False) -> Rehearsal:
    """Runs one round of ``study`` with the site's policy. This process imports nothing that the study names.

    Args:
        code: whether the files of the study's own code were read where a person said that they are (``--code``), if it is not approved.

    Raises:
        InputError, SiteError: the site's files cannot be used, or the study's roster lacks the site.
        RunError: the gate refused a request or a reply; the message has the code.
    """
    check_roster(site, study)
    _provided(site, study, code)
    if site.name in study.federation.evaluate_only:
        raise InputError(
            f'{site.file}: in study "{study.study.name}" the site only evaluates the final model, so there is no round to rehearse; '
            "fedml-site check reads its data as the evaluation will."
        )
    cohort = load_cohort((str(site.file.resolve()),), without_transforms(study))
    single = _without_imports(for_roster(study, [site.name], rounds=1))
    with tempfile.TemporaryDirectory(prefix="fedml-rehearsal-") as name:
        folder, run = Path(name) / "site", Path(name) / "run"
        run.mkdir()
        manifest = write_site(folder, make_placeholder(cohort, study), study)
        policy = site.manifest.policy.model_dump(mode="json", exclude_none=True)
        text = manifest.read_text(encoding="utf-8").replace(
            "[data]\n", "[data]\npublic = true\n" if site.manifest.data.public else "[data]\n"
        )
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in policy.items())
        manifest.write_text(f"{text}\n[policy]\n{lines}", encoding="utf-8")
        copy = read_site(folder)
        trust, as_if = _trust(site, study)
        approvals.approve(copy.state, single, "rehearsal", trust)
        if single.code is not None:
            keep(copy.state, single.code)
        gate = Gate(copy, copy.state)
        try:
            with forbidden("this is a rehearsal"):
                seconds = _play(gate, single, run)
        except RunError as error:
            refused = [f"{e.direction} {e.phase}: {e.reason}" for e in entries(copy.state / "journal.jsonl") if e.verdict == "refused"]
            raise RunError(f'study "{study.study.name}" would not run at this site: {"; ".join(refused) or error}.') from error
        finally:
            gate.close()
        journal = tuple(entries(copy.state / "journal.jsonl"))
    replaced = "" if single.strategy.name == study.strategy.name else study.strategy.name
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024
    return Rehearsal(len(cohort), seconds, journal, memory, replaced, as_if)


def show(site: Site, study: Study, played: Rehearsal) -> str:
    """The rehearsal as text."""
    lines = [
        f'{site.name}: one round of study "{study.study.name}" on {played.persons} placeholder persons with the shapes of your data',
        "(no machine was contacted; no value of a real person was used or stored). A round would send from this site:",
    ]
    if played.replaced:
        lines.append(
            f"(the server's strategy {played.replaced} was not imported, because it is code that the study names; the server's step was "
            "computed by a built-in strategy, with the same records in each message)"
        )
    if study.code is not None:
        lines.append(f"(own code ran in confined processes: {study.code.names()}; own measures are computed by the server, not here)")
    if played.as_if:
        lines.append(f"(as if the centre were trusted. As it is, every request will be refused: {played.as_if})")
    for entry in played.entries:
        if entry.direction == "out":
            sizes = ", ".join(f"{r.name} {r.bytes / 1e3:.1f} kB" for r in entry.records)
            lines.append(f"  {entry.phase:10}  {sizes}")
    lines.append(
        f"A round takes {played.seconds:.1f} s on this machine, the peak memory was {played.memory_mb} MB; "
        f"the study has {study.federation.rounds} rounds."
    )
    return "\n".join(lines)
