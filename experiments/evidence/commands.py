"""The commands for the evidence of a run: ``fedml bundle``, ``fedml verify``, ``fedml reproduce``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedml.errors import InputError, RunError
from fedml.experiments.options import Json
from fedml.experiments.runs.launch import find, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedml.experiments.evidence.verify import Verified

BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that `fedml bundle` wrote.", show_default=False)]
SignedBy = Annotated[Path | None, typer.Option("--key", help="The coordinator's public key (PEM), which must have signed the bundle.")]
SiteKeys = Annotated[
    list[str], typer.Option("--site-key", help="NAME=FILE or NAME=FINGERPRINT: a site's node key, which must have signed its answers.")
]
Fingerprint = Annotated[str | None, typer.Option("--fingerprint", help="The SHA-256 fingerprint of that key, instead of --key.")]


def bundle(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path("run.zip"),
    key: Annotated[Path | None, typer.Option("--key", help="The coordinator's Ed25519 key (PEM); default: a stored key.")] = None,
    authors: Annotated[Path | None, typer.Option("--authors", help="Title, authors, licence (authors.toml) for a publication.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run and its evidence to one signed file, which `fedml verify` checks.

    Example: fedml bundle fedml-runs/heart-20260131-101500-3fa2b1 -o heart.zip
    """
    from fedml.experiments.evidence.bundle import write_bundle
    from fedml.experiments.evidence.signing import fingerprint, private_key

    console = make_console(as_json)
    signer = private_key(key, _plain(console))
    try:
        stated = None if authors is None else authors.read_bytes()
    except OSError as error:
        raise InputError(f"{authors}: cannot be read ({error.strerror}); give a file with title, license and [[authors]].") from error
    manifest = write_bundle(run_folder, out, signer, authors=stated)
    digest = fingerprint(signer.public_key())
    _plain(console)(f"{out}: signed by {digest}; to verify: fedml verify {out} --fingerprint {digest}")
    if as_json:
        print(json.dumps({"bundle": str(out), "manifest_sha256": manifest, "fingerprint": digest}), flush=True)


def verify(
    bundle_file: BundleFile,
    key: SignedBy = None,
    fingerprint: Fingerprint = None,
    site_keys: SiteKeys = [],  # noqa: B006  # typer copies it
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the verdict as a Markdown table to paste.")] = False,
    as_json: Json = False,
) -> None:
    """Check a bundle offline: hashes, signatures, every figure, recomputed from the sites' counts and the privacy events.

    Example: fedml verify heart.zip --key coordinator.pub --site-key oslo=oslo.pub
    """
    from fedml.experiments.evidence.verdict import markdown as table

    found = _verified(bundle_file, key, fingerprint, make_console(as_json or markdown), site_keys)
    if markdown:
        print(table(bundle_file.name, found), flush=True)
    if as_json:
        print(json.dumps(_result(found)), flush=True)
    _judge(bundle_file, found)


def reproduce(
    bundle_file: BundleFile,
    sites: Annotated[
        Path, typer.Option("--sites", help="Folder with one subfolder for each site, each with a site.toml.", show_default=False)
    ],
    key: SignedBy = None,
    fingerprint: Fingerprint = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder for the new run.")] = Path("fedml-runs"),
    run_code: Annotated[bool, typer.Option("--run-code", help="Run the study's own code, which is in the bundle; read it before.")] = False,
    as_json: Json = False,
) -> None:
    """Run a bundle's study again on the sites' data and compare bit by bit; show the first difference if there is any.

    Example: fedml reproduce heart.zip --sites out/heart
    """
    from fedml.experiments.evidence.reproduce import reproduce as rerun
    from fedml.runs.log import STUDY
    from fedml.study.study import parse_study

    console = make_console(as_json)
    say = _plain(console)
    checked = _verified(bundle_file, key, fingerprint, console)
    _judge(bundle_file, checked)
    found = rerun(checked.files, find(sites, parse_study(checked.files[STUDY].decode()), say), runs, say, run_code=run_code)
    for difference in found.differences:
        say(f"{'differs' if difference.decides else 'note':8} {difference.where:10} {difference.text}")
    say(f"{found.sentence()} (new run: {found.run})")
    if as_json:
        result = {"equal": found.equal, "private": found.private, "weights_sha256": found.weights_sha256, "run": str(found.run)}
        print(json.dumps({**result, "differences": [asdict(d) for d in found.differences], "verified": _result(checked)}), flush=True)
    if not found.equal:
        raise RunError(f"{bundle_file}: was not reproduced; {found.sentence()}.")


def _verified(bundle_file: Path, key: Path | None, fingerprint: str | None, console: Console, sites: Sequence[str] = ()) -> Verified:
    from rich.text import Text

    from fedml.experiments.evidence.verdict import WORD, site_keys
    from fedml.experiments.evidence.verify import verify as check

    if bundle_file.is_dir():
        raise InputError(f"{bundle_file}: is a folder; write the bundle of a run first: fedml bundle {bundle_file} -o run.zip.")
    found = check(bundle_file, _wanted(key, fingerprint), site_keys(sites))
    for c in found.checks:
        line = Text("ok      " if c.ok else "FAILED  ", style="" if c.ok else "bold red")
        line.append(f"{c.name:17} {c.file}: {c.text}", style="not bold")
        console.print(line, soft_wrap=True)
    if found.word:
        console.print(Text(f"note    {WORD}: {found.word}"), soft_wrap=True)
    return found


def _wanted(key: Path | None, fingerprint: str | None) -> str | None:
    """The fingerprint of the key that must have signed; None if neither option is given."""
    from fedml.experiments.evidence.signing import fingerprint as fingerprint_of
    from fedml.experiments.evidence.signing import public_key

    given = None if fingerprint is None else fingerprint.strip().lower().replace(":", "")
    if given is not None and not re.fullmatch("[0-9a-f]{64}", given):
        raise InputError(f"--fingerprint {fingerprint}: is not a SHA-256; give the 64 hexadecimal digits that `fedml bundle` printed.")
    if key is None:
        return given
    of_key = fingerprint_of(public_key(key))
    if given not in (None, of_key):
        raise InputError(f"--fingerprint {fingerprint}: is not the fingerprint of --key {key}, which is {of_key}; give only one.")
    return of_key


def _judge(bundle_file: Path, found: Verified) -> None:
    from fedml.experiments.evidence.verify import summary

    if not found.ok:
        raise RunError(f"{bundle_file}: failed verification: {summary(found)}")


def _result(found: Verified) -> dict[str, Any]:
    return {"ok": found.ok, "fingerprint": found.fingerprint, "signers_word": found.word, "checks": [asdict(c) for c in found.checks]}


def _plain(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, soft_wrap=True)
