"""``fedml reproduce``: runs a bundle's study once more, on the data at hand, and says whether every bit came out again, or where it parts.

    found = reproduce(files, sites, runs, say)
    found.equal, [d.text for d in found.differences]

The first difference is the one to look at: what was read, then software, then the first round, then arrays and counts. Noise of
differential privacy is the operating system's and never the same twice; of a private study all that comes before the noise is compared,
and the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedml.clients.site.manifest import Site
from fedml.errors import InputError, RunError
from fedml.experiments.evidence.contents import counts_by_site, is_source, record_of
from fedml.experiments.evidence.recompute import value_differs
from fedml.experiments.runs.record import Record, exchanges, read_record
from fedml.experiments.runs.run import new_run, read_all
from fedml.experiments.runs.run import run as run_study
from fedml.runs.events import Final, Round, body
from fedml.runs.log import MODEL, PANEL
from fedml.strategies.algorithms.registry import STRATEGIES

PRIVATE = (
    "the study's noise is drawn from the operating system, so its bits cannot come out again; what comes before the noise, and the "
    "privacy it costs, are compared"
)


@dataclass(frozen=True)
class Difference:
    """``where``: data, software, agreement, privacy, round, model or counts. ``decides``: does it keep the two runs from being equal?"""

    where: str
    text: str
    decides: bool = True


@dataclass(frozen=True)
class Reproduced:
    """How a second run compares with a bundle's. ``private``: bits could not be equal and were not asked for."""

    run: Path
    private: bool
    weights_sha256: str
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Is all that was compared the same?"""
        return not any(d.decides for d in self.differences)

    def sentence(self) -> str:
        """The outcome in a line."""
        if not self.equal:
            return f"different: {next(d.text for d in self.differences if d.decides)}"
        return f"equal in all that can be: {PRIVATE}" if self.private else f"bitwise equal: model {self.weights_sha256}, metrics and counts"


def reproduce(files: Mapping[str, bytes], sites: Mapping[str, Site], runs: Path, say: Callable[[str], None]) -> Reproduced:
    """Runs the study of a verified bundle with the local engine; the run's folder stays under ``runs``.

    Raises:
        InputError: a site's data cannot be used.
        RunError: the study did not finish.
    """
    with record_of({name: data for name, data in files.items() if is_source(name)}) as record:
        study = record.study
        if study.strategy.name not in STRATEGIES and not study.strategy.name.startswith("flwr."):
            raise InputError(
                f"the bundle's study names code of its own, {study.strategy.name}; run it with `fedml run` if you trust that code."
            )
        read_all(study, sites, say)
        folder = new_run(study, runs, None, engine="local", job="train")
        outcome = run_study(study, sites, engine="local", run=folder, sites_folder=Path())
        if outcome.status != "finished":
            raise RunError(f"{folder}: the study did not finish here ({outcome.reason}).")
        private = study.privacy.unit != "none"
        again = read_record(folder)
        found = tuple(_private_differences(record, again) if private else _differences(record, again))
        return Reproduced(folder, private, again.final.weights_sha256, found)


def _differences(told: Record, here: Record) -> Iterator[Difference]:
    yield from _before(told, here)
    for old, new in zip(told.rounds, here.rounds, strict=False):
        if found := _round_differs(old, new):
            yield Difference("round", f"round {old.round} is the first that differs: {found}")
            break
    if told.final.weights_sha256 != here.final.weights_sha256:
        yield Difference("model", _arrays(told.run, here.run))
    yield from _counts(told, here)
    old_final, new_final = body(told.final), body(here.final)
    for what in ("metrics", "groups"):
        if found := value_differs(old_final[what], new_final[what], what, tolerance=0.0):
            yield Difference("metrics", f"last evaluation: {found}")


def _private_differences(told: Record, here: Record) -> Iterator[Difference]:
    """What no noise has touched: the data, the agreement, who took part, and what it costs."""
    yield from _before(told, here)
    for old, new in zip(exchanges(told.rounds, told.final), exchanges(here.rounds, here.final), strict=False):
        if old.sites.keys() != new.sites.keys():
            yield Difference("round", f"{old.kind} {old.round}: {_sites(old)} took part, here {_sites(new)}")
            break
    if found := value_differs(body(told.privacy), body(here.privacy), "privacy"):
        yield Difference("privacy", found)
    for part, scores in told.final.metrics.items():
        if part in here.final.metrics:
            for name, value in scores["all"].items():
                other = here.final.metrics[part]["all"].get(name)
                yield Difference("metrics", f"{part} {name}: {_shown(value)}, here {_shown(other)}", False)


def _before(told: Record, here: Record) -> Iterator[Difference]:
    """Data, software and agreement: what is settled before the first round."""
    for old, new in zip(told.sites, here.sites, strict=True):
        if old.dataset is None or new.dataset is None:
            yield Difference("data", f"{old.name}: the digest of what it read is not told, so the data are not compared", False)
        elif old.dataset != new.dataset:
            yield Difference("data", f"{old.name} read other data: {old.dataset[:16]} in the bundle, {new.dataset[:16]} here")
        if old.persons != new.persons:
            yield Difference("data", f"{old.name}: {old.persons} persons by part and class, here {new.persons}")
    for name in sorted(told.start.versions.keys() | here.start.versions.keys()):
        was, now = (record.start.versions.get(name, "absent") for record in (told, here))
        if was != now:
            yield Difference("software", f"{name} {was} in the bundle, {now} here", False)
    if told.start.git_commit != here.start.git_commit and "none" not in (told.start.git_commit, here.start.git_commit):
        commits = f"{told.start.git_commit[:16]} in the bundle, {here.start.git_commit[:16]} here"
        yield Difference("software", f"the working folder's commit is another: {commits}", False)
    if (told.run / PANEL).read_bytes() != (here.run / PANEL).read_bytes():
        yield Difference("agreement", f"the sites share other variants: {told.agreed.variants} in the bundle, {here.agreed.variants} here")
    theirs, ours = body(told.agreed), body(here.agreed)
    for what in ("sites", "image_shape", "parameters"):
        if theirs[what] != ours[what]:
            yield Difference("agreement", f"{what}: {theirs[what]} in the bundle, {ours[what]} here")


def _round_differs(old: Round, new: Round) -> str | None:
    if old.sites.keys() != new.sites.keys():
        return f"{_sites(old)} took part, here {_sites(new)}"
    mine, other = ({site: row["train_loss"] for site, row in event.sites.items()} for event in (old, new))
    return value_differs(old.metrics, new.metrics, "metrics", tolerance=0.0) or value_differs(mine, other, "train_loss", tolerance=0.0)


def _arrays(told: Path, here: Path) -> str:
    """Which arrays of two models differ, and by how much at most."""
    from safetensors.numpy import load_file

    old, new = load_file(told / MODEL), load_file(here / MODEL)
    if old.keys() != new.keys():
        return f"the models have other arrays: {', '.join(sorted(old.keys() ^ new.keys())[:5])}"
    rows = []
    for name in sorted(old):
        if old[name].shape != new[name].shape or old[name].dtype != new[name].dtype:
            rows.append(f"{name} has another shape or type")
        elif old[name].tobytes() != new[name].tobytes():
            rows.append(f"{name} by at most {np.abs(old[name].astype(np.float64) - new[name].astype(np.float64)).max():.3g}")
    return f"{len(rows)} of {len(old)} arrays of the model differ: {'; '.join(rows[:5])}{'; ...' if len(rows) > 5 else ''}"


def _counts(told: Record, here: Record) -> Iterator[Difference]:
    old, new = counts_by_site(told), counts_by_site(here)
    for site in dict.fromkeys([*old, *new]):
        mine, other = old.get(site, {}), new.get(site, {})
        bad = [k for k in sorted(mine.keys() | other.keys()) if k not in mine or k not in other or not _same_bits(mine[k], other[k])]
        if bad:
            yield Difference("counts", f"{site}: counts differ in {', '.join(bad[:3])}")


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _sites(event: Round | Final) -> str:
    return ", ".join(event.sites) or "nobody"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
