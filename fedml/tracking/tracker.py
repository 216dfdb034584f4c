"""Writes a run's events to MLflow: one parent run, and a child run for each site. ``fedml.tracking.deliver`` reads the log and calls it.

Metric names: ``<part>/<metric>`` (val/auroc), of a subgroup ``test/auroc/sex:1``, limits ``test/auroc_low``, of the worst site
``test/auroc_worst_site``; ``train/loss``, ``work/seconds``; a step is the number of rounds that the model was trained.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedml.contract.disclosure import HIDDEN
from fedml.runs.events import (
    NO_FINAL,
    Agreed,
    Checks,
    End,
    Event,
    Final,
    Frequencies,
    Genes,
    Gwas,
    Outcomes,
    Privacy,
    Resumed,
    Round,
    SiteDisclosure,
    SiteRow,
    Start,
)
from fedml.runs.log import MODEL
from fedml.study.study import Study
from fedml.tracking.analyses import Page, log_analysis
from fedml.tracking.files import Write, log_files
from fedml.tracking.known import ALL, CHOSEN, TESTED, Known, Watched
from fedml.tracking.members import parent_of, read_member
from fedml.tracking.model_page import dataset_of, of_model, together
from fedml.tracking.names import EXTERNAL, ROLE, RUN, SITE, allowed, chosen, run_name
from fedml.tracking.pages import answer_of, code_tags, description, experiment_of, result_of
from fedml.tracking.registry import About, begin_model, log_model
from fedml.tracking.store import connect, runs_of, shared, versions

_PAUSE_SECONDS = 1.0  # between two writes of metrics
_METRICS, _PARAMS, _TEXT = 1000, 100, 5000  # within MLflow's limits: metrics and parameters in a batch, characters in a tag
_MOST_LATER = 2000  # metrics of the parent that are kept until the end
_WAYS: tuple[Literal["bytes_out", "bytes_in"], ...] = ("bytes_out", "bytes_in")


def _unprotected(study: Study) -> str:
    """The text about privacy until the run has a privacy event."""
    return "none: no differential privacy" if study.privacy.unit == "none" else f"unit {study.privacy.unit}: not counted yet"


def _spans(rounds: Sequence[int]) -> str:
    """Round numbers as spans: ``1-3, 7``."""
    out: list[list[int]] = []
    for number in rounds:
        if out and number == out[-1][-1] + 1:
            out[-1] = [out[-1][0], number]
        elif not out or number != out[-1][-1]:
            out.append([number])
    return ", ".join("-".join(map(str, span)) for span in out)


@dataclass(frozen=True)
class Given:
    """What the record has besides the log.

    Args:
        watched: the study's metric. known: parts -> what is known of the finished run, with the intervals of those parts.
        write: makes the files for a person (``fedml.experiments.tracked.files``); None: there are none.
        settle: called after the end of the run, before the other two; returns when all files of the run's folder are written.
    """

    watched: Watched
    known: Callable[[Sequence[str]], Known]
    write: Write | None = None
    settle: Callable[[], object] = lambda: None


class Tracker:
    """Writes events to MLflow. Raises MLflow's errors; they do not affect the run, which is another process."""

    def __init__(self, run: Path, study: Study, given: Given) -> None:
        self.run, self.study, self.given = run, study, given
        self.member = read_member(run)
        self.whole = self.member is None or self.member.chosen  # test metrics and the model are recorded too
        self.parent = ""
        self.children: dict[str, str] = {}
        self.status = "RUNNING"
        self.refused: dict[str, dict[str, list[int]]] = {}  # site -> reason -> rounds
        self.rounds: dict[str, list[int]] = {site: [] for site in study.federation.sites}  # that a site took part in
        self.bytes: dict[str, dict[str, int]] = {site: {"bytes_in": 0, "bytes_out": 0} for site in study.federation.sites}
        self.heads: dict[str, tuple[str, int]] = {}  # of the sites' journals, from the last reply
        self.start: Start | None = None
        self.final = NO_FINAL
        self.privacy, self.answer, self.result = _unprotected(study), "", ""
        self.figures: dict[str, list[Any]] = defaultdict(list)  # of the trained model; written at the end, with the model
        self._later: dict[str, list[Any]] = defaultdict(list)  # the parent's others, after those: MLflow lists what was written first
        self.watched = given.watched.name
        self.datasets: dict[str, Any] = {}  # MLflow's run -> the data set that its metrics are of
        self.tags: dict[str, str] = {}
        self._stamp = 0  # time of the last event in milliseconds, so that a repeated delivery has the same times
        self._rows: dict[str, list[Any]] = defaultdict(list)
        self._written = 0.0
        self._computed: Known | None = None

    def put(self, run_id: str, name: str, value: Any, step: int) -> None:
        """Keeps a metric until the next write; None is ignored."""
        from mlflow.entities import Metric

        if value is not None:
            later = self._later if run_id == self.parent else self._rows
            rows = self.figures if name.startswith(("test/", "external/")) else later
            rows[run_id].append(Metric(allowed(name), float(value), self._stamp, step))

    def __call__(self, events: Sequence[Event]) -> None:
        """Delivers ``events``: one batch for the parent and one for each site, also for several rounds."""
        client = connect()
        for event in events:
            self._stamp = int(event.time * 1000)
            match event:
                case Start():
                    self._open(client, event)
                case Agreed():
                    self._agreed(client, event)
                case Round() | Final():
                    self._round(event)
                case Resumed():
                    client.set_tag(self.parent, "fedml.resumed", f"after round {event.round}; {event.status}")
                case Privacy():
                    self._privacy(client, event)
                case Checks():
                    client.log_text(self.parent, json.dumps(event.checks, indent=1), "record/checks.json")
                case Gwas() | Genes() | Frequencies() | Outcomes():
                    for site, row in event.sites.items():
                        self._head(site, row)
                    page = Page(client, self.parent, self.children, self.run, self.put)
                    self.answer = log_analysis(page, event) or self.answer
                case End():
                    self.status = {"finished": "FINISHED", "stopped": "KILLED"}.get(event.status, "FAILED")
                    if event.reason:
                        client.set_tag(self.parent, "fedml.reason", event.reason[:_TEXT])
        if len(self._later[self.parent]) > _MOST_LATER:
            self._rows[self.parent] += self._later.pop(self.parent)
        if self.status == "RUNNING" and time.monotonic() - self._written > _PAUSE_SECONDS:  # otherwise the record is closed now
            self._write(client)

    def _write(self, client: Any) -> None:
        for run_id, metrics in sorted(self._rows.items(), key=lambda item: item[0] != self.parent):
            for at in range(0, len(metrics), _METRICS):
                client.log_batch(run_id, metrics=metrics[at : at + _METRICS])
        self._rows.clear()
        self._written = time.monotonic()

    def _open(self, client: Any, event: Start) -> None:
        from mlflow.entities import Param

        about, self.start = self.study.study, event
        number = experiment_of(client, self.study, self.given.watched)
        common = {
            "fedml.run_id": event.run_id,
            "fedml.study.study": about.name,
            "fedml.study_sha256": self.study.sha256,
            "fedml.engine": event.engine,
            "fedml.job": event.job,
            "fedml.git_commit": event.git_commit,
            "fedml.seed": str(about.seed if event.schema == 0 else event.seed),
            "fedml.strategy": self.study.strategy.name,
            "mlflow.source.name": "fedml",
            "mlflow.source.type": "LOCAL",
            **code_tags(event),
        }
        description_tags = {
            "fedml.question": about.question,
            "fedml.purpose": about.purpose,
            "fedml.privacy": self.privacy,
            "fedml.epsilon": "none" if self.study.privacy.unit == "none" else "not counted yet",  # text, so that every run has a value
            "fedml.roster": ", ".join(self.study.federation.sites),
            "mlflow.note.content": description(self.study, event, "not yet available", self.privacy),
        }
        packages = {f"fedml.version.{k}": v for k, v in (event.versions or versions()).items()}
        existing = {r.data.tags.get("fedml.site", ""): r.info for r in runs_of(client, number, event.run_id)}

        def make(site: str, name: str, tags: dict[str, str]) -> str:
            if site in existing:  # the record is continued; old values remain until they are written again
                client.update_run(existing[site].run_id, status="RUNNING")
                return str(existing[site].run_id)
            return str(client.create_run(number, self._stamp, tags=tags, run_name=name).info.run_id)

        varied = {} if self.member is None else self.member.params
        self.params = {**chosen(self.study), **varied}
        params, name = sorted(self.params.items()), run_name(self.study, event, self.member)
        if self.member is not None:
            sweep = parent_of(client, number, self.member.sweep, self._stamp)
            description_tags |= {"mlflow.parentRunId": sweep, "fedml.sweep": self.member.sweep}
        self.tags = {**common, ROLE: RUN, **description_tags}
        self.parent = make("", name, {**self.tags, **packages})
        for at in range(0, len(params), _PARAMS):
            client.log_batch(self.parent, params=[Param(k, v) for k, v in params[at : at + _PARAMS]])
        for site in self.study.federation.sites:
            role = EXTERNAL if site in self.study.federation.evaluate_only else SITE
            tags = {"mlflow.parentRunId": self.parent, "fedml.site": site, ROLE: role, **common}
            self.children[site] = make(site, f"{site}: {name}", tags)

    def _agreed(self, client: Any, event: Agreed) -> None:
        from mlflow.entities import Param, RunTag

        datasets = []
        for site, parts in event.persons.items():
            params = [Param(f"persons.{part}", str(sum(n))) for part, n in parts.items()]
            params += [Param(f"persons.{part}.by_class", str(n)) for part, n in parts.items()]
            params += [Param(f"variants.{what}", str(n)) for what, n in event.matching.get(site, {}).items()]
            tags, disclosed = (
                dict[str, str](),
                (event.disclosed or {}).get(site) or SiteDisclosure(policy=None, dataset=None, quarantined=None),
            )
            if (excluded := disclosed["quarantined"]) is not None:
                counts = {reason: "a few" if n == HIDDEN else str(n) for reason, n in excluded.items()}
                tags["fedml.quarantined"] = "; ".join(f"{reason}: {n}" for reason, n in counts.items()) or "none"
            if disclosed["policy"] is not None:
                tags["fedml.policy"] = json.dumps(disclosed["policy"], sort_keys=True)
            if disclosed["dataset"]:
                tags["fedml.dataset_sha256"] = disclosed["dataset"]
                datasets.append(dataset_of(site, disclosed["dataset"], parts))
                self.datasets[self.children[site]] = datasets[-1]
            client.log_batch(self.children[site], params=params, tags=[RunTag(k, v[:_TEXT]) for k, v in tags.items()])
        if datasets:
            whole = list(together(event, self.study.federation.training))
            inputs = {self.parent: [*datasets, *whole], **{run_id: [data] for run_id, data in self.datasets.items()}}
            shared(lambda: [client.log_inputs(run_id, datasets=own) for run_id, own in inputs.items()])
            if whole:
                self.datasets[self.parent] = whole[0]
        client.log_batch(self.parent, params=[Param("variants.panel", str(event.variants)), Param("parameters", str(event.parameters))])

    def _privacy(self, client: Any, event: Privacy) -> None:
        if event.unit == "none":
            return
        step = self.study.federation.rounds
        self.privacy = event.sentence or self.privacy
        client.set_tag(self.parent, "fedml.privacy", self.privacy[:_TEXT])
        self.tags["fedml.epsilon"] = f"{event.epsilon:.4g}" if event.epsilon is not None else "unbounded"
        client.set_tag(self.parent, "fedml.epsilon", self.tags["fedml.epsilon"])
        for site, claim in event.claims.items():
            run_id = self.children[site] if site else self.parent
            client.set_tag(run_id, "fedml.privacy", claim["sentence"][:_TEXT])
            client.set_tag(run_id, "fedml.privacy.events", claim["events_json"][:_TEXT])
            self.put(run_id, "privacy/epsilon", claim["epsilon"], step)
        if "" in event.claims:  # site-level privacy: the same claim holds for every site
            for child in self.children.values():
                self.put(child, "privacy/epsilon", event.epsilon, step)
        self.put(self.parent, "privacy/epsilon", event.epsilon, step)
        self.put(self.parent, "privacy/delta", event.delta, step)

    def _head(self, site: str, row: SiteRow) -> None:
        if row["journal"]:
            head, entries = row["journal"]
            self.heads[site] = (str(head), int(entries))

    def _round(self, event: Round | Final) -> None:
        # The metrics of a round are those of the model at its start.
        number, trained_rounds = event.round, event.round - isinstance(event, Round)
        watched = self.watched
        for part, scores in event.metrics.items():
            if part == "test" and not self.whole:
                continue
            # MLflow's comparison page shows the metric first that was logged first.
            for name in sorted(scores["all"], key=lambda n: n != watched):
                self.put(self.parent, f"{part}/{name}", scores["all"][name], trained_rounds)
            for site, metrics in scores["sites"].items():
                for name, value in metrics.items():
                    self.put(self.children[site], f"{part}/{name}", value, trained_rounds)
            if scores["worst"]:
                self.put(self.parent, f"{part}/{watched}_worst_site", scores["sites"][scores["worst"]][watched], trained_rounds)
        self.put(self.parent, "work/sites", len(event.sites), number)
        self.put(self.parent, "work/seconds", event.seconds, number)
        trained = [row for row in event.sites.values() if row["seen"]] if isinstance(event, Round) else []
        if trained:
            loss = sum((row["train_loss"] or 0.0) * row["seen"] for row in trained) / sum(row["seen"] for row in trained)
            self.put(self.parent, "train/loss", loss, number)
        rows: dict[str, SiteRow] = {**event.sites}
        for way in _WAYS:
            self.put(self.parent, f"work/{way}", sum(row[way] for row in rows.values()), number)
        if isinstance(event, Round):
            for site in self.study.federation.training:
                self.put(self.children[site], "work/took_part", float(site in event.sites), number)
        else:
            self.final = event
        for site, reason in event.refused.items():
            self.refused.setdefault(site, {}).setdefault(reason, []).append(number)
        for site, row in rows.items():
            self._head(site, row)
            if isinstance(event, Round):
                self.rounds[site].append(number)
                self.put(self.children[site], "work/train_loss", event.sites[site]["train_loss"], number)
                self.put(self.children[site], "work/update_norm", event.sites[site]["update_norm"], number)
            for way in _WAYS:
                self.bytes[site][way] += row[way]
                self.put(self.children[site], f"work/{way}", row[way], number)

    def _held_out(self) -> None:
        """For the test persons: intervals of the watched metric, of all and by site; subgroups; the sentence of the answer. For a sweep's
        run, the intervals of the validation persons."""
        if self.member is not None:
            self._limits(*CHOSEN)
        if not self.whole:
            self.answer = "not the choice of its sweep: its test metrics and its model are in the run's folder"
        if "test" not in self.final.metrics or not self.whole:
            return
        self._limits("external")
        step, limits = self.final.round, self._limits("test")
        scores = self.final.metrics["test"]
        for name, value in self._known().across.items():
            self.put(self.parent, name, value, step)
        for label, group in self.final.groups.items():
            for run_id, metrics in [(self.parent, group["all"]), *((self.children[s], m) for s, m in group["sites"].items())]:
                for name in (self.watched, "persons"):
                    self.put(run_id, f"test/{name}/{label}", metrics.get(name), step)
        self.answer, self.result = answer_of(self.watched, scores, limits), result_of(self.watched, scores, limits)

    def _known(self) -> Known:
        """What another process has computed, or this one does now."""
        if self._computed is None:
            self._computed = self.given.known(CHOSEN if not self.whole else TESTED if self.member is None else (*CHOSEN, *TESTED))
        return self._computed

    def _limits(self, part: str) -> tuple[float, float] | None:
        """Records the intervals of a part, of all persons and by site; returns that of all."""
        found, step = self._known().limits.get(part, {}), self.final.round
        for site, (low, high) in found.items():
            run_id = self.parent if site == ALL else self.children[site]
            self.put(run_id, f"{part}/{self.watched}_low", low, step)
            self.put(run_id, f"{part}/{self.watched}_high", high, step)
        return found.get(ALL)

    def close(self) -> str:
        """Logs artifacts, the model if there is one, and the status; returns the parent's run id."""
        from mlflow.entities import RunTag

        client = connect()
        finished = self.status == "FINISHED"
        if finished:
            self._held_out()
        for site, ways in self.bytes.items() if self.status != "RUNNING" else ():  # a run that was killed may go on
            for way, total in ways.items():
                self.put(self.children[site], f"total/{way}", total, self.final.round)
        model = finished and self.whole and (self.run / MODEL).exists()
        about = About(self._model_tags(), self.params, self.final.round) if model else None
        self._figures(begin_model(client, self.study, self.parent, about)[0] if about else None)
        self._write(client)
        if about:
            log_model(self.run, self.study, self.parent, about, self._known().model)
        write = self.given.write if self.whole and finished else None
        log_files(client, self.parent, self.run, write, finished=finished, whole=self.whole)
        for run_id, tags in ((self.parent, self._last_tags()), *((self.children[s], dict(self._site_tags(s))) for s in self.children)):
            client.log_batch(run_id, tags=[RunTag(k, v[:_TEXT]) for k, v in tags.items()])
        for run_id in (*self.children.values(), self.parent):
            client.set_terminated(run_id, self.status if self.status != "RUNNING" else "FAILED", self._stamp)
        return self.parent

    def _figures(self, model: str | None) -> None:
        """The figures of the trained model, those of its own page too."""
        first = [f"{part}/{self.watched}{end}" for part in ("test", "external") for end in ("", "_low", "_high", "_worst_site")]
        for run_id, metrics in sorted(self.figures.items(), key=lambda item: item[0] != self.parent):
            data = self.datasets.get(run_id)
            ordered = sorted(metrics, key=lambda m: first.index(m.key) if m.key in first else len(first))
            self._rows[run_id] += ordered if model is None else [of_model(m, run_id, data, model) for m in ordered]
        for run_id, metrics in self._later.items():
            self._rows[run_id] += metrics

    def _model_tags(self) -> dict[str, str]:
        names = ("fedml.run_id", "fedml.study_sha256", "fedml.strategy", "fedml.seed", "fedml.engine", "fedml.epsilon")
        every = self.tags | self._last_tags()
        told = {k: every[k] for k in (*names, "fedml.result", "fedml.worst_site", "fedml.weights_sha256") if k in every}
        lines = [f"**{self.answer}**", f"Question: {self.study.study.question}", f"Privacy: {self.privacy}"]
        return told | {"mlflow.note.content": "\n\n".join(lines)}

    def _last_tags(self) -> dict[str, str]:
        tags = {"mlflow.note.content": description(self.study, self.start, self.answer or "none: no last evaluation", self.privacy)}
        if self.whole and "test" in self.final.metrics and (worst := self.final.metrics["test"]["worst"]):
            tags["fedml.worst_site"] = worst
        if self.result:
            tags["fedml.result"] = self.result
        return tags | ({"fedml.weights_sha256": self.final.weights_sha256} if self.final.came else {})

    def _site_tags(self, site: str) -> Iterator[tuple[str, str]]:
        yield "fedml.took_part", EXTERNAL if site in self.study.federation.evaluate_only else _spans(self.rounds[site]) or "none"
        if site in self.heads:
            yield "fedml.journal_head", self.heads[site][0]
            yield "fedml.journal_entries", str(self.heads[site][1])
        if site in self.refused:
            yield "fedml.missed", "; ".join(f"{reason}: round {_spans(rounds)}" for reason, rounds in self.refused[site].items())
