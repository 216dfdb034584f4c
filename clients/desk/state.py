"""The doctor's checks of a site's state folder: who can write to it, journal, approvals, ledger, the running service, the last refusal."""

from __future__ import annotations

from collections.abc import Iterator

from fedml.clients.desk.finding import Finding, fail, ok, open_mode, warn
from fedml.clients.gate.journal import Journal, entries, verify
from fedml.clients.site.manifest import Site
from fedml.errors import InputError, Reason

_JOURNAL, _LEDGER = "journal.jsonl", "ledger.db"
_GUIDE = "see .fedml/site.log for the sentence, and the table of codes in docs/join-a-federation.md"


def folder(site: Site) -> Iterator[Finding]:
    """Whether other accounts can read or write the state folder."""
    from fedml.clients.gate.approvals import writable_by_others

    what = "state folder"
    if not site.state.exists():
        yield ok(what, "does not exist yet; fedml-site approve and fedml-site start create it")
    elif loose := writable_by_others(site.state):
        text = f"other accounts can write to {loose}, or own it: no approval counts, every request is refused"
        yield fail(what, text, f"chown to this account, chmod go-w {loose}, and look at its content")
    elif mode := open_mode(site.state):
        yield warn(what, f"{site.state} is accessible to other accounts (mode {mode:o})", f"chmod 700 {site.state}")
    else:
        yield ok(what, "accessible to this account only")


def journal(site: Site) -> Iterator[Finding]:
    """Whether the journal is whole, and the last decision if it is a refusal."""
    path, what = site.state / _JOURNAL, "journal"
    keep = "keep the file unchanged and inform the security officer"
    if problems := verify(path):
        text = f"{len(problems)} errors, the first in line {problems[0].line}: {problems[0].what}"
        yield fail(what, text, f"{keep}; fedml-site journal verify lists all errors")
        return
    if cut := Journal(path).cut():
        yield fail(what, cut.rstrip("."), f"{keep}; restore the journal from a backup")
        return
    if not path.exists():
        return
    yield ok(what, "complete and unchanged")
    decisions = [entry for entry in entries(path) if entry.direction != "site"]
    if decisions and decisions[-1].verdict == "refused":
        last = decisions[-1]
        about = f"{last.phase} {last.round} of {last.study_name or last.study[:12] or 'an unknown study'}, {last.time[:19]} UTC"
        yield warn("last request", f"was refused: {last.reason} ({about})", _about(last.reason))


def _about(reason: str) -> str:
    if reason == Reason.DATA_CHANGED:
        return "none, if the change of this site's files was intended: the next run reads them as they are now; else restore them"
    return _GUIDE


def approvals(site: Site) -> Iterator[Finding]:
    """Whether the approvals can be read, and whether each counts."""
    from fedml.clients.gate.approvals import STUDIES, approval_of, read_approvals, writable_by_others

    what = "approvals"
    if writable_by_others(site.state):
        yield warn(what, "none counts while other accounts can write to the state folder", "see the finding state folder")
        return
    if verify(site.state / _JOURNAL):
        yield warn(what, "not compared with the journal, which has errors", "see the finding journal")
        return
    try:
        standing = [a for a in read_approvals(site.state) if a.stands]
        if not standing:
            yield ok(what, "no study is approved")
            return
        false = [a for a in standing if approval_of(site.state, a.sha256) != a]
    except InputError as error:  # names the file, never a person of the data
        text = str(error).rstrip(".")
        yield fail(what, text.replace("; ", ", "), "restore the file from a backup, or delete it and approve the studies again")
        return
    for a in false:
        text = f"{a.name} ({a.sha256[:12]}) has no entry in the journal: it was not made by fedml-site approve, and does not count"
        yield fail(what, text, "find out who changed approvals.json; then fedml-site approve the study, or fedml-site revoke it")
    for a in standing:
        if a not in false and not (site.state / STUDIES / f"{a.sha256}.json").is_file():
            text = f"the text of {a.name} ({a.sha256[:12]}) is missing in {site.state / STUDIES}"
            yield fail(what, text, "restore the folder from a backup, or fedml-site revoke and approve the study again")
    if not false:
        yield ok(what, f"in force: {', '.join(f'{a.name} ({a.sha256[:12]})' for a in standing)}")


def ledger(site: Site) -> Iterator[Finding]:
    """Whether the privacy ledger can be used. Creates no file."""
    from fedml.clients.gate.ledger import Ledger
    from fedml.clients.gate.ledger_check import answered_rounds, refuse_lost

    path, what = site.state / _LEDGER, "ledger"
    if verify(site.state / _JOURNAL):
        yield warn(what, "not compared with the journal, which has errors", "see the finding journal")
        return
    try:
        if path.exists():
            Ledger(path)
            yield ok(what, "can be read, unchanged, and has every charge that the journal knows of")
        else:
            refuse_lost(path, answered_rounds(site.state))
    except InputError as error:
        text, _, action = str(error).rstrip(".").partition("; ")
        yield fail(what, text, action or "restore it from a backup")


def service(site: Site) -> Iterator[Finding]:
    """Whether the service runs, and whether it goes the same way as the doctor."""
    from fedml.clients.service import DIRECT, WAY, running

    what, process = "service", running(site.state)
    if process is None:
        yield ok(what, "does not run now")
        return
    yield ok(what, f"runs (process {process})")
    if site.manifest.connection is None:
        return
    try:
        proxy = site.manifest.connection.way()
        here, there = proxy.shown if proxy else DIRECT, (site.state / WAY).read_text(encoding="utf-8")
    except (InputError, OSError):
        return
    if here.partition(" (")[0] != there.partition(" (")[0]:
        text = f"the service was started with {there}, this check goes with {here}: what it says about the connection holds for this shell"
        yield warn(what, text, "set [connection] proxy in site.toml, which holds for both, and restart the service")
