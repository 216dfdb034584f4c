"""``fedml verify``: checks offline that a bundle is complete and signed, and that every figure in it follows from its counts and events.

    found = verify(Path("run.zip"), fingerprint=None)
    all(check.ok for check in found)

A bundle is not trusted: names and sizes are checked before files are read, and nothing is unpickled or executed. Hashes and signature show
that the bundle was not changed after signing; recomputation also finds changes that were signed with another key. ``docs/evidence.md``
describes what verification cannot show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedml.code.load import forbidden
from fedml.experiments.evidence import analysis, closed, own_code, witnesses
from fedml.experiments.evidence.archive import BadArchive, unpack
from fedml.experiments.evidence.bundle import crate
from fedml.experiments.evidence.checks import Check, Problem, changes, check, check_study, same_files
from fedml.experiments.evidence.contents import (  # fmt: skip
    CRATE,
    FORMAT,
    MANIFEST,
    OF_ANALYSIS,
    REQUIRED,
    SIGNATURE,
    TOML,
    VERSIONS,
    counts_by_site,
    derived,
    is_source,
    record_of,
    requested_again,
    rounds_requested,
    software_text,
)
from fedml.experiments.evidence.recompute import near, value_differs
from fedml.experiments.evidence.signing import check_signature
from fedml.experiments.evidence.words import on_the_signers_word
from fedml.experiments.runs.record import ANALYSES, Record, exchanges
from fedml.runs.events import Final, Round, body
from fedml.runs.log import COUNTS, EVENTS, LAYOUT, MODEL, PANEL, SHARED, STEPS, STUDY, SUMS, plain
from fedml.runs.software import code_digest
from fedml.strategies.chosen import planned
from fedml.study.start import FILE as START
from fedml.study.study import Study
from fedml.tasks.registry import make_task

EXACT = 1e-12
_ONCE = ("start", "agreed", "privacy", "final", "end")
_MOST = 20  # problems listed for one check


@dataclass(frozen=True)
class Verified:
    """The result for a bundle: its checks, its files, and the fingerprint of the key that signed it (empty without a valid signature).
    ``word``: what rests on the signer's word alone; empty if the contents were not read."""

    checks: tuple[Check, ...]
    files: dict[str, bytes]
    fingerprint: str
    word: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


def verify(bundle: Path, fingerprint: str | None = None, keys: Mapping[str, str] | None = None) -> Verified:
    """Runs the checks of a bundle. The contents are checked only if the bundle is complete and signed.

    Args:
        fingerprint: of the key that must have signed the bundle (SHA-256, hexadecimal); None: any key.
        keys: site -> fingerprint of the key that must have signed its answers (``SHA256:...``).

    Raises:
        InputError: the file cannot be read.
    """
    word = ""
    try:
        files = unpack(bundle)
    except BadArchive as error:
        return Verified((Check("container", False, error.file, str(error)),), {}, "")
    found = [Check("container", True, bundle.name, f"{len(files)} files, {sum(map(len, files.values())):,} bytes, no other content")]
    signer, signed = _signature(files, fingerprint)
    found += [signed, *check("hashes", MANIFEST, "every file is unchanged since the manifest was signed", lambda: _hashes(files))]
    required = OF_ANALYSIS if SUMS in files else REQUIRED
    if missing := [name for name in (*required, VERSIONS) if name not in files]:
        found.append(Check("files", False, missing[0], "is missing from the bundle"))
    if not all(check.ok for check in found):  # an incomplete or changed bundle may be hostile and is not parsed further
        return Verified(tuple(found), files, signer)
    try:
        # A bundle may come from anybody: the code in it is compared with the study, and not run.
        with (
            forbidden("it came with a bundle"),
            record_of({name: data for name, data in files.items() if is_source(name)}) as record,
        ):
            of_analysis = record.start.job in ANALYSES
            found += (analysis.checks if of_analysis else _of_record)(files, record, keys or {})
            word = (analysis.word if of_analysis else on_the_signers_word)(record, files.keys(), keys or {})
    except Exception as error:  # a crafted file may raise any error
        found.append(Check("record", False, EVENTS, f"{STUDY}, {EVENTS} and {COUNTS} cannot be read as a run ({type(error).__name__})"))
    return Verified(tuple(found), files, signer, word)


def summary(found: Verified) -> str:
    """One sentence: the first failed check, and the number of the others."""
    wrong = [check for check in found.checks if not check.ok]
    more = f" ({len(wrong) - 1} more checks failed)" if len(wrong) > 1 else ""
    return f"{wrong[0].file}: {wrong[0].text}{more}." if wrong else "every check passed."


def _signature(files: Mapping[str, bytes], fingerprint: str | None) -> tuple[str, Check]:
    if MANIFEST not in files or SIGNATURE not in files:
        return "", Check("signature", False, MANIFEST if MANIFEST not in files else SIGNATURE, "is missing from the bundle")
    try:
        signer = check_signature(files[SIGNATURE], files[MANIFEST], MANIFEST)
    except ValueError as error:
        return "", Check("signature", False, SIGNATURE, str(error))
    if fingerprint is None:
        text = f"signed by the key {signer}; its owner is not verified: compare it with the coordinator's, or give --key or --fingerprint"
        return signer, Check("signature", True, SIGNATURE, text)
    if signer != fingerprint:
        return signer, Check("signature", False, SIGNATURE, f"is by another key: {signer} signed, {fingerprint} is required")
    return signer, Check("signature", True, SIGNATURE, f"signed by the given key, {signer}")


def _hashes(files: Mapping[str, bytes]) -> Iterator[Problem]:
    manifest = json.loads(files[MANIFEST])
    if manifest["format"] != FORMAT:
        yield MANIFEST, f"has the format {manifest['format']!r}; this software reads {FORMAT}"
    rows = {name: data for name, data in files.items() if name not in (MANIFEST, SIGNATURE)}
    for name, data in rows.items():
        if name not in manifest["files"]:
            yield name, "is not in the manifest"
        elif manifest["files"][name] != {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}:
            yield name, "was changed: its SHA-256 or size differs from the manifest"
    for name in manifest["files"].keys() - rows.keys():
        yield str(name)[:100], "is in the manifest but missing from the bundle"
    if manifest.keys() != {"format", "run", "files"}:
        yield MANIFEST, "does not have the keys of a manifest"


def _of_record(files: Mapping[str, bytes], record: Record, keys: Mapping[str, str]) -> Iterator[Check]:
    """The checks of the contents against the sources."""
    same = json.loads(files[VERSIONS])["bundle"]["code_sha256"] == code_digest()
    rounds = len(record.rounds)
    yield from check("form", EVENTS, "nothing is in the record but what a run writes", lambda: closed.form(files))
    yield from check("study", STUDY, f"the study {record.study.study.name}, {record.start.study_sha256}", lambda: _study(files, record))
    if TOML in files:
        yield from check("study as written", TOML, changes(files, record), tuple)
    yield from check("software", EVENTS, software_text(record, json.loads(files[VERSIONS])["bundle"]["code_sha256"]), tuple)
    if (start := record.study.model.start) is not None:
        text = f"the weights with which the model began have the SHA-256 that the study pins, {start.sha256}"
        yield from check("start", START, text, lambda: own_code.start(files, start))
    if record.study.code is not None:
        yield from check("own code", STUDY, own_code.words(record), lambda: own_code.code(files, record))
    yield from check("rounds", EVENTS, f"rounds 1 to {rounds} as planned, each with the roster's sites", lambda: _rounds(record))
    yield from check("averages", EVENTS, "the rounds' metrics over all persons agree with those of the sites", lambda: _averages(record))
    yield from check("journals", EVENTS, _journals_text(record), lambda: _journals(record))
    text = f"has the run's last model, {record.final.weights_sha256}, with the parameters agreed on"
    yield from check("model", MODEL, text, lambda: closed.arrays(files, record))
    text = f"model, first weights, panel, image shape and constants have the digest of the last event, {record.final.meaning_sha256}"
    yield from check("meaning", MODEL, text, lambda: closed.meaning(files, record))
    yield from check("persons", EVENTS, "persons described, counted and trained on are the same", lambda: closed.persons(record))
    text = "columns of the study, of no more persons than were trained on, with the model's constants as their means"
    yield from check("table 1", EVENTS, text, lambda: closed.columns(files, record))
    yield from check("ranges", EVENTS, "every metric, loss and number is one that there can be", lambda: closed.ranges(record))
    yield from check(
        "times", EVENTS, "in order, not before 2020, not in the future, with room for every exchange", lambda: closed.times(record)
    )
    yield from check("engine", EVENTS, f"{record.start.engine}, and journals as it has them", lambda: closed.engine(record))
    yield from check("witnesses", EVENTS, witnesses.summary(record), lambda: witnesses.check(files, record, keys))
    yield from check("metrics", COUNTS, "metrics of the last evaluation follow from the sites' counts to 1e-12", lambda: _metrics(record))
    yield from check("epsilon", EVENTS, _epsilon_text(record), lambda: _epsilon(record))
    try:
        fresh = derived(record)
        fresh[CRATE] = crate(record, {k: v for k, v in files.items() if k not in (CRATE, MANIFEST, SIGNATURE)})
    except Exception as error:  # a crafted file may raise any error
        yield Check("recomputed", False, EVENTS, f"the derived files cannot be recomputed ({type(error).__name__})")
        return
    yield from same_files(files, fresh, [name for name in files if is_source(name) and name not in (STEPS, SUMS, SHARED)], same=same)


def _study(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    yield from check_study(files, record)
    layout = json.loads(files[LAYOUT])
    if layout != {"image_shape": record.agreed.image_shape, "variants": record.agreed.variants}:
        yield LAYOUT, f"has another image shape or number of variants than {EVENTS}"
    if files[PANEL].count(b"\n") != record.agreed.variants:
        yield PANEL, f"has another number of variants than {EVENTS}"


def _rounds(record: Record) -> Iterator[Problem]:
    study, (last, kept) = record.study, planned(record.study, record.rounds)
    expected = list(range(1, last + 1))
    events = [json.loads(line) for line in (record.run / EVENTS).read_bytes().splitlines()]
    kinds = [e["event"] for e in events]
    if any(kinds.count(kind) != 1 for kind in _ONCE) or kinds[0] != "start" or kinds[-1] != "end" or record.status != "finished":
        yield EVENTS, "is not the log of a finished run, from start to end"
    numbers = [e.round for e in record.rounds]
    if numbers != expected or record.final.round != last:
        absent = sorted(set(expected) - set(numbers))
        which = f"round {absent[0]} is missing" if absent else "the numbers of the rounds are not in order"
        yield EVENTS, f"the study plans rounds 1 to {last}; {which}"
    if record.final.kept != kept:
        yield EVENTS, f"the result is of round {record.final.kept}, by the validation metrics it is of round {kept}"
    agreed = record.agreed.sites
    if agreed != [site for site in study.federation.sites if site in agreed]:
        yield EVENTS, "the sites of the agreement are not in the roster, or in another order"
    for event in exchanges(record.rounds, record.final):
        answered, refused = event.sites.keys(), event.refused.keys()
        if answered & refused or not answered <= set(agreed) or answered | refused != _asked(study, event):
            yield EVENTS, f"{event.kind} {event.round}: not every site of the roster either answered or refused"
        if len(answered & set(study.federation.training)) < study.federation.needed:
            yield EVENTS, f"{event.kind} {event.round}: fewer sites than the quorum"
    yield from closed.resumed(record, events)
    times = [e["time"] for e in events]
    if times != sorted(times):
        yield EVENTS, "the times of the events are not in order"


def _asked(study: Study, event: Round | Final) -> set[str]:
    """The sites of an exchange: all at the end, those that train in a round."""
    return set(study.federation.training if isinstance(event, Round) else study.federation.sites)


def _averages(record: Record) -> Iterator[Problem]:
    """Checks metrics that are means over persons: the value over all sites is the mean of the sites' values, weighted by persons. Works for
    every round, although only the counts of the last evaluation are stored."""
    additive = [measure.name for measure in make_task(record.study).measures if measure.additive]
    for event in exchanges(record.rounds, record.final):
        for part, scores in event.metrics.items():
            sites, total = scores["sites"], scores["all"]
            weights = [values["persons"] for values in sites.values()]
            if not near(total["persons"], sum(weights)):
                yield EVENTS, f"{event.kind} {event.round}, {part}: {total['persons']} persons, the sites have {sum(weights)}"
            for name in (n for n in additive if min(weights) > 0 and total.get(n) is not None):
                mean = sum(w * values[name] for w, values in zip(weights, sites.values(), strict=True)) / sum(weights)
                if not near(total[name], mean):
                    yield EVENTS, f"{event.kind} {event.round}, {part}: {name} is {total[name]!r}, the sites' values give {mean!r}"


def _journals_text(record: Record) -> str:
    names = [site.name for site in record.sites if site.journal]
    if not names:
        return "no site reported a journal (a run in one process)"
    return f"journals of {', '.join(names)}: each grows from reply to reply"


def _journals(record: Record) -> Iterator[Problem]:
    for site in record.sites:
        rows = [e.sites[site.name]["journal"] or [] for e in exchanges(record.rounds, record.final) if site.name in e.sites]
        rows = [row for row in rows if row]
        if any(type(n) is not int or n < 1 or len(bytes.fromhex(head)) != 32 for head, n in rows):
            yield EVENTS, f"{site.name}: a reported journal is not a head and a number of entries"
        # A reply has two entries, in and out, so between two replies the journal grows by at least two.
        elif any(later[1] < earlier[1] + 2 or later[0] == earlier[0] for earlier, later in pairwise(rows)):
            yield EVENTS, f"{site.name}: its journal does not grow from reply to reply"


def _metrics(record: Record) -> Iterator[Problem]:
    from fedml.strategies.rounds import groups_of, metrics_of

    counts, recorded = counts_by_site(record), _without_own(body(record.final), record.study)
    for what, fresh in {"metrics": metrics_of(record.study, counts), "groups": groups_of(record.study, counts)}.items():
        if found := value_differs(recorded[what], plain(fresh), what, tolerance=EXACT):
            yield EVENTS, f"{found} according to {COUNTS}"
    if any(site not in record.final.sites for site in counts):
        yield COUNTS, "has counts of a site that did not answer"


def _without_own(recorded: dict[str, Any], study: Study) -> dict[str, Any]:
    """A last evaluation without measures of own code."""
    own = {measure.partition(":")[2] for measure in study.evaluation.metrics}

    def dropped(value: Any) -> Any:
        return {key: dropped(inner) for key, inner in value.items() if key not in own} if isinstance(value, Mapping) else value

    return {key: dropped(value) if key in ("metrics", "groups") else value for key, value in recorded.items()} if own else recorded


def _epsilon_text(record: Record) -> str:
    value = record.privacy.epsilon
    if record.study.privacy.unit == "none":
        return "the study claims no differential privacy"
    if value is None:
        return "no finite epsilon"
    return f"{value:.6g} for a {record.study.privacy.unit}, recomputed from the privacy events"


def _epsilon(record: Record) -> Iterator[Problem]:
    from fedml.strategies.epsilon import privacy_record

    fresh = plain(body(privacy_record(record.study, rounds_requested(record), requested_again(record))))
    if found := value_differs(body(record.privacy), fresh, "privacy"):
        yield EVENTS, f"{found}, recomputed from the study and {len(record.rounds)} rounds"
