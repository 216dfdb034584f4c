"""`fedml promote`: a run's model becomes a version in MLflow's registry, as challenger or champion of its study.

The rules, each of which refuses by itself:

- the run finished, and each round and the last evaluation had the study's quorum;
- where the study promises privacy, every claim that it makes is in the record, none above the study's epsilon or delta, and no audit
  has found more than is claimed;
- no site loses more than ``margin`` of the watched metric on its test persons against the champion. That compares anything only where
  the persons are the same: the same question, split and target, and the same SHA-256 of each site's data.

The loss is one of point estimates: at a site with few test persons much of it is chance (`fedml compare` has its interval), and it is
against today's champion alone, so small losses can add up over promotions.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.experiments.runs.record import Record, exchanges, read_record
from fedml.learning.tasks import make_task
from fedml.models.fusion import digest
from fedml.runs.events import Round
from fedml.runs.log import MODEL, load_model
from fedml.tracking.deliver import deliver
from fedml.tracking.registry import CHALLENGER, CHAMPION, RUN_TAG, STUDY_TAG, WEIGHTS_TAG, Version, holder, log_model, register
from fedml.tracking.store import store

ALIASES = (CHALLENGER, CHAMPION)
_SLACK = 1e-9  # relative: an epsilon that was solved for may be a rounding above what was asked


def promote(run: Path, alias: str, margin: float) -> Version:
    """Registers the run's model under the study's name and gives it ``alias``; a run that has a version keeps it.

    Raises:
        InputError: a rule refuses, or the run, the alias or the margin cannot be used.
    """
    from mlflow import MlflowClient

    if alias not in ALIASES:
        raise InputError(f'--as "{alias}" is not known; it is challenger or champion.')
    if not 0 <= margin < math.inf:
        raise InputError(f"--margin {margin}: has to be 0 or more, in the unit of the metric.")
    record = read_record(run)
    check_sound(record)
    client, name = MlflowClient(store()), record.study.study.name
    champion = holder(client, name, CHAMPION)
    if champion is not None and champion.run_id != record.run_id:
        check_sites(record, _champion_record(client, champion), margin)
    elif champion is not None and alias == CHALLENGER:
        raise InputError(f"{run}: is the champion of {name} already (version {champion.number}); a challenger is another run.")
    parent = deliver(run, record.study)
    model = log_model(run, record.study, parent)
    tags = {RUN_TAG: record.run_id, STUDY_TAG: record.study.sha256, WEIGHTS_TAG: record.final.weights_sha256}
    return register(client, name, parent, model, tags, alias, record.study.study.question)


def check_sound(record: Record) -> None:
    """Did the run keep what its study promised?

    Raises:
        InputError: it did not; says where.
    """
    study, run = record.study, record.run
    if record.status != "finished" or "test" not in record.final.metrics:
        reason = record.end.reason or "it has no last evaluation"
        raise InputError(f"{run}: is {record.status} ({reason}); only a finished run with test persons can be promoted.")
    needed = study.federation.quorum or len(study.federation.sites)
    if [e.round for e in record.rounds] != list(range(1, study.federation.rounds + 1)):
        raise InputError(f"{run}: its log has {len(record.rounds)} rounds, the study has {study.federation.rounds}; promote a whole run.")
    for event in exchanges(record.rounds, record.final):
        if len(event.sites) < needed:
            where = f"round {event.round}" if isinstance(event, Round) else "the last evaluation"
            raise InputError(f"{run}: {where} had {len(event.sites)} site(s), below the quorum of {needed}; it cannot be promoted.")
    _check_privacy(record)
    if not (run / MODEL).exists() or digest(load_model(run)[0]) != record.final.weights_sha256:
        raise InputError(f"{run / MODEL}: is not the model of which the log tells the SHA-256; promote the folder as the run left it.")


def _check_privacy(record: Record) -> None:
    plan, run = record.study.privacy, record.run
    if plan.unit == "none":
        return
    claims = record.privacy.claims
    for name in record.study.federation.sites if plan.unit == "patient" else ("",):
        claim, whose = claims.get(name), f"{name}'s persons" if name else "a site"
        epsilon, delta = (None, None) if claim is None else (claim["epsilon"], claim["delta"])
        if epsilon is None or delta is None:
            raise InputError(f"{run}: the study promises privacy and the record has no claim for {whose}; it cannot be promoted.")
        limit = plan.epsilon if plan.epsilon is not None else math.inf
        if epsilon > limit * (1 + _SLACK) or delta > plan.delta * (1 + _SLACK):
            raise InputError(
                f"{run}: epsilon {epsilon:.4g} (delta {delta:g}) for {whose} is above the study's {limit:.4g} (delta {plan.delta:g}); "
                "it cannot be promoted."
            )
    audit = _read_json(run / "audit.json").get("audit", {})
    claimed = record.privacy.epsilon or 0.0
    if audit.get("epsilon", 0) > claimed:
        raise InputError(
            f"{run / 'audit.json'}: the audit proves epsilon at least {audit['epsilon']:.3f} where "
            f"{claimed:.3f} is claimed; it cannot be promoted."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error}); run `fedml audit` again or remove it.") from error
    return found if isinstance(found, dict) else {}


def check_sites(record: Record, champion: Record, margin: float) -> None:
    """Is the run at no site worse than the champion by more than ``margin``?

    Raises:
        InputError: it is at one, or their test persons are not the same.
    """
    ours, theirs, who = record.study, champion.study, champion.run_id
    wanted: dict[str, tuple[Any, Any]] = {
        "[study] question": (ours.study.question, theirs.study.question),
        "[model] task": (ours.model.task, theirs.model.task),
        "[cohort] target": (ours.cohort.target, theirs.cohort.target),
        "[cohort] classes": (ours.cohort.classes, theirs.cohort.classes),
        "[cohort] split": (ours.cohort.split, theirs.cohort.split),
        "[cohort] split_key (or the seed)": (ours.split_key, theirs.split_key),
    }
    for key, (own, other) in wanted.items():
        if own != other:
            raise InputError(
                f"{record.run}: its {key} is {_plain(own)}, that of the champion {who} {_plain(other)}, so they were not tested alike; "
                "promote a run of the champion's question and split."
            )
    task = make_task(ours)
    mine, other_scores = (r.final.metrics["test"]["sites"] for r in (record, champion))
    for site in champion.sites:
        if site.name not in other_scores:
            continue
        if site.name not in mine:
            raise InputError(f"{record.run}: {site.name} tested the champion {who} and not this run; promote a run that it tested.")
        if site.dataset is None or record.site(site.name).dataset != site.dataset:
            raise InputError(
                f"{record.run}: {site.name} read or prepared other data than for the champion {who}, so no loss can be told; "
                "if its files have changed run the champion's study again, if the study's inputs differ see `fedml compare`."
            )
        old, new = other_scores[site.name].get(task.watched), mine[site.name].get(task.watched)
        if old is None:
            continue
        loss = math.inf if new is None else (old - new if task.higher else new - old)
        if loss > margin:
            told = "undefined" if new is None else f"{new:.3f}"
            raise InputError(
                f"{record.run}: {site.name} would lose {loss:.3f} {task.watched} (champion {who} {old:.3f}, this run {told}), "
                f"more than the margin of {margin:g}, in {mine[site.name]['persons']:.0f} test persons; it cannot be promoted."
            )


def _plain(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _champion_record(client: Any, champion: Version) -> Record:
    """The champion's record, as MLflow keeps it."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_record(Path(client.download_artifacts(champion.mlflow_run, "record", folder)))
        except (MlflowException, OSError, InputError) as error:
            raise InputError(
                f'the champion of "{champion.name}" is version {champion.number} (run {champion.run_id}), whose record MLflow does not '
                f"give ({error}); deliver it again with `fedml track`, or take the alias away in MLflow."
            ) from error
