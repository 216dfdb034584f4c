"""A request to the Beacon: its parameters, checked, and which rows of the table they match.

Positions of Beacon v2 are 0-based and half-open; those of the table are 1-based. A variant is at the bases of its REF; an insertion, whose
REF has none of its own, is at the place between two bases. Bases match as they are in the table (``CA`` to ``C``) or without the letters
that both alleles share (``A`` to nothing, one base later), N any base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedml.experiments.frequencies.assemblies import build_named, chromosome_named
from fedml.experiments.frequencies.table import LONGEST_ALLELE, Row, Table

LONGEST_RANGE = 100_000  # bases
MOST_RESULTS, DEFAULT_RESULTS, MOST_PAGES = 100, 10, 100_000
_LAST = 2**31 - 1
GRANULARITIES = ("boolean", "count", "record")
INCLUDE = ("ALL", "HIT", "MISS", "NONE")
_BASES = re.compile(r"[ACGTUNRYSWKMBDHV.-]{0,1000}")
TYPES = {"SNP": "SNP", "SNV": "SNP", "INS": "INS", "DEL": "DEL", "INDEL": "INDEL", "MNP": "MNP"}
_ANSWERED = (
    "referenceName", "start", "end", "referenceBases", "alternateBases", "assemblyId", "variantType", "variantMinLength",
    "variantMaxLength",
)  # fmt: skip
_OTHER = ("geneId", "aminoacidChange", "genomicAlleleShortForm", "mateName")


class BadRequestError(Exception):
    """A request that cannot be answered; the message is a sentence for the client."""


@dataclass(frozen=True)
class Query:
    """What a client asks. ``given``: the parameters as received; ``skip`` is in pages."""

    chromosome: str
    start: tuple[int, ...]
    end: tuple[int, ...]
    ref: str | None
    alt: str | None
    kind: str | None
    shortest: int
    longest: int | None
    given: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """How it is to be answered."""

    granularity: str = "boolean"
    include: str = "HIT"
    skip: int = 0
    limit: int = DEFAULT_RESULTS
    test: bool = False
    schemas: list[dict[str, str]] = field(default_factory=list)


def _number(value: Any, name: str, most: int = _LAST) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"\d{1,10}", str(value)):
        raise BadRequestError(f"{name} must be a whole number that is not negative")
    if (number := int(value)) > most:
        raise BadRequestError(f"{name} is {number}, the most is {most}")
    return number


def _positions(value: Any, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else [value]
    if not 1 <= len(values) <= 2:
        raise BadRequestError(f"{name} must be one or two numbers")
    return tuple(_number(one.strip() if isinstance(one, str) else one, name) for one in values)


def _word(value: Any, name: str, most: int = 1000) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise BadRequestError(f"{name} must be text of at most {most} characters")
    return value.strip()


def read_asked(values: Mapping[str, Any], most: str) -> Asked:
    """How to answer, from the query's own keys (``requestedGranularity``, ``skip`` ...), in no more detail than ``most``.

    Raises:
        BadRequestError: a value is not one of those that the specification has.
    """
    wanted = _word(values.get("requestedGranularity", "boolean"), "requestedGranularity")
    granularity = "count" if wanted == "aggregated" else wanted  # this Beacon has no aggregations
    if granularity not in GRANULARITIES:
        raise BadRequestError(f"requestedGranularity must be boolean, count, aggregated or record, not {wanted[:40]}")
    include = _word(values.get("includeResultsetResponses", "HIT"), "includeResultsetResponses")
    if include not in INCLUDE:
        raise BadRequestError("includeResultsetResponses must be ALL, HIT, MISS or NONE")
    if values.get("filters"):
        raise BadRequestError("filters: this Beacon has no filtering terms; leave them out")
    skip = _number(values.get("skip", 0), "skip", MOST_PAGES)
    limit = min(_number(values.get("limit", DEFAULT_RESULTS), "limit") or MOST_RESULTS, MOST_RESULTS)
    granularity = GRANULARITIES[min(GRANULARITIES.index(granularity), GRANULARITIES.index(most))]
    test = values.get("testMode", False)
    return Asked(granularity, include, skip, limit, str(test).lower() == "true")


def read_query(values: Mapping[str, Any], table: Table) -> Query:
    """The variants that are asked for.

    Raises:
        BadRequestError: a parameter is missing, not valid, of another assembly, or not built; the message says which.
    """
    given = {name: value for name, value in values.items() if value not in (None, "") or name in ("referenceBases", "alternateBases")}
    if other := [name for name in _OTHER if name in given]:
        raise BadRequestError(f"{other[0]}: this Beacon answers by position; give referenceName and start")
    if unknown := sorted(given.keys() - set(_ANSWERED)):
        raise BadRequestError(f"parameter {unknown[0][:40]} is not known; known are {', '.join(_ANSWERED)}")
    if "assemblyId" in given and build_named(_word(given["assemblyId"], "assemblyId")) != table.build:
        raise BadRequestError(f"assemblyId: this Beacon has positions of {table.build} only")
    if "referenceName" not in given or "start" not in given:
        raise BadRequestError("give referenceName and start (0-based); without them every variant would match")
    chromosome = chromosome_named(_word(given["referenceName"], "referenceName"), table.build)
    if chromosome is None:
        raise BadRequestError(f"referenceName is not a chromosome of {table.build}, such as 22, chr22 or the accession of that build")
    start, end = _positions(given["start"], "start"), _positions(given["end"], "end") if "end" in given else ()
    ref, alt = (
        _bases(_word(given[name], name), name) if name in given and given[name] is not None else None
        for name in ("referenceBases", "alternateBases")
    )
    kind = TYPES.get(_word(given["variantType"], "variantType").upper(), "") if "variantType" in given else None
    if kind == "":
        raise BadRequestError(f"variantType: this Beacon has {', '.join(TYPES)}")
    if len(end) != 0 and len(end) != len(start):
        raise BadRequestError("start and end must both have one value (a range) or both two (a bracket)")
    if not end and (len(start) == 2 or (alt is None and kind is None)):
        raise BadRequestError("a query with start alone needs one value, and alternateBases or variantType; or give end")
    if len(start) == 1 and end and not 0 <= end[0] - start[0] <= LONGEST_RANGE:
        raise BadRequestError(f"end must be after start, by at most {LONGEST_RANGE} bases")
    if len(start) == 2 and not (0 <= start[1] - start[0] <= LONGEST_RANGE and end[0] <= end[1]):
        raise BadRequestError(f"a bracket's second value must not be before its first; start may span {LONGEST_RANGE} bases")
    shortest = _number(given["variantMinLength"], "variantMinLength") if "variantMinLength" in given else 0
    longest = _number(given["variantMaxLength"], "variantMaxLength") if "variantMaxLength" in given else None
    return Query(chromosome, start, end, ref, alt, kind, shortest, longest, given)


def _bases(text: str, name: str) -> str:
    if not _BASES.fullmatch(text.upper()):
        raise BadRequestError(f"{name} must be bases (ACGT, N for any), at most 1000")
    return "" if text in ("-", ".") else text.upper()


def trimmed(start: int, ref: str, alt: str) -> tuple[int, str, str]:
    """A variant without the letters that both alleles share, first at the end and then at the beginning; ``start`` 0-based."""
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while ref and alt and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    return start, ref, alt


def kind_of(ref: str, alt: str) -> str:
    """SNP, MNP, INS, DEL or INDEL, of alleles that are ``trimmed``."""
    if len(ref) == len(alt):
        return "SNP" if len(ref) == 1 else "MNP"
    return "INS" if not ref else "DEL" if not alt else "INDEL"


def _same(asked: str | None, has: str) -> bool:
    """Whether bases match; N of the question is any base."""
    if asked is None:
        return True
    return len(asked) == len(has) and all(a in ("N", b) for a, b in zip(asked, has, strict=True))


def matches(query: Query, row: Row) -> bool:
    """Whether ``row`` is one of the variants that ``query`` asks for."""
    written = (row.position - 1, row.ref, row.alt)
    short = start, ref, alt = trimmed(*written)
    if query.kind is not None and kind_of(ref, alt) != query.kind:
        return False
    length = max(len(ref), len(alt))
    if length < query.shortest or (query.longest is not None and length > query.longest):
        return False
    wildcard = any("N" in (bases or "") for bases in (query.ref, query.alt))
    asked = [(query.start[0], query.ref, query.alt)]
    if query.ref is not None and query.alt is not None and not wildcard:
        asked.append(trimmed(query.start[0], query.ref, query.alt))
    if not query.end:
        return any(at == has[0] and _same(r, has[1]) and _same(a, has[2]) for at, r, a in asked for has in (written, short))
    if not any(_same(r, has[1]) and _same(a, has[2]) for _, r, a in asked for has in (written, short)):
        return False
    end = start + len(ref)
    if len(query.start) == 2:
        return query.start[0] <= start < max(query.start[1], query.start[0] + 1) and query.end[0] <= end <= query.end[1]
    if not ref:  # between two bases
        return query.start[0] <= start <= query.end[0]
    return start < query.end[0] and end > query.start[0]


def span(query: Query) -> tuple[int, int]:
    """The 0-based half-open interval in which the first base of every match lies, or a base of its REF."""
    if not query.end:
        return query.start[0], query.start[0] + LONGEST_ALLELE  # the question may be written with more of the letters that alleles share
    return query.start[0], max(query.end[0] if len(query.end) == 1 else query.start[1], query.start[0]) + 1
