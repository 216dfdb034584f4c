"""Reads a study from TOML and applies overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.study import limits
from fedml.study.columns import expand
from fedml.study.study import Study, validate
from fedml.text import printable

# Keys of a study file that name a file; reading it fills another key. Section and key -> meaning.
FILE_KEYS = {
    ("model", "variants", "genes"): "net genes: path of a file of genes (GFF3, GTF or BED), relative to the study; it fills intervals",
    ("model", "start"): "path of a file of weights (safetensors), relative to the study, or models:/NAME@ALIAS; it fills the section",
    ("model", "start_arrays"): "start: patterns of the names of its arrays that are taken over, such as encoder.*; default: all",
    (
        "gwas",
        "genes",
        "file",
    ): "path of the annotation of variants (a table, or a VCF file with CSQ or ANN), relative to the study; it fills sha256",
    (
        "cohort",
        "image",
        "tiles",
        "encoder",
        "weights",
    ): "path of the encoder's weights (safetensors, or a state_dict of torch), relative to the study; it fills sha256",
    ("code", "files"): "paths of Python files, relative to the study; each fills an entry of modules",
    ("code", "packages"): "installed pure-Python distributions with exact versions, such as my_pkg==1.2.0",
    ("cohort", "omics", "features"): "path of a text file with one feature on each line, relative to the study; it fills columns",
    ("cohort", "clinical", "names"): "path of a text file, relative to the study: the names that columns by pattern choose from",
    ("cohort", "omics", "names"): "path of a text file, relative to the study: the names that columns by pattern choose from",
}


def read_study(
    path: Path, *, overrides: Mapping[str, Any] | None = None, seed: int | None = None, code: Path | None = None,
    fetch: Callable[[str], Path] | None = None,
) -> Study:  # fmt: skip
    """Reads ``path`` (TOML), applies ``section.key`` overrides, validates.

    Args:
        code: the folder with the files of ``[code]``; None: as the study says.
        fetch: finds the file of a model that ``[model] start`` names by ``models:/`` or ``runs:/``; None: such names are refused.

    Raises:
        InputError: the file cannot be read, is not TOML, or is not a valid study.
    """
    plan = read_plan(path, overrides=overrides, seed=seed)
    _expand_genes(plan, path)
    _expand_features(plan, path)
    expand(plan, path)
    _expand_code(plan, path, code)
    _expand_start(plan, path, fetch)
    _expand_annotation(plan, path)
    _expand_encoder(plan, path)
    return validate(Study, plan, str(path))


def read_plan(path: Path, *, overrides: Mapping[str, Any] | None = None, seed: int | None = None) -> dict[str, Any]:
    """The study file as TOML reads it, with overrides; files that it names are not opened.

    Raises:
        InputError: the file cannot be read, is not TOML, or is too large.
    """
    try:
        with path.open("rb") as file:  # no more than the limit: the path may be of a device
            raw = file.read(limits.TOML_BYTES + 1)
        if found := limits.text_problem(raw, limits.TOML_BYTES):
            raise InputError(f"{path}: {found}; list variants, genes and features in files of their own.")
        text = raw.decode("utf-8").replace("\r\n", "\n")
        if found := limits.toml_problem(text):
            raise InputError(f"{path}: {found}; a study has sections and keys.")
        plan = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give the path of a study file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save the study as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not valid TOML: {printable(str(error))}; correct the line.") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply; a study has sections and keys, and lists of values.") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise InputError(f"{path}: {error}; correct the number.") from error
    changes = dict(overrides or {})
    if seed is not None:
        changes["study.seed"] = seed
    for key, value in changes.items():
        _put(plan, key, value)
    if found := limits.value_problem(plan):  # before files are opened that the plan names
        raise InputError(f"{path}: {found}.")
    return plan


def _expand_genes(plan: dict[str, Any], path: Path) -> None:
    """Replaces ``[model] variants genes = "FILE"`` by the file's intervals; the path is relative to the study file."""
    network = plan.get("model", {}).get("variants") if isinstance(plan.get("model"), dict) else None
    if isinstance(network, dict) and isinstance(network.get("genes"), str):
        from fedml.study.genes import read_genes

        network["intervals"] = [tuple(interval) for interval in read_genes(path.parent / network.pop("genes"))]


def _expand_features(plan: dict[str, Any], path: Path) -> None:
    """``[cohort.omics] features = "FILE"`` as the columns that the file names; the file lies in the study's folder."""
    omics = plan.get("cohort", {}).get("omics") if isinstance(plan.get("cohort"), dict) else None
    if isinstance(omics, dict) and isinstance(omics.get("features"), str):
        from fedml.study.omics import read_features

        if "columns" in omics:
            raise InputError(f"{path}: [cohort.omics] has columns and features; give one of them.")
        omics["columns"] = read_features(path.parent / omics.pop("features"))


def _expand_code(plan: dict[str, Any], path: Path, folder: Path | None) -> None:
    """``[code] files = ["FILE"]`` as the name and SHA-256 of each file, also of those whose transforms the study names; so packages."""
    code = plan.get("code")
    packages = code.get("packages") if isinstance(code, dict) else None
    if isinstance(code, dict) and isinstance(packages, list) and not all(isinstance(package, dict) for package in packages):
        from fedml.study.packages import read_packages

        code["packages"] = read_packages(packages, path)
    if not isinstance(code, dict) or not isinstance(code.get("files"), list):
        return
    from fedml.study.sources import read_files

    if "modules" in code:
        raise InputError(f"{path}: [code] has files and modules; give one of them.")
    code["modules"] = read_files(code.pop("files"), path, folder)
    digests = {file["module"]: file["sha256"] for file in code["modules"]}
    cohort = plan.get("cohort")
    image = cohort.get("image") if isinstance(cohort, dict) else None
    transforms = image.get("transforms") if isinstance(image, dict) else None
    for transform in transforms if isinstance(transforms, list) else ():
        if isinstance(transform, dict) and isinstance(transform.get("name"), str):
            transform["sha256"] = digests.get(transform["name"].partition(":")[0], "")


def _expand_start(plan: dict[str, Any], path: Path, fetch: Callable[[str], Path] | None) -> None:
    """``[model] start = "FILE"`` as shapes and digests of the file's arrays."""
    model = plan.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("start"), str):
        return
    from fedml.study.start import read_start

    name, patterns = model["start"], model.pop("start_arrays", ["*"])
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f'{path}: [model] start_arrays is a list of patterns, such as ["encoder.*"].')
    if name.startswith(("models:/", "runs:/")):
        if fetch is None:
            raise InputError(f'{path}: [model] start "{name}" is in MLflow; here give a file: put its model.safetensors beside the study.')
        model["start"] = read_start(fetch(name), patterns)
    else:
        model["start"] = read_start(path.parent / name, patterns)


def _expand_annotation(plan: dict[str, Any], path: Path) -> None:
    """``[gwas.genes] file = "FILE"`` as the SHA-256 of the file, which is known from now on."""
    gwas = plan.get("gwas")
    genes = gwas.get("genes") if isinstance(gwas, dict) else None
    if isinstance(genes, dict) and isinstance(genes.get("file"), str):
        from fedml.study.annotation import provide

        if "sha256" in genes:
            raise InputError(f"{path}: [gwas.genes] has file and sha256; give file.")
        genes["sha256"] = provide(path.parent / genes.pop("file"))


def _expand_encoder(plan: dict[str, Any], path: Path) -> None:
    """``[cohort.image.tiles.encoder] weights = "FILE"`` as the SHA-256 of the file."""
    found: Any = plan
    for key in ("cohort", "image", "tiles", "encoder"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("weights"), str):
        return
    from fedml.cache_entries import file_sha256

    if "sha256" in found:
        raise InputError(f"{path}: [cohort.image.tiles.encoder] has weights and sha256; give one of them.")
    file = path.parent / found.pop("weights")
    try:
        found["sha256"] = file_sha256(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); [cohort.image.tiles.encoder] weights names it.") from error


def _put(plan: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    at: Any = plan
    for section in sections:
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            raise InputError(f"--set {key}: {section} is not a section; write section.key=value, such as strategy.name=fedprox.")
    at[last] = value
