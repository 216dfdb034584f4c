"""The checks of a bundle of an analysis: association, survival, regression, comparison of treatments, table of persons.

The record has the sums of each step as each site sent them. The analysis is computed again from them, and the log, the tables, the plots
and the report are compared with what comes out. ``docs/evidence.md`` lists the checks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

from fedml.contract.witness import Said, agreement_digest, arrays_digest, fingerprint, is_signed, read_witness
from fedml.experiments.evidence.again import Again, again, bare, derived_of_analysis, signers
from fedml.experiments.evidence.bundle import crate
from fedml.experiments.evidence.checks import Check, Problem, changes, check, check_study, same_files
from fedml.experiments.evidence.closed import time_problems, wrong_versions
from fedml.experiments.evidence.contents import ALSO_OF_ANALYSIS, CRATE, OF_ANALYSIS, TOML, VERSIONS, software_text
from fedml.experiments.evidence.publication import AUTHORS
from fedml.experiments.evidence.recompute import value_differs
from fedml.experiments.evidence.schema import wrong_log, wrong_steps
from fedml.experiments.evidence.words import KEYS, PARTLY
from fedml.experiments.runs.record import Record
from fedml.runs.events import Gwas, Outcomes, Step, body
from fedml.runs.log import EVENTS, SHARED, STEPS, SUMS, plain, read_log
from fedml.runs.software import code_digest
from fedml.wire.records import IMAGE_SHAPE, PANEL

_RESULT = {"gwas": "gwas"}  # job -> the event with its figures; of all others it is "outcomes"
UNSIGNED = ("that the sites exist, took part and sent these sums", "the engine, and the journals' heads")
ALWAYS = (
    "the dates and durations",
    "the study's texts (question, purpose, names)",
    "the author's study file",
    "the code and package versions that are stated, and the repository of the study",
    "the sizes of messages of each step",
    "the persons of each part that sites described before the analysis",
)
OF_VARIANTS = ("the table of checks, how many variants matched, and the progress of the association", "the sites' genotype counts")


def checks(files: Mapping[str, bytes], record: Record, keys: Mapping[str, str]) -> Iterator[Check]:
    """The checks of the contents. ``keys``: site -> fingerprint of the key that must have signed each of its answers."""
    bundled = json.loads(files[VERSIONS])["bundle"]["code_sha256"]
    result = _RESULT.get(record.start.job, "outcomes")
    yield from check("form", EVENTS, "nothing is in the record but what a run writes", lambda: _form(files, result))
    text = f"the study {record.study.study.name}, {record.start.study_sha256}"
    yield from check("study", EVENTS, text, lambda: check_study(files, record))
    if TOML in files:
        yield from check("study as written", TOML, changes(files, record), tuple)
    yield from check("software", EVENTS, software_text(record, bundled), tuple)
    yield from check("sites", EVENTS, "the roster's sites, at least the quorum", lambda: _sites(record))
    try:
        found = again(record)
    except Exception as error:  # a crafted file may raise any error
        yield Check("sums", False, SUMS, f"the analysis cannot be computed again: {error}"[:400])
        return
    steps = len(found.recorded.answered)
    yield from check("sums", SUMS, f"{steps} steps, each as it follows from the sums of those before", lambda: _steps(found))
    yield from check("results", EVENTS, "the log's figures follow from the sites' sums", lambda: _results(record, found))
    yield from check("journals", STEPS, _journals_text(found), lambda: _journals(found))
    yield from check("engine", STEPS, f"{record.start.engine}, and journals as it has them", lambda: _engine(record, found))
    yield from check("times", EVENTS, "in order, not before 2020, not in the future", lambda: _times(record))
    yield from check("witnesses", STEPS, _witnesses_text(found), lambda: _witnesses(record, found, keys))
    try:
        fresh = derived_of_analysis(record, found)
        fresh[CRATE] = crate(record, bare(files))
    except Exception as error:  # a crafted file may raise any error
        yield Check("recomputed", False, EVENTS, f"the derived files cannot be recomputed ({type(error).__name__})")
        return
    yield from same_files(files, fresh, [*OF_ANALYSIS, *ALSO_OF_ANALYSIS], same=bundled == code_digest())


def _form(files: Mapping[str, bytes], result: str) -> Iterator[Problem]:
    yield from ((EVENTS, text) for text in wrong_log(files[EVENTS], result))
    yield from ((STEPS, text) for text in wrong_steps(files[STEPS]))
    yield from wrong_versions(files[VERSIONS])


def _sites(record: Record) -> Iterator[Problem]:
    study, agreed = record.study, record.agreed
    if agreed.sites != [site for site in study.federation.sites if site in agreed.sites]:
        yield EVENTS, "the sites of the agreement are not in the roster, or in another order"
    if len(agreed.sites) < study.federation.needed:
        yield EVENTS, "fewer sites agreed than the quorum"
    if agreed.variants and not (record.run / SHARED).is_file():
        yield SHARED, "is missing from the bundle"
    if not agreed.persons.keys() <= set(study.federation.sites):
        yield EVENTS, "persons are described of a site that is not in the roster"
    if not agreed.matching.keys() <= set(study.federation.sites):
        yield EVENTS, "variants matched at a site that is not in the roster"


def _steps(found: Again) -> Iterator[Problem]:
    if left := found.recorded.left():
        yield SUMS, f"{left} steps are in the record that the analysis does not ask for"


def _results(record: Record, found: Again) -> Iterator[Problem]:
    """The log's event of the results, and of an analysis of outcomes its steps, as they come out again."""
    events = read_log(record.run)[0]
    (given,), (fresh,) = ([e for e in some if isinstance(e, Gwas | Outcomes)] for some in (events, found.events))
    ours, theirs = ({k: v for k, v in plain(body(event)).items() if k != "seconds"} for event in (given, fresh))
    if wrong := value_differs(ours, theirs, given.kind):
        yield EVENTS, f"{wrong} according to {SUMS}"
    if isinstance(given, Outcomes):
        steps, right = ([body(e) for e in some if isinstance(e, Step)] for some in (events, found.events))
        if steps != right:
            yield EVENTS, f"the steps of the log are not those of {STEPS}"
    if list(ours["sites"]) != [site for site in record.agreed.sites if site in ours["sites"]]:
        yield EVENTS, "the results are of other sites than agreed"


def _journals_text(found: Again) -> str:
    names = [site for site, rows in _heads(found).items() if any(rows)]
    return (
        f"journals of {', '.join(names)}: each grows from reply to reply" if names else "no site reported a journal (a run in one process)"
    )


def _heads(found: Again) -> dict[str, list[list[object] | None]]:
    out: dict[str, list[list[object] | None]] = {}
    for step in found.recorded.answered:
        for site, row in step.rows.items():
            out.setdefault(site, []).append(row["journal"])
    return out


def _journals(found: Again) -> Iterator[Problem]:
    for site, rows in _heads(found).items():
        heads = [row for row in rows if row is not None]
        if any(type(n) is not int or n < 1 or len(bytes.fromhex(str(head))) != 32 for head, n in heads):
            yield STEPS, f"{site}: a reported journal is not a head and a number of entries"
        # A reply has two entries, in and out, so between two replies the journal grows by at least two.
        elif any(later[1] < earlier[1] + 2 or later[0] == earlier[0] for earlier, later in pairwise(heads)):  # type: ignore[operator]
            yield STEPS, f"{site}: its journal does not grow from reply to reply"


def _engine(record: Record, found: Again) -> Iterator[Problem]:
    """A deployment's sites have gates, and a gate adds its journal to every reply; an engine in one process has no gates."""
    deployed = record.start.engine == "deployment"
    for site, rows in _heads(found).items():
        if any(deployed != (row is not None) for row in rows):
            have = "without the journal that a gate adds" if deployed else "with a journal, which that engine does not have"
            yield STEPS, f"{site} answered {have}; the run says engine {record.start.engine}"


def _times(record: Record) -> Iterator[Problem]:
    events = read_log(record.run)[0]
    yield from time_problems(record)
    moments = [event.time for event in events]
    if moments != sorted(moments):
        yield EVENTS, "the times of the events are not in order"
    if any(e.seconds > record.end.time - record.start.time + 60 for e in events if isinstance(e, Gwas | Outcomes)):
        yield EVENTS, "the analysis took longer than its run"


def _witnesses_text(found: Again) -> str:
    rows = signers(found)
    signed = {site: fingerprint(own[0]["key"]) for site, own in rows.items() if own[0] is not None}
    if not signed:
        return f"signed by 0 of {len(rows)} sites' keys: what the sites answered rests on the signer of the bundle"
    return f"the sums are signed by {len(signed)} of {len(rows)} sites' keys ({', '.join(f'{s} {mark}' for s, mark in signed.items())})"


def _witnesses(record: Record, found: Again, keys: Mapping[str, str]) -> Iterator[Problem]:
    """Every signature is on the step as it follows from the record: the request that the site received, and the sums that it sent."""
    for site in keys.keys() - set(record.study.federation.sites):
        yield STEPS, f"--site-key names {site}, which is not a site of the study"
    used: dict[str, set[str]] = {}
    sha = record.start.study_sha256
    for step in found.recorded.answered:
        constants = {name: value for name, value in step.agreement.items() if name not in (PANEL, IMAGE_SHAPE)}
        agreement = ""
        for site, row in step.rows.items():
            where, by = f"{step.phase} {step.number}, {site}", read_witness(row.get("witness") or {})
            if by is None:
                if site in keys or any(signers(found)[site]):
                    yield (
                        STEPS,
                        f"{where}: is not signed, and {'--site-key asks for it' if site in keys else 'other steps of the site are'}",
                    )
                continue
            used.setdefault(site, set()).add(f"{by.key} {by.run}")
            head, entries = row["journal"] or ("", 0)
            said = Said(site, sha, by.run, str(step.phase), step.number, head, entries, by.agreement, by.weights, by.counts, by.reply)
            agreement = agreement or agreement_digest(sha, step.agreement[PANEL].tobytes(), step.agreement[IMAGE_SHAPE].tolist(), constants)
            if not is_signed(said, by):
                yield (
                    STEPS,
                    f"{where}: the site's signature is not on what the record says: its head, step, run, study or a digest was changed",
                )
            elif by.agreement != agreement:
                yield STEPS, f"{where}: the site signed another agreement (study, variants, their orientation) than the record has"
            elif by.weights != arrays_digest(step.given[site]):
                yield SUMS, f"{where}: the site signed another request than follows from the record"
            elif by.counts != arrays_digest(step.sums[site]):
                yield SUMS, f"{where}: the site signed other sums than the record has"
            elif site in keys and fingerprint(by.key) != keys[site]:
                yield STEPS, f"{where}: is signed by {fingerprint(by.key)}, --site-key has {keys[site]}"
    if any(len(several) > 1 for several in used.values()):
        yield STEPS, "the signatures of a site are by several keys or of several runs"
    if len({one.rpartition(" ")[2] for several in used.values() for one in several}) > 1:
        yield STEPS, "the sites signed different runs"


def word(record: Record, files: Collection[str], keys: Collection[str]) -> str:
    """What rests on the signer's word alone, as ``fedml.experiments.evidence.words.on_the_signers_word``."""
    last = json.loads((record.run / STEPS).read_bytes().splitlines()[-1])["sites"]
    signed = {site for site, row in last.items() if row.get("witness")}
    confirmed, more = signed & set(keys), list[str]()
    if not confirmed >= last.keys():
        more += [f"{KEYS} {UNSIGNED[0]}" if signed - confirmed else UNSIGNED[0], *UNSIGNED[1:], *([PARTLY] if confirmed else [])]
    more += ["the authors, title and licence of the publication"] if AUTHORS in files else []
    more += OF_VARIANTS if record.agreed.variants else ()
    trust = "; a site's signature shows what it received and sent, not that its data are true" if signed else ""
    return f"{'; '.join([*more, *ALWAYS])}{trust}"
