"""Runs to make bundles of, and a forger: one who changes what a bundle says, and makes hashes and signature fit with another key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, RecordDict

from fedml.clients.gate import approvals
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import Site, find_sites, read_site
from fedml.experiments.evidence.archive import pack
from fedml.experiments.evidence.bundle import files_of, manifest_of
from fedml.experiments.evidence.contents import MANIFEST, SIGNATURE, is_source
from fedml.experiments.evidence.signing import signature
from fedml.experiments.runs.run import new_run, run
from fedml.flower.grid import InProcessGrid
from fedml.flower.keys import write_node_key
from fedml.strategies.server import app as server_app
from fedml.study.read import read_study
from fedml.study.study import Study, validate
from tests.command import STUDIES
from tests.conftest import clinical_site, make_plan, public_data

KEY, OTHER = Ed25519PrivateKey.from_private_bytes(b"coordinator".ljust(32)), Ed25519PrivateKey.from_private_bytes(b"forger".ljust(32))
SITES = ("a", "b")
RANGES = {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}


def demo(folder: Path) -> tuple[Path, Path]:
    """(run, sites) of the demo study, short: images, variants and clinical columns at three synthetic sites."""
    from fedml.synthetic.synthetic import Size, write_synthetic

    write_synthetic(folder / "sites", Size(sites=3, persons=60), seed=1)
    changes = {"federation.rounds": 2, "training.threads": 1}
    return finished(read_study(STUDIES / "demo.toml", overrides=changes), folder, STUDIES / "demo.toml"), folder / "sites"


def heart(folder: Path) -> tuple[Path, Path]:
    """(run, sites) of the study of heart disease, with fewer rounds."""
    from fedml.experiments.prepare import prepare

    prepare("heart", folder / "sites", data=public_data("uci_heart"), say=lambda _: None)
    return finished(
        read_study(STUDIES / "heart.toml", overrides={"federation.rounds": 3}), folder, STUDIES / "heart.toml"
    ), folder / "sites"


def finished(study: Study, folder: Path, file: Path | None = None) -> Path:
    """A run of ``study`` with the local engine on the sites in ``folder``/sites."""
    sites: dict[str, Site] = find_sites(folder / "sites", study.federation.sites)[0]
    made = new_run(study, folder / "runs", file, engine="local", job="train")
    assert run(study, sites, made).status == "finished"
    return made


def private(folder: Path) -> tuple[Path, Path]:
    """(run, sites) of a study with patient-level differential privacy, through the gates: replies have the heads of journals."""
    plan = {"unit": "patient", "epsilon": 2.0, "delta": 1e-5, "persons": {"a": 140, "b": 90}, "ranges": RANGES}
    study = validate(Study, make_plan(sites=SITES, privacy=plan), "study")
    for i, name in enumerate(SITES):
        clinical_site(folder / "sites" / name, name, (200, 130)[i], i)
        with (folder / "sites" / name / "site.toml").open("a") as file:
            file.write("[policy]\nmax_epsilon = 8.0\nallow_unprotected = true\n")
    return gated(study, folder), folder / "sites"


def witnessed(folder: Path, keys: tuple[str, ...] = ("oslo", "porto", "utrecht")) -> tuple[Path, Path]:
    """(run, sites) of the demo study without images, through the gates of three sites, of which those in ``keys`` have a node key."""
    from fedml.synthetic.synthetic import Size, write_synthetic

    write_synthetic(folder / "sites", Size(sites=3, persons=60, variants=40, image_size=8), seed=1)
    for name in keys:
        write_node_key(folder / "sites" / name / "node.key")
        with (folder / "sites" / name / "site.toml").open("a") as file:
            file.write('[connection]\nsuperlink = "localhost:9092"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')
    return gated(small_demo(), folder), folder / "sites"


def local(folder: Path) -> tuple[Path, Path]:
    """(run, sites) of the same study with the local engine."""
    from fedml.synthetic.synthetic import Size, write_synthetic

    write_synthetic(folder / "sites", Size(sites=3, persons=60, variants=40, image_size=8), seed=1)
    return finished(small_demo(), folder), folder / "sites"


def small_demo() -> Study:
    """The demo study without images, of two rounds."""
    plan = tomllib.loads((STUDIES / "demo.toml").read_text())
    plan["cohort"] = {"inputs": ["variants", "clinical"], **{k: v for k, v in plan["cohort"].items() if k not in ("inputs", "image")}}
    plan["model"] = {k: v for k, v in plan["model"].items() if k != "image"}
    plan["federation"]["rounds"], plan["training"]["threads"] = 2, 1
    return validate(Study, plan, "study")


def gated(study: Study, folder: Path) -> Path:
    """A run of ``study`` through the gates of the sites in ``folder``/sites, as in a deployment: replies have the heads of journals."""
    gates = []
    for name in study.federation.sites:
        site = read_site(folder / "sites" / name)
        approvals.approve(prepare_state(site), study, "Dr. Test")
        gates.append(Gate(site, site.state))
    made = new_run(study, folder / "runs", None, engine="deployment", job="train")
    grid = InProcessGrid(lambda message, context: gates[context.node_id - 1].handle(message, context), [{} for _ in gates])
    config: dict[str, Any] = {"study": study.canonical, "run": str(made)}
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    return made


def signed(files: dict[str, bytes], out: Path, key: Ed25519PrivateKey = OTHER) -> Path:
    """Packs ``files`` with a manifest and a signature that fit them."""
    own = {name: data for name, data in files.items() if name not in (MANIFEST, SIGNATURE)}
    manifest = manifest_of(json.loads(files[MANIFEST])["run"], own)
    out.write_bytes(pack(own | {MANIFEST: manifest, SIGNATURE: signature(key, manifest, MANIFEST)}))
    return out


def rebuilt(files: dict[str, bytes], out: Path, sources: dict[str, bytes]) -> Path:
    """A forger at their best: changes the run's own files, and has everything else made from them by this software."""
    return signed(files_of({k: v for k, v in files.items() if is_source(k)} | sources) | {MANIFEST: files[MANIFEST]}, out)


def events(files: dict[str, bytes], change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """events.jsonl after ``change`` of its events."""
    rows = [json.loads(line) for line in files["events.jsonl"].splitlines()]
    change(rows)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
