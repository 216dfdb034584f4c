"""A site's manifest (``site.toml``) and the cohort that a study reads by it.

[site]
name = "oslo"
[data]
persons = "persons.csv"                                    # id and target columns, one row a person
image = { path = "images", format = "nifti" }              # nifti | nrrd | png | bmp | jpeg | npy | dicom | npz | slide; masks = "masks"
variants = { path = "cohort.vcf.gz", build = "GRCh38" }    # .vcf.gz | .bcf | .bed; reference = "GRCh38.fa", memory_mb = 512
clinical = { path = "clinical.csv" }
omics = { path = "expression.csv" }                        # .csv, .tsv or .parquet: id, then a column a feature
split = "split.csv"                                        # optional: id, part
public = true                                              # only of published or synthetic persons
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedml.cohort.dicom.deidentified import Deidentification
from fedml.contract.disclosure import DisclosedPolicy
from fedml.errors import InputError, Reason, SiteError, nearest
from fedml.modalities.clinical import ClinicalData
from fedml.modalities.image import ImageData
from fedml.modalities.modality import DataSection, Place
from fedml.modalities.omics import OmicsData
from fedml.modalities.registry import MODALITIES
from fedml.modalities.variants import VariantData
from fedml.study.sections import Name
from fedml.study.study import Study, validate


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Data(_Section):
    """``[data]``: paths are relative to the manifest.

    ``public``: the site declares that anybody may see its images, for they are published or synthetic; a run beside them may then keep
    pictures of predictions. Left out, no picture of a person leaves the site.
    """

    persons: str
    image: ImageData | None = None
    variants: VariantData | None = None
    clinical: ClinicalData | None = None
    omics: OmicsData | None = None
    split: str | None = None
    public: bool = False

    @property
    def inputs(self) -> dict[str, DataSection]:
        """The sections of the inputs that the site has, by the input's name."""
        found = {name: getattr(self, name) for name in MODALITIES}
        return {name: section for name, section in found.items() if section is not None}


class Policy(_Section):
    """``[policy]``: what the site allows; the gate (``fedml.clients.gate.gate``) holds it. An absent key is the strictest sensible value.

    ``purposes`` left out means: those of the studies that a person approved. ``max_epsilon`` 0 means: no budget is granted, so no study
    with privacy of a patient runs; with a budget, a study without that privacy does not run either, unless ``allow_unprotected``.
    ``min_count`` holds for the persons behind a sum and, in analyses of genotypes, for every group of persons with the same genotype (also
    among cases, controls and each category of a covariate): a variant with a smaller group is left out. ``max_steps`` bounds each kind of
    step of such an analysis, ``max_runs`` how often one approved study is run. ``deidentification``: what to do with a DICOM file that is
    not (``fedml.cohort.dicom.deidentified``).
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

    def place(self, name: str, window: tuple[float, float] | None = None) -> Place[Any]:
        """The input ``name``'s files, which the site has, and what reading them needs besides."""
        policy = self.manifest.policy
        return Place(
            self.manifest.data.inputs[name], self.folder, self.file, self.state / "cache", policy.deidentification,
            policy.max_quarantined, window,
        )  # fmt: skip


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
