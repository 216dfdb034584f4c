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
omics = { path = "expression.csv" }                        # .csv, .tsv, .parquet or .h5ad: id, then a column a feature; or maf, cna
radiomics = { path = "images", format = "nifti", masks = "masks" }    # features of regions; or a table of them, format = "table"
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
from fedml.modalities.radiomics import RadiomicsData
from fedml.modalities.registry import MODALITIES
from fedml.modalities.variants import VariantData
from fedml.study.section import Name
from fedml.study.study import Study, validate


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Data(_Section):
    """``[data]``: paths are relative to the manifest."""

    persons: str = Field(description="path of the persons table: a column of ids and the targets of studies, one row a person")
    id: str = Field(default="id", description="column of ids in every table")
    extremes: tuple[str, ...] = Field(default=(), description="columns whose extreme cells were checked and are right; others are refused")
    image: ImageData | None = Field(default=None, description="images; default: the site has none")
    variants: VariantData | None = Field(default=None, description="genotypes; default: the site has none")
    clinical: ClinicalData | None = Field(default=None, description="clinical table; default: the site has none")
    omics: OmicsData | None = Field(default=None, description="matrix of omics features; default: the site has none")
    radiomics: RadiomicsData | None = Field(
        default=None, description="images and masks whose features a study reads, or a table of them; default: the site has none"
    )
    split: str | None = Field(
        default=None, description="path of a table with columns id and part (train, val or test); default: a keyed hash of the id decides"
    )
    public: bool = Field(
        default=False,
        description="true only for published or synthetic data: exact counts may leave, and a run on the same machine may store pictures",
    )

    @property
    def inputs(self) -> dict[str, DataSection]:
        """The sections of the inputs that the site has, by the input's name."""
        found = {name: getattr(self, name) for name in MODALITIES}
        return {name: section for name, section in found.items() if section is not None}

    @property
    def files(self) -> list[str]:
        """The files and folders that the manifest names, each once. A text that is no path (a format, a build) may be among them."""
        texts = [v for section in self.inputs.values() for k, v in section.model_dump().items() if isinstance(v, str) and v and k != "id"]
        return list(dict.fromkeys([self.persons, *([self.split] if self.split else []), *texts]))


class Policy(_Section):
    """``[policy]``: what the site allows; the gate (``fedml.clients.gate.gate``) enforces it. The defaults are strict.

    ``min_count``: in analyses of genotypes also the smallest group of persons with the same genotype (also among cases, controls and each
    category of a covariate): a variant with a smaller group is excluded. ``centre``: see ``fedml.clients.gate.trust``.
    ``deidentification``: see ``fedml.cohort.deidentification``.
    """

    studies: Literal["approved"] = Field(
        default="approved", description="which studies are answered: those that a person at the site approved"
    )
    centre: Literal["distrusted", "curious"] = Field(
        default="distrusted",
        description="distrusted: answers only studies with privacy of a patient and noised metrics; curious: others too, within bounds",
    )
    purposes: tuple[str, ...] | None = Field(
        default=None, description="Data Use Ontology terms of the studies that are answered; default: those of the approved studies"
    )
    max_rounds: Annotated[int, Field(ge=1, le=2**53)] = Field(default=1000, description="most rounds of a study")
    max_steps: Annotated[int, Field(ge=1)] = Field(default=2_000, description="most steps of each kind of an association study")
    max_runs: Annotated[int, Field(ge=1)] = Field(default=20, description="most runs of one approved study")
    max_evaluations: Annotated[int, Field(ge=1)] = Field(
        default=1, description="most models that are evaluated on the test persons of one approved study"
    )
    max_analyses: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=2, description="most analyses of outcomes with different numbers of one approved study; the same one may be repeated"
    )
    changed_data: Literal["refuse", "continue"] = Field(
        default="refuse", description="a file of the site changes during a run: refuse the rest of the run, or continue with the new data"
    )
    max_drift: Annotated[float, Field(ge=1)] = Field(
        default=10.0, description="largest distance of a round's weights from the last ones, in lengths of the site's own longest update"
    )
    max_lr: Annotated[float, Field(gt=0)] = Field(default=1.0, description="largest learning rate of a study without privacy of a patient")
    max_local_steps: Annotated[int, Field(ge=1)] = Field(
        default=10_000, description="most steps in one round of a study without privacy of a patient"
    )
    max_request_mb: Annotated[int, Field(ge=1)] = Field(default=512, description="largest message to the site, MB")
    min_persons: Annotated[int, Field(ge=1, le=2**53)] = Field(
        default=20, description="fewest training persons with whom the site takes part"
    )
    max_epsilon: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="privacy budget of each person over all studies, epsilon at delta; 0: no study with privacy of a patient runs",
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-5, description="delta at which the budget is counted; below 1 / persons of the site"
    )
    allow_unprotected: bool = Field(default=False, description="with a budget: whether a study without privacy of a patient may run")
    max_reply_mb: Annotated[int, Field(ge=1)] = Field(default=512, description="largest reply of the site, MB")
    min_count: Annotated[int, Field(ge=1, le=2**53)] = Field(
        default=5, description="fewest persons in a count or sum that is sent; for a variant, also fewest carriers of each allele"
    )
    deidentification: Deidentification = Field(
        default="quarantine",
        description="an image that is not de-identified: refuse (take no part), strict (exclude it, and one of which a person has to check "
        "something), quarantine (exclude it) or warn (use it)",
    )
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="largest fraction of the persons with images whose image may be excluded as unusable"
    )
    progress: bool = Field(
        default=True,
        description="whether the centre is told how far a round's training is, in tenths; never with privacy of a patient or site",
    )
    disclose: bool = Field(default=True, description="whether these limits are sent to the researcher, as evidence of the policy in force")

    def disclosed(self) -> DisclosedPolicy:
        """The part of the policy that is sent to the researcher."""
        return DisclosedPolicy(**self.model_dump(include=set(DisclosedPolicy.model_fields)))


class SiteName(_Section):
    """``[site]``."""

    name: Name = Field(description="the site's name in the rosters of studies")


def _address(text: str) -> str:
    split(text)
    return text


class Connection(_Section):
    """``[connection]``: how the site reaches its federation. The private key never leaves the site."""

    superlink: Annotated[str, AfterValidator(_address)] = Field(
        description="host:port of the coordinating centre; an IPv6 address in brackets"
    )
    root_certificates: str = Field(description="path of the centre's certificate (PEM)")
    key: str = Field(description="path of the site's private key, which fedml-site key creates")
    proxy: Annotated[str, AfterValidator(lambda url: url and check_proxy(url))] | None = Field(
        default=None, description="HTTP proxy on the way to the centre; empty: none; default: HTTPS_PROXY and NO_PROXY of the environment"
    )

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the SuperLink; an IPv6 host without its brackets."""
        return split(self.superlink)

    def way(self) -> Proxy | None:
        """The proxy on the way to the SuperLink, None without one. Raises ``InputError`` if the environment's cannot be used."""
        return proxy_for(*self.address, self.proxy)


class Compute(_Section):
    """``[compute]``: the device."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device of the computations; auto: the accelerator if there is one, else the CPU"
    )


class Manifest(_Section):
    """A whole ``site.toml``."""

    site: SiteName = Field(description="the site itself")
    data: Data = Field(description="where the site's files are; paths are relative to the manifest")
    policy: Policy = Field(default=Policy(), description="what the site allows; a study has limits too, and the stricter one holds")
    compute: Compute = Field(default=Compute(), description="the site's hardware")
    connection: Connection | None = Field(
        default=None, description="how the site reaches its federation; default: the site cannot join one"
    )


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
            policy.max_quarantined, window, self.manifest.data.id, self.manifest.data.extremes, device=self.manifest.compute.device,
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
