"""Small sites on disk, studies from a few words, and runs of them in this process."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from fedml.experiments.runs.run import run_nodes
from fedml.runs.log import load_model, read_events
from fedml.study.study import Study, validate

DATA = Path(__file__).parents[2] / "shared" / "data"

# A shell that starts the tests in the background lets them, and all processes that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("core", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("core")


# Files that take longest, from the first: they begin first, so that no worker is left alone with one at the end.
LONGEST = (
    "test_mutants.py",
    "experiments/federation/test_kills.py",
    "strategies/gwas/test_gwas.py",
    "experiments/studies/test_attack.py",
    "experiments/runs/test_end_to_end.py",
    "strategies/test_strategies.py",
    "experiments/evidence/test_evidence.py",
    "experiments/studies/test_harm.py",
    "experiments/studies/test_broken_genotypes.py",
    "experiments/studies/test_mlflow_page.py",
    "experiments/studies/test_bad_input.py",
    "fedml/cohort/variants/test_vcf.py",
    "experiments/prepare/test_prepare.py",
    "experiments/report/test_report_page.py",
    "experiments/runs/test_real_data.py",
)


# Where real federations run; two at a time on two cores run into each other's time limits.
FEDERATIONS = (
    "experiments/federation/",
    "clients/work/test_leaks.py",
    "strategies/gwas/test_gwas_deployed.py",
    "strategies/gwas/test_genes_deployed.py",
    "strategies/gwas/test_polygenic_deployed.py",
    "experiments/frequencies/test_frequencies_deployed.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks long tests of real federations, and orders the files as they are dealt to workers (``pytest -n 2 --dist loadfile
    --no-loadscope-reorder``); within a file the order stays."""
    places = {name: place for place, name in enumerate(LONGEST)}
    here = Path(__file__).parent
    for item in items:
        if item.get_closest_marker("long") and item.path.relative_to(here).as_posix().startswith(FEDERATIONS):
            item.add_marker("federation")
    items.sort(key=lambda item: places.get(item.path.relative_to(here).as_posix(), len(places)))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this session: what is made there once is made under a lock (``filelock``)."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def mlflow_forgets() -> Iterator[None]:
    """MLflow keeps the last store in this process and in its environment; this is reset, so that it does not affect the next test."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def public_data(name: str) -> Path:
    """A folder of the public data; the test is skipped where this machine does not have it."""
    if not (DATA / name).exists():
        pytest.skip(f"public data {DATA / name} is not on this machine")
    return DATA / name


@pytest.fixture
def chromosome_21() -> Path:
    """The start of chromosome 21 of 1000 Genomes phase 3."""
    return public_data("vcf_1kg_chr21") / "1kg_phase3_chr21_start.vcf.gz"


def make_plan(inputs: Sequence[str] = ("clinical",), sites: Sequence[str] = ("a", "b"), **changes: Any) -> dict[str, Any]:
    """A valid plan; ``changes`` are ``section__key=value`` (``cohort__split={...}``, ``training__lr=0.1``)."""
    cohort: dict[str, Any] = {"inputs": list(inputs), "target": "y"}
    if "clinical" in inputs:
        cohort["clinical"] = {"columns": ["x1", "x2", "x3"]}
    plan: dict[str, Any] = {"study": {"name": "toy"}, "cohort": cohort, "federation": {"sites": list(sites), "rounds": 2}}
    for key, value in changes.items():
        *sections, last = key.split("__")
        at = plan
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return plan


def make_study(inputs: Sequence[str] = ("clinical",), sites: Sequence[str] = ("a", "b"), **changes: Any) -> Study:
    """``make_plan``, validated."""
    return validate(Study, make_plan(inputs, sites, **changes), "study.toml")


def to_toml(plan: Mapping[str, Any], section: str = "") -> str:
    """A plan as TOML: scalars and arrays first, then sections. A JSON scalar is a TOML scalar."""
    plain = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in plan.items() if not isinstance(v, Mapping)]
    tables = [(f"{section}.{json.dumps(k)}".lstrip("."), v) for k, v in plan.items() if isinstance(v, Mapping)]
    return "\n".join(plain) + "".join(f"\n[{name}]\n{to_toml(inner, name)}\n" for name, inner in tables)


def write_csv(path: Path, ids: Sequence[str], columns: Mapping[str, Iterable[Any]]) -> Path:
    """One row an id; None and NaN are empty cells."""
    rows = [",".join(["id", *columns])]
    for person, *values in zip(ids, *columns.values(), strict=True):
        rows.append(",".join([person, *("" if v is None or v != v else str(v) for v in values)]))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_picture(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    """PNG or JPEG (grey or RGB, uint8), NPY, or NIfTI, by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), path)
    else:
        from PIL import Image

        Image.fromarray(pixels).save(path)
    return path


VCF_HEADER = '##fileformat=VCFv4.2\n##contig=<ID=chr21>\n##contig=<ID=22>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'


def vcf_text(samples: Sequence[str], records: Iterable[tuple[str, int, str, str, str, Sequence[str]]]) -> str:
    """A VCF of (contig, position, id, ref, alt, one genotype a sample)."""
    records = list(records)
    lines = [f"##contig=<ID={contig}>" for contig in dict.fromkeys(r[0] for r in records) if f"##contig=<ID={contig}>" not in VCF_HEADER]
    lines += ["#" + "\t".join(["CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples])]
    lines += ["\t".join([c, str(p), i, r, a, ".", ".", ".", "GT", *genotypes]) for c, p, i, r, a, genotypes in records]
    return VCF_HEADER + "\n".join(lines) + "\n"


def write_vcf(path: Path, samples: Sequence[str], records: Iterable[tuple[str, int, str, str, str, Sequence[str]]]) -> Path:
    """``.vcf`` as text, ``.vcf.gz`` by bgzip, ``.bcf`` by htslib."""
    import pysam

    plain = path.parent / "plain.vcf"
    plain.write_text(vcf_text(samples, records))
    if path.name.endswith(".vcf.gz"):
        pysam.tabix_compress(str(plain), str(path), force=True)
    elif path.suffix == ".bcf":
        with pysam.VariantFile(str(plain)) as source, pysam.VariantFile(str(path), "wb", header=source.header) as out:
            for record in source:
                out.write(record)
    else:
        plain.rename(path)
    return path


def write_bed(path: Path, samples: Sequence[str], keys: Sequence[tuple[str, int, str, str, str]], dosage: np.ndarray[Any, Any]) -> Path:
    """PLINK 1 files; ``keys`` are (contig, position, id, ref, alt) with ALT as A1, ``dosage`` (samples, keys) with -1 for missing."""
    from bed_reader import to_bed

    contig, position, names, ref, alt = zip(*keys, strict=True)
    properties = {"fid": list(samples), "iid": list(samples), "sid": list(names), "chromosome": list(contig)}
    properties |= {"bp_position": list(position), "allele_1": list(alt), "allele_2": list(ref)}
    to_bed(path, np.where(dosage < 0, -127, dosage).astype(np.int8), properties=properties)
    return path


def write_manifest(folder: Path, name: str, **data: str) -> Path:
    """``site.toml``; each of ``data`` is TOML: ``clinical='{ path = "clinical.csv" }'``. The persons do not exist, so they are public."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{key} = {value}\n" for key, value in {"persons": '"persons.csv"', "public": "true", **data}.items())
    (folder / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{lines}')
    return folder / "site.toml"


def clinical_site(folder: Path, name: str, persons: int, seed: int, *, missing: float = 0.1, labels: Sequence[Any] | None = None) -> Path:
    """A site with clinical columns x1..x3 (some missing) that predict the label y, and ids that carry the site's name."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"{name}{k:04d}" for k in range(persons)]
    x = rng.normal([3, -1, 100], [1, 2, 30], (persons, 3))
    y = (x @ [1, 0.5, 0.02] + rng.normal(0, 1, persons) > 4.5).astype(int) if labels is None else labels
    x[rng.random(x.shape) < missing] = np.nan
    write_csv(folder / "persons.csv", ids, {"y": y})
    write_csv(folder / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
    return write_manifest(folder, name, clinical='{ path = "clinical.csv" }')


def image_site(folder: Path, name: str, persons: int, seed: int, size: tuple[int, ...] = (8, 8)) -> Path:
    """A site with one ``.npz`` of images whose mean tells the label."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"{name}{k:04d}" for k in range(persons)]
    y = rng.integers(0, 2, persons)
    images = (rng.normal(100, 20, (persons, *size)) + 40 * y.reshape(-1, *(1 for _ in size))).clip(0, 255).astype(np.uint8)
    write_csv(folder / "persons.csv", ids, {"y": y})
    np.savez(folder / "images.npz", ids=np.array(ids), images=images)
    return write_manifest(folder, name, image='{ path = "images.npz", format = "npz" }')


def huge_slide(path: Path) -> int:
    """100,000 x 100,000 pixels in three levels, of which four squares of 8,192 pixels are tissue; returns the bytes of the file."""
    import tifffile

    side, pink = 512, np.full((512, 512, 3), (220, 130, 190), np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for k, width in enumerate((100_000, 25_000, 6_250)):
            each, square = -(-width // side), 16 // 4**k  # tiles along the slide, and along a square
            tiles = (pink if row // square % 7 == 0 == column // square % 7 else None for row in range(each) for column in range(each))
            out.write(tiles, shape=(width, width, 3), dtype=np.uint8, tile=(side, side), compression="zlib", photometric="rgb",
                      subfiletype=int(k > 0), resolution=(40000 / 4**k,) * 2, resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    return path.stat().st_size


class Run:
    """A finished run: its events, last event, and the saved arrays (learned and constants)."""

    def __init__(self, folder: Path) -> None:
        self.events = read_events(folder)[0]
        self.final = next(e for e in self.events if e["event"] == "final")
        self.rounds = [e for e in self.events if e["event"] == "round"]
        self.arrays, self.shape, self.panel = load_model(folder)

    @property
    def sha256(self) -> str:
        return str(self.final["weights_sha256"])

    def learned(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.arrays.items() if not k.startswith(("preprocess.", "target."))}

    def constants(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.arrays.items() if k.startswith(("preprocess.", "target."))}


def federate(study: Study, manifests: Iterable[Path], folder: Path) -> Run:
    """Runs ``study`` with one node a manifest."""
    folder.mkdir(parents=True)
    run_nodes(study, [{"manifest": str(m)} for m in manifests], folder)
    return Run(folder)


def pooled(study: Study, manifests: Iterable[Path], folder: Path) -> Run:
    """Runs ``study`` with one node that holds the persons of all manifests."""
    plan = study.model_dump(mode="json")
    plan["federation"]["sites"] = ["pooled"]
    folder.mkdir(parents=True)
    run_nodes(validate(Study, plan, "pooled"), [{"manifest": "\n".join(map(str, manifests)), "name": "pooled"}], folder)
    return Run(folder)
