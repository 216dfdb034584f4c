"""Genes as intervals, from GFF3, GTF or BED, and the gene that each variant lies in.

    genes = read_genes(Path("gencode.v47.basic.annotation.gff3.gz"), biotype="protein_coding")
    names, index = group(dosages.keys, genes)            # names[index[v]] is the gene of variant v

GFF3: github.com/The-Sequence-Ontology/Specifications, version 1.26. GTF: version 2.2 as Ensembl and GENCODE write it. BED: GA4GH BED v1.0,
whose starts count from 0. Any of them may be gzip or bgzip. The build must be that of the variants: such a file does not say which it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.model import Variant
from fedml.study.contigs import canonical_contig
from fedml.study.genes import _SHIFT, BETWEEN, Interval


def group(keys: Sequence[Variant], intervals: Sequence[Interval]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the genes that have a variant, in the order of contig and start, and (variants,) the index of each variant's gene.

    A variant is in a gene if its position is; of several genes it is in the one that starts first (then, that ends first). Those in no
    gene are together in the last group, ``between genes``, if there are any. Intervals of one name on a contig or two are one gene.
    """
    ordered = sorted(intervals)
    contigs = {name: number for number, name in enumerate(dict.fromkeys(i.contig for i in ordered))}
    base = np.array([contigs[i.contig] << _SHIFT for i in ordered], dtype=np.int64)
    start = base + np.array([i.start for i in ordered], dtype=np.int64)
    # The first interval whose end, or that of one before it, reaches a position has that end itself: so it holds the position if any does.
    reach = np.maximum.accumulate(base + np.array([i.end for i in ordered], dtype=np.int64))
    spelled = {name: contigs.get(canonical_contig(name), len(contigs)) << _SHIFT for name in {k.contig for k in keys}}
    place = np.array([spelled[k.contig] + k.position for k in keys], dtype=np.int64)
    first = np.searchsorted(reach, place)
    inside = first < len(ordered)
    inside[inside] = start[first[inside]] <= place[inside]

    numbers: dict[str, int] = {}
    gene = np.array([numbers.setdefault(i.name, len(numbers)) for i in ordered], dtype=np.int64)
    names = [*numbers, BETWEEN]
    index = np.full(len(keys), len(numbers), dtype=np.int64)
    index[inside] = gene[first[inside]]
    used, index = np.unique(index, return_inverse=True)
    return [names[at] for at in used], index.astype(np.int64)
