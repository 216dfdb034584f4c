"""The ``fedml`` command, for the researcher and the reviewer. Each command imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedml.cli import guarded
from fedml.errors import InputError, RunError
from fedml.experiments.evidence import commands as evidence_cli
from fedml.experiments.runs.launch import Where, closing_line, find, judge, launch, load_study, make_console

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

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)]
Sites = Annotated[Path, typer.Option("--sites", help="Folder that holds one folder a site, each with its site.toml.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Use this seed in place of the study's.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder where runs are kept.")]
SitesOrNone = Annotated[Path | None, typer.Option("--sites", help="Folder that holds one folder a site, each with its site.toml.")]
Engine = Annotated[str, typer.Option(help="local: in this process. simulation: Flower's, on Ray. deployment: real sites.")]
SuperLink = Annotated[
    str | None, typer.Option(help="deployment: the folder of `fedml federation init` or `up`, or a connection of Flower's config.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of standard output.")]
Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    sites: Annotated[int, typer.Option(help="Hospitals.")] = 3,
    persons: Annotated[int, typer.Option(help="Persons at each.")] = 120,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    image: Annotated[str, typer.Option("--image", help="Images as nifti, dicom (series of slices) or npz: the same voxels.")] = "nifti",
) -> None:
    """Make synthetic hospitals: genotypes, images, clinical columns, and what was planted in them (truth.json).

    Example: fedml synth out/sites --sites 3 --persons 120 --seed 1
    """
    from fedml.synthetic.synthetic import write_synthetic

    truth = write_synthetic(out, sites=sites, persons=persons, seed=seed, image=image, progress=lambda line: print(line, flush=True))
    print(f"{out}: {sites} sites of {persons} persons; with the planted risk itself, AUROC would be {truth['oracle']['auroc']:.3f}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="heart, pneumonia, ancestry, trait, wbc, adrenal or lesions.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.", show_default=False)],
    data: Annotated[Path | None, typer.Option("--data", help="Files that are already here; without it they are downloaded.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes how persons are dealt to made-up hospitals.")] = 1,
) -> None:
    """Turn public data into site folders: download (checksum verified), print the licence, write.

    Example: fedml prepare heart --out out/heart
    """
    from fedml.experiments.prepare import prepare as make

    for site in make(name, out, data=data, seed=seed):
        print(site)


@app.command()
def check(study_file: StudyFile, changes: Overrides = None, seed: Seed = None) -> None:
    """Print the plan as a person would want to read it before agreeing to it.

    Example: fedml check experiments/studies/heart.toml
    """
    from fedml.strategies.algorithms.registry import make_strategy
    from fedml.strategies.describe import describe

    study = load_study(study_file, changes, seed)
    make_strategy(study)
    print(describe(study))
    if study.privacy.unit != "none":
        from fedml.privacy.forecast import forecast

        print()
        print(forecast(study))


@app.command()
def run(
    study_file: StudyFile,
    sites: SitesOrNone = None,
    engine: Engine = "local",
    superlink: SuperLink = None,
    seed: Seed = None,
    changes: Overrides = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
    track: Track = True,
) -> None:
    """Run a study over the sites in a folder and record it.

    Example: fedml run experiments/studies/heart.toml --sites out/heart --seed 3 --set strategy.name=fedprox
    """
    from fedml.experiments.runs.show import final_table, privacy_of, summary

    console = make_console(as_json)
    study = load_study(study_file, changes, seed)
    launched = launch(study_file, study, Where(sites, engine, superlink, runs, track), console)
    outcome = launched.outcome
    if outcome.final.came:
        console.print(final_table(study, outcome.final))
    if "sentence" in (told := privacy_of(outcome.events)):
        console.print(f"Privacy: {told['sentence']}", soft_wrap=True)
    closing_line(launched, console)
    if as_json:
        print(json.dumps(summary(study, outcome, launched.mlflow_run)), flush=True)
    judge(launched)


@app.command()
def preflight(
    study_file: StudyFile,
    sites: SitesOrNone = None,
    engine: Engine = "local",
    superlink: SuperLink = None,
    changes: Overrides = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
) -> None:
    """Only see whether the sites' data mean the same: a matrix of site x check, with the mend where one fails. Nothing is trained.

    Example: fedml preflight experiments/studies/ancestry.toml --sites out/ancestry
    """
    from fedml.experiments.runs.association import preflight_summary

    console = make_console(as_json)
    study = load_study(study_file, changes, None)
    launched = launch(study_file, study, Where(sites, engine, superlink, runs, False), console, "preflight")
    closing_line(launched, console)
    if as_json:
        print(json.dumps(preflight_summary(launched)), flush=True)
    judge(launched)


@app.command()
def gwas(
    study_file: StudyFile,
    sites: SitesOrNone = None,
    engine: Engine = "local",
    superlink: SuperLink = None,
    changes: Overrides = None,
    seed: Seed = None,
    runs: Runs = Path("fedml-runs"),
    meta: Annotated[
        bool, typer.Option("--meta", help="Also test each site alone and combine them: what a meta-analysis would lose.")
    ] = False,
    as_json: Json = False,
    track: Track = True,
) -> None:
    """Test every variant for association with the target, as if all sites' persons were in one place ([gwas] in the study).

    Writes summary statistics (GWAS-SSF, bgzipped, indexed), a Manhattan plot and a QQ plot into the run's folder and MLflow.

    Example: fedml gwas experiments/studies/height.toml --sites out/height --set gwas.components=6
    """
    from fedml.experiments.runs.association import gwas_summary, meta_table, require, show_result

    console = make_console(as_json)
    study = require(load_study(study_file, changes, seed), study_file)
    if meta and sites is None:
        raise InputError(
            "--meta needs the sites' data at hand: give --sites; a site behind a SuperLink approves one study, not one of it alone."
        )
    launched = launch(study_file, study, Where(sites, engine, superlink, runs, track), console, "gwas")
    show_result(launched, console)
    beside = meta_table(launched, sites, console) if meta and sites is not None and launched.outcome.status == "finished" else None
    closing_line(launched, console)
    if as_json:
        print(json.dumps({**gwas_summary(launched), **({"meta": beside} if beside else {})}), flush=True)
    judge(launched)


@app.command()
def track(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run's folder; - reads it from standard input.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="The run may still go on: record it until it ends.")] = False,
    pending: Annotated[bool, typer.Option("--pending", help="All runs in --runs that MLflow did not take when they were run.")] = False,
    runs: Runs = Path("fedml-runs"),
) -> None:
    """Record a run in MLflow from its folder, afterwards or while it goes on; prints MLflow's run id. Done twice it is there once.

    Example: fedml track fedml-runs/heart-20260131-101500-3fa2b1
    """
    from fedml.runs.log import STUDY
    from fedml.study.study import parse_study
    from fedml.tracking.deliver import deliver, deliver_owed
    from fedml.tracking.store import told_plainly

    if pending == (run_folder is not None):
        raise InputError("give the folder of one run, or --pending for all that MLflow has not taken.")
    if pending:
        return deliver_owed(runs, print)
    assert run_folder is not None  # noqa: S101 - just looked at
    parent, told = os.getppid(), str(run_folder) == "-"
    if told:
        from fedml.tracking import scoring  # noqa: F401 - its imports take seconds: now, while the run is being prepared

        line = sys.stdin.readline().strip()
        if not line:  # the run was not begun
            return
        run_folder = Path(line)
    if not (run_folder / STUDY).exists():
        raise InputError(f"{run_folder}: is no run's folder, it has no {STUDY}; give one from fedml-runs.")
    study = parse_study((run_folder / STUDY).read_text())
    # Whoever told the run by a pipe closes it when nothing more will be written.
    settle = sys.stdin.read if told and follow else lambda: ""
    with told_plainly():
        print(deliver(run_folder, study, wait=lambda: follow and os.getppid() == parent, settle=settle))


@app.command()
def promote(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    alias: Annotated[str, typer.Option("--as", help="challenger, or champion: the model in use.")] = "challenger",
    margin: Annotated[float, typer.Option(help="How much of the metric a site may lose against the champion.")] = 0.02,
) -> None:
    """Register a run's model in MLflow under the study's name. Refused where a site would lose, or the run broke its study's promises.

    Example: fedml promote fedml-runs/heart-20260131-101500-3fa2b1 --as champion
    """
    from fedml.experiments.models.promote import promote as register
    from fedml.tracking.store import told_plainly

    with told_plainly():
        made = register(run_folder, alias, margin)
    print(f"{made.name} version {made.number} is the {alias}: models:/{made.name}@{alias}")


@app.command()
def ui(port: Annotated[int, typer.Option("--port", min=1, max=65535, help="On 127.0.0.1.")] = 5000) -> None:
    """Open MLflow on the store that runs are recorded in, until stopped; prints a link a study.

    Example: fedml ui --port 5001
    """
    from fedml.experiments.models.ui import serve

    serve(port, print)


@app.command()
def compare(
    what: Annotated[list[Path], typer.Argument(metavar="STUDY | RUN RUN...", help="A study file, or folders of finished runs.")],
    sites: SitesOrNone = None,
    baselines: Annotated[str, typer.Option(help="pooled, local, or both: pooled,local.")] = "pooled,local",
    seeds: Annotated[str, typer.Option(help="One seed, a range 0-4, or a list 0,1,5; empty: the study's.")] = "",
    changes: Overrides = None,
    truth: Annotated[Path | None, typer.Option(help="truth.json of synthetic sites: also compare with what was planted.")] = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
) -> None:
    """Federated against pooled data and against each site alone, on the same test persons; or existing runs with each other.

    Of a study what is missing is run, what was trained before is taken from --runs. Of runs --sites allows a paired comparison.

    Example: fedml compare experiments/studies/heart.toml --sites out/heart --baselines pooled,local --seeds 0-4
    """
    from fedml.experiments.compare.tables import main_table, plain_rows, summarise, where_table
    from fedml.experiments.compare.train import compare as make
    from fedml.experiments.compare.train import compare_runs, parse_baselines, parse_seeds

    console = make_console(as_json)
    if all((path / "study.json").exists() for path in what):
        study, rows = compare_runs(what, sites, console)
    else:
        if len(what) > 1 or sites is None:
            raise InputError(f"{what[0]}: give one study file and --sites, or folders of finished runs from fedml-runs.")
        kinds = parse_baselines(baselines)
        study = load_study(what[0], changes, None)
        studies = [load_study(what[0], changes, s) for s in parse_seeds(seeds, study.study.seed)]
        rows = make(studies, find(sites, study, console.print), kinds, truth, runs, console)
    told = summarise(study, rows)
    console.print(main_table(study, told))
    console.print(where_table(study, told))
    if as_json:
        print(json.dumps({"study": study.study.name, "rows": plain_rows(rows), "summary": told}), flush=True)


@app.command()
def audit(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished private run.", show_default=False)],
    sites: Sites,
    canaries: Annotated[int, typer.Option(help="Canaries: made-up persons (unit patient) or sites (unit site).")] = 100,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of coins and canaries; left out, from the operating system.")] = None,
    noise_off: Annotated[bool, typer.Option("--noise-off", help="Try the attack itself: the same study with next to no noise.")] = False,
    as_json: Json = False,
) -> None:
    """Attack a private run: what canaries prove about its epsilon, beside what it claims. Runs the study once more; writes RUN/audit.json.

    Example: fedml audit fedml-runs/heart-private-20260131-101500-3fa2b1 --sites out/heart
    """
    from fedml.experiments.privacy_audit import audit as attack
    from fedml.experiments.privacy_audit import claimed, keep, read_run, sentence, without_noise

    console = make_console(as_json)
    study, told = read_run(run_folder)
    found = find(sites, study, console.print)
    limit = claimed(study)
    console.print(f"Claim: {told.sentence}", soft_wrap=True)
    if noise_off:
        console.print("The noise is off: nothing of that is claimed for what follows, and an attack that works finds much.", soft_wrap=True)
    record = attack(without_noise(study) if noise_off else study, found, canaries=canaries, seed=seed, say=console.print)
    record = {**record, "claimed_epsilon": limit if limit < float("inf") else None, "claim": told.sentence}
    keep(run_folder, "noise_off" if noise_off else "audit", record)
    console.print(f"Audit: {sentence(record)}", soft_wrap=True)
    if not noise_off:
        _note(run_folder, console)
    if as_json:
        print(json.dumps(record), flush=True)
    if not noise_off and record["epsilon"] > limit:
        raise RunError(
            f"the audit finds epsilon at least {record['epsilon']:.3f} where {limit:.3f} is claimed: the claim does not hold "
            f"(or this is one of the at most {1 - record['confidence']:.0%} of audits that err; repeat it)."
        )


def _note(run_folder: Path, console: Console) -> None:
    """In MLflow as well, if the run is there; the folder has it whatever MLflow says."""
    from fedml.tracking.deliver import note_audit

    try:
        if note_audit(run_folder):
            console.print("[dim]noted in MLflow beside the claim[/dim]")
    except Exception as error:
        console.print(f"MLflow did not take the audit ({error}); it is in {run_folder}/audit.json", soft_wrap=True)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; left out: report.html in the run's folder.")] = None,
) -> None:
    """Write a run's report: one HTML page that needs nothing else, for a screen, a phone or paper.

    Example: fedml report fedml-runs/heart-20260131-101500-3fa2b1 -o report.html
    """
    from fedml.experiments.report import NAME, write_report
    from fedml.experiments.runs.record import read_record

    path = out or run_folder / NAME
    write_report(read_record(run_folder), path)
    print(path)


@app.command("export-score")
def export_score(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write; gzip if it ends with .gz.")] = Path("pgs.txt.gz"),
) -> None:
    """Write a run's linear model on variants as a scoring file (PGS Catalog format 2.0), for `fedml-site score` and other programs.

    Example: fedml export-score fedml-runs/risk-20260131-101500-3fa2b1 --out risk.txt.gz
    """
    from fedml.experiments.models.export_score import export_score as export

    print(export(run_folder, out))


for _command in (evidence_cli.bundle, evidence_cli.verify, evidence_cli.reproduce):
    app.command()(_command)

federation_app = typer.Typer(
    name="federation",
    help="The coordinating centre: init, start, register, list, remove. A whole federation on this machine, for trying: up, down, status.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip
app.add_typer(federation_app)
Home = Annotated[Path, typer.Option("--home", help="The centre's folder: certificates, keys, database.", show_default=False)]


@federation_app.command("init")
def federation_init(
    home: Home,
    host: Annotated[str, typer.Option("--host", help="The name at which sites reach this centre.", show_default=False)],
    port: Annotated[int, typer.Option("--port", help="The port that sites reach; commands use the next one, on loopback.")] = 9092,
    certificate: Annotated[Path | None, typer.Option(help="Your own certificate with its chain (PEM); left out, one is made.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key (PEM, no password).")] = None,
    ca: Annotated[Path | None, typer.Option(help="The authority's certificate that sites will trust.")] = None,
    days: Annotated[int, typer.Option(help="How long a certificate that is made here holds.")] = 730,
) -> None:
    """Make a coordinating centre's folder: certificates, and where sites find it.

    Example: fedml federation init --home /srv/fedml/centre --host federation.example.org
    """
    from fedml.experiments.federation.centre import fingerprint, make_centre

    own = (certificate, key, ca)
    if any(own) and not all(own):
        raise InputError("--certificate, --key and --ca go together: give all three, or none to have them made.")
    made = make_centre(home, host, port, certificate=(certificate, key, ca) if certificate and key and ca else None, days=days)
    print(f"sites connect to {made.host}:{made.port}; send them {home / 'ca.pem'} and tell them its SHA-256 fingerprint by phone:")
    print(fingerprint(home))
    print(f"next: fedml federation start --home {home}")


@federation_app.command("start")
def federation_start(
    home: Home, listen: Annotated[str, typer.Option("--listen", help="Address to listen on.")] = "0.0.0.0"  # noqa: S104
) -> None:  # fmt: skip
    """Be the SuperLink until stopped (SIGTERM or Ctrl-C): TLS, registered node keys only; commands from this machine only.

    Example: fedml federation start --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import start

    start(home, listen)


@federation_app.command("register")
def federation_register(
    name: Annotated[str, typer.Argument(help="The site's name, as in rosters.", show_default=False)],
    public_key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="What the site sent.", show_default=False)],
    home: Home,
) -> None:
    """Let a site's key join, under the site's name only. The SuperLink has to be up.

    Example: fedml federation register oslo oslo.pub --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import register

    print(f"{name} may join with the key {register(home, name, public_key)}")


@federation_app.command("list")
def federation_list(home: Home) -> None:
    """Every site that may join: online or not, last seen, registered when, its key's fingerprint.

    Example: fedml federation list --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import registered, show

    print(show(registered(home)))


@federation_app.command("remove")
def federation_remove(name: Annotated[str, typer.Argument(help="The site's name.", show_default=False)], home: Home) -> None:
    """End a site's right to join, at once. Its key is never taken again; its name may be registered with a new one.

    Example: fedml federation remove oslo --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import remove

    remove(home, name)
    print(f"{name} may not join any more")


@federation_app.command("up")
def federation_up(sites: Sites) -> None:
    """Start it for the sites in a folder; it goes on until `fedml federation down`.

    Example: fedml federation up --sites out/sites
    """
    from fedml.experiments.federation.local import up

    up(sites, print)
    print(f"each site has to approve a study: fedml-site approve STUDY --site {sites}/SITE")
    print(f"then: fedml run STUDY --engine deployment --superlink {sites}")


@federation_app.command("down")
def federation_down(sites: Sites) -> None:
    """Stop it. Keys, approvals, journals and the database stay.

    Example: fedml federation down --sites out/sites
    """
    from fedml.experiments.federation.local import down

    down(sites, print)


@federation_app.command("status")
def federation_status(sites: Sites) -> None:
    """Say what is up.

    Example: fedml federation status --sites out/sites
    """
    from fedml.experiments.federation.local import status

    print(status(sites))


def main() -> None:
    """Entry point of ``fedml``."""
    guarded(app)


if __name__ == "__main__":
    main()
