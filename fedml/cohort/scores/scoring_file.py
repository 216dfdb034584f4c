"""Reads scoring files of the PGS Catalog, and writes them from a linear model.

    scoring = read_scoring(Path("PGS000018_hmPOS_GRCh38.txt.gz"))
    write_scoring(path, LinearModel(keys, weight, mean, std, b), name="cad", build="GRCh38")

The format is version 2.0 of the PGS Catalog (pgscatalog.org/downloads; Lambert et al. 2021, Nature Genetics 53:420). Positions of a
harmonised file are read from ``hm_chr`` and ``hm_pos``. Rows that need several variants or several weights are refused.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, cast, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.scores.weights import FALSE, TRUE, UNKNOWN, Columns, Places, read_plain
from fedml.cohort.variants.keys import Variant
from fedml.errors import InputError, nearest
from fedml.study.contigs import canonical_contig
from fedml.text import numbered_lines

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
ADDITIVE, DOMINANT, RECESSIVE = 0, 1, 2
_BUILDS = {"hg18": "NCBI36", "ncbi36": "NCBI36", "grch36": "NCBI36", "hg19": "GRCh37", "b37": "GRCh37", "grch37": "GRCh37"}
_BUILDS |= {"hg38": "GRCh38", "b38": "GRCh38", "grch38": "GRCh38"}
_REFUSED = {"is_interaction": "an interaction of variants", "is_haplotype": "a haplotype", "is_diplotype": "a diplotype"}
_PLACES = ({"rsID"}, {"hm_rsID"}, {"chr_name", "chr_position"}, {"hm_chr", "hm_pos"})
_BY_GENOTYPE = ("dosage_0_weight", "dosage_1_weight", "dosage_2_weight")


@dataclass(frozen=True, eq=False)
class Scoring:
    """A scoring file, one row per weight. ``contig`` is canonical; "", position 0 and a ``frequency`` (of the effect allele) of NaN mean
    unknown. ``build`` is "" if the file states none. ``intercept``: a header line of files that ``write_scoring`` wrote, else 0."""

    name: str
    build: str
    rsid: tuple[str, ...]
    contig: tuple[str, ...]
    position: Integers
    effect: tuple[str, ...]
    other: tuple[str, ...]
    weight: Floats
    frequency: Floats
    model: npt.NDArray[np.int8]
    intercept: float = 0.0
    header: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.effect)


def known_build(text: str) -> str:
    """The canonical name of a genome build (``hg19`` -> ``GRCh37``); "" if the text names none ("NR")."""
    bare = text.strip().split(".")[0]
    return _BUILDS.get(bare.lower(), "" if bare in UNKNOWN else bare)


def read_scoring(path: Path) -> Scoring:
    """A PGS Catalog scoring file, plain or gzip.

    Raises:
        InputError: the file cannot be read, a column is missing, a cell is not a number, or a row is for more than one variant.
    """
    header: dict[str, str] = {}
    rows: _Rows | None = None
    plain: Columns | None = None
    for number, line in numbered_lines(path):
        if rows is not None:
            if line:
                rows.add(number, line.split("\t"))
        elif line.startswith("#"):
            key, equals, value = line.lstrip("#").partition("=")
            if equals:
                header[key.strip()] = value.strip()
        else:
            rows = _Rows(path, number, line)
            plain = _plain(path, number, rows)
            if plain is not None:
                break
    if rows is None or not (plain or rows.effect):
        raise InputError(f"{path}: has no weight; give a PGS Catalog scoring file (format 2.0).")
    build = header.get("HmPOS_build", header.get("HmVAR_build", "")) if "hm_pos" in rows.columns else header.get("genome_build", "")
    intercept = _number(header.get("intercept", "0"))
    if intercept is None:
        raise InputError(f'{path}: the header\'s intercept is "{header["intercept"]}", not a number; correct it.')
    name = header.get("pgs_id") or header.get("pgs_name") or path.name.split(".")[0]
    found = plain or rows.columns_read()
    return Scoring(name, known_build(build), *found, intercept=intercept, header=header)


def _plain(path: Path, number: int, rows: _Rows) -> Columns | None:
    """The rows after line ``number`` of the file, read by columns; None if they must be read one by one."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            whole = cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if packed else raw)
            for _ in range(number):
                whole.readline()
            return read_plain(whole, rows.places())
    except (OSError, EOFError, zlib.error):
        return None


def _number(text: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    """A finite number within the limits, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and low <= value <= high else None


@final
class _Rows:
    """Collects the rows of a scoring file; a line may omit empty cells at its end."""

    def __init__(self, path: Path, number: int, head: str) -> None:
        self.path = path
        self.columns = {name.strip(): at for at, name in enumerate(head.split("\t"))}
        for name in ("effect_allele", "effect_weight"):
            if name not in self.columns:
                near = nearest(name, self.columns)
                raise InputError(f"{path}, line {number}: has no column {name}{near}; give a PGS Catalog scoring file (format 2.0).")
        if not any(self.columns.keys() >= place for place in _PLACES):
            raise InputError(f"{path}, line {number}: has neither rsID nor chr_name and chr_position; add the columns.")
        self.rsid, self.contig, self.effect, self.other = list[str](), list[str](), list[str](), list[str]()
        self.position, self.model = list[int](), list[int]()
        self.weight, self.frequency = list[float](), list[float]()
        at = self.columns.get
        harmonised = "hm_pos" in self.columns
        self._place = (at("hm_chr" if harmonised else "chr_name"), at("hm_pos" if harmonised else "chr_position"))
        self._rsid, self._other = (at("hm_rsID"), at("rsID")), (at("other_allele"), at("hm_inferOtherAllele"))
        self._effect, self._weight, self._frequency = at("effect_allele"), at("effect_weight"), at("allelefrequency_effect")
        self._flags = [(name, at(name)) for name in (*_REFUSED, "is_dominant", "is_recessive") if name in self.columns]
        self._genotype = [at(name) for name in _BY_GENOTYPE if name in self.columns]
        self._contigs: dict[str, str] = {}
        self._width = len(head.split("\t"))

    def places(self) -> Places:
        """Where the columns are, for reading the rows by columns."""
        flags = dict(self._flags)
        empty = [at for name, at in self._flags if name in _REFUSED]
        return Places(
            self._width, self.columns["effect_allele"], self.columns["effect_weight"], *self._place, self._rsid, self._other,
            self._frequency, (flags.get("is_dominant"), flags.get("is_recessive")), tuple(at for at in empty if at is not None),
            tuple(at for at in self._genotype if at is not None),
        )  # fmt: skip

    def columns_read(self) -> Columns:
        """The rows that were added."""
        return Columns(
            tuple(self.rsid), tuple(self.contig), np.array(self.position, np.int64), tuple(self.effect), tuple(self.other),
            np.array(self.weight, np.float64), np.array(self.frequency, np.float64), np.array(self.model, np.int8),
        )  # fmt: skip

    def add(self, number: int, cells: Sequence[str]) -> None:
        """Adds the cells of a line.

        Raises:
            InputError: a cell is invalid, or the row cannot be scored; the message names the line.
        """

        def cell(at: int | None) -> str:
            text = cells[at].strip() if at is not None and at < len(cells) else ""
            return "" if text in UNKNOWN else text

        def wrong(what: str) -> InputError:
            return InputError(f"{self.path}, line {number}: {what}.")

        model = self._model([(name, cell(at).lower()) for name, at in self._flags], wrong) if self._flags else ADDITIVE
        if any(map(cell, self._genotype)):
            raise wrong("has one weight per genotype (dosage_0_weight ...), but only effect_weight is supported; delete the row")
        effect, weight = cell(self._effect).upper(), _number(cell(self._weight))
        if not effect:
            raise wrong("names no effect allele; correct or delete the row")
        if weight is None:
            raise wrong(f'effect_weight is "{cell(self._weight)}", not a finite number; correct it')
        contig, position = map(cell, self._place)
        if position and not position.isdecimal():
            raise wrong(f'the position is "{position}", not an integer; correct it')
        stated = cell(self._frequency)
        frequency = _number(stated, 0, 1) if stated else math.nan
        if frequency is None:
            raise wrong(f'allelefrequency_effect is "{stated}", not a number from 0 to 1; correct it')
        if contig not in self._contigs:
            self._contigs[contig] = canonical_contig(contig)
        other = (cell(self._other[0]) or cell(self._other[1])).upper()
        self.effect.append(effect)
        self.other.append(other if other.isalpha() else "")  # "C/T" lists several alleles, so the other allele is unknown
        self.weight.append(weight)
        self.frequency.append(frequency)
        self.model.append(model)
        self.contig.append(self._contigs[contig])
        self.position.append(int(position or 0) if contig else 0)
        self.rsid.append(cell(self._rsid[0]) or cell(self._rsid[1]))

    def _model(self, flags: Sequence[tuple[str, str]], wrong: Callable[[str], InputError]) -> int:
        known = {text: text in TRUE for text in (*TRUE, *FALSE)}
        flag = {}
        for name, text in flags:
            if text not in known:
                raise wrong(f'{name} is "{text}", neither True nor False; correct it')
            flag[name] = known[text]
        for name, kind in _REFUSED.items():
            if flag.get(name):
                raise wrong(f"is {kind}, which cannot be scored from single variants; delete the row")
        if flag.get("is_dominant") and flag.get("is_recessive"):
            raise wrong("is both dominant and recessive; correct is_dominant or is_recessive")
        return DOMINANT if flag.get("is_dominant") else RECESSIVE if flag.get("is_recessive") else ADDITIVE


class LinearModel(NamedTuple):
    """intercept + sum over variants of weight x (dosage - mean) / std, with ``mean`` for a missing dosage; all (variants,)."""

    keys: Sequence[Variant]
    weight: Floats
    mean: Floats
    std: Floats
    intercept: float = 0.0


def write_scoring(path: Path, model: LinearModel, *, name: str, build: str = "", header: Mapping[str, str] | None = None) -> None:
    """Writes a linear model on standardised dosages as a scoring file; gzip if ``path`` ends with .gz. In the file
    the effect allele is ALT, its weight ``weight / std`` (0 where std is 0, as in the model) and its frequency ``mean / 2``. The remaining
    constant is the header line ``#intercept=``, which other programs ignore: their scores differ from the model's by this constant.
    ``score`` with ``matched.alt_frequency`` reproduces the model's output.

    Args:
        header: further lines ``#key=value``, such as ``weight_type`` or ``trait_reported``.

    Raises:
        ValueError: a number is not finite, or a header line contains a character that is not printable or a key with "=".
    """
    keys, weight, mean, std, intercept = model
    scale = np.divide(1.0, std, out=np.zeros(len(std)), where=std > 0)
    each = weight * scale
    constant = float(intercept - (each * mean).sum())
    finite = all(np.isfinite(values).all() for values in (each, mean, constant))
    if not (len(keys) == len(weight) == len(mean) == len(std) and finite):
        raise ValueError("weights, means and standard deviations must be finite, one per variant")
    fields = {"format_version": "2.0", "pgs_id": name, "pgs_name": name, "weight_type": "beta", "genome_build": known_build(build) or "NR"}
    fields |= {"variants_number": str(len(keys)), **(header or {}), "intercept": repr(constant)}
    if any(not text.isprintable() or "=" in key for key, value in fields.items() for text in (key, value)):
        raise ValueError("a header line must be printable, and its key must not contain =")
    lines = ["###PGS CATALOG SCORING FILE", *(f"#{key}={value}" for key, value in fields.items())]
    lines.append("rsID\tchr_name\tchr_position\teffect_allele\tother_allele\teffect_weight\tallelefrequency_effect")
    for key, w, m in zip(keys, each.tolist(), mean.tolist(), strict=True):
        id_, frequency = "" if key.id == "." else key.id, repr(m / 2) if 0 <= m <= 2 else ""
        lines.append(f"{id_}\t{canonical_contig(key.contig)}\t{key.position}\t{key.alt}\t{key.ref}\t{w!r}\t{frequency}")
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)  # no time: equal scores are equal bytes
