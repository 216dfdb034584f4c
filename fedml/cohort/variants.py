"""Variants of persons: ALT dosages from VCF, BCF (pysam) or PLINK 1 bed (bed-reader), and the panel that several sites share.

A dosage is the number of ALT alleles (0, 1, 2) a person carries, -1 where the genotype is missing. In PLINK files A1 is taken as ALT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError

MISSING = -1
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


class Variant(NamedTuple):
    """One ALT allele at one place. ``position`` is 1-based; ``contig`` has no ``chr`` before it."""

    contig: str
    position: int
    id: str
    ref: str
    alt: str


@dataclass(frozen=True)
class Dosages:
    """``dosage`` (persons, variants) int8 with ``keys`` (variants); ``present`` (persons,): has the person any genotype row?"""

    keys: tuple[Variant, ...]
    dosage: npt.NDArray[np.int8]
    present: npt.NDArray[np.bool_]


def read_variants(path: Path, persons: list[str]) -> Dosages:
    """ALT dosages of ``persons``, in their order; a person who is not in the file is not ``present``.

    Raises:
        InputError: the file is missing, truncated, has no header, or names none of the persons.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; correct data.variants in site.toml.")
    reader = _read_bed if path.suffix == ".bed" else _read_vcf
    try:
        keys, samples, dosage = reader(path, set(persons))
    except InputError:
        raise
    except Exception as error:  # htslib reports through OSError, ValueError and others
        raise InputError(f"{path}: cannot be read as {'PLINK bed' if path.suffix == '.bed' else 'VCF or BCF'} ({error}).") from error
    at = {sample: i for i, sample in enumerate(samples)}
    rows = np.array([at.get(p, -1) for p in persons])
    present = rows >= 0
    if not present.any():
        raise InputError(f"{path}: none of its samples is in the persons table; use the same ids in both.")
    if not keys:
        raise InputError(f"{path}: holds no variant; correct data.variants in site.toml.")
    out = dosage[np.maximum(rows, 0)]
    out[~present] = MISSING
    return Dosages(tuple(keys), out, present)


def _read_vcf(path: Path, wanted: set[str]) -> tuple[list[Variant], list[str], npt.NDArray[np.int8]]:
    import pysam

    pysam.set_verbosity(0)  # htslib would write to stderr; the sentence below says it once
    _check_whole(path)
    try:
        file = pysam.VariantFile(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: has no valid VCF or BCF header, or is cut short; write it anew with one (bcftools view).") from error
    with file:
        if "GT" not in file.header.formats:
            raise InputError(f"{path}: its header declares no FORMAT field GT; genotypes are needed.")
        samples = [s for s in file.header.samples if s in wanted]
        if not samples:
            return [], [], np.zeros((0, 0), np.int8)
        file.subset_samples(samples)
        keys: list[Variant] = []
        rows: list[npt.NDArray[np.int8]] = []
        for record in file:
            alleles = [call.allele_indices or (None,) for call in record.samples.values()]
            contig, alts = record.chrom.removeprefix("chr"), record.alts or ()
            for number, alt in enumerate(alts, start=1):  # multi-allelic records are split
                keys.append(Variant(contig, record.pos, record.id or ".", record.ref or "N", alt))
                rows.append(np.array([MISSING if None in a else a.count(number) for a in alleles], dtype=np.int8))
    return keys, samples, np.array(rows, dtype=np.int8).T.reshape(len(samples), len(keys))


def _check_whole(path: Path) -> None:
    """Bgzip ends with an empty block (SAM specification, section 4.1.2); htslib reads on without it and never says that data are gone."""
    with path.open("rb") as file:
        start = file.read(14)
        bgzip = start[12:] == b"BC"
        if start[:2] == b"\x1f\x8b" and not bgzip:
            raise InputError(f"{path}: is compressed by gzip, htslib reads bgzip; write it anew (gunzip -c, then bgzip).")
        file.seek(-min(28, path.stat().st_size), 2)
        if bgzip and file.read() != _BGZIP_END:
            raise InputError(f"{path}: is cut short, its last bgzip block is missing; copy it anew.")


def _read_bed(path: Path, wanted: set[str]) -> tuple[list[Variant], list[str], npt.NDArray[np.int8]]:
    from bed_reader import open_bed

    for ending in (".bim", ".fam"):
        if not path.with_suffix(ending).exists():
            raise InputError(f"{path.with_suffix(ending)}: no such file; a .bed needs its .bim and .fam beside it.")
    with open_bed(path, num_threads=1) as bed:
        rows = np.array([i for i, sample in enumerate(bed.iid) if sample in wanted], dtype=np.int64)
        dosage = bed.read(index=(rows, slice(None)), dtype="int8")  # counts A1; missing is -127
        dosage[dosage < 0] = MISSING
        fields = zip(bed.chromosome, bed.bp_position, bed.sid, bed.allele_2, bed.allele_1, strict=True)
        keys = [Variant(str(c).removeprefix("chr"), int(p), str(i), str(r), str(a)) for c, p, i, r, a in fields]
        return keys, [str(bed.iid[i]) for i in rows], np.ascontiguousarray(dosage)


def to_text(keys: Sequence[Variant]) -> bytes:
    """Keys as tab-separated lines, as they cross the wire and stand beside a saved model."""
    return "".join(f"{k.contig}\t{k.position}\t{k.id}\t{k.ref}\t{k.alt}\n" for k in keys).encode()


def from_text(text: bytes) -> tuple[Variant, ...]:
    """The inverse of ``to_text``.

    Raises:
        ValueError: a line does not have the five fields, or the position is no number.
    """
    fields = (line.split("\t") for line in text.decode().splitlines())
    return tuple(Variant(contig, int(position), id_, ref, alt) for contig, position, id_, ref, alt in fields)


def _place(key: Variant, match: str) -> tuple[Any, ...]:
    """What makes two sites' variants the same one: the rsID, or contig, position and the two alleles in either order."""
    if match == "rsid":
        return (key.id,)
    return (key.contig, key.position, *sorted((key.ref, key.alt)))


def _orientation(own: Variant, panel: Variant, match: str) -> str:
    """``same``, ``swapped``, ``strand``, ``strand-swapped`` or ``none``: how ``own`` alleles become the panel's.

    A/T and C/G pairs read the same on both strands, so a swap of them cannot be told from a strand flip by alleles: matched by
    rsID they are accepted only as they stand.
    """
    if (own.ref, own.alt) == (panel.ref, panel.alt):
        return "same"
    ambiguous = own.ref.translate(_COMPLEMENT) == own.alt
    if match == "rsid" and ambiguous:
        return "none"
    if (own.alt, own.ref) == (panel.ref, panel.alt):
        return "swapped"
    if match == "rsid":
        other = (own.ref.translate(_COMPLEMENT), own.alt.translate(_COMPLEMENT))
        if other == (panel.ref, panel.alt):
            return "strand"
        if other[::-1] == (panel.ref, panel.alt):
            return "strand-swapped"
    return "none"


def _unique(keys: Sequence[Variant], match: str) -> dict[tuple[Any, ...], int]:
    """Index of each place that stands once; a place that stands twice at a site is ambiguous and left out."""
    places = [_place(key, match) for key in keys]
    count = Counter(places)
    return {place: at for at, place in enumerate(places) if count[place] == 1 and place != (".",)}


def agree_panel(sites: Mapping[str, Sequence[Variant]], match: str) -> tuple[tuple[Variant, ...], dict[str, Counter[str]]]:
    """The variants that all ``sites`` have, written as the first site writes them, and a count of what was done at each site.

    The counts' keys are the orientations of ``_orientation`` and ``absent``, for variants of the first site.
    """
    first, *others = sites
    index = {name: _unique(keys, match) for name, keys in sites.items()}
    counts: dict[str, Counter[str]] = {name: Counter() for name in sites}
    panel = []
    for place, at in index[first].items():
        key = sites[first][at]
        kept = True
        for name in others:
            own = index[name].get(place)
            fit = "absent" if own is None else _orientation(sites[name][own], key, match)
            counts[name][fit] += 1
            kept &= fit not in ("absent", "none")
        if kept:
            panel.append(key)
    counts[first]["same"] = len(index[first])
    return tuple(panel), counts


def align(own: Dosages, panel: Sequence[Variant], match: str) -> Dosages:
    """``own`` in the panel's order and orientation; a panel variant that is absent here is missing for everybody."""
    index = _unique(own.keys, match)
    out = np.full((len(own.dosage), len(panel)), MISSING, dtype=np.int8)
    for at, key in enumerate(panel):
        from_ = index.get(_place(key, match))
        fit = "none" if from_ is None else _orientation(own.keys[from_], key, match)
        if fit == "none":
            continue
        dosage = own.dosage[:, from_]
        out[:, at] = np.where(dosage == MISSING, MISSING, 2 - dosage) if fit.endswith("swapped") else dosage
    return Dosages(tuple(panel), out, own.present)
