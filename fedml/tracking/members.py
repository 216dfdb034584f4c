"""A run that is one of a sweep's: a file in its folder names the sweep, and its record in MLflow is a child of the sweep's.

    RUN/sweep_run.json      the sweep's id, the varied values by short name, the seed, whether validation chose the run

Test metrics and the model of a run that was not chosen stay in its folder, so that nobody chooses by them in MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.runs.log import write_whole
from fedml.tracking.store import runs_of

MEMBER = "sweep_run.json"
JOB = "sweep"  # the job of a sweep's own record


@dataclass(frozen=True)
class Member:
    """``params``: short names and values of the varied keys, and ``seed``, as MLflow's pages show them."""

    sweep: str
    params: Mapping[str, str]
    chosen: bool = False


def write_member(run: Path, member: Member) -> None:
    """Writes the file, also in place of an earlier one."""
    write_whole(run / MEMBER, (json.dumps(asdict(member), indent=1) + "\n").encode())


def read_member(run: Path) -> Member | None:
    """The sweep's entry of a run; None for a run of its own.

    Raises:
        InputError: the file cannot be read.
    """
    if not (run / MEMBER).exists():
        return None
    try:
        found = json.loads((run / MEMBER).read_text(encoding="utf-8"))
        return Member(str(found["sweep"]), {str(k): str(v) for k, v in found["params"].items()}, found["chosen"] is True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run / MEMBER}: cannot be read ({error}); repeat the sweep, which writes it again.") from error


def parent_of(client: Any, experiment: str, sweep: str, stamp: int) -> str:
    """MLflow's id of the sweep's own record, which is created if there is none. ``stamp``: its start in milliseconds."""
    for found in runs_of(client, experiment, sweep):
        if found.data.tags.get("fedml.job") == JOB:
            return str(found.info.run_id)
    tags = {"fedml.run_id": sweep, "fedml.job": JOB, "fedml.role": JOB, "mlflow.source.name": "fedml", "mlflow.source.type": "LOCAL"}
    return str(client.create_run(experiment, stamp, tags=tags, run_name=sweep).info.run_id)
