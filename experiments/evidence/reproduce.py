"""``fedml reproduce``: runs a bundle's study again on local data and compares the two runs bit by bit.

    found = reproduce(files, sites, runs, say)
    found.equal, [d.text for d in found.differences]

The differences are listed in the order of a run: data, software, agreement, the first differing round, model, counts, metrics; the first is
usually the cause of the others. Noise of differential privacy is drawn from the operating system and cannot be repeated; of a private
study, everything before the noise is compared, and the privacy events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedml.clients.gate.local import Plan, check_budgets
from fedml.clients.site.manifest import Site
from fedml.errors import InputError, RunError
from fedml.experiments.evidence.contents import counts_by_site, is_source, record_of
from fedml.experiments.evidence.recompute import value_differs
from fedml.experiments.runs.record import Record, exchanges, read_record
from fedml.experiments.runs.run import new_run, read_all
from fedml.experiments.runs.run import run as run_study
from fedml.runs.events import Final, Round, body
from fedml.runs.log import MODEL, PANEL
from fedml.runs.software import other_code
from fedml.strategies.algorithms.registry import STRATEGIES
from fedml.study.sources import FOLDER as CODE

PRIVATE = (
    "the study's noise is drawn from the operating system, so its results cannot be reproduced bit by bit; the steps before the noise and "
    "the epsilon are compared"
)


@dataclass(frozen=True)
class Difference:
    """``where``: data, software, agreement, privacy, round, model, counts or metrics. ``decides``: whether the runs count as unequal."""

    where: str
    text: str
    decides: bool = True


@dataclass(frozen=True)
class Reproduced:
    """The comparison of a new run with a bundle's. ``private``: the study has noise, so results were not compared bit by bit."""

    run: Path
    private: bool
    weights_sha256: str
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether everything that was compared is equal."""
        return not any(d.decides for d in self.differences)

    def sentence(self) -> str:
        """The outcome as one sentence."""
        if not self.equal:
            return f"different: {next(d.text for d in self.differences if d.decides)}"
        return f"equal as far as possible: {PRIVATE}" if self.private else f"bitwise equal: model {self.weights_sha256}, metrics and counts"


def reproduce(
    files: Mapping[str, bytes], sites: Mapping[str, Site], runs: Path, say: Callable[[str], None], *, run_code: bool = False
) -> Reproduced:
    """Runs the study of a verified bundle with the local engine; the run's folder is created in ``runs``.

    Args:
        run_code: whether the study's own code, which is in the bundle, may run in this process.

    Raises:
        InputError: a site's data cannot be used.
        RunError: the study did not finish.
    """
    with record_of({name: data for name, data in files.items() if is_source(name)}) as record:
        study = record.study
        if record.start.job != "train":
            raise InputError("the bundle is of a test of a finished model, in which nothing was trained; repeat it with `fedml evaluate`.")
        if study.strategy.name not in STRATEGIES and not study.strategy.name.startswith("flwr."):
            raise InputError(
                f"the bundle's study uses code outside fedml, [strategy] name {study.strategy.name}; run the study with `fedml run` if you "
                "trust that code."
            )
        if study.code is not None and not run_code:
            raise InputError(
                f"the bundle's study has code of its own ({study.code.names(f'{CODE}/')}); read it in the bundle, then add --run-code to "
                "run it here."
            )
        read_all(study, sites, say)
        check_budgets([Plan(study, name, site) for name, site in sites.items()])
        folder = new_run(study, runs, None, engine="local", job="train")
        outcome = run_study(study, sites, folder)
        if outcome.status != "finished":
            raise RunError(f"{folder}: the study did not finish ({outcome.reason}).")
        private = study.privacy.unit != "none"
        again = read_record(folder)
        found = tuple(_private_differences(record, again) if private else _differences(record, again))
        return Reproduced(folder, private, again.final.weights_sha256, found)


def _differences(bundled: Record, repeated: Record) -> Iterator[Difference]:
    yield from _before(bundled, repeated)
    for old, new in zip(bundled.rounds, repeated.rounds, strict=False):
        if found := _round_differs(old, new):
            yield Difference("round", f"round {old.round} is the first that differs: {found}")
            break
    if bundled.final.weights_sha256 != repeated.final.weights_sha256:
        yield Difference("model", _arrays(bundled.run, repeated.run))
    yield from _counts(bundled, repeated)
    old_final, new_final = body(bundled.final), body(repeated.final)
    for what in ("metrics", "groups"):
        if found := value_differs(old_final[what], new_final[what], what, tolerance=0.0):
            yield Difference("metrics", f"last evaluation: {found}")


def _private_differences(bundled: Record, repeated: Record) -> Iterator[Difference]:
    """Compares everything without noise: the data, the agreement, the sites of each round, and the privacy events. Metrics are listed."""
    yield from _before(bundled, repeated)
    for old, new in zip(exchanges(bundled.rounds, bundled.final), exchanges(repeated.rounds, repeated.final), strict=False):
        if old.sites.keys() != new.sites.keys():
            yield Difference("round", f"{old.kind} {old.round}: sites in the bundle {_sites(old)}, in the new run {_sites(new)}")
            break
    if found := value_differs(body(bundled.privacy), body(repeated.privacy), "privacy"):
        yield Difference("privacy", found)
    for part, scores in bundled.final.metrics.items():
        if part in repeated.final.metrics:
            for name, value in scores["all"].items():
                other = repeated.final.metrics[part]["all"].get(name)
                yield Difference("metrics", f"{part} {name}: {_shown(value)} in the bundle, {_shown(other)} in the new run", False)


def _before(bundled: Record, repeated: Record) -> Iterator[Difference]:
    """Compares the data, the software and the agreement, which are fixed before the first round."""
    for old, new in zip(bundled.sites, repeated.sites, strict=True):
        if old.dataset is None or new.dataset is None:
            yield Difference("data", f"{old.name}: a run has no digest of this site's data, so the data are not compared", False)
        elif old.dataset != new.dataset:
            yield Difference("data", f"{old.name} read other data: {old.dataset[:16]} in the bundle, {new.dataset[:16]} in the new run")
        if old.persons != new.persons:
            text = f"{old.name}: persons by part and class are {old.persons} in the bundle, {new.persons} in the new run"
            yield Difference("data", text)
    for name in sorted(bundled.start.versions.keys() | repeated.start.versions.keys()):
        old_version, new_version = (record.start.versions.get(name, "absent") for record in (bundled, repeated))
        if old_version != new_version:
            yield Difference("software", f"{name} {old_version} in the bundle, {new_version} in the new run", False)
    if (found := other_code(bundled.start.code, repeated.start.code, ("the bundle", "the new run"))) is not None:
        yield Difference("software", found, False)
    old_commit, new_commit = bundled.start.git_commit, repeated.start.git_commit
    if old_commit != new_commit and "none" not in (old_commit, new_commit):
        commits = f"{old_commit[:16]} in the bundle, {new_commit[:16]} in the new run"
        yield Difference("software", f"the commit of the working folder differs: {commits}", False)
    if (bundled.run / PANEL).read_bytes() != (repeated.run / PANEL).read_bytes():
        yield Difference(
            "agreement",
            f"the sites' common variants differ: {bundled.agreed.variants} in the bundle, {repeated.agreed.variants} in the new run",
        )
    old_agreed, new_agreed = body(bundled.agreed), body(repeated.agreed)
    for what in ("sites", "image_shape", "parameters"):
        if old_agreed[what] != new_agreed[what]:
            yield Difference("agreement", f"{what}: {old_agreed[what]} in the bundle, {new_agreed[what]} in the new run")


def _round_differs(old: Round, new: Round) -> str | None:
    if old.sites.keys() != new.sites.keys():
        return f"sites in the bundle {_sites(old)}, in the new run {_sites(new)}"
    first, other = ({site: row["train_loss"] for site, row in event.sites.items()} for event in (old, new))
    return value_differs(old.metrics, new.metrics, "metrics", tolerance=0.0) or value_differs(first, other, "train_loss", tolerance=0.0)


def _arrays(bundled: Path, repeated: Path) -> str:
    """The arrays of two models that differ, and their largest absolute differences, as one sentence."""
    from safetensors.numpy import load_file

    old, new = load_file(bundled / MODEL), load_file(repeated / MODEL)
    if old.keys() != new.keys():
        return f"only one of the models has the arrays {', '.join(sorted(old.keys() ^ new.keys())[:5])}"
    rows = []
    for name in sorted(old):
        if old[name].shape != new[name].shape or old[name].dtype != new[name].dtype:
            rows.append(f"{name} has another shape or type")
        elif old[name].tobytes() != new[name].tobytes():
            rows.append(f"{name} by at most {np.abs(old[name].astype(np.float64) - new[name].astype(np.float64)).max():.3g}")
    return f"{len(rows)} of {len(old)} arrays of the model differ: {'; '.join(rows[:5])}{'; ...' if len(rows) > 5 else ''}"


def _counts(bundled: Record, repeated: Record) -> Iterator[Difference]:
    old, new = counts_by_site(bundled), counts_by_site(repeated)
    for site in dict.fromkeys([*old, *new]):
        first, other = old.get(site, {}), new.get(site, {})
        bad = [k for k in sorted(first.keys() | other.keys()) if k not in first or k not in other or not _same_bits(first[k], other[k])]
        if bad:
            yield Difference("counts", f"{site}: counts differ in {', '.join(bad[:3])}")


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def _sites(event: Round | Final) -> str:
    return ", ".join(event.sites) or "none"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
