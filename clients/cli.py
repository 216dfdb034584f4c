"""The ``fedml-site`` command, for the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.cli import guarded
from fedml.clients.desk.deidentification_command import deidentification
from fedml.clients.desk.index_command import index
from fedml.clients.desk.predict_command import predict, predict_slides
from fedml.clients.desk.score_command import adjust, score
from fedml.clients.gate.commands import journal_app, ledger_app
from fedml.clients.site.options import SiteFile, site_of
from fedml.errors import InputError

app = typer.Typer(
    name="fedml-site",
    help="Commands for a hospital in a federation: describe the data, check and approve studies, start the site.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Example: fedml-site init oslo --out site.toml && fedml-site check STUDY.toml --site site.toml",
)

MANIFEST = """\
# The data that studies may read at this hospital. Paths are relative to this file's folder.
[site]
name = "{name}" # the name in the studies' rosters

[data]
persons = "persons.csv" # columns: id, then the targets of studies; one row a person
# image = {{ path = "images", format = "nifti" }} # nifti, nrrd, png, bmp, jpeg, npy: <id>.<ending>, or <id>/<any>.<ending>; or one npz
# image = {{ path = "images", format = "dicom" }} # <id>.dcm, or <id>/ with one or more series; for segmentation also: masks = "masks"
# image = {{ path = "slides", format = "slide" }} # whole slides (.svs, .tif, .ndpi, .scn, .mrxs ..): <id>.<ending>, or <id>/<any>.<ending>
# variants = {{ path = "cohort.vcf.gz", build = "GRCh38" }} # .vcf.gz, .bcf or .bed; sample names are the ids
# more keys of variants: reference = "GRCh38.fa" (REF is checked against it, indels are left-aligned), memory_mb = 512 (for reading)
# clinical = {{ path = "clinical.csv" }} # columns: id, then clinical values; an empty cell is missing
# omics = {{ path = "expression.csv" }} # .csv, .tsv, .parquet or .h5ad; columns: id, then a feature each; an empty cell is missing
# split = "split.csv" # columns: id, part (train, val or test); default: a keyed hash of the id decides
# public = true # only if the images are published or synthetic: runs on the same machine may then store pictures of them

# [policy] # values are the defaults, except purposes and max_epsilon; a study may set stricter limits
# purposes = ["DUO:0000042"] # default: the purposes of the studies approved at this site
# centre = "distrusted" # answers only studies with privacy of a patient and noised metrics; "curious": other studies too, within bounds
# min_persons = 20 # fewest training persons with whom the site takes part
# min_count = 5 # fewest persons in any count or sum that is sent; for a variant, also fewest carriers of each allele
# max_epsilon = 8.0 # privacy budget of each person over all studies (with delta = 1e-5); default 0: no study with privacy of a patient runs
# allow_unprotected = false # with a budget: whether a study without privacy of a patient may run
# deidentification = "quarantine" # an image that is not de-identified: refuse (take no part), strict, quarantine (exclude it), warn
# max_quarantined = 0.1 # largest fraction of the persons with images whose image may be excluded as unusable
# max_rounds = 1000
# max_steps = 2000 # for each kind of step of an association study
# max_runs = 20 # of one approved study
# max_evaluations = 1 # models that may be evaluated on the test persons of one approved study
# changed_data = "refuse" # a file of this site changes during a run: refuse the rest of the run, or continue with the new data
# max_drift = 10.0 # largest distance of a round's weights from the last ones, in lengths of this site's own longest update
# max_lr = 1.0 # largest learning rate of a study without privacy of a patient
# max_local_steps = 10000 # of one round of such a study
# max_request_mb = 512
# max_reply_mb = 512

# [connection] # from the coordinating centre; `fedml-site key` creates the key
# superlink = "federation.example.org:9092"
# root_certificates = "ca.pem"
# key = "node.key"
# proxy = "http://proxy.hospital.example:3128" # default: HTTPS_PROXY and NO_PROXY of the environment; "": none
"""


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name in rosters.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("site.toml"),
) -> None:
    """Write a manifest with comments, to complete by hand.

    Example: fedml-site init oslo --out /srv/fedml/site.toml
    """
    from pydantic import TypeAdapter, ValidationError

    from fedml.study.section import NAME, Name, not_allowed

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InputError(f"the site's name {not_allowed(name, NAME)}.") from error
    if out.exists():
        raise InputError(f"{out}: already exists; choose another --out or delete it.")
    out.write_text(MANIFEST.format(name=name), encoding="utf-8")
    print(f"{out}: complete it, then run: fedml-site check STUDY.toml --site {out}")


@app.command()
def check(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: Annotated[Path, typer.Option("--site", help="This site's manifest.")] = Path("site.toml"),
) -> None:
    """Read this site's data as a study would, and print which persons and values it would use. Nothing leaves this machine.

    Example: fedml-site check heart.toml --site /srv/fedml/site.toml
    """
    from fedml.clients.gate.checks import limits
    from fedml.clients.gate.foresee import would_refuse
    from fedml.clients.site.few import changes
    from fedml.clients.site.manifest import check_roster
    from fedml.clients.site.read import load_cohort
    from fedml.cohort.variants.kinship import screen_lines
    from fedml.modalities.modality import require
    from fedml.modalities.registry import inputs_of
    from fedml.study.read import read_study
    from fedml.study.section import PARTS
    from fedml.study.study import without_transforms
    from fedml.tasks.registry import make_task

    study, site = read_study(study_file), site_of(site_file)
    if (plain := without_transforms(study)) is not study:
        print("own transforms are not applied here: code that the study brings runs only in a confined process of an approved study")
    study = plain
    check_roster(site, study)
    cohort = load_cohort((str(site.file if site_file.is_dir() else site_file),), study)
    classes = make_task(study).person_classes
    print(f'{site.name}: study "{study.study.name}" would use {len(cohort)} persons')
    for part in PARTS:
        rows = cohort.rows(part)
        described = ", ".join(f"{c}: {int((cohort.labels[rows] == i).sum())}" for i, c in enumerate(classes))
        print(f"  {part:5} {len(rows):6} persons" + (f"  ({study.cohort.outcome} {described})" if described else ""))
    for why, count in cohort.excluded.items():
        print(f"  excluded {count} persons: {why}")
    for why, count in cohort.excluded_images.items():
        print(f"  excluded an image of {count} persons: {why} (fedml-site data lists them)")
    for modality, value in inputs_of(cohort):
        for line in (*require(modality.summary, modality, "summary")(value, study), *screen_lines(cohort.ids, value)):
            print(f"  {line}")
    if not site.manifest.data.public and study.privacy.unit != "patient" and study.gwas is None and study.frequencies is None:
        for line in changes(cohort, study, limits(site.manifest.policy, study).min_count):
            print(f"  {line}")
    if study.privacy.unit != "none":
        from fedml.privacy.releases import attacker_sentence

        print(f"  {attacker_sentence(study)}")
    taking_part = cohort.count("test" if site.name in study.federation.evaluate_only else "train")
    for line in would_refuse(site, study, taking_part):
        print(f"  the site would refuse this study: {line}")


By = Annotated[str, typer.Option("--by", help="Name of the person who decides; default: the name of this account.")]


@app.command()
def data(
    site_file: SiteFile = Path("site.toml"),
    series: Annotated[bool, typer.Option("--series", help="List each person's DICOM series: the image, and why others are not.")] = False,
    study_file: Annotated[Path | None, typer.Option("--study", help="With --series: by the rules of this study.")] = None,
) -> None:
    """List the images that the last reading excluded, and the reasons. Nothing leaves this machine.

    With --series, read the headers of the DICOM files and list the series of each person, which one is the image and why the others are
    not.

    Example: fedml-site data --series --study STUDY.toml --site /srv/fedml/site.toml
    """
    from fedml.clients.desk.series import series_lines
    from fedml.clients.site.quarantine import read, show
    from fedml.study.read import read_study

    site = site_of(site_file)
    if study_file is not None and not series:
        raise InputError("--study is only valid with --series.")
    if not series:
        print(show(site.name, read(site.state)))
        return
    for line in series_lines(site, None if study_file is None else read_study(study_file)):
        print(line)


@app.command()
def preview(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    out: Annotated[Path | None, typer.Option("--out", help="PNG file to write; default: preview.png in the site's .fedml.")] = None,
    persons: Annotated[int, typer.Option("--persons", min=1, max=48, help="Number of persons, evenly over the persons table.")] = 12,
) -> None:
    """Draw this site's images as the network receives them, masks as contours. Nothing leaves this machine.

    Example: fedml-site preview wbc.toml --site /srv/fedml/site.toml --persons 24
    """
    from fedml.clients.desk.preview import preview as draw
    from fedml.study.read import read_study
    from fedml.study.study import without_transforms

    path = draw(site_of(site_file), without_transforms(read_study(study_file)), persons=persons, out=out)
    print(f"{path}: shows patients; view it at the site only. Only this account can read it (mode 0600); it is not sent.")


def _who(by: str) -> str:
    import getpass

    return by or getpass.getuser()


@app.command()
def key(
    site_file: SiteFile = Path("site.toml"), out: Annotated[str, typer.Option(help="File name, in the manifest's folder.")] = "node.key"
) -> None:
    """Create this site's node key (EC P-384). Send the public key, .pub, to the coordinating centre.

    Example: fedml-site key --site /srv/fedml/site.toml
    """
    from fedml.flower.keys import write_node_key

    public = write_node_key(site_of(site_file).folder / out)
    print(f"{public}: send this file to the coordinating centre; the private key stays at the site")


@app.command()
def approve(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    by: By = "",
    code: Annotated[
        Path | None, typer.Option("--code", help="Folder with the study's own code, which is shown and copied; needed if it has some.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation; the plan is still printed.")] = False,
    trust_centre: Annotated[
        str,
        typer.Option(
            "--trust-centre", help="Why the centre is trusted with this study, for the run's evidence; lifts the bounds on its messages."
        ),
    ] = "",
) -> None:
    """Print a study's plan as text, ask for confirmation, and record who approved the study and when.

    Example: fedml-site approve heart.toml --site /srv/fedml/site.toml --by "Dr. A. Hansen"
    """
    from fedml.clients.gate import approvals, code_store
    from fedml.clients.gate.foresee import would_refuse
    from fedml.clients.gate.trust import level_of, words
    from fedml.clients.service import prepare_state
    from fedml.clients.site.manifest import check_roster
    from fedml.strategies.describe import describe
    from fedml.study.read import read_study

    study, site = read_study(study_file, code=code), site_of(site_file)
    check_roster(site, study)
    code_store.check_given(study_file, study.code, code)
    print(describe(study))
    print(f"Centre      {words('trusted' if trust_centre else level_of(site), study, site)}")
    if study.privacy.unit != "none":
        from fedml.privacy.releases import attacker_sentence

        print(f"Attacker    {attacker_sentence(study)}")
    for line in would_refuse(site, study, None, trust_centre):
        print(f"Refused     {line}")
    if study.code is not None:
        print(f"\n{code_store.show(site.state, study.code)}")
    print()
    if not yes and not typer.confirm(f"May this study run on {site.name}'s persons?"):
        print("not approved")
        return
    state = prepare_state(site)
    if study.code is not None:
        code_store.keep(state, study.code)
    approval = approvals.approve(state, study, _who(by), trust_centre)
    print(f"approved by {approval.approved_by} at {approval.approved_at}: {study.study.name} {study.sha256}")


@app.command()
def revoke(
    study: Annotated[str, typer.Argument(help="The study's name, or the first digits of its SHA-256.", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    by: By = "",
) -> None:
    """Withdraw an approval; the study's next request is refused.

    Example: fedml-site revoke heart --site /srv/fedml/site.toml
    """
    from fedml.clients.gate import approvals

    site = site_of(site_file)
    for approval in approvals.revoke(site.state, study, _who(by)):
        print(f"revoked by {approval.revoked_by} at {approval.revoked_at}: {approval.name} {approval.sha256}")


@app.command()
def start(
    site_file: SiteFile = Path("site.toml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run one round on placeholder persons, without a connection.")] = False,
    study_file: Annotated[Path | None, typer.Option("--study", help="With --dry-run: this study, approved or not.")] = None,
    code: Annotated[Path | None, typer.Option("--code", help="With --study: folder with own code that is not approved yet.")] = None,
) -> None:
    """Join the federation: answer the requests of approved studies until stopped (SIGTERM or Ctrl-C).

    With --dry-run, run one round of every approved study on placeholder persons with the shapes of the site's data, and list the records
    that a round would send.

    Example: fedml-site start --site /srv/fedml/site.toml
    """
    from fedml.clients.desk.rehearsal import rehearse, show, studies_of
    from fedml.clients.service import start as start_service
    from fedml.study.read import read_study

    site = site_of(site_file)
    if (study_file is not None and not dry_run) or (code is not None and study_file is None):
        raise InputError("--study is only valid with --dry-run, --code with --study; without them the site answers every approved study.")
    if not dry_run:
        start_service(site)
    for study in [read_study(study_file, code=code)] if study_file is not None else studies_of(site):
        print(show(site, study, rehearse(site, study, code=code is not None)))


@app.command()
def doctor(
    site_file: SiteFile = Path("site.toml"),
    study_file: Annotated[Path | None, typer.Option("--study", help="Also read the data as this study would.")] = None,
) -> None:
    """Check everything that a run needs: data, disk, key, TLS, clock, versions. One line a check, with what to do. Exit 1 if one fails.

    Example: fedml-site doctor --site /srv/fedml/site.toml --study heart.toml
    """
    from fedml.clients.desk.doctor import examine, show, worst
    from fedml.study.read import read_study

    findings = examine(site_of(site_file), read_study(study_file) if study_file else None)
    print(show(findings))
    raise typer.Exit(worst(findings))


@app.command()
def status(site_file: SiteFile = Path("site.toml")) -> None:
    """Show whether the site is running, which studies are approved, and the last decisions of the gate.

    Example: fedml-site status --site /srv/fedml/site.toml
    """
    from fedml.clients.gate.approvals import read_approvals
    from fedml.clients.gate.journal import entries
    from fedml.clients.gate.journal_view import show
    from fedml.clients.service import running

    site = site_of(site_file)
    process = running(site.state)
    print(f"{site.name}: " + (f"running (process {process})" if process else "not running"))
    for a in read_approvals(site.state):
        state = f"approved by {a.approved_by} at {a.approved_at}" if a.stands else f"revoked by {a.revoked_by} at {a.revoked_at}"
        print(f"  {a.name} {a.sha256[:12]}: {state}")
    path = site.state / "journal.jsonl"
    if path.exists():
        print(show(entries(path), 5))


@app.command()
def remove(
    site_file: SiteFile = Path("site.toml"),
    with_journal: Annotated[bool, typer.Option("--with-journal", help="Also delete journal, ledger and studies.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation; the list is still printed.")] = False,
) -> None:
    """Leave the federation: delete the node key, approvals, caches and logs of this site. The data and site.toml stay.

    Example: fedml-site remove --site /srv/fedml/site.toml
    """
    from fedml.clients.desk import remove as removal
    from fedml.clients.service import running

    site = site_of(site_file)
    if process := running(site.state):
        how = "stop the service first (systemctl disable --now fedml-site)"
        raise InputError(f"{site.state}: the site is running (process {process}); {how}.")
    plan = removal.plan_removal(site, with_journal)
    print(removal.show(site, plan))
    if plan.deleted and not yes and not typer.confirm(f"Remove {site.name}?"):
        print("not removed")
        return
    removal.remove(site, with_journal)
    print(f"{site.name} is removed; {removal.say_to_centre(site)}")


app.command("deidentification")(deidentification)
app.command("predict")(predict)
app.command("predict-slides")(predict_slides)
app.command("index")(index)
app.command("score")(score)
app.command("adjust")(adjust)
app.add_typer(journal_app)
app.add_typer(ledger_app)


def main() -> None:
    """Entry point of ``fedml-site``."""
    from fedml.code.load import forbid

    forbid("this is a command of a site")
    guarded(app)


if __name__ == "__main__":
    main()
