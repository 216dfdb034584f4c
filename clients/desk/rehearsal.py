"""``fedml-site start --dry-run``: one round of a study through the site's gate, on placeholder persons with the shapes of the site's data.

No other machine is contacted, and no value of a real person is used: the real files are read for their shapes and to check that they are
readable. The rehearsal's journal lists the records that a real round would send, and their sizes.
"""

from __future__ import annotations

import json
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedml.clients.gate import approvals
from fedml.clients.gate.gate import Gate
from fedml.clients.gate.journal import Entry, entries
from fedml.clients.site.manifest import Site, check_roster, read_site
from fedml.clients.site.read import load_cohort
from fedml.errors import InputError, RunError
from fedml.runs.events import Round
from fedml.runs.log import read_log
from fedml.strategies.algorithms.fedprox import MU
from fedml.strategies.algorithms.registry import algorithm_of
from fedml.study.study import Study, for_roster, parse_study
from fedml.synthetic.placeholder import make_placeholder
from fedml.synthetic.write_site import write_site


@dataclass(frozen=True)
class Rehearsal:
    """Time and traffic of one round: seconds of the training request, all entries of the rehearsal's journal, peak memory in MB."""

    persons: int
    seconds: float
    entries: tuple[Entry, ...]
    memory_mb: int
    replaced: str = ""  # the import path of a server's strategy, in whose place a built-in one ran


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


def rehearse(site: Site, study: Study) -> Rehearsal:
    """Runs one round of ``study`` in this process, with the site's policy. Imports nothing that the study names.

    Raises:
        InputError, SiteError: the site's files cannot be used, or the study's roster lacks the site.
        RunError: the gate refused a request or a reply; the message has the code.
    """
    from flwr.app import Context, RecordDict

    from fedml.flower.grid import InProcessGrid
    from fedml.strategies.server import app as server_app

    if study.code is not None:
        raise InputError(
            f'study "{study.study.name}" has code of its own, which runs only in a confined process; a rehearsal of it is not built. '
            "Let the coordinating centre run `fedml preflight`, which trains nothing."
        )
    check_roster(site, study)
    if site.name in study.federation.evaluate_only:
        raise InputError(
            f'{site.file}: in study "{study.study.name}" the site only evaluates the final model, so there is no round to rehearse; '
            "fedml-site check reads its data as the evaluation will."
        )
    cohort = load_cohort((str(site.file.resolve()),), study)
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
        approved = approvals.approval_of(site.state, study.sha256) if site.state.exists() else None
        approvals.approve(copy.state, single, "rehearsal", approved.trust if approved else "")
        gate = Gate(copy, copy.state)
        config: dict[str, bool | int | float | str] = {"study": single.canonical, "run": str(run)}
        try:
            server_app(
                InProcessGrid(gate.handle, [{}]), Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
            )
        except RunError as error:
            refused = [f"{e.direction} {e.phase}: {e.reason}" for e in entries(copy.state / "journal.jsonl") if e.verdict == "refused"]
            raise RunError(f'study "{study.study.name}" would not run at this site: {"; ".join(refused) or error}.') from error
        rounds = [e.seconds for e in read_log(run)[0] if isinstance(e, Round)]
        journal = tuple(entries(copy.state / "journal.jsonl"))
    replaced = "" if single.strategy.name == study.strategy.name else study.strategy.name
    return Rehearsal(len(cohort), rounds[0], journal, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, replaced)


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
    for entry in played.entries:
        if entry.direction == "out":
            sizes = ", ".join(f"{r.name} {r.bytes / 1e3:.1f} kB" for r in entry.records)
            lines.append(f"  {entry.phase:10}  {sizes}")
    lines.append(
        f"A round takes {played.seconds:.1f} s on this machine, the peak memory was {played.memory_mb} MB; "
        f"the study has {study.federation.rounds} rounds."
    )
    return "\n".join(lines)
