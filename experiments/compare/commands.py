"""The commands that validate a model: ``fedml evaluate``, and ``fedml compare`` with ``--leave-one-site-out`` or ``--folds``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedml.errors import InputError
from fedml.experiments.options import Against, Json, Overrides, Runs, Sites, StudyFile, Track
from fedml.experiments.runs.launch import find, load_study, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedml.clients.site.manifest import Site
    from fedml.experiments.compare.train import Trained
    from fedml.experiments.runs.record import Record
    from fedml.study.study import Study


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's folder, its model.safetensors, or models:/NAME@ALIAS.", show_default=False)
    ],
    study_file: StudyFile,
    sites: Sites,
    changes: Overrides = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
    track: Track = True,
) -> None:
    """Test a finished model at the sites of a study (external validation) and record the test as a run. Nothing is trained.

    At a site that did not train the model every person is tested; at one that did, its test persons under the model's split.

    Example: fedml evaluate models:/heart@champion rotterdam.toml --sites out/rotterdam
    """
    from fedml.experiments.compare.finished import evaluate_model, evaluation_study, read_model
    from fedml.experiments.compare.shown import evaluated, evaluated_table
    from fedml.experiments.runs.record import read_record
    from fedml.experiments.runs.show import show_checks

    console, asked = make_console(as_json), load_study(study_file, changes, None)
    with tempfile.TemporaryDirectory(prefix="fedml-model-") as folder:
        found = read_model(model, Path(folder))
    study = evaluation_study(found, asked, str(study_file))
    run = evaluate_model(found, study, find(sites, study, console.print), runs, study_file)
    record = read_record(run)
    if record.checks:
        show_checks(record.checks, console)
    rows = evaluated(record)
    console.print(evaluated_table(record, rows))
    for text in _privacy(record):
        console.print(text, soft_wrap=True)
    console.print(f"record: {run}", style="dim", soft_wrap=True)
    tracked = _tracked(run, record) if track else None
    if as_json:
        body: dict[str, Any] = {
            "run_id": record.run_id, "mlflow_run_id": tracked, "folder": str(run), "model": found.source,
            "weights_sha256": record.final.weights_sha256, "study_sha256": study.sha256, "results": rows,
        }  # fmt: skip
        print(json.dumps(body), flush=True)


def _privacy(record: Record) -> list[str]:
    return [f"Privacy: {record.privacy.sentence}"] if record.privacy.sentence else []


def _tracked(run: Path, record: Record) -> str:
    from fedml.experiments.tracked.files import write_files
    from fedml.tracking.deliver import deliver
    from fedml.tracking.store import plain_errors

    with plain_errors():
        return deliver(run, record.study, write=write_files)


def validate(
    study_file: Path, sites: Path | None, changes: list[str] | None, against: Against, runs: Path, *, as_json: bool
) -> None:  # fmt: skip
    """``fedml compare STUDY --leave-one-site-out`` or ``--folds N``.

    Raises:
        InputError: options that do not go together, or data that cannot be used. RunError: a run failed.
    """
    from fedml.experiments.compare.train import parse_seeds

    if sites is None or (study_file / "study.json").exists():
        raise InputError(
            "--leave-one-site-out and --folds train models: give one study file, and the sites' data on this machine (--sites)."
        )
    if against.leave_one_site_out and against.folds:
        raise InputError("--leave-one-site-out and --folds are two ways to choose who is tested; give one of them.")
    console, study = make_console(as_json), load_study(study_file, changes, None)
    seeds = parse_seeds(against.seeds, study.study.seed)
    studies = [load_study(study_file, changes, seed) for seed in seeds]
    found = find(sites, study, console.print)
    rows, trained = (_folds if against.folds else _left_out)(studies, found, against.folds, runs, console)
    if as_json:
        print(json.dumps({"study": study.study.name, "rows": rows, "runs": [str(r.run) for r in trained]}), flush=True)


def _left_out(
    studies: list[Study], sites: dict[str, Site], folds: int, runs: Path, console: Console
) -> tuple[list[dict[str, Any]], list[Trained]]:  # fmt: skip
    from fedml.experiments.compare.left_out import left_out, left_out_notes, left_out_table

    trained, rows = left_out(studies, sites, runs, console)
    console.print(left_out_table(studies[0], rows))
    console.print(
        "Difference: trained without the site minus federated, on the same test persons. The last row puts together predictions of "
        f"{len(rows) - 1} models. All figures are of the models' outputs for these persons, computed on this machine.",
        soft_wrap=True,
    )
    for text in left_out_notes(rows):
        console.print(text, soft_wrap=True, markup=False)
    return rows, trained


def _folds(
    studies: list[Study], sites: dict[str, Site], folds: int, runs: Path, console: Console
) -> tuple[list[dict[str, Any]], list[Trained]]:  # fmt: skip
    from fedml.experiments.compare.folds import cross_validate, folds_table, untested

    if len(studies) > 1:
        raise InputError("--folds takes one seed, because a seed also says who is in which fold; give --seeds one number.")
    result = cross_validate(studies[0], folds, sites, runs, console)
    console.print(folds_table(studies[0], result))
    console.print(
        f"Each person is tested once. The interval is of the pooled predictions of {folds} models, over persons; it does not include that "
        "other training persons would give other models.",
        soft_wrap=True,
    )
    for text in untested(result):
        console.print(text, soft_wrap=True, markup=False)
    return result.rows, result.folds
