"""Mutations of genes, from a MAF: one row a mutation, of which a person may have none.

A person without a row has no mutation if sequenced, and is unknown if not; so the list of sequenced samples is required. The same holds for
a gene without a row: without a list of the sequenced genes it is refused. Rows whose Mutation_Status says that they are not somatic
(Germline, LOH, Wildtype, ...) are left out; FILTER is not read. Two rows of one mutation count as one.

Format: https://docs.gdc.cancer.gov/Data/File_Formats/MAF_Format/, and cBioPortal's ``data_mutations.txt``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.somatic.features import CLASSES, KNOWN, Feature, check_damaged
from fedml.cohort.somatic.lists import PersonsOf
from fedml.cohort.somatic.tab import clean, head_of, place_of, read_columns
from fedml.errors import InputError, nearest
from fedml.text import printable

GENE, CLASS, SAMPLE, STATUS = "Hugo_Symbol", "Variant_Classification", "Tumor_Sample_Barcode", "Mutation_Status"
_SOMATIC = frozenset({"", "somatic", "unknown", "na", "."})
_OTHER = frozenset(
    {
        "germline",
        "loh",
        "none",
        "wildtype",
        "redacted",
        "uncalled",
        "post-transcriptional modification",
        "post-transcriptional_modification",
    }
)
_NO_GENE = frozenset({"", "Unknown", "."})


class Rows(NamedTuple):
    """The rows of a MAF, each (rows,): gene, class and sample. ``Unknown`` genes and rows that are not somatic are left out."""

    gene: list[str]
    kind: list[str]
    sample: list[str]


def read_maf(path: Path) -> Rows:
    """The somatic rows of the file.

    Raises:
        InputError: the file is no MAF, or a cell of Variant_Classification, Tumor_Sample_Barcode or Mutation_Status is empty or unknown.
    """
    head = head_of(path)
    places = [place_of(head, name, path, "a MAF") for name in (GENE, CLASS, SAMPLE)]
    status = [place_of(head, STATUS, path, "a MAF")] if STATUS in head.names else []
    table = read_columns(path, head, sorted({*places, *status}))
    gene, kind, sample = (clean(table, at) for at in places)
    if "" in sample:
        raise InputError(f"{path}: a row has no {SAMPLE}; correct or remove it.")
    kept = [True] * len(gene)
    if status:
        cells = [cell.lower() for cell in clean(table, status[0])]
        _known(set(cells), _SOMATIC | _OTHER, STATUS, path)
        kept = [cell in _SOMATIC for cell in cells]
    kept = [ok and name not in _NO_GENE for ok, name in zip(kept, gene, strict=True)]
    _known({k for k, ok in zip(kind, kept, strict=True) if ok}, KNOWN, CLASS, path)
    chosen = [at for at, ok in enumerate(kept) if ok]
    return Rows([gene[at] for at in chosen], [kind[at] for at in chosen], [sample[at] for at in chosen])


def _known(found: Collection[str], known: Collection[str], column: str, path: Path) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        text = f'{column} is "{printable(unknown[0])}" in a row, which is no value of the format{nearest(unknown[0], known)}'
        raise InputError(f"{path}: {text}; correct or remove the row.")


def check_genes(genes: Collection[str], found: Collection[str], covered: Collection[str] | None, where: str) -> None:
    """Raises ``InputError`` if it is not known that each of ``genes`` was sequenced.

    Args:
        found: genes with a row. covered: genes that were sequenced; None: not known.
    """
    check_damaged(found, genes, where)
    there = set(found)
    if covered is None:
        for gene in genes:
            if gene not in there:
                text = f'has no row of the gene "{printable(gene)}"{nearest(gene, found)}'
                why = "nobody has a mutation, or it was not sequenced, or it has another symbol"
                fix = 'name the list of sequenced genes: genes = "FILE" in [data] omics of site.toml'
                raise InputError(f"{where}: {text}: {why}; {fix}.")
        return
    check_damaged(covered, genes, f"{where}, the list of its genes")
    listed = set(covered)
    strange = sorted(there - listed)
    if strange:
        text = f'has {len(strange)} genes that its list of sequenced genes lacks, such as "{printable(strange[0])}"'
        raise InputError(f"{where}: {text}, so one of them is of another panel or release of symbols; correct the list.")
    for gene in genes:
        if gene not in listed:
            text = f'the gene "{printable(gene)}" of the study is not in the list of its sequenced genes{nearest(gene, listed)}'
            raise InputError(f"{where}: {text}; the site cannot take part with it.")


def mutated(
    rows: Rows,
    features: Mapping[Feature, int],
    of: PersonsOf,
    sequenced: Sequence[str],
    persons: Sequence[str],
    where: str,
) -> npt.NDArray[np.float64]:
    """(persons, features) 1 where a person has a mutation of the feature's gene and classes, else 0; NaN of who was not sequenced. A person
    with several samples has each mutation that one of them has.

    Args:
        features: of mutations only, with their columns. sequenced: samples.

    Raises:
        InputError: a sample of the rows is of a person who was not sequenced by the list.
    """
    known = set(of(list(sequenced)))
    names = sorted(set(rows.sample))
    owner = dict(zip(names, of(names), strict=True))
    for name, person in owner.items():
        if person not in known:
            text = f'sample "{printable(name)}" has mutations but is not in the list of sequenced samples'
            raise InputError(f"{where}: {text}; correct the list, or write the samples alike in both.")
    row_of = {person: at for at, person in enumerate(persons)}
    out = np.full((len(persons), len(features)), np.nan)
    out[[row_of[person] for person in known if person in row_of]] = 0
    wanted: dict[tuple[str, str], list[int]] = {}
    for feature, column in features.items():
        for kind in CLASSES[feature.kind]:
            wanted.setdefault((feature.gene, kind), []).append(column)
    for gene, kind, sample in zip(*rows, strict=True):
        columns = wanted.get((gene, kind))
        row = row_of.get(owner[sample]) if columns else None
        if row is not None:
            out[row, columns] = 1
    return out
