"""`fedml export-score`: the linear model of a finished run as a scoring file in the PGS Catalog format, for `fedml-site score` and others.

    export_score(Path("fedml-runs/risk-20260131-101500-3fa2b1"), Path("risk.txt.gz"))

The score is the log-odds of the second class against the first, or the target in its unit: see ``write_scoring``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedml.cohort.scores.scoring_file import LinearModel, write_scoring
from fedml.cohort.variants.keys import from_text
from fedml.errors import InputError
from fedml.runs.events import NO_END, NO_FINAL, NO_PRIVACY, Checks, Event, Start
from fedml.runs.log import MODEL, PANEL, STUDY, last, read_log, study_of
from fedml.runs.restore import restore
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.task import LinearScore, built


def export_score(run: Path, out: Path) -> str:
    """Writes ``out`` (gzip if the name ends with .gz), completely or not at all; returns a summary line.

    Variants of weight 0 (from the L1 penalty, or without variation) are omitted: they do not change the score. If the sites' files are of
    several builds (``match = "rsid"``), positions are omitted too, because they would be of different builds; match such a file by rsID.

    Raises:
        InputError: ``run`` is not the folder of a finished run, the model is not a score, every weight is 0, or ``out`` cannot be written.
    """
    study, events = finished(run)
    if "variants" not in study.cohort.inputs:
        raise InputError(f"{run}: the study reads no variants (inputs: {', '.join(study.cohort.inputs)}), so there is no score to export.")
    from fedml.models.linear_score import linear_score

    _, model = restore(run)
    try:
        weight, intercept = linear_score(model)
    except InputError as error:
        raise InputError(f"{run}: {error}") from error
    mean, std = (model.get_buffer(f"preprocess.variants.{name}").double().numpy() for name in ("mean", "std"))
    keys = np.empty(len(weight), dtype=object)
    keys[:] = from_text((run / PANEL).read_bytes())
    nonzero = (weight != 0) & (std > 0)
    if not nonzero.any():
        raise InputError(f"{run}: every weight of the model is 0, so there is no score to export; train longer, or with a smaller l1.")
    build, chosen = build_of_run(study, events), list(keys[nonzero])
    if study.cohort.variants.match == "rsid" and not build:
        chosen = [key._replace(contig="", position=0) for key in chosen]
    linear = LinearModel(chosen, weight[nonzero], mean[nonzero], std[nonzero], intercept)
    _write(out, linear, study.study.name, build, _header(study, events))
    where = build or "not of one build: match by rsid"
    return f"{out}: {len(chosen)} of {len(weight)} variants have a weight ({where}); the score is {_meaning(study)}"


def finished(run: Path) -> tuple[Study, list[Event]]:
    """The study and the events of a finished run with a model. Raises ``InputError`` for another folder."""
    if not (run / STUDY).is_file():
        raise InputError(f"{run}: is not a run's folder, it has no {STUDY}; give a folder from fedml-runs.")
    study, (events, _) = study_of(run), read_log(run)
    if last(events, NO_END).status != "finished":
        raise InputError(f"{run}: the run did not finish, so it has no model; give a finished run.")
    if not (run / MODEL).is_file():
        raise InputError(f"{run}: has no model (a preflight or an association study has none); give the folder of a `fedml run`.")
    return study, events


def build_of_run(study: Study, events: Sequence[Event]) -> str:
    """The build of the panel's positions: the study's, or that of all sites' files; "" if the sites' builds differ."""
    checks = last(events, Checks(checks=[])).checks
    builds = {check["value"].split(",")[0] for check in checks if check["check"] == "genome build"}
    return str(study.cohort.variants.build) or (builds.pop() if len(builds) == 1 else "")


def _score(study: Study) -> LinearScore:
    task = make_task(study)
    return built(task.linear_score, task.name, "a linear score of variants")


def _meaning(study: Study) -> str:
    return _score(study).meaning


def _header(study: Study, events: Sequence[Event]) -> dict[str, str]:
    run_id = next((e.run_id for e in events if isinstance(e, Start)), "")
    fields = {
        "trait_reported": study.study.question or study.cohort.outcome,
        "weight_type": _score(study).weight_type,
        "score_meaning": _meaning(study),
        "study_name": study.study.name,
        "study_sha256": study.sha256,
        "run_id": run_id,
        "weights_sha256": last(events, NO_FINAL).weights_sha256,
        "sites": ", ".join(study.federation.training),
        "privacy": last(events, NO_PRIVACY).sentence or "none",
    }
    return {key: "".join(c if c.isprintable() else " " for c in value) for key, value in fields.items() if value}


def _write(out: Path, model: LinearModel, name: str, build: str, header: Mapping[str, str]) -> None:
    partial = out.with_name(f".partial.{out.name}")  # the same ending, which decides about compression
    try:
        write_scoring(partial, model, name=name, build=build, header=header)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give --out another file.") from error
