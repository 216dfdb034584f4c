"""Reads a site's genotypes for a study: selected, normalised, packed in a cache, one row per person.

    own = read_variants(Path("cohort.vcf.gz"), persons, genome=Genome("GRCh38"), cache=Path(".fedml/cache"))
    own.keys, own.dosage[rows], own.present

``shared_panel`` computes the panel of variants that sites share, where the cohorts of several sites are in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.ids import check_ids
from fedml.cohort.variants.builds import Build
from fedml.cohort.variants.cache import cached
from fedml.cohort.variants.fine import SCALE, Fine, concat_fine
from fedml.cohort.variants.harmonise import Panel, choose, doubt, draft_panel, quality, settle
from fedml.cohort.variants.model import Dosages, Selection, Source, stated_keys
from fedml.cohort.variants.normalise import NOTES, SEX_UNKNOWN, fingerprint
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.packed import Packed
from fedml.cohort.variants.palindromes import SiteStrand, unproven
from fedml.cohort.variants.ploidy import MT, Coding, X, Y, places, sexes, site_table, two_copies
from fedml.errors import InputError
from fedml.study.cohort_section import Variants

MEMORY_MB = 512  # memory limit for reading a genotype file of any size
HWE_P = 1e-6  # least p of Hardy-Weinberg equilibrium for the record, where the study sets no threshold
_CELLS = 1 << 25  # dosages unpacked at a time
_COLUMNS = 4096  # variants of dosages with fractions


class Genome(NamedTuple):
    """What the positions and calls of a file refer to.

    Args:
        build: genome build of the positions, as the site states it.
        reference: FASTA file of that build, with its index (``.fai``).
        sex: (persons,) 1 man, 2 woman, 0 unknown; None, or nobody's known: as the file has it (``.fam``).
        strict: variants on X and Y whose coding needs a sex are left out where nobody's is known, and counted.
    """

    build: Build
    reference: Path | None = None
    sex: npt.NDArray[np.int8] | None = None
    strict: bool = True


def read_variants(
    path: Path,
    persons: Sequence[str],
    *,
    genome: Genome,
    cache: Path,
    selection: Selection = Selection(),
    memory_mb: int = MEMORY_MB,
    say: Callable[[str], None] = lambda _: None,
) -> Dosages:
    """ALT dosages of ``persons``, in their order; a person who is not in the file is not ``present``.

    Args:
        cache: folder of the packed tables.

    Raises:
        InputError: the file is missing, damaged, of another build, names none of the persons, or has none of the selected variants; or the
            cache folder cannot be written and the table is too large for memory.
    """
    try:
        source = open_source(path)
    except OSError as error:  # the path is a folder, or the process may not read it
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct data.variants in site.toml.") from error
    source.check_persons(persons)
    check_ids(persons, source.samples, str(path))
    known = _known_sex(genome.sex, source, persons)
    keys, table, present, notes = cached(cache, source, persons, selection, memory_mb, say, Coding(genome.build, known, genome.strict))
    if not keys and (unknown := notes.get(SEX_UNKNOWN, 0)):
        raise InputError(
            f"{path}: its {unknown} variants are on X or Y, and nobody's sex is known; add the column to the study, such as "
            '[cohort.variants] sex = { column = "sex", male = "M", female = "F" }.'
        )
    if not keys:
        found = "none of the study's variants" if selection else "no variant"
        if notes:
            found += f" that can be used ({', '.join(f'{reason}: {count}' for reason, count in notes.items())})"
        advice = "correct data.variants in site.toml" + (", or [cohort.variants] in the study" if selection else "")
        raise InputError(f"{path}: has {found}; {advice}.")
    normal = fingerprint(keys, source.contigs, genome.build, where=str(path), reference=genome.reference, excluded=notes)
    if not normal.keys:
        raise InputError(f"{path}: none of its {len(keys)} variants matches the reference; correct data.variants in site.toml.")
    counts = np.array([normal.notes[name] for name in NOTES], dtype=np.int64)
    where = places(keys, genome.build)  # by the positions as they are in the file: indels move when they are normalised
    return Dosages(
        normal.keys, table.aligned(normal.columns, normal.flip), present, counts, normal.build, genome.reference is not None,
        None if where is None else where[normal.columns], known,
    )  # fmt: skip


def _known_sex(sex: npt.NDArray[np.int8] | None, source: Source, persons: Sequence[str]) -> npt.NDArray[np.int8] | None:
    """(persons,): as given, else as in the file; None where nobody's is known."""
    if sex is None and source.sex is not None:
        own = dict(zip(source.samples, source.sex.tolist(), strict=True))
        sex = np.array([own.get(person, 0) for person in persons], np.int8)
    return sex if sex is not None and sex.any() else None


def genotype_counts(own: Dosages, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """(4, variants): persons with 0, 1, 2 ALT alleles and with a missing call, among the persons ``rows`` (None: all) that have genotypes.
    Memory is bounded."""
    present = np.flatnonzero(own.present) if rows is None else rows[own.present[rows]]
    counts: npt.NDArray[np.int64] = group_counts(own, present, np.ones((1, len(present)), bool))[0]
    return counts


def group_counts(own: Dosages, rows: npt.NDArray[np.int64], groups: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(groups, 4, variants): persons with 0, 1, 2 ALT alleles and with a missing call, in each of ``groups`` (groups, rows) of the persons
    ``rows``. Memory is bounded."""
    from fedml.cohort.variants.counting import counts_of
    from fedml.cohort.variants.frequency import group_counts as count

    if isinstance(own.dosage, Packed):
        return counts_of(own.dosage, [rows[group] for group in groups])
    total, at = np.zeros((len(groups), 4, len(own.keys)), dtype=np.int64), 0
    for chunk in person_chunks(rows, len(own.keys)):
        total += count(own.dosage[chunk], groups[:, at : at + len(chunk)])
        at += len(chunk)
    return total


def site_counts(own: Dosages, spec: Variants) -> npt.NDArray[np.int64]:
    """(7, variants): ``genotype_counts`` of who can have a call, 1 where the site's variant is not in Hardy-Weinberg equilibrium
    (``out_of_equilibrium``), and the persons with one copy, with REF and with ALT; of dosages with fractions (9, variants), with
    ``dosage_sums``."""
    counts, rows = genotype_counts(own), np.arange(len(own.present))
    by_sex = np.stack([genotype_counts(own, rows[group]) for group in sexes(own.sex, len(rows))])
    told, _ = site_table(counts[None], by_sex, own.where, 0)
    table = np.vstack([told[:4], out_of_equilibrium(counts, by_sex[1], own.where, spec), told[4:]])
    if not isinstance(own.dosage, Fine):
        return table
    return np.vstack([table, dosage_sums(own, np.flatnonzero(own.present))])


def dosage_sums(own: Dosages, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(2, variants): sums of the dosages of the persons ``rows`` in 1/16384, and of those of them with one copy. They are exact: every
    dosage is a whole number of these. Memory is bounded."""
    men = sexes(own.sex, len(own.present))[0]
    out = np.zeros((2, len(own.keys)), np.int64)
    if not isinstance(own.dosage, Fine):
        raise TypeError("sums of dosages are of a table with fractions")
    for start in range(0, len(own.keys), _COLUMNS):
        part = slice(start, min(start + _COLUMNS, len(own.keys)))
        for chunk in person_chunks(rows, 4 * (part.stop - start)):
            whole = np.maximum(own.dosage.fractions(start, part.stop, chunk), 0).astype(np.float64) * SCALE
            out[0, part] += whole.sum(0).astype(np.int64)
            if own.where is not None:
                where = own.where[part]
                single = np.where((where == X) | (where == Y), whole[men[chunk]].sum(0), np.where(where == MT, whole.sum(0), 0))
                out[1, part] += single.astype(np.int64)
    return out


def out_of_equilibrium(
    counts: npt.NDArray[np.int64], women: npt.NDArray[np.int64], where: npt.NDArray[np.int8] | None, spec: Variants
) -> npt.NDArray[np.bool_]:
    """(variants,): True where p of the exact test of a site's ``counts`` (4, variants) is below ``min_hwe_p`` of the study, or below
    ``HWE_P`` where it sets none. Of one site, because in sites of different populations together no variant is in equilibrium. On X of
    the ``women`` alone, and never on Y and MT (``where``): with one copy there is no equilibrium."""
    from fedml.cohort.variants.frequency import rarer_than

    ref, het, alt = two_copies(counts, women, where)[:3]
    return rarer_than(ref, het, alt, spec.min_hwe_p or HWE_P)


def person_chunks(rows: npt.NDArray[np.int64], variants: int) -> list[npt.NDArray[np.int64]]:
    """``rows`` in chunks whose unpacked dosages take about 32 MB each."""
    size = max(1, _CELLS // max(variants, 1))
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def shared_panel(sites: Mapping[str, Dosages], spec: Variants, *, counted: bool = True) -> Panel:
    """The panel: the variants that all ``sites`` share, oriented, and above the study's quality thresholds. Equals the server's result from
    genotype counts, or without counts (``counted`` False) as in a private study, which releases none; there the variants that the
    study states are the panel, whichever a site has."""
    stated = () if counted else stated_keys(spec.stated)
    keys = {name: stated or own.keys for name, own in sites.items()}
    notes = {name: own.notes for name, own in sites.items() if own.notes is not None}
    draft = draft_panel(keys, spec.match, [n for n, own in sites.items() if own.checked], notes)
    doubtful = any(mask.any() for mask in draft.doubtful.values())
    if not counted:
        return settle(draft, None)[0]
    if not (spec.counted or doubtful):
        return draft
    counts = {name: site_counts(aligned(own, draft, name, spec), spec) for name, own in sites.items()}
    unsure = unproven(draft, {name: SiteStrand(own.keys, own.notes, own.checked) for name, own in sites.items()})
    settled, _ = settle(doubt(draft, counts), counts, unsure, spec.max_palindromic_maf)
    if not spec.counted:
        return settled
    total = np.sum([site_counts(aligned(own, settled, name, spec), spec) for name, own in sites.items()], axis=0)
    keep, _ = quality(total, spec)
    return choose(settled, keep)


def aligned(own: Dosages, panel: Panel, name: str, spec: Variants) -> Dosages:
    """The dosages of site ``name`` in the order and orientation of ``panel``."""
    from fedml.cohort.variants.harmonise import align

    return align(own, panel.keys, panel.flips[name], spec.match)


def concat_dosages(parts: Sequence[tuple[Dosages | None, int]], panel: Panel) -> Dosages:
    """Aligned dosages of several sites, concatenated over persons; None with a number of persons adds that many persons without
    genotypes."""
    tables = [
        Packed.of(np.full((persons, len(panel.keys)), -1, np.int8)) if own is None else
        own.dosage if isinstance(own.dosage, Packed | Fine) else Packed.of(own.dosage)
        for own, persons in parts
    ]  # fmt: skip
    present = np.concatenate([np.zeros(persons, bool) if own is None else own.present for own, persons in parts])
    from fedml.cohort.variants.packed import concat_packed

    known = [own for own, _ in parts if own is not None]
    where = np.max([np.zeros(len(panel.keys), np.int8) if own.where is None else own.where for own in known], axis=0) if known else None
    sex = [np.zeros(persons, np.int8) if own is None or own.sex is None else own.sex for own, persons in parts]
    packed = [table for table in tables if isinstance(table, Packed)]
    together = concat_packed(packed) if len(packed) == len(tables) else concat_fine(tables)
    return Dosages(panel.keys, together, present, where=where, sex=np.concatenate(sex))
