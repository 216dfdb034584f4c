"""Copy numbers of genes: a table of genes x samples with GISTIC's levels, as cBioPortal's ``data_cna.txt`` and GISTIC's
``all_thresholded.by_genes.txt`` have them. A sample without a column was not profiled: its person is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.cohort.somatic.features import LEVELS, Feature, check_damaged, counted
from fedml.cohort.somatic.lists import PersonsOf, check_several
from fedml.cohort.somatic.tab import Head, clean, head_of, place_of, read_columns
from fedml.errors import InputError, nearest
from fedml.text import printable

_SYMBOLS = ("Hugo_Symbol", "Gene Symbol", "Gene_Symbol", "Symbol")
_ABOUT = frozenset({"Entrez_Gene_Id", "Locus ID", "Locus_ID", "Gene ID", "Cytoband"})


def samples_of(path: Path) -> tuple[Head, int, dict[str, int]]:
    """The header, the place of the genes' symbols, and the place of each sample.

    Raises:
        InputError: the file has no column of symbols, or a sample twice.
    """
    head = head_of(path)
    names = [name for name in _SYMBOLS if name in head.names] or [_SYMBOLS[0]]
    symbol = place_of(head, names[0], path, "a table of genes and samples")
    samples: dict[str, int] = {}
    for at, name in enumerate(head.names):
        if at != symbol and name not in _ABOUT:
            if not name or name in samples:
                raise InputError(f'{path}: the sample "{printable(name)}" is there twice, or has no name; keep one column of each.')
            samples[name] = at
    return head, symbol, samples


def read_copies(path: Path, features: Mapping[Feature, int], of: PersonsOf, persons: Sequence[str]) -> npt.NDArray[np.float64]:
    """(persons, features) of the features of copy number, NaN where missing.

    Raises:
        InputError: the file cannot be read, lacks a gene or has it twice with other levels, a person has several samples, or a cell is no
            level.
    """
    head, symbol, samples = samples_of(path)
    check_several(samples, of, str(path), "levels of several cannot be joined: keep one column of a person")
    row_of = {person: at for at, person in enumerate(persons)}
    owners = zip(samples.values(), of(list(samples)), strict=True)
    chosen = [(at, row_of[person]) for at, person in owners if person in row_of]
    table = read_columns(path, head, [symbol], [at for at, _ in chosen])
    symbols, genes = clean(table, symbol), {feature.gene for feature in features}
    check_damaged(set(symbols), genes, str(path))
    place: dict[str, list[int]] = {gene: [] for gene in genes}
    for at, name in enumerate(symbols):
        if name in place:
            place[name].append(at)
    levels = np.column_stack([table.column(str(at)).to_numpy() for at, _ in chosen]) if chosen else np.empty((len(symbols), 0))
    out = np.full((len(persons), len(features)), np.nan)
    for feature, column in features.items():
        found = levels[place[feature.gene]].astype(np.float64)
        if not len(found):
            near = nearest(feature.gene, symbols)
            raise InputError(f'{path}: has no gene "{printable(feature.gene)}"{near}; correct the symbol there or in [cohort.omics].')
        if not np.array_equal(found, np.broadcast_to(found[0], found.shape), equal_nan=True):
            raise InputError(f'{path}: has the gene "{printable(feature.gene)}" {len(found)} times with different levels; keep one row.')
        if not np.isin(found[0][~np.isnan(found[0])], LEVELS).all():
            text = f'the gene "{printable(feature.gene)}" has a cell that is none of GISTIC\'s levels -2, -1, 0, 1 and 2'
            raise InputError(f"{path}: {text}; give the discrete table.")
        out[[row for _, row in chosen], column] = counted(feature.kind, found[0])
    return out


def symbols_of(path: Path) -> list[str]:
    """The genes of the file, each once.

    Raises:
        InputError: as ``samples_of``.
    """
    head, symbol, _ = samples_of(path)
    return [name for name in dict.fromkeys(clean(read_columns(path, head, [symbol]), symbol)) if name]
