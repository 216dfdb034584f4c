"""Features of persons from somatic files: mutations, copy numbers, or both.

files = Somatic(Path("data_mutations.txt"), Path("data_cna.txt"), sequenced=Path("cases_sequenced.txt"), samples="tcga")
read_somatic(files, ["TP53_mut", "ERBB2_amplified"], persons)       # a Table, 1, 0 and NaN
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedml.cohort.ids import check_ids
from fedml.cohort.inputs import Table
from fedml.cohort.somatic.copies import read_copies, samples_of, symbols_of
from fedml.cohort.somatic.features import CLASSES, COPIES, Feature, damaged, feature_of
from fedml.cohort.somatic.lists import check_several, genes_in, looks_like_tcga, persons_of, samples_in
from fedml.cohort.somatic.mutations import check_genes, mutated, read_maf
from fedml.errors import InputError

Floats = npt.NDArray[np.float64]
SEQUENCED = 'sequenced = "cases_sequenced.txt" in [data] omics of site.toml'


@dataclass(frozen=True)
class Somatic:
    """The files of a site, each None if it has none. ``sequenced``: the list of samples of ``mutations``; ``genes``: of its genes.

    ``samples``: whose a sample is (``fedml.cohort.somatic.lists.persons_of``), a path relative to ``folder``. ``several``: whether a person
    may have several samples.
    """

    mutations: Path | None
    copies: Path | None
    sequenced: Path | None = None
    genes: Path | None = None
    samples: str = ""
    folder: Path = Path()
    several: Literal["refuse", "any"] = "refuse"


def read_somatic(files: Somatic, columns: Sequence[str], persons: Sequence[str]) -> Table:
    """The ``columns`` of ``persons``, both in that order. A person who was neither sequenced nor profiled is not present.

    Raises:
        InputError: a file cannot be read, or it is not known of a feature or a sample what it says of a person.
    """
    parts = {name: feature_of(name, "[cohort.omics]") for name in columns}
    values = np.full((len(persons), len(columns)), np.nan)
    for kinds, path, read in ((CLASSES, files.mutations, _mutations), (COPIES, files.copies, _copies)):
        places = [at for at, name in enumerate(columns) if parts[name].kind in kinds]
        if places and path is None:
            what = "mutations" if kinds is CLASSES else "copy numbers"
            raise InputError(f'[cohort.omics] column "{columns[places[0]]}" is of {what}, of which [data] omics names no file; add it.')
        if places and path is not None:
            values[:, places] = read(files, path, {parts[columns[at]]: n for n, at in enumerate(places)}, persons)
    return Table("omics", values, np.isfinite(values).any(axis=1))


def _mutations(files: Somatic, path: Path, features: dict[Feature, int], persons: Sequence[str]) -> Floats:
    if files.sequenced is None:
        raise InputError(f"{path}: who was sequenced is not known; name the list: {SEQUENCED}.")
    rows, sequenced, of = read_maf(path), samples_in(files.sequenced), persons_of(files.samples, files.folder, str(path))
    covered = None if files.genes is None else genes_in(files.genes)
    check_genes({feature.gene for feature in features}, set(rows.gene), covered, str(path))
    _check_persons(files, persons, sequenced, files.sequenced)
    if files.several == "refuse":
        fix = 'write several = "any" in [data] omics of site.toml, which counts each mutation of any of them, or keep one'
        check_several(set(sequenced), of, str(files.sequenced), fix)
        check_several(set(rows.sample), of, str(path), fix)
    return mutated(rows, features, of, sequenced, persons, str(path))


def _copies(files: Somatic, path: Path, features: dict[Feature, int], persons: Sequence[str]) -> Floats:
    _check_persons(files, persons, list(samples_of(path)[2]), path)
    return read_copies(path, features, persons_of(files.samples, files.folder, str(path)), persons)


def _check_persons(files: Somatic, persons: Sequence[str], samples: Sequence[str], path: Path) -> None:
    """Raises ``InputError`` if the samples are the persons' in another spelling, or none is a person's."""
    if not files.samples and looks_like_tcga(samples, set(persons)):
        text = "has barcodes of TCGA's samples, the persons table those of cases"
        raise InputError(f'{path}: {text}; write samples = "tcga" in [data] omics of site.toml.')
    check_ids(persons, persons_of(files.samples, files.folder, str(path))(samples), str(path))


def features_in(files: Somatic) -> list[str]:
    """The names of all features that the files have: of genes with a row, or in the list of sequenced genes; each kind.

    Raises:
        InputError: a file cannot be read.
    """
    found: list[str] = []
    if files.mutations is not None:
        genes = genes_in(files.genes) if files.genes is not None else sorted(set(read_maf(files.mutations).gene))
        found += [f"{gene}_{kind}" for gene in genes for kind in CLASSES if not damaged(gene)]
    if files.copies is not None:
        found += [f"{gene}_{kind}" for gene in symbols_of(files.copies) for kind in COPIES if not damaged(gene)]
    return found


def people_in(files: Somatic) -> list[str]:
    """The persons who were sequenced or profiled, each once.

    Raises:
        InputError: a file cannot be read, or a sample's person is not known.
    """
    samples: list[str] = [] if files.sequenced is None else samples_in(files.sequenced)
    if files.copies is not None:
        samples += samples_of(files.copies)[2]
    if files.mutations is not None:
        samples += sorted(set(read_maf(files.mutations).sample))
    return list(dict.fromkeys(persons_of(files.samples, files.folder, "[data] omics")(list(dict.fromkeys(samples)))))
