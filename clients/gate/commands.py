"""The commands ``fedml-site journal`` and ``fedml-site ledger``: what the gate decided and what was spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.clients.site.options import SiteFile, site_of
from fedml.errors import InputError

journal_app = typer.Typer(
    name="journal", help="The decisions of the gate on requests and replies.", no_args_is_help=True, rich_markup_mode=None
)


@journal_app.command("show")
def journal_show(
    site_file: SiteFile = Path("site.toml"),
    last: Annotated[int, typer.Option(help="Number of last entries to show; 0: all.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the decisions of the gate.

    Example: fedml-site journal show --site /srv/fedml/site.toml --last 20
    """
    from fedml.clients.gate.journal import entries, to_json
    from fedml.clients.gate.journal_view import show

    path = _journal(site_file)
    if as_json:
        for line in to_json(entries(path)):
            print(line)
    else:
        print(show(entries(path), last or None))


@journal_app.command("verify")
def journal_verify(
    site_file: SiteFile = Path("site.toml"),
    head: Annotated[str | None, typer.Option(help="A head that was sent with a reply (in MLflow: fedml.journal_head).")] = None,
) -> None:
    """Find entries that were edited, removed, moved or cut off. Exit 1 if there are any.

    Example: fedml-site journal verify --site /srv/fedml/site.toml --head 9f2c...
    """
    from fedml.clients.gate.journal import Journal, verify
    from fedml.errors import RunError

    path = _journal(site_file)
    problems = verify(path, head)
    if problems:
        raise RunError(f"{path}: " + "; ".join(f"line {p.line}: {p.what}" for p in problems[:5]))
    journal = Journal(path)
    print(f"{path}: {journal.count} entries, complete and unchanged; head {journal.head}")


ledger_app = typer.Typer(
    name="ledger", help="The privacy budget that each person has spent, over all studies.", no_args_is_help=True, rich_markup_mode=None
)


@ledger_app.command("show")
def ledger_show(
    site_file: SiteFile = Path("site.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the spent privacy budget, by study, and the remaining budget.

    Example: fedml-site ledger show --site /srv/fedml/site.toml
    """
    from fedml.clients.gate.ledger_view import show, to_json

    site = site_of(site_file)
    path, policy = site.state / "ledger.db", site.manifest.policy
    print(to_json(path, policy.max_epsilon, policy.delta) if as_json else show(path, policy.max_epsilon, policy.delta))


def _journal(site_file: Path) -> Path:
    path = site_of(site_file).state / "journal.jsonl"
    if not path.exists():
        raise InputError(f"{path}: no journal yet; fedml-site start and fedml-site approve create it.")
    return path
