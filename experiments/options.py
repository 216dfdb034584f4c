"""Options that several commands of ``fedml`` have, and groups of them that go together (``fedml.cli.grouped``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)]
StudyFileOrNone = Annotated[Path | None, typer.Argument(metavar="STUDY", help="The study file (TOML).", show_default=False)]
Sites = Annotated[Path, typer.Option("--sites", help="Folder with one subfolder for each site, each with a site.toml.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Use this seed instead of the study's.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
SitesOrNone = Annotated[Path | None, typer.Option("--sites", help="Folder with one subfolder for each site, each with a site.toml.")]
Engine = Annotated[str, typer.Option(help="local: in this process. simulation: Flower's engine on Ray. deployment: running sites.")]
SuperLink = Annotated[
    str | None, typer.Option(help="deployment: the folder of `fedml federation init` or `up`, or a connection in Flower's config.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of standard output.")]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="local: processes that train sites side by side; 0: all cores, if the run is long.")
]
Track = Annotated[bool, typer.Option("--track/--no-track", help="Record the run in MLflow.")]


@dataclass(frozen=True)
class Where:
    """On what a study runs: the folder of the sites and an engine, or a SuperLink; and the folder of the runs."""

    sites: SitesOrNone = None
    engine: Engine = "local"
    superlink: SuperLink = None
    runs: Runs = Path("fedml-runs")
    workers: Workers = 0


@dataclass(frozen=True)
class WhereAgain(Where):
    """Also: the folder of a run that stopped, which goes on."""

    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder, which stopped.", show_default=False)
    ] = None


@dataclass(frozen=True)
class Against:
    """What federated training is compared with, and over which seeds."""

    baselines: Annotated[str, typer.Option(help="pooled, local, or both: pooled,local.")] = "pooled,local"
    seeds: Annotated[str, typer.Option(help="One seed, a range 0-4, or a list 0,1,5; default: the study's seed.")] = ""
    leave_one_site_out: Annotated[
        bool, typer.Option("--leave-one-site-out", help="Instead: for each site, a model that it did not train, tested at the site.")
    ] = False
    folds: Annotated[int, typer.Option(min=0, help="Instead: cross-validation with so many folds, by a hash of each person's id.")] = 0
    truth: Annotated[Path | None, typer.Option(help="truth.json of synthetic sites: also compare with the planted effects.")] = None


@dataclass(frozen=True)
class Listening:
    """Where `fedml frequencies serve` listens, how much it answers, and as whom."""

    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: a free one.")] = 5050
    public: Annotated[bool, typer.Option("--public", help="Allow a --host that other machines can reach.")] = False
    granularity: Annotated[str, typer.Option("--granularity", help="The most that is answered: boolean, count or record.")] = "record"
    per_minute: Annotated[int, typer.Option("--per-minute", min=1, help="Most requests a minute, of all clients together.")] = 600
    organization: Annotated[str, typer.Option("--organization", help="Who publishes the table; default: the study's name.")] = ""
    page: Annotated[str, typer.Option("--page", metavar="URL", help="A page about it; default: the endpoint.")] = ""
