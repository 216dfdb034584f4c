"""``fedml-site start --dry-run``: one round of a study through this site's own gate, on synthetic persons shaped like its own.

Nobody is contacted and nothing of a real person is computed on: the real files are read for their shapes, and to find out whether they can
be read. What would leave is what the gate journalled, in sizes and kinds.
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
from fedml.study.study import Study, for_roster
from fedml.synthetic.placeholder import lookalike
from fedml.synthetic.write_site import write_site


@dataclass(frozen=True)
class Rehearsal:
    """What one round would take and send: seconds of the training message, all entries of the rehearsal's journal, memory in MB."""

    persons: int
    seconds: float
    entries: tuple[Entry, ...]
    memory_mb: int


def studies_of(site: Site) -> list[Study]:
    """The studies that a rehearsal without ``--study`` plays: those approved here.

    Raises:
        InputError: none is.
    """
    found = approvals.approved_studies(site.state)
    if not found:
        raise InputError(f"{site.state}: no approved study to rehearse; approve one first, or name a file with --study.")
    return found


def rehearse(site: Site, study: Study) -> Rehearsal:
    """Plays one round of ``study`` in this process.

    Raises:
        InputError, SiteError: the site's files cannot be used, or its roster lacks the site.
        RunError: the gate refused one of its own replies; the message holds the code.
    """
    from flwr.app import Context, RecordDict

    from fedml.flower.grid import InProcessGrid
    from fedml.strategies.server import app as server_app

    check_roster(site, study)
    cohort = load_cohort((str(site.file.resolve()),), study)
    alone = for_roster(study, [site.name], rounds=1)
    with tempfile.TemporaryDirectory(prefix="fedml-rehearsal-") as name:
        folder, run = Path(name) / "site", Path(name) / "run"
        run.mkdir()
        write_site(folder, lookalike(cohort, study), study)
        with (folder / "site.toml").open("a", encoding="utf-8") as file:
            policy = site.manifest.policy.model_dump(mode="json", exclude_none=True)
            file.write("\n[policy]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in policy.items()))
        copy = read_site(folder)
        approvals.approve(copy.state, alone, "rehearsal")
        gate = Gate(copy, copy.state)
        config: dict[str, bool | int | float | str] = {"study": alone.canonical, "run": str(run)}
        try:
            server_app(
                InProcessGrid(gate.handle, [{}]), Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
            )
        except RunError as error:
            refused = [f"{e.direction} {e.phase}: {e.reason}" for e in entries(copy.state / "journal.jsonl") if e.verdict == "refused"]
            raise RunError(f'study "{study.study.name}" would not run here: {"; ".join(refused) or error}.') from error
        rounds = [e.seconds for e in read_log(run)[0] if isinstance(e, Round)]
        told = tuple(entries(copy.state / "journal.jsonl"))
    return Rehearsal(len(cohort), rounds[0], told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def show(site: Site, study: Study, played: Rehearsal) -> str:
    """The rehearsal as text for a hospital."""
    lines = [
        f'{site.name}: one round of study "{study.study.name}" on {played.persons} synthetic persons shaped like your own',
        "(nobody was contacted; nothing of a real person was used or kept). What would leave this site:",
    ]
    for entry in played.entries:
        if entry.direction == "out":
            sizes = ", ".join(f"{r.name} {r.bytes / 1e3:.1f} kB" for r in entry.records)
            lines.append(f"  {entry.phase:10}  {sizes}")
    lines.append(
        f"A round takes {played.seconds:.1f} s here, its largest memory was {played.memory_mb} MB; "
        f"the study has {study.federation.rounds} rounds."
    )
    return "\n".join(lines)
