"""Display of a run: progress, a table at the end, and one JSON object for ``--json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedml.cohort.variants.checks import ALL_SITES
from fedml.experiments.runs.hints import without_score
from fedml.runs.events import NO_PRIVACY, Agreed, CheckRow, Checks, Event, Final, Resumed, Round, SiteRow, Step, body
from fedml.runs.log import last, load_counts
from fedml.study.study import Study
from fedml.tasks.few import few_notes
from fedml.tasks.lost import lost_notes
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from fedml.experiments.runs.run import Outcome


_STOPPED = {"killed": "ended without a word", "failed": "failed", "stopped": "been stopped"}


class Progress:
    """A bar over the rounds with the watched metric, sites and remaining time; without a terminal, about ten plain lines."""

    def __init__(self, study: Study, console: Console, job: str = "train") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.study, self.console = study, console
        self.watched = make_task(study).watched
        columns = (
            TextColumn("round" if job in ("train", "resume") else "step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.row = self.bar.add_task("starting", total=study.federation.rounds if job in ("train", "resume") else None)
        self.bar.start()
        self.every = max(1, study.federation.rounds // 10)

    def __call__(self, events: Sequence[Event]) -> None:
        """Updates the display with ``events``."""
        for event in events:
            match event:
                case Checks():
                    show_checks(event.checks, self.console)
                case Step():
                    self.bar.update(self.row, completed=event.done, total=event.total, description=event.doing)
                    if not self.console.is_terminal and event.log:
                        self.console.print(event.doing)
                case Agreed():
                    shared = f", {event.variants} shared variants" if event.variants else ""
                    model = f"; model of {event.parameters} parameters" if event.parameters else ""
                    started = f"; {len(event.started)} of its arrays begin as those of [model] start" if event.started else ""
                    self.console.print(f"{len(event.sites)} sites agreed{model}{started}{shared}")
                case Resumed():
                    self.console.print(f"the run goes on after round {event.round}; it had {_STOPPED[event.status]}")
                case Round():
                    number, text = event.round, self._summary(event)
                    self.bar.update(self.row, completed=number, description=text)
                    if not self.console.is_terminal and (number % self.every == 0 or number == 1):
                        self.console.print(f"round {number}/{self.study.federation.rounds}: {text}")

    def _summary(self, event: Round) -> str:
        part = next((p for p in ("val", "train") if p in event.metrics), None)
        value = event.metrics[part]["all"].get(self.watched) if part else None
        lacking = without_score(self.study, event.metrics[part], event.sites) if part == "val" else []
        some = f"; {len(event.sites) - len(lacking)} of {len(event.sites)} sites have one" if lacking else ""
        # A site evaluates, then trains.
        score = f"{part} {self.watched} {value:.3f} (before this round{some}), " if value is not None else ""
        missing = f", missing: {', '.join(event.refused)}" if event.refused else ""
        return f"{score}{len(event.sites)} sites, {event.seconds:.2f} s{missing}"

    def close(self) -> None:
        """Removes the bar."""
        self.bar.stop()


def _number(value: Any) -> str:
    return "-" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.3f}"


def show_checks(checks: Sequence[CheckRow], console: Console) -> None:
    """Site x check: what each site's variants and columns are, and what was done to variants; below, the problems and how to fix them."""
    from rich.table import Table

    sites = list(dict.fromkeys(c["site"] for c in checks if c["site"] != ALL_SITES))
    table = Table(title="do the sites' data mean the same?", title_justify="left")
    table.add_column("check")
    for site in sites:
        table.add_column(site, justify="right")
    mark = {"ok": "", "warn": " (!)", "fail": " FAILS"}
    cells = {(c["check"], c["site"]): c["value"] + mark[c["verdict"]] for c in checks}
    for name in dict.fromkeys(c["check"] for c in checks if c["site"] != ALL_SITES):
        table.add_row(name, *(cells.get((name, site), "-") for site in sites))
    fixes = dict.fromkeys(f"{mark[c['verdict']].strip()} {c['check']} at {c['site']}: {c['fix']}" for c in checks if c["fix"])
    common = [f"{c['check']}: {c['value']}{mark[c['verdict']]}" for c in checks if c["site"] == ALL_SITES]
    console.print(table)
    for line in (*common, *fixes):
        console.print(line, markup=False, soft_wrap=True)  # not markup, because a fix names sections such as [cohort.variants]


def final_table(study: Study, final: Final) -> Group:
    """Per site, worst site and all: persons and metrics on the test persons (validation persons if there are no test persons).

    Metrics of a class (``dice/spleen``) are in separate tables below, a row for each class: one table of all persons, one of the worst
    site. In the first table they would be wider than a terminal.
    """
    from rich.console import Group

    part = "test" if "test" in final.metrics else "val"
    scores = final.metrics[part]
    task = make_task(study)
    names = [n for n in scores["all"] if n != "persons" and "/" not in n and task.described(n).brief]
    kept = "" if final.kept is None else f", the model of round {final.kept}"
    table = _table(f"{study.study.name}: {part} persons, after {final.round} rounds{kept}", "site", ("persons", *names))
    worst = scores["worst"] if len(scores["sites"]) > 1 else None
    for site, values in scores["sites"].items():
        table.add_row(site + " (worst)" * (site == worst), str(int(values["persons"])), *(_number(values.get(n)) for n in names))
    table.add_section()
    table.add_row("all, merged", str(int(scores["all"]["persons"])), *(_number(scores["all"].get(n)) for n in names))
    if (external := final.metrics.get("external")) is not None:
        table.add_section()
        rows = {f"external validation: {site}": values for site, values in external["sites"].items()}
        rows |= {"external validation, merged": external["all"]} if len(rows) > 1 else {}
        for label, values in rows.items():
            table.add_row(label, str(int(values["persons"])), *(_number(values.get(n)) for n in names))
    by_class = [n.split("/", 1) for n in scores["all"] if "/" in n and task.described(n).brief]
    if not by_class:
        return Group(table)
    columns = list(dict.fromkeys(name for name, _ in by_class))
    below = []
    for where, values in [("all, merged", scores["all"]), *([(f"{worst} (worst)", scores["sites"][worst])] if worst else [])]:
        below.append(_table(f"by class: {where}", "class", columns))
        for label in dict.fromkeys(label for _, label in by_class):
            cells = ((name, values.get(f"{name}/{label}")) for name in columns)
            below[-1].add_row(label, *(_count(v) if task.described(name).counted else _number(v) for name, v in cells))
    return Group(table, *below)


def notes_of(study: Study, outcome: Outcome) -> list[str]:
    """What few persons and preprocessing did to the numbers of ``final_table``, as sentences (``fedml.tasks``: ``few``, ``lost``)."""
    counts = load_counts(outcome.run).get("test" if "test" in outcome.final.metrics else "val", {})
    by_site = {site: counts[site] for site in study.federation.sites if site in counts}
    return [*few_notes(by_site), *lost_notes(make_task(study).scored, by_site)]


# A header is wrapped at underscores if possible, otherwise anywhere; it is never truncated.
_HEADERS = {"balanced_accuracy": "balanced"}


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(_HEADERS.get(name, name).replace("_", " "), justify="right", min_width=6, overflow="fold")
    return table


def _count(value: Any) -> str:
    return "-" if value is None or value != value else str(int(value))


def summary(study: Study, outcome: Outcome, mlflow_run: str | None, mlflow_error: str = "") -> dict[str, Any]:
    """The object of ``--json``. ``metrics`` are merged over sites; ``bytes``: arrays sent and received by the server; ``notes``: which of
    the numbers are approximate; ``mlflow_error``: why MLflow has no complete record, null if it has one or was not to have one."""
    rounds = [e for e in outcome.events if isinstance(e, Round)]
    scores = outcome.final.metrics
    rows: list[SiteRow] = [row for e in rounds for row in e.sites.values()]
    rows += outcome.final.sites.values()
    took_part = {site: sum(site in e.sites for e in rounds) for site in study.federation.sites}
    return {
        "run_id": outcome.run.name,
        "mlflow_run_id": mlflow_run,
        "mlflow_error": mlflow_error or None,
        "status": outcome.status,
        "reason": outcome.reason,
        "rounds": len(rounds),
        "metrics": {part: s["all"] for part, s in scores.items()},
        "sites": {
            site: {"rounds": took_part[site], **{part: s["sites"].get(site, {}) for part, s in scores.items()}}
            for site in study.federation.sites
        },
        "worst_site": {part: s["worst"] for part, s in scores.items()},
        "notes": notes_of(study, outcome),
        "privacy": privacy_of(outcome.events) or {"unit": study.privacy.unit},
        "bytes": {"out": sum(r["bytes_out"] for r in rows), "in": sum(r["bytes_in"] for r in rows)},
        "seconds": outcome.seconds,
        "study_sha256": study.sha256,
        "weights_sha256": outcome.final.weights_sha256 or None,
        "folder": str(outcome.run),
    }


def privacy_of(events: Sequence[Event]) -> dict[str, Any]:
    """The body of the last privacy event; empty if there is none."""
    event = last(events, NO_PRIVACY)
    return body(event) if event.came else {}
