"""`fedml promote`: registers a run's model in MLflow's registry, as challenger or champion of its study.

All of these rules must hold:

- the run finished, and each round and the last evaluation had the study's quorum;
- if the study promises privacy, the record has every claim, none above the study's epsilon or delta, and no audit found a larger epsilon
  than claimed;
- no site loses more than ``margin`` of the watched metric on its test persons against the champion. The comparison requires the same
  persons: the same question, split and target, and the same SHA-256 of each site's data.

The loss is a difference of point estimates: at a site with few test persons it is mostly chance (`fedml compare` gives its interval). Only
the current champion is compared, so small losses can add up over promotions.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.experiments.runs.record import Record, exchanges, read_record
from fedml.experiments.tracked.files import write_files
from fedml.models.fusion import digest
from fedml.runs.events import Round
from fedml.runs.log import MODEL, load_model
from fedml.strategies.chosen import planned
from fedml.tasks.registry import make_task
from fedml.tracking.deliver import deliver
from fedml.tracking.registry import CHALLENGER, CHAMPION, RUN_TAG, STUDY_TAG, WEIGHTS_TAG, Version, holder, log_model, register
from fedml.tracking.store import connect

ALIASES = (CHALLENGER, CHAMPION)
_SLACK = 1e-9  # relative: rounding of an epsilon whose noise multiplier was solved for


def promote(run: Path, alias: str, margin: float) -> Version:
    """Registers the run's model under the study's name and gives it ``alias``; a run that is registered keeps its version.

    Raises:
        InputError: a rule is violated, or the run, the alias or the margin is invalid.
    """
    if alias not in ALIASES:
        raise InputError(f'--as "{alias}" is not known; give challenger or champion.')
    if not 0 <= margin < math.inf:
        raise InputError(f"--margin {margin}: must be 0 or more, in the unit of the metric.")
    record = read_record(run)
    check_sound(record)
    client, name = connect(), record.study.study.name
    champion = holder(client, name, CHAMPION)
    if champion is not None and champion.run_id != record.run_id:
        check_sites(record, _champion_record(client, champion), margin)
    elif champion is not None and alias == CHALLENGER:
        raise InputError(f"{run}: is already the champion of {name} (version {champion.number}); a challenger must be another run.")
    parent = deliver(run, record.study, write=write_files)
    model = log_model(run, record.study, parent)
    tags = {RUN_TAG: record.run_id, STUDY_TAG: record.study.sha256, WEIGHTS_TAG: record.final.weights_sha256}
    recorded = client.get_run(parent).data.tags
    if result := recorded.get("fedml.result"):
        tags["fedml.result"] = result  # in the table of versions
    version = register(client, name, parent, model, tags, alias, record.study.study.question)
    client.update_model_version(
        name, str(version.number), description="\n\n".join(filter(None, (result, recorded.get("mlflow.note.content"))))
    )
    return version


def check_sound(record: Record) -> None:
    """Checks that the run kept the promises of its study: status, rounds, quorum, privacy and model.

    Raises:
        InputError: the first promise that is not kept.
    """
    study, run = record.study, record.run
    if record.start.job != "train":
        raise InputError(f"{run}: tested a finished model and trained none; promote the run that trained it.")
    if record.status != "finished" or "test" not in record.final.metrics:
        reason = record.end.reason or "it has no last evaluation"
        raise InputError(f"{run}: is {record.status} ({reason}); only a finished run with test persons can be promoted.")
    needed, training = study.federation.needed, set(study.federation.training)
    if [e.round for e in record.rounds] != list(range(1, planned(study, record.rounds)[0] + 1)):
        raise InputError(f"{run}: the log has {len(record.rounds)} rounds, the study has {study.federation.rounds}; promote a whole run.")
    for event in exchanges(record.rounds, record.final):
        answered = len(training & event.sites.keys())
        if answered < needed:
            where = f"round {event.round}" if isinstance(event, Round) else "the last evaluation"
            raise InputError(f"{run}: {where} had {answered} site(s), below the quorum of {needed}; it cannot be promoted.")
    _check_privacy(record)
    if not (run / MODEL).exists() or digest(load_model(run)[0]) != record.final.weights_sha256:
        raise InputError(f"{run / MODEL}: is not the model whose SHA-256 is in the log; promote the unchanged folder of the run.")


def _check_privacy(record: Record) -> None:
    plan, run = record.study.privacy, record.run
    if plan.unit == "none":
        return
    claims = record.privacy.claims
    roster = record.study.federation
    for name in (roster.sites if plan.metrics == "private" else roster.training) if plan.unit == "patient" else ("",):
        claim, protected = claims.get(name), f"{name}'s persons" if name else "a site"
        epsilon, delta = (None, None) if claim is None else (claim["epsilon"], claim["delta"])
        if epsilon is None or delta is None:
            raise InputError(f"{run}: the study promises privacy, but the record has no claim for {protected}; the run cannot be promoted.")
        limit = plan.epsilon if plan.epsilon is not None else math.inf
        if epsilon > limit * (1 + _SLACK) or delta > plan.delta * (1 + _SLACK):
            raise InputError(
                f"{run}: epsilon {epsilon:.4g} (delta {delta:g}) for {protected} is above the study's {limit:.4g} (delta {plan.delta:g}); "
                "it cannot be promoted."
            )
    audit = _read_json(run / "audit.json").get("audit", {})
    claimed = record.privacy.epsilon or 0.0
    if audit.get("epsilon", 0) > claimed:
        raise InputError(
            f"{run / 'audit.json'}: the audit proves epsilon at least {audit['epsilon']:.3f}, "
            f"the claim is {claimed:.3f}; the run cannot be promoted."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); run `fedml audit` again or delete the file.") from error
    return found if isinstance(found, dict) else {}


def check_sites(record: Record, champion: Record, margin: float) -> None:
    """Checks that the run is worse than the champion by at most ``margin`` at every site.

    Raises:
        InputError: the loss at a site is larger, or the test persons are not the same.
    """
    ours, theirs, other_run = record.study, champion.study, champion.run_id
    wanted: dict[str, tuple[Any, Any]] = {
        "[study] question": (ours.study.question, theirs.study.question),
        "[model] task": (ours.model.task, theirs.model.task),
        "[cohort] target": (ours.cohort.target, theirs.cohort.target),
        "[survival]": (ours.survival, theirs.survival),
        "[cohort] classes": (ours.cohort.classes, theirs.cohort.classes),
        "[cohort] split": (ours.cohort.split, theirs.cohort.split),
        "[cohort] split_key (or the seed)": (ours.split_key, theirs.split_key),
    }
    for key, (value, other) in wanted.items():
        if value != other:
            raise InputError(
                f"{record.run}: {key} is {_plain(value)}, the champion {other_run} has {_plain(other)}, so they were not tested alike; "
                "promote a run with the champion's question and split."
            )
    task = make_task(ours)
    scores, other_scores = (r.final.metrics["test"]["sites"] for r in (record, champion))
    for site in champion.sites:
        if site.name not in other_scores:
            continue
        if site.name not in scores:
            raise InputError(
                f"{record.run}: {site.name} tested the champion {other_run} and not this run; promote a run that this site tested."
            )
        if site.dataset is None or record.site(site.name).dataset != site.dataset:
            raise InputError(
                f"{record.run}: {site.name} read or prepared other data than for the champion {other_run}, so the loss is not defined; "
                "if the site's files have changed, run the champion's study again; if the study's inputs differ, use `fedml compare`."
            )
        old, new = other_scores[site.name].get(task.watched), scores[site.name].get(task.watched)
        if old is None:
            continue
        loss = math.inf if new is None else (old - new if task.higher else new - old)
        if loss > margin:
            result = "undefined" if new is None else f"{new:.3f}"
            raise InputError(
                f"{record.run}: {site.name} would lose {loss:.3f} {task.watched} (champion {other_run} {old:.3f}, this run {result}), "
                f"more than the margin of {margin:g}, in {scores[site.name]['persons']:.0f} test persons; the run cannot be promoted."
            )


def _plain(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _champion_record(client: Any, champion: Version) -> Record:
    """The champion's record, from MLflow."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_record(Path(client.download_artifacts(champion.mlflow_run, "record", folder)))
        except (MlflowException, OSError, InputError) as error:
            raise InputError(
                f'the champion of "{champion.name}" is version {champion.number} (run {champion.run_id}), whose record cannot be read from '
                f"MLflow ({error}); deliver that run again with `fedml track`, or remove the alias in MLflow."
            ) from error
