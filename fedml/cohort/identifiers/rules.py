"""Rules for texts of which no one knows what they hold: which kinds of identifiers are in a text.

    kinds_in("Doe^Jane, born 1970-03-02")            # (Kind.NAME, Kind.DATE)
    kinds_in(text, Search(["Doe^Jane", "4711-0815"]))   # also Kind.SEARCHED, if an identifier of the search is in it

A rule finds what has a form: a name written as a name, a date with year, month and day, a number with a check digit or a label, an address
for mail, a telephone number. It cannot find a name that is only a word, or a number without a form; for these a search needs the value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """``refuse``: the file must not be used; ``review``: a person has to check it."""

    REFUSE = "refuse"
    REVIEW = "review"


@dataclass(frozen=True)
class Finding:
    """One finding. ``where``: path through the header; ``why``: never quotes the value; ``tag``: of DICOM, 0 elsewhere."""

    tag: int
    keyword: str
    where: str
    why: str
    severity: Severity


class Kind(StrEnum):
    """What a text has; the value is the sentence of a finding."""

    SEARCHED = "contains an identifier that was searched for"
    NAME = "a name of a person"
    PERHAPS_NAME = "words that may be a name of a person"
    NUMBER = "a number that identifies a person"
    MAIL = "an address for mail, or a telephone number"
    PLACE = "an institution or a place"
    DATE = "a date"
    TIME = "a time of day"
    TEXT = "free text"


# What a rule finds surely enough to set a file aside; the rest a person has to look at.
_CERTAIN = (Kind.SEARCHED, Kind.NAME, Kind.NUMBER, Kind.MAIL)
_LETTER, _WORD = r"[^\W\d_]", r"[^\W\d_][^\W\d_'’-]+"
_NAMES = (
    re.compile(rf"{_WORD}\s*\^\s*{_LETTER}"),  # DICOM: Doe^Jane
    re.compile(rf"\b(?:mrs?|ms|miss|herrn?|frau|dr|prof|mme|mlle)\b\.?(?:\s+(?:med|dr)\.)*[\s_]+{_WORD}", re.IGNORECASE),
    re.compile(
        rf"(?<!{_LETTER})(?:patient(?:in)?|pat|name|nachname|vorname|surname|last[ _-]?name|first[ _-]?name|nom|nombre)(?:'?s?[ _-]?name)?"
        rf"\s*[:=]+\s*{_WORD}", re.IGNORECASE,
    ),
)  # fmt: skip
_COMMA = re.compile(rf"\b([A-ZÀ-Þ]{_LETTER}+(?:-{_LETTER}+)?)\s*,\s*([A-ZÀ-Þ]{_LETTER}+)\b")  # Doe, Jane
_PAIR = re.compile(r"(?<![^\W\d_])([A-ZÀ-Þ][^\W\d_]+)[ _.-]([A-ZÀ-Þ][^\W\d_]+)(?![^\W\d_])")  # Jane Doe, DOE_JANE
_MONTHS = "jan|feb|mar|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
_DATES = (
    re.compile(r"(?<!\d)(19|20)\d\d([-/.:_ ]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d{1,5}(?!\d)|\d{7,})"),
    re.compile(r"(?<!\d)(0?[1-9]|[12]\d|3[01])[./-](0?[1-9]|1[0-2])[./-](?:19|20)\d\d(?!\d)"),
    re.compile(r"(?<!\d)(0?[1-9]|1[0-2])[./-](0?[1-9]|[12]\d|3[01])[./-](?:(?:19|20)\d\d|\d\d)(?![\d.])"),
    re.compile(rf"\b(0?[1-9]|[12]\d|3[01])[\s._-]*(?:{_MONTHS})[a-z]*[\s._-]*(?:19|20)\d\d\b", re.IGNORECASE),
    re.compile(rf"\b(?:{_MONTHS})[a-z]*[\s._-]+(0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?,?[\s._-]+(?:19|20)\d\d\b", re.IGNORECASE),
)
_TIME = re.compile(r"(?<!\d)([01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?!\d)|(?i:time)\s*=\s*([01]\d|2[0-3])[0-5]\d[0-5]\d(?:\.\d+)?")
_MAILS = (
    re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]{2,}"),
    re.compile(r"(?<![\w.])(?:\+\d{1,3}|\(0\d{1,4}\)|tel\.?:?|phone:?)[\s./-]*\d[\d\s./()-]{5,}\d", re.IGNORECASE),
)
_LABELLED = re.compile(
    r"(?<![^\W\d_])(?:mrn|pid|pat(?:ient)?[\s_-]?(?:id|no|nr|number)|case[\s_-]?(?:no|nr|number)|acc(?:ession)?(?:[\s_-]?(?:no|nr|number))?"
    r"|ssn|nhs|svnr|hospital[\s_-]?(?:no|nr|number)|fall(?:nr|nummer)|kis)[\s_:#=.-]*(?=[\w-]*\d{3})[\w-]{4,}",
    re.IGNORECASE,
)
_SOCIAL = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")
_DIGITS = re.compile(r"(?<![\d.])(\d[ -]?){9,11}\d(?![\d.])|(?<!\d)\d{6}[-+]\d{4}(?!\d)")
# A moment: a date, and it is found as such. One in eleven has the check digit of a national number, so it would be one on some days only.
_STAMP = re.compile(r"(?<!\d)(?:19|20)\d\d([-/.:])(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])[ T_](?:[01]\d|2[0-3]):[0-5]\d")
_HOSPITAL = re.compile(
    r"\b\w*(?:hospital|klinik|clinic|spital|krankenhaus|hôpital|infirmary|medical cent(?:er|re)|charité)\w*\b", re.IGNORECASE
)
_STREET = re.compile(r"\b\w+(?:straße|strasse|str\.|gasse|weg)\s*\d+|\b\d+\s+\w+\s+(?:street|avenue|road|lane|drive)\b", re.IGNORECASE)
# Words of images: a pair of them, each with a capital, is no name. In lower case; endings of plural are taken off.
_WORDS = (
    "abdomen absent acquired acquisition adc affine angio anterior aperio apparent artery atlas axial background baseline bias biopsy "
    "blood bold bone bottom brain breast bruker cardiac center centre channel chest cine code color colour contrast converted coronal "
    "correct corrected cortex cranial creation ct cube data default delayed density derived diffusion dixon document dose dual dwi "
    "dynamic early echo epi export extension fat field file filter final flair fluid follow format frame freesurfer full function gated "
    "gems gradient gray gre grey group hamamatsu hdr head heart heat high hires id image impression infinity intensity inversion ivd "
    "kernel label large late left leica lesion library line liver localizer location low lower lung macro magic magnitude manual map "
    "mask matlab matrix mean medium mono motion mprage mr mri native navigator nec neck nema network nifti none normal note null object "
    "objective original output parallel part pathology pelvis perfusion phantom phase philips photo physical pixel plane plus position "
    "post posterior pre preview primary program protocol proton pulse quality quick radius raw reconstruction recovery reference region "
    "repeat report resample resampled rescale resolution rest result right sag sagittal sample scan scanner scanscope scout secondary "
    "segmentation sequence series session set siemens signal single size skull slice slide small soft software source space spgr spin "
    "spine spiral spleen stack stain standard state static stereo study subject surface susceptibility t1 t2 target task template test "
    "thick thin thorax tile time tissue tom top total tra transverse true turbo type ultrasound unknown upper user value vector venous "
    "ventana version view virtual vision volume voxel water weighted width window with without work x y z "
)
_USUAL = frozenset(_WORDS.split())


class Search:
    """Identifiers of a person as the hospital writes them. Case, accents, punctuation and the order of words do not matter."""

    def __init__(self, identifiers: Sequence[str] = ()) -> None:
        self._wanted = [(squeezed(one), plain(one).split()) for one in identifiers if len(squeezed(one)) > 1]

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def hit(self, text: str) -> bool:
        """True if ``text`` contains an identifier: all its words, or, from five letters on, its letters in sequence."""
        if not self._wanted:
            return False
        folded = plain(text)
        words, row = set(folded.split()), folded.replace(" ", "")
        return any((len(joined) >= 5 and joined in row) or words.issuperset(parts) for joined, parts in self._wanted)


def plain(text: str) -> str:
    """``text`` without case, accents and punctuation, which becomes spaces."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return "".join(c if c.isalnum() else " " for c in folded)


def squeezed(text: str) -> str:
    """``plain`` without spaces."""
    return plain(text).replace(" ", "")


def kinds_in(text: str, search: Search | None = None, *, pairs: bool = True) -> tuple[Kind, ...]:
    """The kinds of identifiers in ``text``, the surest first; ``Kind.TEXT`` is not among them.

    ``pairs``: whether two words in sequence that begin with capitals and are no words of images may be a name.
    """
    return tuple(dict.fromkeys(_kinds(text[: 2**16], search, pairs)))


def _kinds(text: str, search: Search | None, pairs: bool) -> Iterator[Kind]:
    if search and search.hit(text):
        yield Kind.SEARCHED
    if any(one.search(text) for one in _NAMES):
        yield Kind.NAME
    elif pairs and any(_unusual(found.groups()) for form in (_COMMA, _PAIR) for found in form.finditer(text)):
        yield Kind.PERHAPS_NAME
    if (
        _LABELLED.search(text)
        or _SOCIAL.search(text)
        or any(_checked(re.sub(r"\D", "", m[0])) for m in _DIGITS.finditer(_STAMP.sub(" ", text)))
    ):
        yield Kind.NUMBER
    if any(one.search(text) for one in _MAILS):
        yield Kind.MAIL
    if _HOSPITAL.search(text) or _STREET.search(text):
        yield Kind.PLACE
    if any(one.search(text) for one in _DATES):
        yield Kind.DATE
    if _TIME.search(text):
        yield Kind.TIME


def severity_of(kind: Kind) -> Severity:
    """``refuse`` for what a rule finds surely, else ``review``."""
    return Severity.REFUSE if kind in _CERTAIN else Severity.REVIEW


def found_in(text: str, where: str, search: Search | None = None, *, pairs: bool = True, free: bool = False) -> list[Finding]:
    """A finding for each kind in ``text``, at ``where``; with ``free``, text of more than two letters in which no rule finds anything is a
    finding too, because no rule knows every name."""
    kinds = kinds_in(text, search, pairs=pairs)
    if not kinds and free and sum(c.isalpha() for c in text) > 2:
        kinds = (Kind.TEXT,)
    return [Finding(0, "", where, str(kind), severity_of(kind)) for kind in kinds]


def _unusual(words: Sequence[str]) -> bool:
    """True if none of the words is among those of images."""
    return not any(word.casefold() in _USUAL or word.casefold().removesuffix("s") in _USUAL or len(word) < 3 for word in words)


def _checked(digits: str) -> bool:
    """True for a national number with a right check digit: of the United Kingdom (NHS) and Sweden, 10 digits, and of Norway, 11."""
    values = [int(c) for c in digits]
    if len(values) == 10:
        rest = 11 - sum(v * w for v, w in zip(values, range(10, 1, -1), strict=False)) % 11
        nhs = (0 if rest == 11 else rest) == values[9] and len(set(values)) > 2
        luhn = sum(sum(divmod(v * (2 - k % 2), 10)) for k, v in enumerate(values)) % 10 == 0
        return nhs or (luhn and _day(digits[4:6]) and 1 <= int(digits[2:4]) <= 12)
    if len(values) == 11 and _day(digits[:2]) and 1 <= int(digits[2:4]) <= 12:
        first = sum(v * w for v, w in zip(values, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1), strict=False)) % 11
        second = sum(v * w for v, w in zip(values, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1), strict=False)) % 11
        return first == 0 and second == 0
    return False


def _day(two: str) -> bool:
    return 1 <= int(two) <= 31
