"""The command ``fedml-site score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedml.clients.site.options import SiteFile, site_of
from fedml.errors import InputError

ScoreBy = Literal["position", "rsid"]
ScoreMissing = Literal["stated", "own"]


def score(
    scoring_file: Annotated[Path, typer.Argument(metavar="SCORING", help="A PGS Catalog scoring file, plain or .gz.", show_default=False)],
    site_file: SiteFile = Path("site.toml"),
    out: Annotated[Path, typer.Option("--out", help="CSV to write: id, score, used; with --join: the table and the score.")] = Path(
        "scores.csv"
    ),
    by: Annotated[ScoreBy, typer.Option("--by", help="How a weight is matched to a variant.")] = "position",
    missing: Annotated[
        ScoreMissing, typer.Option(help="A missing genotype counts by the allele frequency stated in the file, or by this site's own.")
    ] = "stated",
    min_matched: Annotated[float, typer.Option(min=0, max=1, help="Fraction of the weights that must match a variant.")] = 0.5,
    join: Annotated[
        tuple[Path, str] | None,
        typer.Option("--join", metavar="TABLE COLUMN", help="Write this table with the score as a new column.", show_default=False),
    ] = None,
    adjust: Annotated[
        Path | None,
        typer.Option("--adjust", help="With --join: also the score adjusted for ancestry (fedml export-adjustment).", show_default=False),
    ] = None,
) -> None:
    """Compute a polygenic score for each person of this site. Nothing leaves this machine.

    Example: fedml-site score PGS000018_hmPOS_GRCh38.txt.gz --site /srv/fedml/site.toml --out scores.csv
    """
    from fedml.clients.desk.join_score import join_scores
    from fedml.clients.desk.score import score_site, show, write_scores

    if adjust is not None and join is None:
        raise InputError("--adjust needs --join TABLE COLUMN, a table that has the principal components; add it.")
    site = site_of(site_file)
    scored = score_site(site, scoring_file, by=by, missing=missing, min_matched=min_matched, say=print)
    if join is None:
        write_scores(out, scored)
    else:
        lines = join_scores(site, scored, join, adjust, out)
    print(show(scored))
    for line in lines if join is not None else (f"{out}: id, score, used (weights for which the person has a genotype)",):
        print(line)
