"""`fedml export-score`: the linear model of a finished run as a scoring file of the PGS Catalog, for `fedml-site score` and other programs.

    export_score(Path("fedml-runs/risk-20260131-101500-3fa2b1"), Path("risk.txt.gz"))

The score is the log-odds of the second class against the first, or the target in its own unit: see ``write_scoring``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedml.cohort.scores.scoring_file import write_scoring
from fedml.cohort.variants.model import Variant, from_text
from fedml.errors import InputError
from fedml.runs.events import NO_END, NO_FINAL, NO_PRIVACY, Checks, Event, Start
from fedml.runs.log import MODEL, PANEL, STUDY, last, read_log
from fedml.runs.restore import restore
from fedml.study.sections import normal
from fedml.study.study import Study, parse_study


def export_score(run: Path, out: Path) -> str:
    """Writes ``out`` (gzip where it ends with .gz), whole or not at all; returns a line that says what is in it.

    Variants of weight 0 (the L1 penalty's, or of nobody's variation) are left out: they say nothing. Where the sites' files are of several
    builds (``match = "rsid"``), the places are left out too, for the panel's would be of no one build; such a file is matched by rsID.

    Raises:
        InputError: no folder of a finished run, a model that is no score, every weight is 0, or ``out`` cannot be written.
    """
    study, events = _finished(run)
    if "variants" not in study.cohort.inputs:
        raise InputError(f"{run}: its study reads no variants (inputs: {', '.join(study.cohort.inputs)}), so there is no score to export.")
    from fedml.models.linear_score import linear_score

    _, model = restore(run)
    try:
        weight, intercept = linear_score(model)
    except InputError as error:
        raise InputError(f"{run}: {error}") from error
    mean, std = (model.get_buffer(f"preprocess.variants.{name}").double().numpy() for name in ("mean", "std"))
    keys = np.empty(len(weight), dtype=object)
    keys[:] = from_text((run / PANEL).read_bytes())
    kept = (weight != 0) & (std > 0)
    if not kept.any():
        raise InputError(f"{run}: every weight of its model is 0, so there is no score to export; train it longer, or with a smaller l1.")
    build, chosen = _build(study, events), list(keys[kept])
    if study.cohort.variants.match == "rsid" and not build:
        chosen = [key._replace(contig="", position=0) for key in chosen]
    _write(out, chosen, weight[kept], mean[kept], std[kept], intercept, study, build, _header(study, events))
    where = build or "not of one build: match by rsid"
    return f"{out}: {len(chosen)} of {len(weight)} variants have a weight ({where}); the score is {_meaning(study)}"


def _finished(run: Path) -> tuple[Study, list[Event]]:
    """The study and the events of a finished run that left a model."""
    if not (run / STUDY).is_file():
        raise InputError(f"{run}: is no run's folder, it has no {STUDY}; give one from fedml-runs.")
    study, (events, _) = parse_study((run / STUDY).read_text(encoding="utf-8")), read_log(run)
    if last(events, NO_END).status != "finished":
        raise InputError(f"{run}: the run did not finish, so it left no model; export one that did.")
    if not (run / MODEL).is_file():
        raise InputError(f"{run}: holds no model, as a preflight or an association leaves none; give the folder of a `fedml run`.")
    return study, events


def _build(study: Study, events: Sequence[Event]) -> str:
    """The build of the panel's places: the study's, or that of all sites' files; "" where these are several."""
    checks = last(events, Checks(checks=[])).checks
    told = {check["value"].split(",")[0] for check in checks if check["check"] == "genome build"}
    return str(study.cohort.variants.build) or (told.pop() if len(told) == 1 else "")


def _meaning(study: Study) -> str:
    if study.model.task == "regression":
        return f"{study.cohort.target} in its own unit"
    first, second = (normal(c) for c in study.cohort.classes)
    return f"the log-odds of {study.cohort.target} {second} against {first}"


def _header(study: Study, events: Sequence[Event]) -> dict[str, str]:
    run_id = next((e.run_id for e in events if isinstance(e, Start)), "")
    told = {
        "trait_reported": study.study.question or study.cohort.target,
        "weight_type": "beta" if study.model.task == "regression" else "log(OR)",
        "score_meaning": _meaning(study),
        "study_name": study.study.name,
        "study_sha256": study.sha256,
        "run_id": run_id,
        "weights_sha256": last(events, NO_FINAL).weights_sha256,
        "sites": ", ".join(study.federation.sites),
        "privacy": last(events, NO_PRIVACY).sentence or "none",
    }
    return {key: "".join(c if c.isprintable() else " " for c in value) for key, value in told.items() if value}


def _write(
    out: Path, keys: Sequence[Variant], weight: Any, mean: Any, std: Any, intercept: float, study: Study, build: str, header: Any
) -> None:
    partial = out.with_name(f".partial.{out.name}")  # with the ending by which it is compressed
    try:
        write_scoring(partial, keys, weight, mean, std, intercept=intercept, name=study.study.name, build=build, header=header)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give another --out.") from error
