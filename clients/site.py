"""A site's manifest (``site.toml``) and the cohort that a study reads by it.

[site]
name = "oslo"
[data]
persons = "persons.csv"                                    # id and target columns, one row a person
image = { path = "images", format = "nifti" }              # dicom | png | bmp | jpeg | npy | nifti | npz | slide; masks = "masks"
variants = { path = "cohort.vcf.gz", build = "GRCh38" }    # .vcf.gz | .bcf | .bed; reference = "GRCh38.fa", memory_mb = 512
clinical = { path = "clinical.csv" }
split = "split.csv"                                        # optional: id, part
public = true                                              # only of published or synthetic persons
"""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from clients import quarantine
from fedml.cohort.builds import Build
from fedml.cohort.clinical import code_columns
from fedml.cohort.deidentified import Deidentification
from fedml.cohort.genotypes import read_variants
from fedml.cohort.groups import read_groups
from fedml.cohort.image import TooManyAside, read_images
from fedml.cohort.panel import panel_of
from fedml.cohort.persons import Cohort, aligned, keep, pool
from fedml.cohort.slides import Slides, read_slides
from fedml.cohort.table import part_of, read_labels, read_parts, read_table
from fedml.cohort.variants import Selection, from_text
from fedml.disclosure import DisclosedPolicy
from fedml.errors import InputError, Reason, SiteError, nearest
from fedml.sections import Name
from fedml.study import Study, validate


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ImageData(_Section):
    """Where images are; ``format`` as in ``fedml.cohort.image`` and ``fedml.cohort.slides``, ``masks`` as in ``fedml.cohort.masks``."""

    path: str
    format: Literal["dicom", "png", "bmp", "jpeg", "npy", "nifti", "npz", "slide"]
    masks: str | None = None


class VariantData(_Section):
    """Where genotypes are, the genome build of their positions, a FASTA of it (with its index) to hold REF against, and how much memory
    reading may take."""

    path: str
    build: Build
    reference: str | None = None
    memory_mb: Annotated[int, Field(ge=16)] = 512


class ClinicalData(_Section):
    """Where clinical columns are."""

    path: str


class Data(_Section):
    """``[data]``: paths are relative to the manifest.

    ``public``: the site declares that anybody may see its images, for they are published or synthetic; a run beside them may then keep
    pictures of predictions. Left out, no picture of a person leaves the site.
    """

    persons: str
    image: ImageData | None = None
    variants: VariantData | None = None
    clinical: ClinicalData | None = None
    split: str | None = None
    public: bool = False


class Policy(_Section):
    """``[policy]``: what the site allows; the gate (``clients.gate``) holds it. An absent key is the strictest sensible value.

    ``purposes`` left out means: those of the studies that a person approved. ``max_epsilon`` 0 means: no budget is granted, so no study
    with privacy of a patient runs; with a budget, a study without that privacy does not run either, unless ``allow_unprotected``.
    ``min_count`` holds for the persons behind a sum and, in analyses of genotypes, for every group of persons with the same genotype (also
    among cases, controls and each category of a covariate): a variant with a smaller group is left out. ``max_steps`` bounds each kind of
    step of such an analysis, ``max_runs`` how often one approved study is run. ``deidentification``: what to do with a DICOM file that is
    not (``fedml.cohort.deidentified``).
    ``max_quarantined``: the fraction of persons with images of whom one may be unusable and set aside; above it the site refuses.
    ``disclose``: these limits are told to whoever runs a study, as evidence of what was in force.
    """

    studies: Literal["approved"] = "approved"
    purposes: tuple[str, ...] | None = None
    max_rounds: Annotated[int, Field(ge=1, le=2**53)] = 1000
    max_steps: Annotated[int, Field(ge=1)] = 2_000
    max_runs: Annotated[int, Field(ge=1)] = 20
    max_request_mb: Annotated[int, Field(ge=1)] = 512
    min_persons: Annotated[int, Field(ge=1, le=2**53)] = 20
    max_epsilon: Annotated[float, Field(ge=0)] = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    allow_unprotected: bool = False
    max_reply_mb: Annotated[int, Field(ge=1)] = 512
    min_count: Annotated[int, Field(ge=1, le=2**53)] = 5
    deidentification: Deidentification = "quarantine"
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.1
    disclose: bool = True

    def disclosed(self) -> DisclosedPolicy:
        """What is told of it."""
        return DisclosedPolicy(**self.model_dump(include=set(DisclosedPolicy.model_fields)))


class SiteName(_Section):
    """``[site]``."""

    name: Name


class Connection(_Section):
    """``[connection]``: how this site reaches its federation. The key's private half never leaves the site."""

    superlink: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+:\d{1,5}$", description="host:port")]
    root_certificates: str
    key: str


class Compute(_Section):
    """``[compute]``: where this site computes. ``auto``: its accelerator if it has one; ``cpu`` keeps that for others."""

    device: Literal["auto", "cpu", "cuda"] = "auto"


class Manifest(_Section):
    """A whole ``site.toml``."""

    site: SiteName
    data: Data
    policy: Policy = Policy()
    compute: Compute = Compute()
    connection: Connection | None = None


@dataclass(frozen=True)
class Site:
    """A manifest and the folder its paths start from."""

    manifest: Manifest
    folder: Path
    filename: str = "site.toml"

    @property
    def name(self) -> str:
        """The site's name in rosters."""
        return self.manifest.site.name

    @property
    def file(self) -> Path:
        """The manifest itself."""
        return self.folder / self.filename

    @property
    def state(self) -> Path:
        """Where the site keeps its approvals, journal and logs."""
        return self.folder / ".fedml"


def read_site(path: Path) -> Site:
    """Reads a ``site.toml``, or the one in folder ``path``.

    Raises:
        InputError: missing, not TOML, an unknown key or a wrong type.
    """
    path = path / "site.toml" if path.is_dir() else path
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); a site is a folder with a site.toml.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML: {error}.") from error
    return Site(validate(Manifest, plan, str(path)), path.parent, path.name)


def find_sites(folder: Path, roster: tuple[str, ...]) -> tuple[dict[str, Site], list[str]]:
    """The roster's sites among the folders of ``folder``, in the roster's order, and the names of those that are not in it.

    Raises:
        InputError: ``folder`` is none, a site of the roster is missing, or two folders bear one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --sites takes the folder that holds one folder a site.")
    found: dict[str, Site] = {}
    for manifest in sorted(folder.glob("*/site.toml")):
        site = read_site(manifest)
        if site.name in found:
            raise InputError(f'{manifest}: [site] name "{site.name}" is also that of {found[site.name].file}; give each site its own.')
        found[site.name] = site
    for name in roster:
        if name not in found:
            there = ", ".join(found) or "none"
            raise InputError(
                f'{folder}: has no site "{name}", which [federation] sites lists{nearest(name, found)}; '
                f"sites there: {there}; correct the roster or the site's [site] name."
            )
    return {name: found[name] for name in roster}, [name for name in found if name not in roster]


def check_roster(site: Site, study: Study) -> None:
    """Raises ``SiteError`` if the study does not list this site."""
    roster = study.federation.sites
    if site.name not in roster:
        text = f'{site.file}: site "{site.name}" is not in the roster of study "{study.study.name}"{nearest(site.name, roster)}; '
        raise SiteError(Reason.NOT_IN_ROSTER, text + f"its [federation] sites are {', '.join(roster)}.")


def read_cohort(site: Site, study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """All that ``study`` reads of this site's persons, checked.

    Args:
        window: of intensities, where the study has percentiles: what the sites agreed on. Before, images have only histograms.

    Raises:
        InputError: any file that cannot be used: the sentence names it, the column or the person's row, and the mend.
    """
    data, folder, plan = site.manifest.data, site.folder, study.cohort
    path = folder / data.persons
    table = read_table(path)
    ids = [str(i) for i in table.index]
    masked = study.model.task == "segmentation"  # there the mask is the label
    labels = np.zeros(len(ids)) if masked else read_labels(table, path, plan, study.model.task)
    if data.split is not None:
        parts = read_parts(folder / data.split, table.index)
    else:
        parts = np.array([part_of(i, study.split_key, plan.split) for i in ids], dtype=np.int8)
    clinical = present = variants = images = slides = None
    tables = [(table, path)]
    if data.clinical is not None and any(name not in table.columns for name in study.evaluation.labels()):
        beside = folder / data.clinical.path
        tables.append((read_table(beside).reindex(table.index), beside))
    groups = read_groups(study.evaluation, tables)
    if "clinical" in plan.inputs and data.clinical is not None and plan.clinical is not None:
        path = folder / data.clinical.path
        columns = read_table(path)
        present = np.asarray(table.index.isin(columns.index), dtype=bool)
        clinical = code_columns(columns.reindex(table.index), plan.clinical, path)
    if "variants" in plan.inputs and data.variants is not None:
        own, wanted = data.variants, plan.variants
        variants = read_variants(
            folder / own.path, ids, build=own.build, cache=site.state / "cache", memory_mb=own.memory_mb,
            selection=Selection(wanted.regions, frozenset(wanted.listed)),
            reference=None if own.reference is None else folder / own.reference,
        )  # fmt: skip
    if "image" in plan.inputs and _has_slides(site, study):
        slides = _read_slides(site, study, ids)
    elif "image" in plan.inputs and data.image is not None:
        policy, place = site.manifest.policy, data.image
        try:
            images = read_images(
                folder / place.path, place.format, ids, plan.image, codes=plan.classes if masked else None,
                masks=None if place.masks is None else folder / place.masks,
                deidentification=policy.deidentification, max_quarantined=policy.max_quarantined,
                cache=site.state / "cache" / "images", window=window,
            )  # fmt: skip
        except TooManyAside as error:
            quarantine.write(site.state, study.study.name, error.aside)
            raise
        quarantine.write(site.state, study.study.name, images.aside)
    if clinical is None and variants is None and images is None and slides is None:
        raise InputError(f"{site.file}: [data] has none of the study's inputs ({', '.join(plan.inputs)}); add one that the site has.")
    seen = images or slides
    aside = dict(Counter(reason for _, reason in {(a.person, str(a.reason)) for a in seen.aside})) if seen is not None else {}
    everybody = Cohort(site.name, tuple(ids), labels, parts, clinical, present, variants, images, slides, set_aside=aside, groups=groups)
    cohort = keep(everybody, study)
    if not cohort.count("train"):
        raise InputError(f"{site.file}: none of its {len(cohort)} usable persons is in the train part; look at the split.")
    return cohort


def _has_slides(site: Site, study: Study) -> bool:
    """Are the site's images slides?

    Raises:
        InputError: they are and the study reads none, or the other way round.
    """
    place, shape = site.manifest.data.image, study.cohort.image
    if place is None:
        return False
    tiled = shape is not None and shape.tiles is not None
    if tiled and place.format != "slide":
        text = f'{site.file}: data.image has format = "{place.format}", study "{study.study.name}" reads tiles of slides; '
        raise InputError(text + 'give the folder of slides with format = "slide".')
    if place.format == "slide" and not tiled:
        text = f'{site.file}: data.image has format = "slide", study "{study.study.name}" does not say how slides are cut; '
        raise InputError(text + "it needs [cohort.image] tiles = { size_px = 256 }.")
    return tiled


def _read_slides(site: Site, study: Study, ids: list[str]) -> Slides:
    place, shape = site.manifest.data.image, study.cohort.image
    assert place is not None and shape is not None and shape.tiles is not None  # noqa: S101, PT018 - the caller asked
    most = site.manifest.policy.max_quarantined
    try:
        slides = read_slides(site.folder / place.path, ids, shape.tiles, cache=site.state / "cache" / "slides", max_quarantined=most)
    except TooManyAside as error:
        quarantine.write(site.state, study.study.name, error.aside)
        raise
    quarantine.write(site.state, study.study.name, slides.aside)
    return slides


@lru_cache(maxsize=128)
def load_cohort(manifests: tuple[str, ...], study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """``read_cohort``, once for each study in this process; several manifests are pooled into one site."""
    cohorts = [read_cohort(read_site(Path(m)), study, window) for m in manifests]
    return cohorts[0] if len(cohorts) == 1 else pool(cohorts, study)


@lru_cache(maxsize=128)
def load_aligned(
    manifests: tuple[str, ...], study: Study, panel: bytes, flips: bytes | None = None, window: tuple[float, float] | None = None
) -> Cohort:
    """``load_cohort`` with its variants as the agreed panel has them, turned where this site's ``flips`` (a byte a variant) are 1; without
    them (a trained model's panel, and nobody to say) as the letters tell.

    Raises:
        SiteError: the panel cannot be read, or has not as many variants as there are flips.
    """
    try:
        keys = from_text(panel)
    except ValueError as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the panel cannot be read: {error}") from error
    # Called as others call it: for the cache, an argument that is left out and one that is None are two.
    cohort = load_cohort(manifests, study) if window is None else load_cohort(manifests, study, window)
    if flips is None:
        own = {cohort.site: cohort.variants.keys} if cohort.variants is not None else {}
        flips = panel_of(keys, own, study.cohort.variants.match).flips.get(cohort.site, np.zeros(len(keys), np.uint8)).tobytes()
    turns = np.frombuffer(flips, dtype=np.uint8)
    if len(turns) != len(keys) or turns.max(initial=0) > 1:
        raise SiteError(Reason.BAD_MESSAGE, "the panel and its orientation do not fit each other")
    return aligned(cohort, keys, turns, study)
