"""Checks whether a DICOM file is de-identified. The file is never rewritten: de-identification is the task of the hospital's approved tool.

    for finding in findings(path, identifiers=["Doe^Jane", "4711-0815"], pseudonym="site-a-0001"):
        print(finding.severity, finding.where, finding.why)      # contains no value of the file, so it may be logged
    require_de_identified(path)                                  # ItemError(not-de-identified) if a finding has severity "refuse"

The criterion is the Basic Application Level Confidentiality Profile (DICOM PS3.15 2026c, annex E, table E.1-1): an attribute that the
profile removes, empties or replaces is a finding if it still has a value. ``refuse``: the attribute identifies the person, or may identify
them (names, other ids, addresses, dates that are not declared as shifted, identifiers that were searched for). ``review``: the attribute
may identify the person, depending on what the site writes there (descriptions, comments, institutions, serial numbers, private text, UIDs
with a date). A header cannot exclude text drawn into the pixels or a face in a head scan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fedml.cohort.dicom.files import MAX_MB, memo, open_dataset, printable, reading
from fedml.cohort.dicom.texts import MAX_DECODED, decodings, readable, text_of
from fedml.cohort.identifiers.names import dated_uid
from fedml.cohort.identifiers.rules import Finding, Kind, Search, Severity, kinds_in, severity_of, squeezed
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Table E.1-1 without options: action -> group: elements. X remove, Z empty, D dummy. Not included: UIDs (U), repeating groups (curves,
# overlays: see _repeating) and versions of context groups, which date a list of codes.
_TABLE = {
    "X": (
        "0000: 1000 0008: 0015 0024 0025 0034 0035 0054 0055 0081 0092 0094 0096 009d 0201 1000 1030 103e 1040 1041 1048 1049 1050 "
        "1052 1060 1062 1080 1084 1088 1120 1301 1302 1303 1304 2111 4000 0010: 0011 0012 0013 0014 0015 0016 0021 0032 0041 0042 "
        "0043 0044 0045 0046 0047 0050 0101 0102 1000 1001 1002 1005 1010 1020 1030 1040 1050 1060 1080 1081 1090 1100 2000 2110 "
        "2150 2152 2154 2155 2160 2161 2162 2180 21a0 21b0 21c0 21d0 21f0 2297 2299 4000 0012: 0022 0023 0032 0041 0043 0051 0055 "
        "0071 0072 0073 0082 0086 0087 0014: 407c 407e 0016: 002b 004b 004d 004e 004f 0050 0051 0070 0071 0072 0073 0074 0075 0076 "
        "0077 0078 0079 007a 007b 007c 007d 007e 007f 0080 0081 0082 0083 0084 0085 0086 0087 0088 0089 008a 008b 008c 008d 008e "
        "0018: 0027 0035 1004 1005 1007 1008 1009 100a 1010 1011 1012 1014 1042 1043 1072 1073 1078 1079 1200 1201 1202 1204 1205 "
        "4000 5011 9185 9373 937b 937f 9424 9937 a002 a003 0020: 0027 3401 3403 3405 3406 4000 9158 0028: 4000 0032: 0012 0032 "
        "0033 0034 0035 1000 1001 1010 1011 1020 1021 1030 1032 1033 1040 1041 1050 1051 1066 1067 1070 4000 0038: 0004 0010 0011 "
        "0014 001a 001b 001c 001d 001e 0020 0021 0030 0032 0040 0050 0060 0061 0062 0064 0300 0400 0500 4000 003a: 0020 0203 020c "
        "0329 032b 0040: 0001 0002 0003 0004 0005 0006 0007 0009 000b 0010 0011 0012 0241 0242 0243 0244 0245 0250 0251 0253 0254 "
        "0275 0280 0310 050a 051a 0556 0600 0602 06fa 1001 1002 1004 1005 100a 1010 1011 1102 1103 1104 1400 2001 2004 2005 2008 "
        "2009 2010 2011 2400 3001 4005 4008 4010 4011 4025 4027 4028 4030 4034 4035 4036 4037 4050 4051 4052 a023 a024 a033 a034 "
        "a035 a078 a07a a07c a110 a112 a192 a193 a307 a352 a353 a354 a358 b034 b036 b03b b03f db06 db07 e004 e012 0044: 0004 000b "
        "0010 0105 0050: 001b 0020 0021 006a: 0006 0070: 0082 0083 0086 0074: 1234 1236 0088: 0200 0904 0906 0910 0912 0100: 0420 "
        "0400: 0310 0402 0403 0404 0550 0551 0552 0561 0600 2030: 0020 2100: 0040 0050 0070 3002: 0121 0123 3006: 0004 0006 0028 "
        "002d 002e 0038 004d 004e 0085 0088 300a: 0003 0004 000b 000e 0016 0072 00c3 00dd 0196 01a6 01b2 0216 02eb 0676 078e 0792 "
        "0794 079a 300c: 0113 3010: 0036 0037 0061 0085 4000: 0010 4000 4008: 0040 0042 0100 0101 0102 0108 0109 010a 010b 010c "
        "0111 0112 0113 0114 0115 0118 0119 011a 0200 0202 0300 4000 fffa: fffa fffc: fffc"
    ),
    "D": (
        "0012: 0010 0020 0040 0042 0081 0018: 11bb 9074 9151 9367 9369 936a 9371 9623 9701 9804 0034: 0001 0002 0005 0007 003a: "
        "0314 0040: 0512 0551 1101 a027 a030 a073 a075 a120 a121 a122 a123 a13a a730 0042: 0011 0044: 0104 0068: 6226 6270 006a: "
        "0003 0005 0070: 0001 0006 0072: 000a 005e 005f 0061 0063 0065 0066 0068 006a 006b 006c 006d 006e 0070 0071 0400: 0105 "
        "0115 0562 0563 0565 2100: 0140 3006: 0002 3008: 0024 0025 0162 0164 0166 0168 300a: 0002 022c 022e 0608 0619 0623 062a "
        "067c 0734 0736 073a 0741 0742 0760 0783 300c: 0127 3010: 002d 0033 0034 0035 0038 0054"
    ),
    "Z": (
        "0008: 0020 0030 0050 0090 009c 0010: 0010 0030 0040 0012: 0021 0030 0031 0050 0060 0018: 1203 0020: 0010 0040: 0513 0562 "
        "0610 2016 2017 a082 a088 0400: 0564 3006: 0008 0009 0026 00a6 300a: 0611 0615 067d 300e: 0004 0005 3010: 000f 0017 001b "
        "0043 005a 005c 007a 007b 007f 0081"
    ),
    "Z/D": "0008: 0023 0033 0010: 0020 0018: 0010 9919 0070: 0084",
    "X/Z": "0008: 0022 0032 1110 0010: 2203 0032: 1060 0040: 0555 2200: 0002 0005 3008: 0105 300a: 00b2 300e: 0008",
    "X/D": (
        "0008: 0012 0021 0031 1072 0018: 1030 1400 700a 700c 700e 9516 9517 0040: a032 b020 3008: 0054 0056 0250 0251 300a: 0006 "
        "0007 3010: 004c 004d 0056 0077"
    ),
    "X/Z/D": "0008: 0013 002a 0080 0082 1010 1070 1111 0018: 1000",
}


def _parse_tags(text: str) -> Iterator[int]:
    group = 0
    for word in text.split():
        if word.endswith(":"):
            group = int(word[:-1], 16) << 16
        else:
            yield group | int(word, 16)


ACTIONS: dict[int, str] = {tag: action for action, text in _TABLE.items() for tag in _parse_tags(text)}
# Attributes, in the table or not, that identify a person or give a contact. Names are recognised by their VR.
_DIRECT = frozenset(
    _parse_tags(
        "0008: 0092 0094 0010: 0011 0012 0013 0014 0015 0016 0033 0034 1000 1040 1050 1090 2154 2155 0038: 0010 0060 "
        "0040: 1102 1103 1104 2010 a353 a354 0042: 0011"
    )
)
_NAME, _ID, _BIRTH, _AGE = 0x00100010, 0x00100020, 0x00100030, 0x00101010
_CHARACTERS = 0x00080005
_TRIAL = tuple(_parse_tags("0012: 0010 0020 0021 0030 0031"))  # attributes of a clinical trial that may contain the pseudonym
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_DATES, _NUMBERS = ("DA", "DT"), ("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV", "AT", "TM")
_OWN_VERSION = (0x00020012, 0x00020013)  # of the program that wrote the file
_TEXTS = ("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT")
_DUMMIES = frozenset(
    ["anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "pseudonymized", "pseudonymised", "removed", "withheld",
     "none", "null", "na", "nn", "unknown", "noname", "notavailable", "notapplicable", "patient", "test", "phantom",
     "x", "xx", "xxx", "xxxx", "0", "00", "000", "0000"]
)  # fmt: skip
_DATES_MOVED = ("113107",)  # codes of PS3.16 CID 7050 in (0012,0064): the option Retain Longitudinal Temporal Information Modified Dates
_SAFE_PRIVATE = ("CTP",)  # written by the de-identifying tool itself: collection and site code
_CAMERA = ("US", "XC", "ES", "OT", "SC", "GM", "OP", "DOC", "IVUS")  # modalities whose devices draw text into the pixels
_MAX_DEPTH, _MAX_ELEMENTS = 32, 200_000  # nested sequences; items and elements in all
_MAX_ITEM_ELEMENTS = 20_000  # elements of one item
_TOO_MANY = "has too many elements to be checked"
_ITEM = b"\xfe\xff\x00\xe0"


# For a file that is not: stop reading; exclude the file, or with strict also one of which a person has to check something; log a warning.
Deidentification = Literal["refuse", "strict", "quarantine", "warn"]


@dataclass
class _Check:
    search: Search
    codes: set[str]  # allowed values of a name: pseudonym, patient id, values of the trial attributes
    pseudonym: str | None
    shifted: bool  # the file declares that dates were shifted or removed
    safe_private: Collection[str]
    found: list[Finding] = field(default_factory=list)
    elements: int = 0  # checked so far
    memo: dict[Any, Any] | None = None

    def add(self, tag: int, keyword: str, where: str, why: str, severity: Severity) -> None:
        self.found.append(Finding(tag, keyword, where, why, severity))


def findings(
    source: Path | Dataset,
    *,
    identifiers: Sequence[str] = (),
    pseudonym: str | None = None,
    path: Path | None = None,
    safe_private: Collection[str] = (),
    max_mb: int = MAX_MB,
) -> list[Finding]:
    """The findings in file order; an empty list means that the file is de-identified as far as its header shows.

    Args:
        source: a file, or the ``Dataset`` that pydicom read from it.
        identifiers: names, numbers and dates of the person, as the hospital writes them. They are searched for everywhere, file name,
            private blocks and preamble included; case, accents, punctuation and the order of words do not matter.
        pseudonym: the person's id in the site's table; the file's Patient ID must equal it.
        path: the file of a ``Dataset``, for its name.
        safe_private: private creators whose text the site has reviewed.
        max_mb: size limit of the file in MB of 2**20 bytes.

    Raises:
        ItemError: the file is not DICOM, unreadable or too large.
        InputError: an identifier has fewer than two letters or digits and would be found everywhere.
    """
    for identifier in identifiers:
        if len(squeezed(identifier)) < 2:
            raise InputError("an identifier to search for has fewer than two letters or digits; remove it.")
    path = source if isinstance(source, Path) else path
    name = path or Path("dataset")
    with reading(name):
        dataset = open_dataset(source, max_mb=max_mb) if isinstance(source, Path) else source
        stated = [str(dataset.get(tag).value) for tag in (_ID, *_TRIAL) if tag in dataset]
        check = _Check(
            search=Search(identifiers),
            codes={squeezed(v) for v in (*stated, pseudonym or "")} - {""},
            pseudonym=pseudonym,
            shifted=str(dataset.get("LongitudinalTemporalInformationModified") or "") in ("MODIFIED", "REMOVED")
            or any(str(c.get("CodeValue")) in _DATES_MOVED for c in dataset.get("DeidentificationMethodCodeSequence") or []),
            safe_private=(*_SAFE_PRIVATE, *safe_private),
            memo=None if identifiers else memo(),
        )
        if path is not None and check.search.hit(str(path)):
            check.add(0, "", "file name", "contains an identifier that was searched for", Severity.REFUSE)
        _preamble(getattr(dataset, "preamble", None) or b"", check)
        if hasattr(dataset, "file_meta"):
            _walk(dataset.file_meta, "", 0, check)
        _statements(dataset, check)
        _walk(dataset, "", 0, check)
        return check.found


def require_de_identified(
    source: Path, *, identifiers: Sequence[str] = (), pseudonym: str | None = None, safe_private: Collection[str] = (), strict: bool = False
) -> list[Finding]:
    """The findings of severity ``review``.

    Raises:
        ItemError: not-de-identified: a finding has severity ``refuse``, or with ``strict`` any; or as ``findings``.
    """
    found = findings(source, identifiers=identifiers, pseudonym=pseudonym, safe_private=safe_private)
    if worst := [f for f in found if strict or f.severity is Severity.REFUSE]:
        raise ItemError(
            Unusable.NOT_DE_IDENTIFIED,
            f"{source}: is not de-identified, {len(worst)} findings, the first in {worst[0].where}: {worst[0].why}.",
        )
    return found


def _statements(dataset: Dataset, check: _Check) -> None:
    """Checks what the file declares about its de-identification (PS3.3 sections C.12.1 and C.7.6.1)."""
    removed = str(dataset.get("PatientIdentityRemoved") or "")
    if removed != "YES":
        why, severity = ("says that it is not", Severity.REFUSE) if removed == "NO" else ("does not say that it is", Severity.REVIEW)
        check.add(0x00120062, "PatientIdentityRemoved", "PatientIdentityRemoved", f"{why} de-identified", severity)
    elif not dataset.get("DeidentificationMethod") and not dataset.get("DeidentificationMethodCodeSequence"):
        check.add(0x00120063, "DeidentificationMethod", "DeidentificationMethod", "does not say how it was de-identified", Severity.REVIEW)
    burned = str(dataset.get("BurnedInAnnotation") or "")
    drawn = str(dataset.get("Modality") or "") in _CAMERA or bool(dataset.get("ConversionType"))
    if burned == "YES" or (not burned and drawn):
        why, severity = ("text is drawn", Severity.REFUSE) if burned else ("text may be drawn", Severity.REVIEW)
        check.add(0x00280301, "BurnedInAnnotation", "BurnedInAnnotation", f"{why} into the pixels", severity)
    if str(dataset.get("RecognizableVisualFeatures") or "") == "YES":
        keyword = "RecognizableVisualFeatures"
        check.add(0x00280302, keyword, keyword, "the person may be recognised by the image", Severity.REVIEW)
    if str(dataset.get("SpecimenLabelInImage") or "") == "YES" or "LABEL" in str(dataset.get("ImageType") or ""):
        check.add(0x00080008, "ImageType", "ImageType", "a photograph of the label of a slide", Severity.REFUSE)


def _preamble(preamble: bytes, check: _Check) -> None:
    if text := printable(preamble):
        hit = check.search.hit(text)
        why, severity = ("contains an identifier that was searched for", Severity.REFUSE) if hit else ("contains text", Severity.REVIEW)
        check.add(0, "", "preamble", why, severity)


def _walk(dataset: Dataset, where: str, depth: int, check: _Check) -> bool:
    """Checks every element; True if an element other than a UID has a value."""
    from pydicom.datadict import keyword_for_tag

    filled = False
    check.elements += len(dataset)
    if len(dataset) > _MAX_ITEM_ELEMENTS or check.elements > _MAX_ELEMENTS:
        if not check.found or check.found[-1].why != _TOO_MANY:
            check.add(0, "", where.rstrip(".") or "dataset", _TOO_MANY, Severity.REFUSE)
        return True
    for tag in sorted(dataset.keys()):
        number, raw = int(tag), cast(Any, dataset.get_item(tag))
        keyword = keyword_for_tag(tag)
        here = where + (keyword or f"({number >> 16:04X},{number & 0xFFFF:04X})")
        if number in _PIXELS:
            continue
        key = _same(number, raw, dataset, check) if not where and check.memo is not None else None
        if check.memo is not None and key in check.memo:
            known, has_value = check.memo[key]
            check.found += known
        else:
            before = len(check.found)
            has_value = _element(dataset, tag, (keyword, here), depth, check)
            if check.memo is not None and key is not None:
                check.memo[key] = check.found[before:], has_value
        filled = filled or has_value
    return filled


def _same(tag: int, raw: Any, dataset: Dataset, check: _Check) -> tuple[Any, ...] | None:
    """Equal for elements of several files in which the same is found, whatever else the files hold; None if that is not known."""
    if not isinstance(raw.value, bytes) or len(raw.value) > MAX_DECODED:
        return None
    around = [dataset.get_item(key) for key in (_CHARACTERS, (tag & 0xFFFF0000) | (tag & 0xFFFF) >> 8) if key in dataset and key != tag]
    values = [one.value if isinstance(one.value, bytes) else str(one.value) for one in cast(Any, around)]
    return (tag, str(raw.VR), raw.value, *values, check.pseudonym, check.shifted, *sorted(check.codes), *check.safe_private)


def _element(dataset: Dataset, tag: Any, named: tuple[str, str], depth: int, check: _Check) -> bool:
    """Checks one element, ``named`` (keyword, path); True if it has a value and is no UID."""
    number, raw, (keyword, here) = int(tag), cast(Any, dataset.get_item(tag)), named
    if isinstance(raw.value, bytes) and raw.value.count(_ITEM) > _MAX_ELEMENTS:
        check.add(number, keyword, here, "has too many items to be checked", Severity.REFUSE)
        return False
    try:
        element = dataset[tag]
        vr, value = str(element.VR), element.value
    except Exception:  # pydicom cannot parse the value as its type (VR); it may still hold a name: search its bytes
        vr, value = "UN", raw.value
    if vr == "SQ":
        if depth >= _MAX_DEPTH:
            check.add(number, keyword, here, "is nested too deeply to be checked", Severity.REFUSE)
            return False
        inner = [_walk(item, f"{here}[{n}].", depth + 1, check) for n, item in enumerate(value or [])]
        if any(inner) and number in ACTIONS:
            check.add(number, keyword, here, "the profile removes this sequence, and it is not empty", Severity.REVIEW)
        return any(inner)
    data = bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None
    text = text_of(value) if data is None else readable(data)
    if data and not text and any(data) and (_repeating(number) or number in ACTIONS or number in _DIRECT):
        text = "bytes"
    judged = _judge(number, vr, text, dataset, check) if text else None
    if check.search.hit(text if data is None else f"{text} {decodings(data)}"):
        judged = "contains an identifier that was searched for", Severity.REFUSE
    if judged is not None:
        check.add(number, keyword, here, *judged)
    return bool(text) and vr != "UI"


def _judge(tag: int, vr: str, text: str, dataset: Dataset, check: _Check) -> tuple[str, Severity] | None:
    group, known = tag >> 16, tag in ACTIONS
    if vr == "UI":
        return _uid(text)
    if group == 2 and tag != 0x00020102:
        return _free(text) if tag not in _OWN_VERSION else None
    if vr == "PN":
        if not _coded(text, check):
            return "a name that is not a pseudonym", Severity.REFUSE
        return ("a person's code", Severity.REVIEW) if tag != _NAME and not _dummy(text) else None
    if tag == _ID:
        return _patient_id(text, check)
    if tag in _DIRECT:
        return None if _dummy(text) or text == check.pseudonym else ("identifies a person or gives a contact", Severity.REFUSE)
    if vr in _DATES:
        return _date(tag, text, check)
    if vr == "TM":
        return None if check.shifted or not known or not text.strip("0.") else ("the profile removes times", Severity.REVIEW)
    if tag == _AGE and re.fullmatch(r"0?(9\d|1\d\d)Y", text):
        return "an age of 90 or more", Severity.REFUSE
    if group % 2:
        return _private(tag, vr, text, dataset, check)
    if _repeating(tag) or known or tag == 0x00020102:
        return None if _dummy(text) else ("the profile removes this attribute, it may identify the person", Severity.REVIEW)
    return ("an attribute that is not in the standard, with text", Severity.REVIEW) if vr == "UN" else _free(text) if vr in _TEXTS else None


def _uid(text: str) -> tuple[str, Severity] | None:
    if any(c.isalpha() for c in text):
        return "a UID with letters", Severity.REFUSE
    return ("a UID with a date", Severity.REVIEW) if any(dated_uid(uid) for uid in text.split("\\")) else None


def _free(text: str) -> tuple[str, Severity] | None:
    """What the rules for free text find in an attribute that the profile keeps."""
    found = [kind for kind in kinds_in(text, pairs=False) if kind is not Kind.TIME]
    return (str(found[0]), severity_of(found[0])) if found else None


def _repeating(tag: int) -> bool:
    group, element = tag >> 16, tag & 0xFFFF
    return group & 0xFF01 == 0x5000 or (group & 0xFF01 == 0x6000 and element in (0x3000, 0x4000))


def _patient_id(text: str, check: _Check) -> tuple[str, Severity] | None:
    if _dummy(text) or text == check.pseudonym:
        return None
    if check.pseudonym is not None:
        return "is not the person's id in the site's table", Severity.REFUSE
    if not any(c.isdigit() for c in text):
        return "reads like a name", Severity.REFUSE
    return "may be the hospital's patient number: no pseudonym was given to compare it with", Severity.REVIEW


def _date(tag: int, text: str, check: _Check) -> tuple[str, Severity] | None:
    days = [d for d in text.split("\\") if d[4:8] not in ("", "0101", "0000")]  # 1 January usually stands for a year alone
    if not days:
        return None
    if tag == _BIRTH:
        return "a date of birth" + (", declared as shifted" if check.shifted else ""), Severity.REVIEW if check.shifted else Severity.REFUSE
    if check.shifted:
        return None
    return (
        "a date, and the file does not declare that dates were shifted or removed",
        Severity.REFUSE if tag in ACTIONS else Severity.REVIEW,
    )


def _private(tag: int, vr: str, text: str, dataset: Dataset, check: _Check) -> tuple[str, Severity] | None:
    if 0x10 <= tag & 0xFFFF <= 0xFF or vr in _NUMBERS:  # a private creator, or a number
        return _free(text) if vr not in _NUMBERS else None
    owner = dataset.get((tag >> 16, (tag & 0xFFFF) >> 8))
    if owner is not None and str(owner.value).strip() in check.safe_private:
        return None
    if found := _free(text):
        return found
    return None if _dummy(text) or not any(c.isalpha() for c in text) else ("private text", Severity.REVIEW)


def _dummy(text: str) -> bool:
    return all(squeezed(part) in _DUMMIES or not squeezed(part) for part in re.split(r"[\\^=]", text))


def _coded(text: str, check: _Check) -> bool:
    """True if every component of a name is a dummy, a code (with a digit), or one of ``check.codes``."""
    parts = [p for p in re.split(r"[\\^=]", text) if squeezed(p)]
    return squeezed(text) in check.codes or all(_dummy(p) or any(c.isdigit() for c in p) or squeezed(p) in check.codes for p in parts)
