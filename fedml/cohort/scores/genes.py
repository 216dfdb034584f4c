"""Assigns variants to genes, which are intervals from GFF3, GTF or BED files.

    genes = read_genes(Path("gencode.v47.basic.annotation.gff3.gz"), biotype="protein_coding")
    names, index = group(dosages.keys, genes)            # names[index[v]] is the gene of variant v

GFF3: github.com/The-Sequence-Ontology/Specifications, version 1.26. GTF: version 2.2 as written by Ensembl and GENCODE. BED: GA4GH BED
v1.0, with 0-based starts. Files may be gzip or bgzip. The genome build must be that of the variants; the files do not state their build.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.keys import Variant
from fedml.study.contigs import canonical_contig
from fedml.study.genes import _SHIFT, BETWEEN, Interval


def group(keys: Sequence[Variant], intervals: Sequence[Interval]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the genes that have a variant, in the order of contig and start, and (variants,) the index of each variant's gene.

    A variant belongs to the gene whose interval contains its position; among several, to the gene that starts first, then ends first.
    Variants outside all genes form the last group, ``between genes``. Intervals with one name are one gene, also on different contigs.
    """
    ordered = sorted(intervals)
    contigs = {name: number for number, name in enumerate(dict.fromkeys(i.contig for i in ordered))}
    base = np.array([contigs[i.contig] << _SHIFT for i in ordered], dtype=np.int64)
    start = base + np.array([i.start for i in ordered], dtype=np.int64)
    # ``reach`` is the running maximum of interval ends. The first interval at which it reaches a position has that end itself, so it
    # contains the position if any interval does.
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
