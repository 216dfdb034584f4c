"""The ``fedml`` command, for researchers and reviewers. Each command imports its modules when it runs, so that --help is fast."""

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
Sites = Annotated[Path, typer.Option("--sites", help="Folder with one subfolder for each site, each with a site.toml.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Use this seed instead of the study's.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
SitesOrNone = Annotated[Path | None, typer.Option("--sites", help="Folder with one subfolder for each site, each with a site.toml.")]
Engine = Annotated[str, typer.Option(help="local: in this process. simulation: Flower's engine on Ray. deployment: running sites.")]
SuperLink = Annotated[
    str | None, typer.Option(help="deployment: the folder of `fedml federation init` or `up`, or a connection in Flower's config.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of standard output.")]
Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)],
    sites: Annotated[int, typer.Option(help="Number of hospitals.")] = 3,
    persons: Annotated[int, typer.Option(help="Number of persons at each hospital.")] = 120,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    image: Annotated[str, typer.Option("--image", help="Format of the images: nifti, dicom (series of slices) or npz.")] = "nifti",
) -> None:
    """Create synthetic hospitals: genotypes, images, clinical columns, and the planted effects (truth.json).

    Example: fedml synth out/sites --sites 3 --persons 120 --seed 1
    """
    from fedml.synthetic.synthetic import Size, write_synthetic

    truth = write_synthetic(out, Size(sites=sites, persons=persons), seed=seed, image=image, progress=lambda line: print(line, flush=True))
    print(f"{out}: {sites} sites of {persons} persons; the AUROC of the planted risk itself is {truth['oracle']['auroc']:.3f}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="heart, pneumonia, ancestry, trait, wbc, adrenal or lesions.", show_default=False)],
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
def check(study_file: StudyFile, changes: Overrides = None, seed: Seed = None) -> None:
    """Check a study file and print its plan as text.

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
    if "sentence" in (privacy := privacy_of(outcome.events)):
        console.print(f"Privacy: {privacy['sentence']}", soft_wrap=True)
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
    """Check that the sites' data are comparable: a table of sites and checks, with what to do if one fails. Nothing is trained.

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
    if meta and sites is None:
        raise InputError(
            "--meta needs the sites' data on this machine: give --sites; a site behind a SuperLink approves only the whole study."
        )
    launched = launch(study_file, study, Where(sites, engine, superlink, runs, track), console, "gwas")
    show_result(launched, console)
    meta_rows = meta_table(launched, sites, console) if meta and sites is not None and launched.outcome.status == "finished" else None
    closing_line(launched, console)
    if as_json:
        print(json.dumps({**gwas_summary(launched), **({"meta": meta_rows} if meta_rows else {})}), flush=True)
    judge(launched)


@app.command()
def track(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run's folder; - reads its path from standard input.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="The run may still be running: record it until it ends.")] = False,
    pending: Annotated[bool, typer.Option("--pending", help="Record all runs in --runs that were not yet delivered to MLflow.")] = False,
    runs: Runs = Path("fedml-runs"),
) -> None:
    """Record a run in MLflow from its folder, during or after the run; print MLflow's run id. Repeating it adds nothing.

    Example: fedml track fedml-runs/heart-20260131-101500-3fa2b1
    """
    from fedml.runs.log import STUDY
    from fedml.study.study import parse_study
    from fedml.tracking.deliver import deliver, deliver_owed
    from fedml.tracking.store import told_plainly

    if pending == (run_folder is not None):
        raise InputError("give either RUN, the folder of one run, or --pending for all runs not yet delivered to MLflow.")
    if pending:
        return deliver_owed(runs, print)
    assert run_folder is not None  # noqa: S101 - checked above
    parent, piped = os.getppid(), str(run_folder) == "-"
    if piped:
        from fedml.tracking import scoring  # noqa: F401 - imported early because it takes seconds, while the run is being prepared

        line = sys.stdin.readline().strip()
        if not line:  # the run did not begin
            return
        run_folder = Path(line)
    if not (run_folder / STUDY).exists():
        raise InputError(f"{run_folder}: is not a run's folder, it has no {STUDY}; give a folder from fedml-runs.")
    study = parse_study((run_folder / STUDY).read_text())
    # The parent process closes the pipe when it has written everything.
    settle = sys.stdin.read if piped and follow else lambda: ""
    with told_plainly():
        print(deliver(run_folder, study, wait=lambda: follow and os.getppid() == parent, settle=settle))


@app.command()
def promote(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    alias: Annotated[str, typer.Option("--as", help="challenger, or champion (the model in use).")] = "challenger",
    margin: Annotated[float, typer.Option(help="Largest loss of the metric at a site, against the champion.")] = 0.02,
) -> None:
    """Register a run's model in MLflow under the study's name. Refuses if a site would lose too much, or a promise of the study is broken.

    Example: fedml promote fedml-runs/heart-20260131-101500-3fa2b1 --as champion
    """
    from fedml.experiments.models.promote import promote as register
    from fedml.tracking.store import told_plainly

    with told_plainly():
        version = register(run_folder, alias, margin)
    print(f"{version.name} version {version.number} is the {alias}: models:/{version.name}@{alias}")


@app.command()
def ui(port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000) -> None:
    """Serve MLflow's pages of the recorded runs until stopped; print a link for each study.

    Example: fedml ui --port 5001
    """
    from fedml.experiments.models.ui import serve

    serve(port, print)


@app.command()
def compare(
    what: Annotated[list[Path], typer.Argument(metavar="STUDY | RUN RUN...", help="A study file, or folders of finished runs.")],
    sites: SitesOrNone = None,
    baselines: Annotated[str, typer.Option(help="pooled, local, or both: pooled,local.")] = "pooled,local",
    seeds: Annotated[str, typer.Option(help="One seed, a range 0-4, or a list 0,1,5; default: the study's seed.")] = "",
    changes: Overrides = None,
    truth: Annotated[Path | None, typer.Option(help="truth.json of synthetic sites: also compare with the planted effects.")] = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
) -> None:
    """Compare federated training with training on pooled data and at each site alone, on the same test persons; or compare existing runs.

    For a study, models that were trained before are read from --runs; the others are trained. For runs, --sites allows a paired comparison.

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
    described = summarise(study, rows)
    console.print(main_table(study, described))
    console.print(where_table(study, described))
    if as_json:
        print(json.dumps({"study": study.study.name, "rows": plain_rows(rows), "summary": described}), flush=True)


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
    from fedml.experiments.privacy_audit import audit as attack
    from fedml.experiments.privacy_audit import claimed, read_run, save, sentence, without_noise

    console = make_console(as_json)
    study, privacy = read_run(run_folder)
    found = find(sites, study, console.print)
    limit = claimed(study)
    console.print(f"Claim: {privacy.sentence}", soft_wrap=True)
    if noise_off:
        console.print("The noise is off: the claim does not apply, and a working attack finds a large epsilon.", soft_wrap=True)
    record = attack(without_noise(study) if noise_off else study, found, canaries=canaries, seed=seed, say=console.print)
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
            console.print("[dim]recorded in MLflow with the claim[/dim]")
    except Exception as error:
        console.print(f"the audit could not be recorded in MLflow ({error}); it is in {run_folder}/audit.json", soft_wrap=True)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; default: report.html in the run's folder.")] = None,
) -> None:
    """Write a run's report: one self-contained HTML page, for a screen, a phone or paper.

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
    help="The coordinating centre: init, start, register, list, remove. A federation on this machine, for trials: up, down, status.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip
app.add_typer(federation_app)
Home = Annotated[Path, typer.Option("--home", help="The centre's folder: certificates, keys, database.", show_default=False)]


@federation_app.command("init")
def federation_init(
    home: Home,
    host: Annotated[str, typer.Option("--host", help="The host name at which sites reach this centre.", show_default=False)],
    port: Annotated[int, typer.Option("--port", help="The port for sites; commands use the next port, on loopback.")] = 9092,
    certificate: Annotated[Path | None, typer.Option(help="Your certificate with its chain (PEM); default: a new one.")] = None,
    key: Annotated[Path | None, typer.Option(help="The key of --certificate (PEM, no password).")] = None,
    ca: Annotated[Path | None, typer.Option(help="The certificate of the authority that sites will trust.")] = None,
    days: Annotated[int, typer.Option(help="Validity of a new certificate, in days.")] = 730,
) -> None:
    """Create the folder of a coordinating centre: certificates, host and port.

    Example: fedml federation init --home /srv/fedml/centre --host federation.example.org
    """
    from fedml.experiments.federation.centre import fingerprint, make_centre

    given = (certificate, key, ca)
    if any(given) and not all(given):
        raise InputError("--certificate, --key and --ca go together: give all three, or none for new ones.")
    centre = make_centre(home, host, port, certificate=(certificate, key, ca) if certificate and key and ca else None, days=days)
    print(f"sites connect to {centre.host}:{centre.port}; send them {home / 'ca.pem'} and confirm its SHA-256 fingerprint by phone:")
    print(fingerprint(home))
    print(f"next: fedml federation start --home {home}")


@federation_app.command("start")
def federation_start(
    home: Home, listen: Annotated[str, typer.Option("--listen", help="Address to listen on.")] = "0.0.0.0"  # noqa: S104
) -> None:  # fmt: skip
    """Run the SuperLink until stopped (SIGTERM or Ctrl-C): TLS, registered node keys only; commands from this machine only.

    Example: fedml federation start --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import start

    start(home, listen)


@federation_app.command("register")
def federation_register(
    name: Annotated[str, typer.Argument(help="The site's name in rosters.", show_default=False)],
    public_key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The public key that the site sent.", show_default=False)],
    home: Home,
) -> None:
    """Register a site's key under the site's name. The SuperLink must be running.

    Example: fedml federation register oslo oslo.pub --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import register

    print(f"{name} may join with the key {register(home, name, public_key)}")


@federation_app.command("list")
def federation_list(home: Home) -> None:
    """List the registered sites: state, time last seen, time of registration, fingerprint of the key.

    Example: fedml federation list --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import registered, show

    print(show(registered(home)))


@federation_app.command("remove")
def federation_remove(name: Annotated[str, typer.Argument(help="The site's name.", show_default=False)], home: Home) -> None:
    """Remove a site at once. Its key cannot be registered again; its name can, with a new key.

    Example: fedml federation remove oslo --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import remove

    remove(home, name)
    print(f"{name} may not join any more")


@federation_app.command("up")
def federation_up(sites: Sites) -> None:
    """Start a federation of the sites in a folder; it runs until `fedml federation down`.

    Example: fedml federation up --sites out/sites
    """
    from fedml.experiments.federation.local import up

    up(sites, print)
    print(f"each site must approve a study: fedml-site approve STUDY --site {sites}/SITE")
    print(f"then: fedml run STUDY --engine deployment --superlink {sites}")


@federation_app.command("down")
def federation_down(sites: Sites) -> None:
    """Stop the federation. Keys, approvals, journals and the database are kept.

    Example: fedml federation down --sites out/sites
    """
    from fedml.experiments.federation.local import down

    down(sites, print)


@federation_app.command("status")
def federation_status(sites: Sites) -> None:
    """Show the running processes of the federation.

    Example: fedml federation status --sites out/sites
    """
    from fedml.experiments.federation.local import status

    print(status(sites))


def main() -> None:
    """Entry point of ``fedml``."""
    guarded(app)


if __name__ == "__main__":
    main()
