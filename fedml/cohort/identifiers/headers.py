"""Identifiers in headers of volumes and of pictures, and in files beside them: NIfTI (fields and extensions), NRRD, PNG, JPEG, TIFF with
its relatives of whole slides, JSON and other texts. Headers are read here as bytes, within bounds, by no decoder.

    for finding in findings_of(Path("p1.nii.gz")):
        finding.where, finding.why          # ("descrip", "a name of a person"); never the value
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fedml.cohort.identifiers.rules import Finding, Search, Severity, found_in

_TEXT = 2**20  # bytes of a text or an extension that are looked at
_ENDINGS = (".json", ".txt", ".csv", ".tsv", ".xml", ".html", ".htm", ".md", ".log", ".yaml", ".yml", ".ini", ".rtf", ".bval", ".bvec")
_CHUNKS = 100_000
_NRRD_COMMENT = re.compile(r"NRRD file format|teem\.sourceforge\.net|^#?\s*$")
# Programs write these into descrip, aux_file and intent_name; what else stands there a person has to look at.
_TOOLS = re.compile(
    r"(?:FSL|SPM|AFNI|ANTs|ITK|FreeSurfer|dcm2nii\w*|nibabel|SimpleITK|Mricron|mrtrix|MRtrix|NiftyReg|c3d|Time|TE|TR|FA|phase|mb|"
    r"version|estimates|Estimates|none|None)(?![^\W\d_])[\w .:;=()+,/-]*"
)  # fmt: skip
# Keys of BIDS sidecars and of exports that name a person, an institution, or a moment (BIDS 1.9; dcm2niix's own).
_PERSON_KEYS = re.compile(
    r"patient.*(name|id|birth|address|number)|^(name|mrn|ssn|surname|firstname|lastname|dateofbirth|dob|birth_?date|address|phone|email|"
    r"accession\w*|other\w*id\w*|(performing|referring|requesting|operator)\w*(name|physician)?s?\w*|physician\w*|studyid)$", re.IGNORECASE,
)  # fmt: skip
_PLACE_KEYS = re.compile(r"^(institution|station|hospital|department|deviceserial|serialnumber|device_?serial)\w*", re.IGNORECASE)
_TIME_KEYS = re.compile(r"(date|time|datetime)$", re.IGNORECASE)
_DURATIONS = re.compile(
    r"(repetition|echo|inversion|delay|dwell|exposure|acquisitionduration|readout|slice|frame|trigger|total)\w*time$", re.IGNORECASE
)
_UID_KEYS = re.compile(r"uid$", re.IGNORECASE)
# TIFF: ASCII tags that describe software and pixels only (TIFF 6.0, 8) need no look.
_PLAIN_TAGS = {305: "Software", 271: "Make", 272: "Model"}
_TAGS = {
    269: "DocumentName", 270: "ImageDescription", 285: "PageName", 306: "DateTime", 315: "Artist", 316: "HostComputer", 700: "XMP",
    33432: "Copyright", 34377: "Photoshop", 33723: "IPTC", 36867: "DateTimeOriginal", 36868: "DateTimeDigitized", 37510: "UserComment",
    40091: "XPTitle", 40092: "XPComment", 40093: "XPAuthor", 40094: "XPKeywords", 40095: "XPSubject", 42016: "ImageUniqueID",
    42032: "CameraOwnerName", 42033: "BodySerialNumber", 65427: "NDPI scan info", 65449: "NDPI properties", 65468: "NDPI barcode",
    65442: "NDPI serial number", 65440: "NDPI stitching", 65433: "NDPI reserved",
}  # fmt: skip
_POINTERS = {330: "SubIFD", 34665: "EXIF", 34853: "GPS", 40965: "interoperability"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_DIRECTORIES, _ENTRIES = 256, 4096


def findings_of(path: Path, search: Search | None = None) -> list[Finding]:
    """The findings in the header of a file that is not DICOM, in file order. What cannot be read is a finding: no one knows what it holds.

    Raises:
        OSError: the file cannot be read.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
            return list(_nifti(path, search))
        if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
            return list(_lines(_start(path), search))
        if name.endswith(_ENDINGS):
            return list(_text_file(path, search))
        with path.open("rb") as file:
            return list(_picture(file, search))
    except (struct.error, ValueError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError):
        return [Finding(0, "", "header", "cannot be read, so no one knows what it holds", Severity.REVIEW)]


def _start(path: Path, size: int = _TEXT) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return file.read(size)
        with gzip.GzipFile(fileobj=file) as unpacked:
            return unpacked.read(size)


def _readable(data: bytes) -> str:
    """The text in bytes, of any of the usual encodings."""
    data = data.strip(b"\0")
    if data.count(b"\0") * 3 > len(data):  # UTF-16
        return data.decode("utf-16-le", "ignore").replace("\0", " ")
    try:
        return data.decode("utf-8").replace("\0", " ")
    except UnicodeDecodeError:
        return data.decode("latin-1").replace("\0", " ")


def _nifti(path: Path, search: Search | None) -> Iterator[Finding]:
    data = _start(path, 544)
    if len(data) < 348:
        return
    order = "<" if struct.unpack("<i", data[:4])[0] in (348, 540) else ">"
    second = struct.unpack(order + "i", data[:4])[0] == 540
    fields = (
        {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)}
        if second
        else {"data_type": (4, 10), "db_name": (14, 18), "descrip": (148, 80), "aux_file": (228, 24), "intent_name": (328, 16)}
    )
    for field, (at, length) in fields.items():
        text = _readable(data[at : at + length].partition(b"\0")[0]).strip()
        behind = _readable(data[at : at + length].partition(b"\0")[2].strip(b"\0")).strip()
        yield from found_in(text, field, search, free=not _TOOLS.fullmatch(text) and field != "data_type")
        if sum(c.isalpha() for c in behind) > 2:
            yield from found_in(behind, f"{field}, behind its end", search, free=True)
    at = 540 if second else 348
    if len(data) >= at + 4 and data[at]:
        offset = int(struct.unpack(order + "q", data[168:176])[0] if second else struct.unpack(order + "f", data[108:112])[0])
        yield from _extensions(_start(path, min(max(offset, 0), _TEXT)), at + 4, order, search)


def _extensions(data: bytes, at: int, order: str, search: Search | None) -> Iterator[Finding]:
    """NIfTI extensions: esize, ecode, then the content; of ecode 2 (DICOM), 4 (AFNI), 6 (comment), 44 (MRS, JSON) and others."""
    while at + 8 <= len(data):
        size, code = struct.unpack(order + "ii", data[at : at + 8])
        if size < 8:
            return
        text = _readable(data[at + 8 : at + size])
        yield from found_in(text, f"extension of code {code}", search, free=True)
        at += size


def _lines(data: bytes, search: Search | None) -> Iterator[Finding]:
    """NRRD, MetaImage: lines ``key: value``, ``key:=value`` or ``key = value`` up to an empty one, and comments."""
    header = re.split(rb"\r?\n\r?\n|ElementDataFile", data, maxsplit=1)[0]
    for line in _readable(header).splitlines():
        found = re.match(r"\s*([\w /.-]{1,80}?)\s*(:=|:|=)\s*(.*)", line)
        if found and not line.startswith("#"):
            shown = found[1] if not found_in(found[1], "") else "a key"
            yield from keyed(found[1], found[3], shown, search, free=found[2] == ":=" or found[1] == "content")
        elif not line.startswith("NRRD"):
            yield from found_in(line, "comment", search, free=True) if not _NRRD_COMMENT.search(line) else ()


def _text_file(path: Path, search: Search | None) -> Iterator[Finding]:
    data = _start(path, 8 * _TEXT)
    text = _readable(data)
    if path.suffix.lower() == ".json":
        yield from _json(json.loads(text), "", search)
    elif path.suffix.lower() not in (".bval", ".bvec"):
        yield from found_in(text[: 2**16], "text", search, free=True)


def _json(value: Any, where: str, search: Search | None, depth: int = 0) -> Iterator[Finding]:
    if depth > 32:
        yield Finding(0, "", where, "is nested too deeply to be checked", Severity.REVIEW)
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{where}.{key}" if where else str(key)
            shown = here if not found_in(str(key), "", search) else f"{where}.(a key)"
            if isinstance(inner, dict):
                yield from _json(inner, shown, search, depth + 1)
            elif isinstance(inner, list) and any(isinstance(one, dict | list) for one in inner):
                for one in inner[:1000]:
                    yield from _json(one, shown, search, depth + 1)
            elif inner is not None and inner != "" and inner != []:
                yield from keyed(str(key), " ".join(map(str, inner)) if isinstance(inner, list) else str(inner), shown, search)
    elif isinstance(value, list):
        for one in value[:1000]:
            yield from _json(one, where, search, depth + 1)
    elif isinstance(value, str):
        yield from found_in(value, where, search, free=True)


def keyed(key: str, value: str, where: str, search: Search | None, *, free: bool = False) -> list[Finding]:
    """Findings of a value whose key says what it is."""
    where, compact = where or key, re.sub(r"[\W_]", "", key)
    if not value.strip() or value.strip().casefold() in ("n/a", "na", "none", "unknown", "anonymous", "anonymized", "removed", "0"):
        return []
    if _PERSON_KEYS.search(key) or _PERSON_KEYS.search(compact):
        return [Finding(0, "", where, "its key names a person, an identifying number or a date of birth", Severity.REFUSE)]
    found = found_in(value, where, search, free=free)
    if not found and _PLACE_KEYS.search(compact):
        return [Finding(0, "", where, "its key names an institution or a device", Severity.REVIEW)]
    if not found and _TIME_KEYS.search(compact) and not _DURATIONS.search(compact):
        return [Finding(0, "", where, "its key names a date or a time", Severity.REVIEW)]
    if not found and _UID_KEYS.search(compact):
        return [Finding(0, "", where, "a UID of the hospital's file", Severity.REVIEW)]
    return found


# --- pictures


def _picture(file: BinaryIO, search: Search | None) -> Iterator[Finding]:
    start = file.read(16)
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _png(file, search)
    elif start[:2] == b"\xff\xd8":
        yield from _jpeg(file, search)
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        yield from _tiff(file, 0, search)


def _png(file: BinaryIO, search: Search | None) -> Iterator[Finding]:
    file.seek(8)
    for _ in range(_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        (length,), name = struct.unpack(">I", head[:4]), head[4:]
        if name in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"):
            data = file.read(min(length, _TEXT))
            file.seek(max(length - _TEXT, 0) + 4, 1)
            yield from _png_text(name, data, search)
        else:
            file.seek(length + 4, 1)
        if name == b"IEND":
            if behind := file.read(_TEXT).strip(b"\0"):
                yield from found_in(_runs(behind), "behind the end of the picture", search, free=True)
            return


def _png_text(name: bytes, data: bytes, search: Search | None) -> Iterator[Finding]:
    if name == b"eXIf":
        yield from _embedded(data, search)
        return
    if name == b"tIME":
        yield Finding(0, "", "tIME", "a date", Severity.REVIEW)
        return
    key, _, rest = data.partition(b"\0")
    if name == b"zTXt":
        rest = _unpacked(rest[1:])
    elif name == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
        rest = _unpacked(rest) if packed else rest
    word = _readable(key)
    shown = (
        word
        if word
        in ("Title", "Author", "Description", "Copyright", "Creation Time", "Software", "Disclaimer", "Warning", "Source", "Comment")
        else "text"
    )
    yield from keyed(word, _readable(rest), shown, search, free=word != "Software")
    yield from found_in(word, "keyword of a text", search)


def _unpacked(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _TEXT)


def _jpeg(file: BinaryIO, search: Search | None) -> Iterator[Finding]:
    file.seek(2)
    for _ in range(_CHUNKS):
        mark = file.read(2)
        if len(mark) < 2 or mark[0] != 0xFF or mark[1] in (0xD9, 0xDA):
            return
        if mark[1] == 0xFF:
            file.seek(-1, 1)
            continue
        (length,) = struct.unpack(">H", file.read(2))
        data = file.read(max(length - 2, 0))
        if mark[1] == 0xFE:
            yield from found_in(_readable(data), "comment", search, free=True)
        elif mark[1] == 0xE1 and data[:6] == b"Exif\0\0":
            yield from _embedded(data[6:], search)
        elif mark[1] == 0xE1:
            yield from found_in(_xml_text(data), "XMP", search, pairs=False)
        elif mark[1] == 0xED:
            yield from found_in(_runs(data), "IPTC", search, free=True)


def _embedded(data: bytes, search: Search | None) -> Iterator[Finding]:
    """EXIF: a TIFF file within another."""
    import io

    yield from _tiff(io.BytesIO(data), 0, search)


def _tiff(file: BinaryIO, begin: int, search: Search | None) -> Iterator[Finding]:
    """The text tags of every directory of a TIFF file, of its sub-directories, and where it has a position on Earth (TIFF 6.0; BigTIFF)."""
    file.seek(begin)
    start = file.read(16)
    order, big = "<" if start[:1] == b"I" else ">", start[2:4] in (b"+\0", b"\0+")
    number, place = ("Q", "Q") if big else ("H", "I")
    wide = struct.calcsize(place)
    (first,) = struct.unpack(order + place, start[8:16] if big else start[4:8])
    waiting, visited = [(first, "")], set[int]()
    while waiting:
        at, within = waiting.pop(0)
        if not at or at in visited or len(visited) >= _DIRECTORIES:
            continue
        visited.add(at)
        file.seek(at)
        (count,) = struct.unpack(order + number, file.read(struct.calcsize(number)))
        if count > _ENTRIES:
            raise ValueError("too many entries")
        entries = [file.read(4 + 2 * wide) for _ in range(count)]
        behind = file.read(wide)
        if len(behind) == wide:
            waiting.append((struct.unpack(order + place, behind)[0], within))
        for entry in entries:
            code, kind, length = struct.unpack(order + "HH" + place, entry[: 4 + wide])
            size = _SIZES.get(kind, 0) * length
            if code in _POINTERS and size:
                pointers = _values(file, entry[4 + wide :], size, wide, order + place)
                step = {4: "I", 13: "I", 8: "Q", 16: "Q", 18: "Q"}.get(kind, "I")
                many = len(pointers) // struct.calcsize(step)
                waiting += [
                    (one, _POINTERS[code]) for one in struct.unpack(f"{order}{many}{step}", pointers[: many * struct.calcsize(step)])
                ]
                if code == 34853:
                    yield Finding(0, "", "GPS", "a place on Earth", Severity.REFUSE)
            elif (kind in (2, 7) or code in _TAGS) and code not in _PLAIN_TAGS and size > 2 and within != "GPS":
                if kind != 2 and code not in _TAGS:
                    continue
                yield from _tag(code, _values(file, entry[4 + wide :], min(size, _TEXT), wide, order + place), search)


def _values(file: BinaryIO, inline: bytes, size: int, wide: int, form: str) -> bytes:
    if size <= wide:
        return inline[:size]
    file.seek(struct.unpack(form, inline)[0])
    return file.read(min(size, _TEXT))


def _tag(code: int, data: bytes, search: Search | None) -> Iterator[Finding]:
    where = _TAGS.get(code, f"tag {code}")
    if code in (700, 34377, 33723):
        yield from found_in(_xml_text(data) if code == 700 else _runs(data), where, search, pairs=False)
        return
    if code in (36867, 36868, 306):
        yield Finding(0, "", where, "a date", Severity.REVIEW)
        return
    text = _readable(data.removeprefix(b"ASCII\0\0\0").removeprefix(b"UNICODE\0")).strip()
    if "|" in text and "=" in text:  # Aperio: parts of the form key = value
        for part in text.split("|")[1:]:
            key, _, value = part.partition("=")
            yield from keyed(key.strip(), value.strip(), f"{where}, {_aperio(key.strip())}", search, free=key.strip().casefold() in _PEOPLE)
        yield from found_in(text.split("|")[0], where, search)
    elif text.lstrip().startswith("<"):
        yield from found_in(_xml_text(data), where, search)
    elif re.match(r"\s*\w+=", text) and "\n" in text:  # Hamamatsu: lines of the form key=value
        for line in text.splitlines():
            key, _, value = line.partition("=")
            yield from keyed(key.strip(), value.strip(), f"{where}, {_aperio(key.strip())}", search)
    else:
        yield from found_in(text, where, search, free=code in (269, 270, 285, 315, 316, 37510, 40091, 40092, 40093, 40094, 40095, 42032))


_PEOPLE = ("user", "title", "filename", "slide", "barcode", "imageid", "scanscope id", "description", "label")
_KNOWN = (*_PEOPLE, "date", "time", "created", "updated", "serial number", "parmset", "macro.serialnumber")


def _aperio(key: str) -> str:
    return key if key.casefold() in _KNOWN else "a key"


def _xml_text(data: bytes) -> str:
    """The text and the values of attributes of XML, without parsing it."""
    text = _readable(data)
    values = re.findall(r"=\s*\"([^\"]*)\"", text)
    return " | ".join([*re.findall(r">([^<>]+)<", text), *(v for v in values if "://" not in v)])


def _runs(data: bytes) -> str:
    return " ".join(run.decode("ascii") for run in re.findall(rb"[\x20-\x7e]{4,}", data))
