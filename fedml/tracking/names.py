"""What tells runs apart in MLflow: names, roles, and the parameters that were chosen.

run_name(study, start, None)     # "heart, fedavg, seed 0 (3fa2b1)"
chosen(study)                    # {"training.lr": "0.01", ...}: keys that are not at their default, and a few that are always there
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel

from fedml.runs.events import Start
from fedml.study.study import Study
from fedml.tracking.members import Member

ROLE = "fedml.role"  # the tag that separates runs from their sites
RUN, SITE, EXTERNAL, SWEEP, COMPARISON = "run", "site", "external validation", "sweep", "comparison"
_ALWAYS = frozenset(
    {"study.seed", "model.task", "strategy.name", "training.optimizer", "training.lr", "training.batch_size", "training.local_epochs",
     "federation.rounds", "federation.sites", "privacy.unit"}
)  # fmt: skip
_SAID = frozenset({"study.name", "study.question", "study.purpose"})  # in the description and in tags
_MOST = 250  # characters of a parameter; the whole study is an artifact
_JOBS = {"evaluate": "test of a finished model", "gwas": "association", "genes": "genes", "frequencies": "frequencies",
         "survival": "survival", "glm": "generalised linear model", "describe": "table of persons"}  # fmt: skip


def allowed(text: str) -> str:
    """``text`` with only the characters that MLflow allows in names."""
    return re.sub(r"[^\w.\-: /]", "_", text)


def run_name(study: Study, start: Start, member: Member | None) -> str:
    """A name for MLflow's tables, which cut it: what was done, privacy, seed, and the end of the run's id. The experiment has the study's
    name. Of a sweep's run: the varied values."""
    end = start.run_id.rpartition("-")[2]
    if member is not None:
        return f"{', '.join(f'{key} {value}' for key, value in member.params.items()) or study.study.name} ({end})"
    seed = study.study.seed if start.schema == 0 else start.seed
    words = [_JOBS.get(start.job, study.strategy.name)]
    if study.privacy.unit != "none" and start.job in ("train", "evaluate"):
        words.append("private" if study.privacy.epsilon is None else f"epsilon {study.privacy.epsilon:g}")
    return f"{', '.join([*words, f'seed {seed}'])} ({end})"


def chosen(study: Study) -> dict[str, str]:
    """Key -> value as text of every key of the study that is not at its default, and of those that tell most runs apart."""
    return {allowed(key): text for key, text in _keys("", study)}


def _keys(above: str, section: BaseModel) -> list[tuple[str, str]]:
    found = []
    for name, field in type(section).model_fields.items():
        key, value = f"{above}.{name}" if above else name, getattr(section, name)
        if isinstance(value, BaseModel):
            found += _keys(key, value)
        elif key not in _SAID and value is not None and (key in _ALWAYS or value != field.get_default(call_default_factory=True)):
            found.append((key, _text(section.model_dump(mode="json", include={name}).get(name))))
    return found + [(f"{above}.{name}", _text(value)) for name, value in (section.model_extra or {}).items()]


def _text(value: Any) -> str:
    """A value as text, cut where it is long; a list with its length."""
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        text = ", ".join(map(str, value))
        return text if len(text) <= _MOST else f"{len(value):,} values: {text[: _MOST - 40].rpartition(', ')[0]}, ..."
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 4]} ..."
