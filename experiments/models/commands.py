"""The commands about trained models: ``fedml promote``, ``ui``, ``predict``, ``export-score``, ``import-bundle`` and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.errors import InputError
from fedml.experiments.options import Sites
from fedml.experiments.runs.launch import find


def promote(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    alias: Annotated[str, typer.Option("--as", help="challenger, or champion (the model in use).")] = "challenger",
    margin: Annotated[float, typer.Option(help="Largest loss of the metric at a site, against the champion.")] = 0.02,
) -> None:
    """Register a run's model in MLflow under the study's name. Refuses if a site would lose too much, or a promise of the study is broken.

    Example: fedml promote fedml-runs/heart-20260131-101500-3fa2b1 --as champion
    """
    from fedml.experiments.models.promote import promote as register
    from fedml.tracking.store import plain_errors

    with plain_errors():
        version = register(run_folder, alias, margin)
    print(f"{version.name} version {version.number} is the {alias}: models:/{version.name}@{alias}")


def ui(port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000) -> None:
    """Serve MLflow's pages of the recorded runs until stopped; print a link for each study.

    Example: fedml ui --port 5001
    """
    from fedml.experiments.models.ui import serve

    serve(port, print)


def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    sites: Sites,
    out: Annotated[Path, typer.Option("--out", help="CSV file to write; only this account can read it.")] = Path("predictions.csv"),
) -> None:
    """Write the model's prediction for each person whose data are on this machine: site, id, part, label, prediction. Nothing is sent.

    Example: fedml predict fedml-runs/heart-20260131-101500-3fa2b1 --sites out/heart --out predictions.csv
    """
    from fedml.experiments.models.predictions import predictions
    from fedml.experiments.runs.record import read_record
    from fedml.runs.log import write_whole

    found = predictions(run_folder, find(sites, read_record(run_folder).study, print))
    write_whole(out, found.to_csv(index=False).encode(), mode=0o600)
    print(f"{out}: {len(found)} persons of {found['site'].nunique()} sites")


def export_score(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write; gzip if it ends with .gz.")] = Path("pgs.txt.gz"),
) -> None:
    """Write a run's linear model on variants as a scoring file (PGS Catalog format 2.0), for `fedml-site score` and other programs.

    Example: fedml export-score fedml-runs/risk-20260131-101500-3fa2b1 --out risk.txt.gz
    """
    from fedml.experiments.models.export_score import export_score as export

    print(export(run_folder, out))


def prs(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished `fedml gwas`.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the scoring files, one for each --p.")] = Path("prs"),
    reference: Annotated[
        Path | None, typer.Option("--reference", help="VCF, BCF or PLINK bed of persons like the study's, for LD.", show_default=False)
    ] = None,
    no_ld: Annotated[bool, typer.Option("--no-ld", help="Without a reference: clump by distance alone.")] = False,
    p: Annotated[list[float] | None, typer.Option("--p", min=1e-300, max=1, help="Largest p of a score; several are allowed.")] = None,
    r2: Annotated[float, typer.Option("--r2", min=0, max=1, help="LD above which two variants are of one clump.")] = 0.1,
    kb: Annotated[float, typer.Option("--kb", min=0.001, help="Largest distance in a clump, thousands of bases.")] = 250,
) -> None:
    """Write polygenic scores of an association study by clumping and thresholding, for `fedml-site score` and other programs.

    No site is asked: LD is that of your reference panel. Test a score on persons who were not in the study.

    Example: fedml prs fedml-runs/height-20260131-101500-3fa2b1 --reference 1kg_eur.bed --p 5e-8 --p 0.01 --out scores
    """
    from fedml.cohort.scores.clump import Rule
    from fedml.experiments.models.prs import THRESHOLDS, Choice, write_scores

    if (reference is None) != no_ld:
        raise InputError("give either --reference FILE, genotypes from which LD is computed, or --no-ld, which clumps by distance alone.")
    rule = Rule(kb, 0.0 if no_ld else r2)
    written = write_scores(run_folder, out, Choice(reference, tuple(sorted(set(p or THRESHOLDS))), rule), print)
    for path in written:
        print(path)


def export_bundle(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the bundle.")] = Path("bundle"),
) -> None:
    """Write a run's segmentation model as a MONAI bundle: network, weights, transforms, and the way back to each file's grid.

    Example: fedml export-bundle fedml-runs/spleen-20260131-101500-3fa2b1 --out bundle
    """
    from fedml.experiments.models.export_bundle import export_bundle as export

    print(export(run_folder, out))


def import_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A MONAI bundle: its folder, or a zip file of it.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Study to write, beside it its weights.")] = Path("study.toml"),
    site: Annotated[list[str] | None, typer.Option("--site", help="Name of a site; several.", show_default="a, b, c")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the study.", show_default="the bundle's")] = "",
    sha256: Annotated[str, typer.Option("--sha256", metavar="HEX", help="That the bundle's weights must have.", show_default=False)] = "",
) -> None:
    """Write a study that begins with the network and weights of a MONAI bundle. Nothing of the bundle is run.

    Example: fedml import-bundle spleen_ct_segmentation.zip --out spleen.toml --site north --site south --site west
    """
    from fedml.experiments.models.import_bundle import Ask
    from fedml.experiments.models.import_bundle import import_bundle as take

    for line in take(bundle, out, Ask(name, tuple(site or ("a", "b", "c")), sha256)):
        print(line)


def export_adjustment(
    mean: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run: the score by principal components.", show_default=False)],
    variance: Annotated[
        Path | None, typer.Option("--variance", metavar="RUN", help="A finished run of the squared residual.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("ancestry.json"),
) -> None:
    """Write by how much ancestry moves a polygenic score, from regressions on principal components, for `fedml-site adjust`.

    Example: fedml export-adjustment fedml-runs/mean-20260131-101500-3fa2b1 --variance fedml-runs/var-20260131-102000-9c01aa
    """
    from fedml.experiments.models.export_adjustment import export_adjustment as export

    print(export(mean, variance, out))
