"""The commands ``fedml federation``: the coordinating centre, and a federation on this machine for trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.errors import InputError
from fedml.experiments.options import Sites
from fedml.flower.address import join

app = typer.Typer(
    name="federation",
    help="The coordinating centre: init, start, register, list, remove. A federation on this machine, for trials: up, down, status.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip
Home = Annotated[Path, typer.Option("--home", help="The centre's folder: certificates, keys, database.", show_default=False)]


@app.command("init")
def init_(
    home: Home,
    host: Annotated[str, typer.Option("--host", help="The host name or IP address at which sites reach this centre.", show_default=False)],
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
    print(f"sites connect to {join(centre.host, centre.port)}; send them {home / 'ca.pem'} and confirm its SHA-256 fingerprint by phone:")
    print(fingerprint(home))
    print(f"next: fedml federation start --home {home}")


@app.command("start")
def start_(
    home: Home, listen: Annotated[str, typer.Option("--listen", help="Address to listen on; \"::\" for IPv6.")] = "0.0.0.0"  # noqa: S104
) -> None:  # fmt: skip
    """Run the SuperLink until stopped (SIGTERM or Ctrl-C): TLS, registered node keys only; commands from this machine only.

    Example: fedml federation start --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import start

    start(home, listen)


@app.command("register")
def register_(
    name: Annotated[str, typer.Argument(help="The site's name in rosters.", show_default=False)],
    public_key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The public key that the site sent.", show_default=False)],
    home: Home,
) -> None:
    """Register a site's key under the site's name. The SuperLink must be running.

    Example: fedml federation register oslo oslo.pub --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import register

    print(f"{name} may join with the key {register(home, name, public_key)}")


@app.command("list")
def list_(home: Home) -> None:
    """List the registered sites: state, time last seen, time of registration, fingerprint of the key.

    Example: fedml federation list --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import registered, show

    print(show(registered(home)))


@app.command("remove")
def remove_(name: Annotated[str, typer.Argument(help="The site's name.", show_default=False)], home: Home) -> None:
    """Remove a site at once. Its key cannot be registered again; its name can, with a new key.

    Example: fedml federation remove oslo --home /srv/fedml/centre
    """
    from fedml.experiments.federation.centre import remove

    remove(home, name)
    print(f"{name} may not join any more")


@app.command("up")
def up_(sites: Sites) -> None:
    """Start a federation of the sites in a folder; it runs until `fedml federation down`.

    Example: fedml federation up --sites out/sites
    """
    from fedml.experiments.federation.local import up

    up(sites, print)
    print(f"each site must approve a study: fedml-site approve STUDY --site {sites}/SITE")
    print(f"then: fedml run STUDY --engine deployment --superlink {sites}")


@app.command("down")
def down_(sites: Sites) -> None:
    """Stop the federation. Keys, approvals, journals and the database are kept.

    Example: fedml federation down --sites out/sites
    """
    from fedml.experiments.federation.local import down

    down(sites, print)


@app.command("status")
def status_(sites: Sites) -> None:
    """Show the running processes of the federation.

    Example: fedml federation status --sites out/sites
    """
    from fedml.experiments.federation.local import status

    print(status(sites))
