"""The commands ``fedml-site score`` and ``fedml-site adjust``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedml.clients.site.options import SiteFile, site_of

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
) -> None:
    """Compute a polygenic score for each person of this site. Nothing leaves this machine.

    Example: fedml-site score PGS000018_hmPOS_GRCh38.txt.gz --site /srv/fedml/site.toml --out scores.csv
    """
    from fedml.clients.desk.join_score import join_scores
    from fedml.clients.desk.score import score_site, show, write_scores

    site = site_of(site_file)
    scored = score_site(site, scoring_file, by=by, missing=missing, min_matched=min_matched, say=print)
    if join is None:
        write_scores(out, scored)
        line = f"{out}: id, score, used (weights for which the person has a genotype)"
    else:
        line = join_scores(site, scored, join, out)
    print(show(scored))
    print(line)


def adjust(
    adjustment: Annotated[Path, typer.Argument(metavar="ADJUSTMENT", help="The file of fedml export-adjustment.", show_default=False)],
    table: Annotated[
        tuple[Path, str], typer.Option("--table", metavar="TABLE COLUMN", help="The table and its score's column.", show_default=False)
    ],
    site_file: SiteFile = Path("site.toml"),
    out: Annotated[Path, typer.Option("--out", help="CSV to write: the table and the adjusted score.")] = Path("adjusted.csv"),
) -> None:
    """Adjust a score in a table of this site for ancestry, by principal components in the table. Nothing leaves this machine.

    Example: fedml-site adjust ancestry.json --site site.toml --table clinical_pgs.csv pgs --out clinical_adjusted.csv
    """
    from fedml.clients.desk.join_score import adjust_scores

    print(adjust_scores(site_of(site_file), adjustment, table, out))
