"""A site's manifest (``site.toml``): where the data are, what the site allows, how it connects.

[site]
name = "oslo"
[data]
persons = "persons.csv"                                    # columns of ids and targets, one row a person
id = "patient_id"                                          # optional: the column of ids in every table; default: id
extremes = ["ferritin"]                                    # optional: columns whose extreme cells were checked and are right
image = { path = "images", format = "nifti" }              # nifti | nrrd | png | bmp | jpeg | npy | dicom | npz | slide; masks = "masks"
variants = { path = "cohort.vcf.gz", build = "GRCh38" }    # .vcf.gz | .bcf | .bed; reference = "GRCh38.fa", memory_mb = 512
clinical = { path = "clinical.csv" }
omics = { path = "expression.csv" }                        # .csv, .tsv or .parquet: id, then a column a feature
split = "split.csv"                                        # optional: id, part
public = true                                              # only for published or synthetic data
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedml.cohort.dicom.deidentified import Deidentification
from fedml.contract.disclosure import DisclosedPolicy
from fedml.errors import InputError, Reason, SiteError, nearest
from fedml.flower.address import Proxy, check_proxy, proxy_for, split
from fedml.modalities.clinical import ClinicalData
from fedml.modalities.image import ImageData
from fedml.modalities.modality import DataSection, Place
from fedml.modalities.omics import OmicsData
from fedml.modalities.registry import MODALITIES
from fedml.modalities.variants import VariantData
from fedml.study.section import Name
from fedml.study.study import Study, validate


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Data(_Section):
    """``[data]``: paths are relative to the manifest.

    ``public``: the site declares that its data are published or synthetic: exact counts of them may leave, and a run on the same machine
    may store pictures of predictions. Default: no picture of a person leaves the site.
    """

    persons: str
    id: str = "id"
    extremes: tuple[str, ...] = ()
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
    """``[policy]``: what the site allows; the gate (``fedml.clients.gate.gate``) enforces it. The defaults are strict.

    ``purposes``: DUO codes of allowed studies; default: those of the approved studies. ``max_epsilon``: the privacy budget of each person;
    0: no study with privacy of a patient runs; above 0: a study without that privacy does not run either, unless ``allow_unprotected``.
    ``min_count``: the smallest number of persons in a count or sum that is sent; in analyses of genotypes also the smallest group of
    persons with the same genotype (also among cases, controls and each category of a covariate): a variant with a smaller group is
    excluded. ``max_steps``: limit for each kind of step of such an analysis. ``max_runs``: how often one approved study may run.
    ``centre``: how far the centre that chooses the messages is trusted (``fedml.clients.gate.trust``). ``max_evaluations``: how many models
    may be evaluated on the test persons of an approved study. ``max_drift``: how far the weights of a round may be from those that
    the site last received, in lengths of its own longest update. ``max_lr``, ``max_local_steps``: bounds on a plan with exact answers.
    ``changed_data``: whether a run goes on when a file of the site changes during it; a new run reads the files anew in any case.
    ``deidentification``: what to do with a DICOM file that is not de-identified (``fedml.cohort.dicom.deidentified``).
    ``max_quarantined``: the fraction of persons with images whose image may be unusable and excluded; above it the site refuses.
    ``disclose``: whether these limits are sent to the researcher, as evidence of the policy in force.
    """

    studies: Literal["approved"] = "approved"
    centre: Literal["distrusted", "curious"] = "distrusted"
    purposes: tuple[str, ...] | None = None
    max_rounds: Annotated[int, Field(ge=1, le=2**53)] = 1000
    max_steps: Annotated[int, Field(ge=1)] = 2_000
    max_runs: Annotated[int, Field(ge=1)] = 20
    max_evaluations: Annotated[int, Field(ge=1)] = 1
    changed_data: Literal["refuse", "continue"] = "refuse"
    max_drift: Annotated[float, Field(ge=1)] = 10.0
    max_lr: Annotated[float, Field(gt=0)] = 1.0
    max_local_steps: Annotated[int, Field(ge=1)] = 10_000
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
        """The part of the policy that is sent to the researcher."""
        return DisclosedPolicy(**self.model_dump(include=set(DisclosedPolicy.model_fields)))


class SiteName(_Section):
    """``[site]``."""

    name: Name


def _address(text: str) -> str:
    split(text)
    return text


class Connection(_Section):
    """``[connection]``: how the site reaches its federation. The private key never leaves the site.

    ``superlink``: host:port, an IPv6 literal in brackets. ``proxy``: an HTTP proxy on the way to it; "": none; by default that of the
    environment (HTTPS_PROXY, NO_PROXY).
    """

    superlink: Annotated[str, AfterValidator(_address)]
    root_certificates: str
    key: str
    proxy: Annotated[str, AfterValidator(lambda url: url and check_proxy(url))] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the SuperLink; an IPv6 host without its brackets."""
        return split(self.superlink)

    def way(self) -> Proxy | None:
        """The proxy on the way to the SuperLink, None without one. Raises ``InputError`` if the environment's cannot be used."""
        return proxy_for(*self.address, self.proxy)


class Compute(_Section):
    """``[compute]``: the device. ``auto``: the accelerator if there is one, else the CPU."""

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
    """A manifest and the folder that its paths are relative to."""

    manifest: Manifest
    folder: Path
    filename: str = "site.toml"

    @property
    def name(self) -> str:
        """The site's name in rosters."""
        return self.manifest.site.name

    @property
    def file(self) -> Path:
        """The path of the manifest."""
        return self.folder / self.filename

    @property
    def state(self) -> Path:
        """The state folder: approvals, journal, ledger, logs and caches."""
        return self.folder / ".fedml"

    def place(self, name: str, window: tuple[float, float] | None = None) -> Place[Any]:
        """The input ``name``'s files, which the site has, and what reading them needs besides."""
        policy = self.manifest.policy
        return Place(
            self.manifest.data.inputs[name], self.folder, self.file, self.state / "cache", policy.deidentification,
            policy.max_quarantined, window, self.manifest.data.id, self.manifest.data.extremes,
        )  # fmt: skip


def read_site(path: Path) -> Site:
    """Reads the manifest at ``path``: a ``site.toml``, or a folder with one.

    Raises:
        InputError: the file is missing or not TOML, or has an unknown key or a value of a wrong type.
    """
    path = path / "site.toml" if path.is_dir() else path
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); a site is a folder with a site.toml.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid TOML: {error}.") from error
    return Site(validate(Manifest, plan, str(path)), path.parent, path.name)


def find_sites(folder: Path, roster: tuple[str, ...]) -> tuple[dict[str, Site], list[str]]:
    """Finds the sites of a roster in the subfolders of ``folder``.

    Returns:
        Site name -> site, in the order of the roster; and the names of sites in ``folder`` that the roster lacks.

    Raises:
        InputError: ``folder`` does not exist, a site of the roster is missing, or two sites have one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --sites takes a folder with one subfolder for each site.")
    found: dict[str, Site] = {}
    for manifest in sorted(folder.glob("*/site.toml")):
        site = read_site(manifest)
        if site.name in found:
            raise InputError(f'{manifest}: [site] name "{site.name}" is also used by {found[site.name].file}; give each site its own name.')
        found[site.name] = site
    for name in roster:
        if name not in found:
            present = ", ".join(found) or "none"
            raise InputError(
                f'{folder}: has no site "{name}", which [federation] sites lists{nearest(name, found)}; '
                f"sites in the folder: {present}; correct the roster or the site's [site] name."
            )
    return {name: found[name] for name in roster}, [name for name in found if name not in roster]


def check_roster(site: Site, study: Study) -> None:
    """Raises ``SiteError`` if the study does not list this site."""
    roster = study.federation.sites
    if site.name not in roster:
        text = f'{site.file}: site "{site.name}" is not in the roster of study "{study.study.name}"{nearest(site.name, roster)}; '
        raise SiteError(Reason.NOT_IN_ROSTER, text + f"its [federation] sites are {', '.join(roster)}.")
