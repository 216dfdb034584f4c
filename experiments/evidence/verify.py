"""``fedml verify``: is a bundle whole, signed, and does every figure in it follow from the counts and events in it? Works offline.

    found = verify(Path("run.zip"), fingerprint=None)
    all(check.ok for check in found)

Nothing in a bundle is trusted: names and sizes are checked before anything is read, nothing is unpickled or run. Hashes and the signature
say that nobody has changed it since; recomputation holds also against one who signs anew what was changed. ``docs/evidence.md`` says
what neither can show.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedml.experiments.evidence.archive import BadArchive, unpack
from fedml.experiments.evidence.bundle import crate
from fedml.experiments.evidence.contents import (  # fmt: skip
    AUDIT,
    CRATE,
    FORMAT,
    MANIFEST,
    REQUIRED,
    SIGNATURE,
    TOML,
    VERSIONS,
    asked,
    code_digest,
    counts_by_site,
    derived,
    is_source,
    record_of,
)
from fedml.experiments.evidence.recompute import differs, near, value_differs
from fedml.experiments.evidence.signing import canonical, check_signature
from fedml.experiments.runs.record import Record, exchanges
from fedml.runs.events import body
from fedml.runs.log import COUNTS, EVENTS, LAYOUT, MODEL, PANEL, STUDY, plain

EXACT = 1e-12
_ADDITIVE = ("accuracy", "brier", "log_loss", "mae", "bias")  # of all persons: the mean over sites, weighted by persons
_ONCE = ("start", "agreed", "privacy", "final", "end")
_MOST = 20  # problems of one check that are told

Problem = tuple[str, str]  # file, what is wrong


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``file``: where it is wrong, or what it is about. ``text``: what was found."""

    name: str
    ok: bool
    file: str
    text: str


@dataclass(frozen=True)
class Verified:
    """A bundle that was looked at: its checks, its files, and the fingerprint of the key that signed it (empty if none did)."""

    checks: tuple[Check, ...]
    files: dict[str, bytes]
    fingerprint: str

    @property
    def ok(self) -> bool:
        """Did every check pass?"""
        return all(check.ok for check in self.checks)


def verify(bundle: Path, fingerprint: str | None = None) -> Verified:
    """Every check of a bundle. What it says is looked at only if it is whole and signed.

    Args:
        fingerprint: of the key that must have signed it (SHA-256, hexadecimal).

    Raises:
        InputError: there is no such file.
    """
    try:
        files = unpack(bundle)
    except BadArchive as error:
        return Verified((Check("container", False, error.file, str(error)),), {}, "")
    found = [Check("container", True, bundle.name, f"{len(files)} files, {sum(map(len, files.values())):,} bytes, and nothing else")]
    signer, signed = _signature(files, fingerprint)
    found += [signed, *_check("hashes", MANIFEST, "every file is as it was when the manifest was signed", lambda: _hashes(files))]
    if missing := [name for name in (*REQUIRED, VERSIONS) if name not in files]:
        found.append(Check("files", False, missing[0], "is missing from the bundle"))
    if not all(check.ok for check in found):  # what is not whole is not read any further: less for a hostile file to play with
        return Verified(tuple(found), files, signer)
    try:
        with record_of({name: data for name, data in files.items() if is_source(name)}) as record:
            found += _of_record(files, record)
    except Exception as error:  # what was made to break its reader may raise anything
        found.append(Check("record", False, EVENTS, f"no run can be read from {STUDY}, {EVENTS} and {COUNTS} ({type(error).__name__})"))
    return Verified(tuple(found), files, signer)


def summary(found: Verified) -> str:
    """One sentence: what failed first, and how much else did."""
    wrong = [check for check in found.checks if not check.ok]
    more = f" ({len(wrong) - 1} more after this one)" if len(wrong) > 1 else ""
    return f"{wrong[0].file}: {wrong[0].text}{more}." if wrong else "every check passed."


def _check(name: str, about: str, well: str, look: Callable[[], Iterable[Problem]]) -> list[Check]:
    """The problems that ``look`` finds as failed checks, or one that passed."""
    try:
        wrong = list(look())
    except Exception as error:  # what was made to break its reader may raise anything
        wrong = [(about, f"cannot be made sense of ({type(error).__name__})")]
    return [Check(name, False, _shown(file), _shown(text)) for file, text in wrong[:_MOST]] or [Check(name, True, about, _shown(well))]


def _shown(text: str) -> str:
    """A stranger's words on a terminal: nothing in them moves the cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:400]


def _signature(files: Mapping[str, bytes], fingerprint: str | None) -> tuple[str, Check]:
    if MANIFEST not in files or SIGNATURE not in files:
        return "", Check("signature", False, MANIFEST if MANIFEST not in files else SIGNATURE, "is missing from the bundle")
    try:
        signer = check_signature(files[SIGNATURE], files[MANIFEST], MANIFEST)
    except ValueError as error:
        return "", Check("signature", False, SIGNATURE, str(error))
    if fingerprint is None:
        text = f"signed by the key {signer}; whose it is, is not proven: compare it with the coordinator's, or give --key or --fingerprint"
        return signer, Check("signature", True, SIGNATURE, text)
    if signer != fingerprint:
        return signer, Check("signature", False, SIGNATURE, f"is of another key: {signer} signed, {fingerprint} was to be expected")
    return signer, Check("signature", True, SIGNATURE, f"signed by the key that was given, {signer}")


def _hashes(files: Mapping[str, bytes]) -> Iterator[Problem]:
    told = json.loads(files[MANIFEST])
    if told["format"] != FORMAT:
        yield MANIFEST, f"is of the format {told['format']!r}; this software reads {FORMAT}"
    rows = {name: data for name, data in files.items() if name not in (MANIFEST, SIGNATURE)}
    for name, data in rows.items():
        if name not in told["files"]:
            yield name, "is not in the manifest"
        elif told["files"][name] != {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}:
            yield name, "was changed: its SHA-256 is not the manifest's"
    for name in told["files"].keys() - rows.keys():
        yield str(name)[:100], "is in the manifest and missing from the bundle"
    if told.keys() != {"format", "run", "files"}:
        yield MANIFEST, "is not as a manifest is written"


_OTHER_CODE = (
    "another version of this software made it, so nothing can be said of it: verify with the version that versions.json names, or unpack "
    "the bundle and make a report of your own with `fedml report`"
)


def _of_record(files: Mapping[str, bytes], record: Record) -> Iterator[Check]:
    """What follows from the sources."""
    told = json.loads(files[VERSIONS])
    same = told["bundle"]["code_sha256"] == code_digest()
    rounds = len(record.rounds)
    yield from _check("study", STUDY, f"the study {record.study.study.name}, {record.start.study_sha256}", lambda: _study(files, record))
    if TOML in files:
        yield from _check("study as written", TOML, _changes(files, record), tuple)
    yield from _check("rounds", EVENTS, f"rounds 1 to {rounds} as the study says, each with its sites", lambda: _rounds(record))
    yield from _check("averages", EVENTS, "the rounds' metrics of all persons fit those of the sites", lambda: _averages(record))
    yield from _check("journals", EVENTS, _journals_told(record), lambda: _journals(record))
    yield from _check("model", MODEL, f"its arrays are the run's last, {record.final.weights_sha256}", lambda: _model(files, record))
    yield from _check("metrics", COUNTS, "metrics of the last evaluation follow from the sites' counts to 1e-12", lambda: _metrics(record))
    yield from _check("epsilon", EVENTS, _epsilon_told(record), lambda: _epsilon(record))
    try:
        fresh = derived(record)
        fresh[CRATE] = crate(record, {k: v for k, v in files.items() if k not in (CRATE, MANIFEST, SIGNATURE)})
    except Exception as error:  # what was made to break its reader may raise anything
        yield Check("recomputed", False, EVENTS, f"the bundle's other files cannot be made from it ({type(error).__name__})")
        return
    for name, data in sorted(fresh.items()):
        how = "made anew from the run, and the same"
        if files.get(name) != data:
            how += " but for last digits"
        yield from _check("recomputed", name, how, partial(_same, files, name, data, same))
    for name in sorted(files.keys() - fresh.keys() - {MANIFEST, SIGNATURE, VERSIONS, TOML, AUDIT, *REQUIRED}):
        if not is_source(name):
            yield Check("files", False, name, "is no file of a bundle")


def _same(files: Mapping[str, bytes], name: str, fresh: bytes, same: bool) -> Iterator[Problem]:
    if name not in files:
        yield name, "is missing from the bundle"
    elif found := differs(name, files[name], fresh):
        yield name, found if same else f"{found}; {_OTHER_CODE}"


def _study(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    start = record.start
    # A later version of this software knows more keys, which then have their defaults: what was run is told by the file's own bytes.
    written = json.loads(files[STUDY])
    if canonical(written).rstrip(b"\n") != files[STUDY]:
        yield STUDY, "is not canonical JSON"
    if found := value_differs(written, json.loads(record.study.canonical), "", whole=False):
        yield STUDY, f"{found}: this software reads it otherwise than it is written"
    mark = hashlib.sha256(files[STUDY]).hexdigest()
    if (start.study_sha256, start.seed, start.study) != (mark, record.study.study.seed, record.study.study.name):
        yield STUDY, f"is not the study that was run: {EVENTS} names another hash, seed or name"
    if json.loads(files[MANIFEST])["run"] != record.run_id:
        yield MANIFEST, f"is of another run than {EVENTS}"
    if json.loads(files[VERSIONS])["run"] != start.versions:
        yield VERSIONS, f"gives other versions than {EVENTS}"
    layout = json.loads(files[LAYOUT])
    if layout != {"image_shape": record.agreed.image_shape, "variants": record.agreed.variants}:
        yield LAYOUT, f"gives another image shape or number of variants than {EVENTS}"
    if files[PANEL].count(b"\n") != record.agreed.variants:
        yield PANEL, f"has another number of variants than {EVENTS}"


def _changes(files: Mapping[str, bytes], record: Record) -> str:
    """How the study as it was run differs from its author's file, in words; a file that cannot be read is said to be none."""
    try:
        written = _leaves(tomllib.loads(files[TOML].decode()))
    except Exception:
        return f"cannot be read; {STUDY} is what was run"
    run = _leaves(json.loads(record.study.canonical))
    changed = [key for key, value in written.items() if key not in run or value_differs(value, run[key], "")]
    return f"what was run, {STUDY}, differs from it in: {', '.join(changed)[:200]}" if changed else f"{STUDY} says the same"


def _leaves(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {where: value}
    return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{where}.{key}" if where else str(key)).items()}


def _rounds(record: Record) -> Iterator[Problem]:
    study, planned = record.study, list(range(1, record.study.federation.rounds + 1))
    events = [json.loads(line) for line in (record.run / EVENTS).read_bytes().splitlines()]
    kinds = [e["event"] for e in events]
    if any(kinds.count(kind) != 1 for kind in _ONCE) or kinds[0] != "start" or kinds[-1] != "end" or record.status != "finished":
        yield EVENTS, "is not the log of a finished run, from start to end"
    numbers = [e.round for e in record.rounds]
    if numbers != planned or record.final.round != len(planned):
        absent = sorted(set(planned) - set(numbers))
        which = f"round {absent[0]} is missing" if absent else "their numbers are not in order"
        yield EVENTS, f"the study plans rounds 1 to {len(planned)}, and {which}"
    agreed = record.agreed.sites
    if agreed != [site for site in study.federation.sites if site in agreed]:
        yield EVENTS, "sites agreed that are not in the roster, or in another order"
    for event in exchanges(record.rounds, record.final):
        there, refused = event.sites.keys(), event.refused.keys()
        if there & refused or not there <= set(agreed) or there | refused != set(study.federation.sites):
            yield EVENTS, f"{event.kind} {event.round}: its sites are not those of the roster, each answering or refusing"
        if len(there) < study.federation.needed:
            yield EVENTS, f"{event.kind} {event.round}: fewer sites than the quorum"
    times = [e["time"] for e in events]
    if times != sorted(times):
        yield EVENTS, "its times are not in order"


def _averages(record: Record) -> Iterator[Problem]:
    """A mean over persons of several sites is the sites' means, weighted by their persons: also where the counts were not kept."""
    for event in exchanges(record.rounds, record.final):
        for part, scores in event.metrics.items():
            sites, everybody = scores["sites"], scores["all"]
            weights = [own["persons"] for own in sites.values()]
            if not near(everybody["persons"], sum(weights)):
                yield EVENTS, f"{event.kind} {event.round}, {part}: {everybody['persons']} persons, the sites have {sum(weights)}"
            for name in (n for n in _ADDITIVE if min(weights) > 0 and everybody.get(n) is not None):
                mean = sum(w * own[name] for w, own in zip(weights, sites.values(), strict=True)) / sum(weights)
                if not near(everybody[name], mean):
                    yield EVENTS, f"{event.kind} {event.round}, {part}: {name} is {everybody[name]!r}, the sites' give {mean!r}"


def _journals_told(record: Record) -> str:
    told = [site.name for site in record.sites if site.journal]
    return (
        f"heads of {', '.join(told)}: entries rise, and the last is the record's"
        if told
        else "no site told of a journal (a run in one process)"
    )


def _journals(record: Record) -> Iterator[Problem]:
    for site in record.sites:
        rows = [e.sites[site.name]["journal"] or [] for e in exchanges(record.rounds, record.final) if site.name in e.sites]
        rows = [row for row in rows if row]
        if any(type(n) is not int or n < 1 or len(bytes.fromhex(head)) != 32 for head, n in rows):
            yield EVENTS, f"{site.name}: what it told of its journal is no head with a number of entries"
        # A reply is two entries, in and out, so between two replies the journal has grown by as many.
        elif any(later[1] < earlier[1] + 2 or later[0] == earlier[0] for earlier, later in pairwise(rows)):
            yield EVENTS, f"{site.name}: its journal does not grow from reply to reply"


def _model(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    from safetensors.torch import load

    from fedml.models.fusion import digest

    if digest(load(files[MODEL])) != record.final.weights_sha256:
        yield MODEL, f"is not the run's last model: {EVENTS} names another SHA-256 of its arrays"


def _metrics(record: Record) -> Iterator[Problem]:
    from fedml.strategies.rounds import groups_of, metrics_of

    counts, told = counts_by_site(record), body(record.final)
    for what, fresh in {"metrics": metrics_of(record.study, counts), "groups": groups_of(record.study, counts)}.items():
        if found := value_differs(told[what], plain(fresh), what, tolerance=EXACT):
            yield EVENTS, f"{found} by {COUNTS}"
    if any(site not in record.final.sites for site in counts):
        yield COUNTS, "has counts of a site that did not answer"


def _epsilon_told(record: Record) -> str:
    told = record.privacy.epsilon
    if record.study.privacy.unit == "none":
        return "the study claims no differential privacy"
    return f"{told:.6g} for a {record.study.privacy.unit}, counted anew from what was released" if told is not None else "no finite epsilon"


def _epsilon(record: Record) -> Iterator[Problem]:
    from fedml.strategies.rounds import privacy_record

    fresh = plain(body(privacy_record(record.study, asked(record))))
    if found := value_differs(body(record.privacy), fresh, "privacy"):
        yield EVENTS, f"{found}, counted from the study and {len(record.rounds)} rounds"
