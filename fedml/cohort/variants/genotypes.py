"""A site's genotypes as a study reads them: selected, in canonical spelling, packed in a cache, one row a person.

    own = read_variants(Path("cohort.vcf.gz"), persons, build="GRCh38", cache=Path(".fedml/cache"))
    own.keys, own.dosage[rows], own.present

and what sites share of them, where several sites' cohorts are in one process (``shared_panel``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.builds import Build
from fedml.cohort.variants.cache import cached
from fedml.cohort.variants.harmonise import Panel, choose, doubt, draft_panel, quality, settle
from fedml.cohort.variants.model import Dosages, Selection
from fedml.cohort.variants.normalise import NOTES, fingerprint
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.packed import Packed
from fedml.errors import InputError
from fedml.study.sections import Variants

MEMORY_MB = 512  # for reading a genotype file, whatever its size
_CELLS = 1 << 25  # dosages unpacked at a time


def read_variants(
    path: Path,
    persons: Sequence[str],
    *,
    build: Build,
    cache: Path,
    selection: Selection = Selection(),
    reference: Path | None = None,
    memory_mb: int = MEMORY_MB,
    say: Callable[[str], None] = lambda _: None,
) -> Dosages:
    """ALT dosages of ``persons``, in their order; a person who is not in the file is not ``present``.

    Args:
        build: of the file's positions, as the site states it.
        cache: folder where the packed table is kept for the next time.
        reference: FASTA of that build, with its index.

    Raises:
        InputError: the file is missing, damaged, of another build, names none of the persons, or holds none of the selected variants; the
            cache's folder cannot be written and the table is too large for memory.
    """
    try:
        source = open_source(path)
    except OSError as error:  # a folder, or no right to read it
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct data.variants in site.toml.") from error
    keys, table, present, notes = cached(cache, source, persons, selection, memory_mb, say)
    if not keys:
        wanted = "none of the study's variants" if selection else "no variant"
        raise InputError(f"{path}: holds {wanted}; correct data.variants in site.toml{', or ask for others' if selection else ''}.")
    own = fingerprint(keys, source.contigs, build, where=str(path), reference=reference, left_out=notes)
    if not own.keys:
        raise InputError(f"{path}: none of its {len(keys)} variants fits the reference; correct data.variants in site.toml.")
    told = np.array([own.notes[name] for name in NOTES], dtype=np.int64)
    return Dosages(own.keys, table.aligned(own.columns, own.flip), present, told, own.build, reference is not None)


def genotype_counts(own: Dosages, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """(4, variants) persons with 0, 1, 2 ALT alleles and with none called, among those of ``rows`` who have genotypes; bounded in
    memory."""
    from fedml.cohort.variants.frequency import genotype_counts as count

    there = np.flatnonzero(own.present) if rows is None else rows[own.present[rows]]
    total = np.zeros((4, len(own.keys)), dtype=np.int64)
    for chunk in person_chunks(there, len(own.keys)):
        total += count(own.dosage[chunk])
    return total


def person_chunks(rows: npt.NDArray[np.int64], variants: int) -> list[npt.NDArray[np.int64]]:
    """``rows`` in pieces, each of which fills about 32 MB when its dosages are unpacked."""
    size = max(1, _CELLS // max(variants, 1))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def shared_panel(sites: Mapping[str, Dosages], spec: Variants, *, counted: bool = True) -> Panel:
    """The variants that all ``sites`` share, oriented and of the quality that the study asks for: what the server finds from counts, or
    without them (``counted`` false), as in a private study, which releases none."""
    keys = {name: own.keys for name, own in sites.items()}
    notes = {name: own.notes for name, own in sites.items() if own.notes is not None}
    draft = draft_panel(keys, spec.match, [n for n, own in sites.items() if own.checked], notes)
    doubts = any(mask.any() for mask in draft.doubtful.values())
    if not counted:
        return settle(draft, None)[0]
    if not (spec.counted or doubts):
        return draft
    counts = {name: genotype_counts(aligned(own, draft, name, spec)) for name, own in sites.items()}
    settled, _ = settle(doubt(draft, counts), counts)
    if not spec.counted:
        return settled
    total = np.sum([genotype_counts(aligned(own, settled, name, spec)) for name, own in sites.items()], axis=0)
    keep, _ = quality(total, spec)
    return choose(settled, keep)


def aligned(own: Dosages, panel: Panel, name: str, spec: Variants) -> Dosages:
    """Site ``name``'s dosages as ``panel`` has them."""
    from fedml.cohort.variants.harmonise import align

    return align(own, panel.keys, panel.flips[name], spec.match)


def stack(parts: Sequence[tuple[Dosages | None, int]], panel: Panel) -> Dosages:
    """Several sites' dosages, aligned before, one under the other; a site without any gives as many persons with nothing."""
    tables = [
        Packed.of(np.full((persons, len(panel.keys)), -1, np.int8)) if own is None else
        own.dosage if isinstance(own.dosage, Packed) else Packed.of(own.dosage)
        for own, persons in parts
    ]  # fmt: skip
    present = np.concatenate([np.zeros(persons, bool) if own is None else own.present for own, persons in parts])
    from fedml.cohort.variants.packed import stack as pile

    return Dosages(panel.keys, pile(tables), present)
