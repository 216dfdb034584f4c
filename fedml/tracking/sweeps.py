"""The record of a sweep in MLflow: one run, with the sweep's runs as its children, from the folders of both.

    deliver_sweep(folder)         after the last run; repeating it adds nothing

MLflow's parallel coordinates read the children: the varied keys by their short names, and the validation metric with its interval.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedml.errors import InputError, RunError
from fedml.runs.events import Start
from fedml.runs.log import STUDY, read_log
from fedml.study.study import parse_study
from fedml.tracking import outbox
from fedml.tracking.deliver import deliver, deliver_pending
from fedml.tracking.files import Write
from fedml.tracking.knowing import watched_of
from fedml.tracking.members import parent_of
from fedml.tracking.pages import experiment_of
from fedml.tracking.store import connect

SWEEP = "sweep.json"
_TEXT = 5000  # characters of a tag, within MLflow's limit


def deliver_sweep(folder: Path, say: Callable[[str], object] = lambda _: None, *, write: Write | None = None) -> str:
    """Delivers the sweep's runs and its own record; returns MLflow's id of the record.

    Args:
        folder: the sweep's folder, next to those of its runs. say: called with a line for each run.

    Raises:
        InputError: the folder is not that of a sweep whose runs are all made. RunError: another process is recording one of its runs.
    """
    from mlflow.entities import Metric, Param, RunTag

    text = (folder / SWEEP).read_bytes()
    found: dict[str, Any] = json.loads(text)
    result = found["result"]
    if result is None:
        raise InputError(f"{folder}: runs of this sweep are missing; repeat the command that started it.")
    study, client = parse_study((folder / STUDY).read_text(encoding="utf-8")), connect()
    runs = [folder.parent / row["run"] for row in found["runs"].values()]
    starts = [event for run in runs for event in read_log(run)[0][:1] if isinstance(event, Start)]
    stamp = int(min((start.time for start in starts), default=0) * 1000)
    experiment = experiment_of(client, study, watched_of(study))
    parent = parent_of(client, experiment, found["id"], stamp)
    ids = []
    for run in runs:
        ids.append(deliver(run, parse_study((run / STUDY).read_text(encoding="utf-8")), write=write))
        say(run.name)
    existing = client.get_run(parent).data
    tags = {
        "fedml.study.study": study.study.name, "fedml.study_sha256": study.sha256, "fedml.strategy": study.strategy.name,
        "fedml.seed": ", ".join(map(str, found["seeds"])), "fedml.engine": "local", "mlflow.runName": _name(found), **result["tags"],
    }  # fmt: skip
    end = int(result["time"] * 1000)
    client.log_batch(
        parent,
        metrics=[Metric(k, v, end, 0) for k, v in result["metrics"].items() if existing.metrics.get(k) != v],
        params=[Param(k, v) for k, v in result["params"].items()],
        tags=[RunTag(k, v[:_TEXT]) for k, v in tags.items()],
    )
    client.log_artifact(parent, str(folder / SWEEP), "record")
    client.log_text(parent, _table(found, [client.get_run(run_id) for run_id in ids]), "sweep.csv")
    client.set_terminated(parent, "FINISHED", end)
    outbox.mark_delivered(folder, parent, len(text))
    return parent


def _name(found: dict[str, Any]) -> str:
    """The sweep's name in MLflow's tables: how values were found, which keys, and the end of its id."""
    how = next((f"{kind} {found[kind]}" for kind in ("random", "optuna") if found.get(kind)), "grid")
    keys = ", ".join(key for key in found["result"]["params"] if key != "seeds")
    return f"sweep, {how}: {keys} ({found['id'][-6:]})"


def _table(found: dict[str, Any], runs: list[Any]) -> str:
    """A row for each of the sweep's runs: its id, the varied values and its validation metrics; the chosen ones are those with test
    metrics, which are not in the table."""
    keys = [key for key in found["result"]["params"] if key != "seeds"]
    metrics = sorted({name for run in runs for name in run.data.metrics if name.startswith("val/")})
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["run", *keys, "seed", *metrics])
    for run in runs:
        params, seed = run.data.params, run.data.tags.get("fedml.seed", "")
        rows.writerow(
            [run.data.tags["fedml.run_id"], *(params.get(k, "") for k in keys), seed, *(run.data.metrics.get(m, "") for m in metrics)]
        )
    return out.getvalue()


def deliver_all_pending(runs: Path, say: Callable[[str], object], write: Write | None = None) -> None:
    """``deliver_pending``, then every sweep that is not delivered to the current store.

    Raises:
        InputError: there is no such folder. RunError: MLflow did not accept a record; earlier ones are delivered.
    """
    deliver_pending(runs, say, write)
    for marker in sorted(runs.glob(f"*/{SWEEP}")):
        folder = marker.parent
        if not outbox.is_tracked(folder) or json.loads(marker.read_bytes())["result"] is None:
            continue
        if outbox.delivered_bytes(folder) == marker.stat().st_size:
            continue
        try:
            say(f"{folder.name}: {deliver_sweep(folder, write=write)}")
        except outbox.Busy as error:
            say(str(error))
        except Exception as error:
            raise RunError(f"{folder}: MLflow did not accept the sweep ({error}); try again later.") from error
