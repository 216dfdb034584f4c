"""The ``fedml-site`` command, for the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedml.cli import guarded
from fedml.errors import InputError

if TYPE_CHECKING:
    from fedml.clients.site.manifest import Site

app = typer.Typer(
    name="fedml-site",
    help="A hospital's side of a federation: describe your data, see what a study would read of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: fedml-site init oslo --out site.toml && fedml-site check STUDY.toml --site site.toml",
)

MANIFEST = """\
# What this hospital lets a study read. Paths start from this file's folder.
[site]
name = "{name}" # as the studies' rosters have it

[data]
persons = "persons.csv" # columns: id, then what studies predict; one row a person
# image = {{ path = "images", format = "nifti" }} # nifti, nrrd, png, bmp, jpeg, npy: <id>.<ending>, or <id>/<any>.<ending>; or one npz
# image = {{ path = "images", format = "dicom" }} # <id>.dcm, or <id>/ with one or more series; for segmentation also: masks = "masks"
# image = {{ path = "slides", format = "slide" }} # whole slides (.svs, .tif, .ndpi, .scn, .mrxs ..): <id>.<ending>, or <id>/<any>.<ending>
# variants = {{ path = "cohort.vcf.gz", build = "GRCh38" }} # .vcf.gz, .bcf or .bed; sample names are the ids
# with it: reference = "GRCh38.fa" (REF is held against it, indels are moved to the left), memory_mb = 512 (for reading)
# clinical = {{ path = "clinical.csv" }} # columns: id, then clinical values; an empty cell is missing
# omics = {{ path = "expression.csv" }} # .csv, .tsv or .parquet; columns: id, then a feature each; an empty cell is missing
# split = "split.csv" # columns: id, part (train, val or test); left out, a keyed hash of the id decides
# public = true # only where anybody may see these images, for they are published or synthetic: runs beside them then keep pictures

# [policy] # the strictest holds where a key is left out; a study may be stricter still
# purposes = ["DUO:0000042"] # left out: those of the studies that a person here approved
# min_persons = 20 # training persons, or the site does not take part
# min_count = 5 # persons behind any number that leaves; of a variant, also persons with each genotype
# max_epsilon = 8.0 # privacy budget of each person over all studies (with delta = 1e-5); left out, no study with privacy of a patient runs
# allow_unprotected = false # with a budget: may a study without that privacy run all the same?
# deidentification = "quarantine" # of a DICOM file that is not: refuse (the site takes no part), quarantine (it is set aside), warn
# max_quarantined = 0.1 # fraction of the persons with images of whom one may be set aside as unusable
# max_rounds = 1000
# max_steps = 2000 # of each kind of step in an association study
# max_runs = 20 # of one approved study
# max_request_mb = 512
# max_reply_mb = 512

# [connection] # from the coordinating centre; `fedml-site key` makes the key
# superlink = "federation.example.org:9092"
# root_certificates = "ca.pem"
# key = "node.key"
"""


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name in rosters.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("site.toml"),
) -> None:
    """Write a commented manifest to fill in.

    Example: fedml-site init oslo --out /srv/fedml/site.toml
    """
    from pydantic import TypeAdapter, ValidationError

    from fedml.study.sections import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InputError(f'site name "{name}": use lower-case letters, digits, - and _, such as "oslo-2".') from error
    if out.exists():
        raise InputError(f"{out}: is there already; give another --out, or take it away first.")
    out.write_text(MANIFEST.format(name=name), encoding="utf-8")
    print(f"{out}: fill it in, then: fedml-site check STUDY.toml --site {out}")


@app.command()
def check(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: Annotated[Path, typer.Option("--site", help="This site's manifest.")] = Path("site.toml"),
) -> None:
    """Read this site's data as a study would, and say what it would use. Nothing leaves this machine.

    Example: fedml-site check heart.toml --site /srv/fedml/site.toml
    """
    from fedml.clients.site.manifest import check_roster, read_site
    from fedml.clients.site.read import load_cohort
    from fedml.modalities.modality import require
    from fedml.modalities.registry import inputs_of
    from fedml.study.read import read_study
    from fedml.study.sections import PARTS

    study, site = read_study(study_file), read_site(site_file)
    check_roster(site, study)
    cohort = load_cohort((str(site.file if site_file.is_dir() else site_file),), study)
    print(f'{site.name}: study "{study.study.name}" would use {len(cohort)} persons')
    for part in PARTS:
        rows = cohort.rows(part)
        told = ""
        if study.model.task == "classification":
            told = ", ".join(f"{c}: {int((cohort.labels[rows] == i).sum())}" for i, c in enumerate(study.cohort.classes))
        print(f"  {part:5} {len(rows):6} persons" + (f"  ({study.cohort.target} {told})" if told else ""))
    for why, count in cohort.left_out.items():
        print(f"  left out {count} persons: {why}")
    for why, count in cohort.set_aside.items():
        print(f"  an image set aside of {count} persons: {why} (fedml-site data lists them)")
    for modality, value in inputs_of(cohort):
        for line in require(modality.summary, modality, "summary")(value, study):
            print(f"  {line}")


SiteFile = Annotated[Path, typer.Option("--site", help="This site's manifest, or the folder it is in.")]
ScoreBy = Literal["position", "rsid"]
ScoreMissing = Literal["stated", "own"]
By = Annotated[str, typer.Option("--by", help="Who decides; left out, the name of this account.")]


@app.command()
def data(site_file: SiteFile = Path("site.toml")) -> None:
    """List the images that the last reading set aside, and why. Nothing leaves this machine.

    Example: fedml-site data --site /srv/fedml/site.toml
    """
    from fedml.clients.site.quarantine import read, show

    site = _site(site_file)
    print(show(site.name, read(site.state)))


@app.command()
def preview(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    out: Annotated[Path | None, typer.Option("--out", help="PNG to write; left out, preview.png in the site's .fedml.")] = None,
    persons: Annotated[int, typer.Option("--persons", min=1, max=48, help="How many, evenly over the persons table.")] = 12,
) -> None:
    """Draw what a network will get of this site's images, masks as contours. Nothing leaves this machine.

    Example: fedml-site preview wbc.toml --site /srv/fedml/site.toml --persons 24
    """
    from fedml.clients.desk.preview import preview as draw
    from fedml.study.read import read_study

    path = draw(_site(site_file), read_study(study_file), persons=persons, out=out)
    print(f"{path}: look at it here; it shows patients, is readable by this account alone (mode 0600) and is sent nowhere")


def _site(path: Path) -> Site:
    from fedml.clients.site.manifest import read_site

    return read_site(path)


def _who(by: str) -> str:
    import getpass

    return by or getpass.getuser()


@app.command()
def key(
    site_file: SiteFile = Path("site.toml"), out: Annotated[str, typer.Option(help="File name, beside the manifest.")] = "node.key"
) -> None:
    """Make this site's node key (EC P-384); the public half, .pub, goes to the coordinating centre.

    Example: fedml-site key --site /srv/fedml/site.toml
    """
    from fedml.flower.keys import write_node_key

    public = write_node_key(_site(site_file).folder / out)
    print(f"{public}: send this file to the coordinating centre; the private half stays here")


@app.command()
def approve(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    by: By = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; the plan is printed all the same.")] = False,
) -> None:
    """Show a study's plan in plain words, ask, and record who approved it and when.

    Example: fedml-site approve heart.toml --site /srv/fedml/site.toml --by "Dr. A. Hansen"
    """
    from fedml.clients.gate import approvals
    from fedml.clients.gate.journal import Journal
    from fedml.clients.service import prepare_state
    from fedml.clients.site.manifest import check_roster
    from fedml.strategies.describe import describe
    from fedml.study.read import read_study

    study, site = read_study(study_file), _site(site_file)
    check_roster(site, study)
    print(describe(study))
    print()
    if not yes and not typer.confirm(f"May this study run on {site.name}'s persons?"):
        print("not approved")
        return
    state = prepare_state(site)
    made = approvals.approve(state, study, _who(by))
    Journal(state / "journal.jsonl").append(
        direction="site", study=study.sha256, study_name=study.study.name, verdict="noted", reason="approve"
    )
    print(f"approved by {made.approved_by} at {made.approved_at}: {study.study.name} {study.sha256}")


@app.command()
def revoke(
    study: Annotated[str, typer.Argument(help="The study's name, or the first digits of its SHA-256.", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    by: By = "",
) -> None:
    """Withdraw an approval; the next message of that study is refused.

    Example: fedml-site revoke heart --site /srv/fedml/site.toml
    """
    from fedml.clients.gate import approvals
    from fedml.clients.gate.journal import Journal

    site = _site(site_file)
    for ended in approvals.revoke(site.state, study, _who(by)):
        Journal(site.state / "journal.jsonl").append(
            direction="site", study=ended.sha256, study_name=ended.name, verdict="noted", reason="revoke"
        )
        print(f"revoked by {ended.revoked_by} at {ended.revoked_at}: {ended.name} {ended.sha256}")


@app.command()
def start(
    site_file: SiteFile = Path("site.toml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Play one round on synthetic persons, contact nobody, and end.")] = False,
    study_file: Annotated[Path | None, typer.Option("--study", help="With --dry-run: this study, approved or not.")] = None,
) -> None:
    """Join the federation and stay: answer approved studies until stopped (SIGTERM or Ctrl-C).

    With --dry-run, play one round of every approved study on synthetic persons shaped like the site's own, and show what would leave.

    Example: fedml-site start --site /srv/fedml/site.toml
    """
    from fedml.clients.desk.rehearsal import rehearse, show, studies_of
    from fedml.clients.service import run_site
    from fedml.study.read import read_study

    site = _site(site_file)
    if study_file is not None and not dry_run:
        raise InputError("--study goes with --dry-run; a site that starts answers every study that is approved.")
    if not dry_run:
        run_site(site)
        return
    for study in [read_study(study_file)] if study_file is not None else studies_of(site):
        print(show(site, study, rehearse(site, study)))


@app.command()
def doctor(
    site_file: SiteFile = Path("site.toml"),
    study_file: Annotated[Path | None, typer.Option("--study", help="Also read the data as this study would.")] = None,
) -> None:
    """Look at everything that a run needs, one line each with the mend: data, disk, key, TLS, clock, versions. Exit 1 if one fails.

    Example: fedml-site doctor --site /srv/fedml/site.toml --study heart.toml
    """
    from fedml.clients.desk.doctor import examine, show, worst
    from fedml.study.read import read_study

    findings = examine(_site(site_file), read_study(study_file) if study_file else None)
    print(show(findings))
    raise typer.Exit(worst(findings))


@app.command()
def status(site_file: SiteFile = Path("site.toml")) -> None:
    """Is the site running, what is approved, what was decided last.

    Example: fedml-site status --site /srv/fedml/site.toml
    """
    from fedml.clients.gate.approvals import read_approvals
    from fedml.clients.gate.journal import entries, show
    from fedml.clients.service import running

    site = _site(site_file)
    process = running(site.state)
    print(f"{site.name}: " + (f"running (process {process})" if process else "not running"))
    for a in read_approvals(site.state):
        state = f"approved by {a.approved_by} at {a.approved_at}" if a.stands else f"revoked by {a.revoked_by} at {a.revoked_at}"
        print(f"  {a.name} {a.sha256[:12]}: {state}")
    path = site.state / "journal.jsonl"
    if path.exists():
        print(show(entries(path), 5))


@app.command()
def score(
    scoring_file: Annotated[Path, typer.Argument(metavar="SCORING", help="A PGS Catalog scoring file, plain or .gz.", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    out: Annotated[Path, typer.Option("--out", help="CSV to write: id, score, used.")] = Path("scores.csv"),
    by: Annotated[ScoreBy, typer.Option("--by", help="How a weight finds its variant.")] = "position",
    missing: Annotated[
        ScoreMissing, typer.Option(help="What is not known counts by the frequency that the file has stated, or by this site's own.")
    ] = "stated",
    min_matched: Annotated[float, typer.Option(min=0, max=1, help="Share of the weights that must find their variant.")] = 0.5,
) -> None:
    """Give each person here a polygenic score. Nothing leaves this machine.

    Example: fedml-site score PGS000018_hmPOS_GRCh38.txt.gz --site /srv/fedml/site.toml --out scores.csv
    """
    from fedml.clients.desk.score import score_site, show, write_scores

    scored = score_site(_site(site_file), scoring_file, by=by, missing=missing, min_matched=min_matched, say=print)
    write_scores(out, scored)
    print(show(scored))
    print(f"{out}: id, score, used (weights for which the person has a genotype)")


journal_app = typer.Typer(
    name="journal", help="What came in, what went out, what was refused.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(journal_app)


@journal_app.command("show")
def journal_show(
    site_file: SiteFile = Path("site.toml"),
    last: Annotated[int, typer.Option(help="Show only the last so many entries; 0 is all.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Every decision of the gate, in words.

    Example: fedml-site journal show --site /srv/fedml/site.toml --last 20
    """
    from fedml.clients.gate.journal import entries, show, to_json

    path = _journal(site_file)
    if as_json:
        for line in to_json(entries(path)):
            print(line)
    else:
        print(show(entries(path), last or None))


@journal_app.command("verify")
def journal_verify(
    site_file: SiteFile = Path("site.toml"),
    head: Annotated[str | None, typer.Option(help="A head that travelled with a reply (in MLflow: fedml.journal_head).")] = None,
) -> None:
    """Find an entry that was edited, removed, moved or cut off. Exit 1 if there is one.

    Example: fedml-site journal verify --site /srv/fedml/site.toml --head 9f2c...
    """
    from fedml.clients.gate.journal import Journal, verify
    from fedml.errors import RunError

    path = _journal(site_file)
    problems = verify(path, head)
    if problems:
        raise RunError(f"{path}: " + "; ".join(f"line {p.line}: {p.what}" for p in problems[:5]))
    kept = Journal(path)
    print(f"{path}: {kept.count} entries, each in its place; head {kept.head}")


ledger_app = typer.Typer(name="ledger", help="What each person has borne, over all studies.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(ledger_app)


@ledger_app.command("show")
def ledger_show(
    site_file: SiteFile = Path("site.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What has been spent of the privacy budget, by which study, and what is left.

    Example: fedml-site ledger show --site /srv/fedml/site.toml
    """
    from fedml.clients.gate.ledger_view import show, to_json

    site = _site(site_file)
    path, policy = site.state / "ledger.db", site.manifest.policy
    print(to_json(path, policy.max_epsilon, policy.delta) if as_json else show(path, policy.max_epsilon, policy.delta))


def _journal(site_file: Path) -> Path:
    path = _site(site_file).state / "journal.jsonl"
    if not path.exists():
        raise InputError(f"{path}: no journal yet; it begins when the site starts or approves a study.")
    return path


def main() -> None:
    """Entry point of ``fedml-site``."""
    guarded(app)


if __name__ == "__main__":
    main()
