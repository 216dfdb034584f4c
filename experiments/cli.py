"""The ``fedml`` command, for researchers and reviewers. Each command imports its modules when it runs, so that --help is fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedml.cli import grouped, guarded
from fedml.errors import InputError, RunError
from fedml.experiments.compare.commands import evaluate, validate
from fedml.experiments.evidence import commands as evidence_cli
from fedml.experiments.federation.commands import app as federation_app
from fedml.experiments.frequencies.commands import app as frequencies_app
from fedml.experiments.keys.commands import schema
from fedml.experiments.models.commands import export_adjustment, export_bundle, export_score, import_bundle, predict, promote, prs, ui
from fedml.experiments.new.commands import import_table, new
from fedml.experiments.options import (
    Against,
    Json,
    Overrides,
    Runs,
    Seed,
    Sites,
    SitesOrNone,
    StudyFile,
    StudyFileOrNone,
    Track,
    Where,
    WhereAgain,
)
from fedml.experiments.outcomes.commands import describe, glm, survival
from fedml.experiments.report.commands import report, table
from fedml.experiments.runs.genes import genes
from fedml.experiments.runs.launch import UNDELIVERED, closing_line, find, judge, launch, load_study, make_console, study_to_run
from fedml.experiments.runs.status_commands import drop, status
from fedml.experiments.sweep.commands import sweep
from fedml.experiments.tracked.pages import write_pages

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="fedml",
    help="Federated learning on imaging and genomic cohorts that stay at their hospitals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: fedml synth out/sites && fedml run experiments/studies/demo.toml --sites out/sites",
)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)],
    sites: Annotated[int, typer.Option(help="Number of hospitals.")] = 3,
    persons: Annotated[int, typer.Option(help="Number of persons at each hospital.")] = 120,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    image: Annotated[str, typer.Option("--image", help="Format of the images: nifti, dicom (series of slices) or npz.")] = "nifti",
    kind: Annotated[str, typer.Option("--kind", help="hospitals, nodules (CT, masks, mutations) or slides (pathology).")] = "hospitals",
) -> None:
    """Create synthetic hospitals: genotypes, images, clinical columns, and the planted effects (truth.json).

    Example: fedml synth out/sites --sites 3 --persons 120 --seed 1
    """
    from fedml.synthetic.synthetic import Size, write_synthetic

    if kind != "hospitals":
        from fedml.synthetic.kinds import write_kind

        print(write_kind(kind, out, persons, seed))
        return
    truth = write_synthetic(out, Size(sites=sites, persons=persons), seed=seed, image=image, progress=lambda line: print(line, flush=True))
    print(f"{out}: {sites} sites of {persons} persons; the AUROC of the planted risk itself is {truth['oracle']['auroc']:.3f}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="heart, pneumonia, ancestry, trait, wbc, adrenal, lesions or lung.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.", show_default=False)],
    data: Annotated[Path | None, typer.Option("--data", help="Folder with the files; default: download them.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the assignment of persons to simulated hospitals.")] = 1,
) -> None:
    """Convert a public data set to site folders: download, verify checksums, print the licence, write.

    Example: fedml prepare heart --out out/heart
    """
    from fedml.experiments.prepare import prepare as make

    for site in make(name, out, data=data, seed=seed):
        print(site)


@app.command()
def check(
    study_file: StudyFileOrNone = None,
    changes: Overrides = None,
    seed: Seed = None,
    explain: Annotated[
        str, typer.Option("--explain", metavar="KEY", help="Explain a key of a study or a site.toml instead, such as lr.")
    ] = "",
    resolve: Annotated[
        bool, typer.Option("--resolve", help="First write which names columns by pattern mean at all sites of --sites, beside the study.")
    ] = False,
    sites: SitesOrNone = None,
) -> None:
    """Check a study file and print its plan as text; or explain a key. With --sites, also read the sites' data as a run would.

    Example: fedml check experiments/studies/heart.toml
    """
    if explain:
        from fedml.experiments.keys.entries import explain as entry_of

        return print(entry_of(explain, None if study_file is None else load_study(study_file, changes, seed)))
    if study_file is None:
        raise InputError("fedml check: give a study file, such as fedml check study.toml, or --explain KEY.")
    from fedml.code.load import check_text
    from fedml.modalities.registry import check_inputs
    from fedml.strategies.algorithms.registry import make_strategy
    from fedml.strategies.describe import describe

    if resolve and sites is None:
        raise InputError("fedml check: --resolve and --sites go together: fedml check STUDY --sites DIR --resolve.")
    if resolve and sites is not None:
        from fedml.clients.site.columns import resolve as write_columns
        from fedml.experiments.keys.overrides import parse_overrides
        from fedml.study.read import read_plan

        write_columns(read_plan(study_file, overrides=parse_overrides(changes or []), seed=seed), study_file, sites, print)
    study = load_study(study_file, changes, seed)
    check_text(study)
    make_strategy(study)
    check_inputs(study)
    print(describe(study))
    if sites is not None and not resolve:
        from fedml.experiments.runs.run import read_all

        print()
        read_all(study, find(sites, study, print), print, "preflight")
    if study.privacy.unit != "none":
        from fedml.privacy.forecast import forecast

        print(f"\n{forecast(study)}")


@app.command()
@grouped
def run(
    study_file: StudyFileOrNone = None, where: WhereAgain = WhereAgain(), seed: Seed = None, changes: Overrides = None,
    as_json: Json = False, track: Track = True,
) -> None:  # fmt: skip
    """Run a study over the sites in a folder and record it; with --resume, go on with a run that stopped.

    Example: fedml run experiments/studies/heart.toml --sites out/heart --seed 3 --set strategy.name=fedprox
    """
    console = make_console(as_json)
    study = study_to_run(study_file, where.resume, changes, seed)
    launched = launch(study_file, study, where, console, "resume" if where.resume else "train", track=track, write=write_pages)
    # Not before: they load PyTorch, and the copy of this process that records the run is to have none.
    from fedml.experiments.runs.hints import hints
    from fedml.experiments.runs.show import final_table, notes_of, privacy_of, summary

    outcome = launched.outcome
    if outcome.final.came:
        console.print(final_table(study, outcome.final))
        for text in notes_of(study, outcome):
            console.print(text, markup=False, soft_wrap=True)
        for text in hints(study, outcome.events):
            console.print(f"Hint: {text}", markup=False, soft_wrap=True)
    if "sentence" in (privacy := privacy_of(outcome.events)):
        console.print(f"Privacy: {privacy['sentence']}", soft_wrap=True)
    closing_line(launched, console)
    if as_json:
        print(json.dumps(summary(study, outcome, launched.mlflow_run, launched.mlflow_error)), flush=True)
    judge(launched)


@app.command()
@grouped
def preflight(study_file: StudyFile, where: Where, changes: Overrides = None, as_json: Json = False) -> None:
    """Check that the sites' data are comparable: a table of sites and checks, with what to do if one fails. Nothing is trained.

    Example: fedml preflight experiments/studies/ancestry.toml --sites out/ancestry
    """
    from fedml.experiments.runs.association import preflight_summary

    console = make_console(as_json)
    study = load_study(study_file, changes, None)
    launched = launch(study_file, study, where, console, "preflight", track=False)
    closing_line(launched, console)
    if as_json:
        print(json.dumps(preflight_summary(launched)), flush=True)
    judge(launched)


@app.command()
@grouped
def gwas(
    study_file: StudyFile,
    where: Where,
    changes: Overrides = None,
    seed: Seed = None,
    meta: Annotated[
        bool, typer.Option("--meta", help="Also test each site separately and combine the results, to compare with a meta-analysis.")
    ] = False,
    as_json: Json = False,
    track: Track = True,
) -> None:
    """Test every variant for association with the target over the persons of all sites ([gwas] in the study).

    Writes summary statistics (GWAS-SSF, bgzipped, indexed), a Manhattan plot and a QQ plot to the run's folder and to MLflow.

    Example: fedml gwas experiments/studies/height.toml --sites out/height --set gwas.components=6
    """
    from fedml.experiments.runs.association import gwas_summary, meta_table, require, show_result

    console = make_console(as_json)
    study = require(load_study(study_file, changes, seed), study_file)
    if meta and where.sites is None:
        raise InputError(
            "--meta needs the sites' data on this machine: give --sites; a site behind a SuperLink approves only the whole study."
        )
    launched = launch(study_file, study, where, console, "gwas", track=track)
    show_result(launched, console)
    meta_rows = None
    if meta and where.sites is not None and launched.outcome.status == "finished":
        meta_rows = meta_table(launched, where.sites, console)
    closing_line(launched, console)
    if as_json:
        print(json.dumps({**gwas_summary(launched), **({"meta": meta_rows} if meta_rows else {})}), flush=True)
    judge(launched)


@app.command()
def track(
    run_folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Folder of a run, sweep or comparison; - reads its path from standard input.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="The run may still be running: record it until it ends.")] = False,
    pending: Annotated[bool, typer.Option("--pending", help="Record all runs in --runs that were not yet delivered to MLflow.")] = False,
    runs: Runs = Path("fedml-runs"),
) -> None:
    """Record a run in MLflow from its folder, during or after the run; print MLflow's run id. Repeating it adds nothing.

    Example: fedml track fedml-runs/heart-20260131-101500-3fa2b1
    """
    from fedml.experiments.tracked.track import track as record

    if pending == (run_folder is not None):
        raise InputError("give either RUN, the folder of one run, or --pending for all runs not yet delivered to MLflow.")
    record(run_folder, runs, follow=follow)


@app.command()
@grouped
def compare(
    what: Annotated[list[Path], typer.Argument(metavar="STUDY | RUN RUN...", help="A study file, or folders of finished runs.")],
    against: Against,
    sites: SitesOrNone = None,
    changes: Overrides = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
    track: Track = True,
) -> None:
    """Compare federated training with training on pooled data and at each site alone, on the same test persons; or compare existing runs.

    For a study, models that were trained before are read from --runs; the others are trained. For runs, --sites allows a paired comparison.

    Example: fedml compare experiments/studies/heart.toml --sites out/heart --baselines pooled,local --seeds 0-4
    """
    if against.leave_one_site_out or against.folds:
        return validate(what[0], sites, changes, against, runs, as_json=as_json)
    from fedml.experiments.compare.cost import lines
    from fedml.experiments.compare.recorded import recorded
    from fedml.experiments.compare.tables import main_table, notes, plain_rows, summarise, where_table
    from fedml.experiments.compare.train import compare as make
    from fedml.experiments.compare.train import compare_runs, parse_baselines, parse_seeds, together

    console, cost = make_console(as_json), dict[str, dict[str, Any]]()
    if all((path / "study.json").exists() for path in what):
        study, rows = compare_runs(what, sites, console)
    else:
        if len(what) > 1 or sites is None:
            raise InputError(f"{what[0]}: give one study file and --sites, or folders of finished runs from fedml-runs.")
        kinds = parse_baselines(against.baselines)
        study = load_study(what[0], changes, None)
        studies = [load_study(what[0], changes, s) for s in parse_seeds(against.seeds, study.study.seed)]
        found = find(sites, study, console.print)
        rows = make(studies, found, kinds, against.truth, runs, console)
        cost = together(studies, found, rows)
    described = summarise(study, rows)
    console.print(main_table(study, described))
    console.print(where_table(study, described))
    for line in (*notes(study, described), *lines(cost)):
        console.print(line, markup=False, soft_wrap=True)
    undelivered = recorded(study, described, rows, runs, console) if track else ""
    if as_json:
        shown = {"study": study.study.name, "rows": plain_rows(rows), "summary": described, "privacy": cost}
        print(json.dumps({**shown, "mlflow_error": undelivered or None}), flush=True)
    if undelivered:
        raise SystemExit(UNDELIVERED)


@app.command()
def audit(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished private run.", show_default=False)],
    sites: Sites,
    canaries: Annotated[int, typer.Option(help="Number of canaries: artificial persons (unit patient) or sites (unit site).")] = 100,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of coins and canaries; default: from the system.")] = None,
    noise_off: Annotated[bool, typer.Option("--noise-off", help="Test the attack: run the study with almost no noise.")] = False,
    as_json: Json = False,
) -> None:
    """Attack a private run with canaries: a lower bound on epsilon, to compare with the claim. Runs the study again; writes RUN/audit.json.

    Example: fedml audit fedml-runs/heart-private-20260131-101500-3fa2b1 --sites out/heart
    """
    from fedml.clients.gate.local import Plan, charge_whole
    from fedml.experiments.privacy_audit import audit as attack
    from fedml.experiments.privacy_audit import check_canaries, claimed, read_run, save, sentence, without_noise

    console = make_console(as_json)
    check_canaries(canaries)  # before the ledgers are charged
    study, privacy = read_run(run_folder)
    found = find(sites, study, console.print)
    limit = claimed(study)
    attacked = without_noise(study) if noise_off else study
    charge_whole([Plan(attacked, name, site) for name, site in found.items()], f"audit {run_folder.name}", "audit")
    console.print(f"Claim: {privacy.sentence}", soft_wrap=True)
    if noise_off:
        console.print("The noise is off: the claim does not apply, and a working attack finds a large epsilon.", soft_wrap=True)
    record = attack(attacked, found, canaries=canaries, seed=seed, say=console.print)
    record = {**record, "claimed_epsilon": limit if limit < float("inf") else None, "claim": privacy.sentence}
    save(run_folder, "noise_off" if noise_off else "audit", record)
    console.print(f"Audit: {sentence(record)}", soft_wrap=True)
    if not noise_off:
        _note(run_folder, console)
    if as_json:
        print(json.dumps(record), flush=True)
    if not noise_off and record["epsilon"] > limit:
        raise RunError(
            f"the audit finds epsilon at least {record['epsilon']:.3f}, the claim is {limit:.3f}: the claim does not hold "
            f"(or this is one of the at most {1 - record['confidence']:.0%} of audits that are wrong; repeat the audit)."
        )


def _note(run_folder: Path, console: Console) -> None:
    """Also records the audit in MLflow, if MLflow has the run. The run's folder already has the audit, so an error is only printed."""
    from fedml.tracking.deliver import note_audit

    try:
        if note_audit(run_folder):
            console.print("recorded in MLflow with the claim", style="dim")
    except Exception as error:
        console.print(f"the audit could not be recorded in MLflow ({error}); it is in {run_folder}/audit.json", soft_wrap=True)


app.command()(grouped(genes))
for _command in (
    report,
    table,
    sweep,
    promote,
    ui,
    predict,
    prs,
    evaluate,
    schema,
    evidence_cli.bundle,
    evidence_cli.verify,
    evidence_cli.reproduce,
):
    app.command()(_command)
app.command()(status)
app.command()(drop)
app.command()(new)
app.command()(survival)
app.command()(glm)
app.command()(describe)
app.command("import")(import_table)
app.command("export-score")(export_score)
app.command("export-adjustment")(export_adjustment)
app.command("export-bundle")(export_bundle)
app.command("import-bundle")(import_bundle)
app.add_typer(federation_app)
app.add_typer(frequencies_app)


def main() -> None:
    """Entry point of ``fedml``."""
    guarded(app)


if __name__ == "__main__":
    main()
