"""Nothing of a person leaves a site through an exception: sites that fail at random places, and the bytes on their wire.

A real federation (``fedml federation up``: TLS, node keys), its sites started by ``faulty_site.py``, and ``wire.py`` between the sites and
the SuperLink. Every case has a person of its own, who stands in the data, in the names of files and folders and in what is raised.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fedml.clients.gate.gate
from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.service import prepare_state, running
from fedml.clients.site.manifest import read_site
from fedml.errors import Reason
from fedml.experiments.federation.centre import read_centre
from fedml.flower.grid import InProcessGrid
from fedml.flower.superlink import command_path, environment, stop_group
from fedml.models.fusion import build_model, learned
from fedml.strategies.agreement.agree import agree
from fedml.study.study import Study, validate
from fedml.wire.records import pack
from tests.command import ROOT, command
from tests.conftest import to_toml, write_manifest
from tests.faulty_site import BAD_DATA, ENDS, ERRORS, HANDLE, PLACES, Case, crowd, faulty, leak
from tests.wire import SENT, captured, decoded, find, forms, needles, recording, searchable

SITES = {"oslo": "png", "porto": "npy", "utrecht": "npz"}  # and the format of its images
CASES, FIRST_ROUND, BATCH = 500, 100, 12
ROUNDS = itertools.count(FIRST_ROUND)
PROXIMAL = {"round": {"proximal-mu": 0.1}}  # what the study's algorithm adds to a message, by phase
PHASES = {"describe": 4, "statistics": 3, "round": 3, "evaluate": 3}  # and how often
ALPHABETS = (
    "abcdefghijklmnoprstuvyz",
    "aeioubdgklmnrstvåäöøæéèüñçšžőłğ",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "абвгдежзийклмнопрстуфхцчшщэюя",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "김이박최정강조윤장임한오서신권황안송",
)


def plan_of(sites: Sequence[str]) -> dict[str, Any]:
    """A study over all three kinds of input, so that every reader is passed."""
    return {
        "study": {"name": "leaks", "question": "Does anything of a person leave?", "purpose": "DUO:0000042", "seed": 3},
        "cohort": {
            "inputs": ["clinical", "variants", "image"],
            "target": "sick",
            "split": {"train": 0.5, "val": 0.25, "test": 0.25},
            "clinical": {"columns": ["age"]},
        },
        "model": {"image": {"net": "cnn", "channels": [4], "norm": "instance"}, "width": 4},
        "training": {"lr": 0.01, "batch_size": 16},
        "strategy": {"name": "fedprox", "mu": 0.1},
        "federation": {"sites": list(sites), "rounds": 1000, "quorum": 1, "timeout": 60},
    }


def own_numbers(study: Study) -> dict[str, int]:
    """The one round number that a gate takes, of the phases that have one."""
    return {"describe": 0, "statistics": 0, "evaluate": study.federation.rounds}


def person(draw: random.Random, number: int) -> Case:
    """Who is planted in one case, drawn from its number: names in several scripts, dates, a record number, a path."""

    def word() -> str:
        letters = draw.choice(ALPHABETS)
        return "".join(draw.choice(letters) for _ in range(draw.randint(8, 13))).capitalize()

    year, month, day = draw.randint(1915, 2009), draw.randint(1, 12), draw.randint(1, 28)
    first, family = word(), word()
    known = f"MRN-{draw.randrange(10**8):08d}-{number % 1000:03d}"
    return {
        "number": number,
        "seed": draw.randrange(2**32),
        "given": first,
        "family": family,
        "id": known,
        "born": f"{year}-{month:02d}-{day:02d}",
        "birthday": f"{day:02d}.{month:02d}.{year}",
        "path": f"/mnt/pacs/{family}_{first}/{known}.dcm",
    }


def planted(case: Case) -> list[str]:
    """What must not leave."""
    return [case[key] for key in ("given", "family", "id", "born", "birthday", "path")]


def draw_fault(draw: random.Random, phase: str) -> Case:
    """Where and what: a line of ours, a named function, or a file that cannot be used; and the kind of exception."""
    how = draw.choices(("line", "name", "data"), (9, 8, 3))[0]
    kind = draw.choice(sorted(ERRORS))
    if how == "line":
        return {"place": "line", "at": draw.random(), "kind": kind}
    if how == "data":
        return {"place": "data", "data": draw.choice([k for k, phases in BAD_DATA.items() if phase in phases]), "kind": "real"}
    place = draw.choice([name for name, (_, _, phases, _) in PLACES.items() if phase in phases])
    return {"place": place, "call": draw.randint(1, PLACES[place][3]), "kind": kind}


def draw_cases(seed: str, count: int, sites: Sequence[str], first: int) -> list[Case]:
    """``count`` cases, in turn at each site; a case's round is its number, which no other case of the run has."""
    cases = []
    for number in range(first, first + count):
        draw = random.Random(f"{seed} {number}")
        phase = draw.choices(list(PHASES), list(PHASES.values()))[0]
        place = {"site": sites[number % len(sites)], "phase": phase, "round": number}
        cases.append(person(draw, number) | place | draw_fault(draw, phase))
    return cases


def calm_person(site: str) -> Case:
    """Who is in the data of messages without a fault; ``marker`` names variants, which may leave."""
    return person(random.Random(f"calm {site}"), 0) | {"marker": f"rs-marker-of-{site}-"}


def make_site(folder: Path, name: str, port: int = 0) -> None:
    """A site whose data the faulty process writes with every message."""
    image = (
        '{ path = "data/images.npz", format = "npz" }' if SITES[name] == "npz" else f'{{ path = "data/images", format = "{SITES[name]}" }}'
    )
    data = {"persons": '"data/persons.csv"', "clinical": '{ path = "data/clinical.csv" }'}
    write_manifest(folder, name, **data, variants='{ path = "data/cohort.vcf", build = "GRCh38" }', image=image)
    with (folder / "site.toml").open("a") as file:
        file.write('[policy]\nchanged_data = "continue"\n')
        if port:
            file.write(f'[connection]\nsuperlink = "127.0.0.1:{port}"\nroot_certificates = "wire.pem"\nkey = "node.key"\n')


# The search itself.


def http(body: bytes, *fields: str) -> bytes:
    """A response of HTTP/1.1."""
    return "\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode() + body


def test_the_search_finds_what_is_compressed_chunked_or_encoded() -> None:
    text = "Zoë Brøgger 1931"
    packed, plain = gzip.compress(text.encode()), text.encode()
    chunks = b"5\r\n" + plain[:5] + b"\r\n" + f"{len(plain) - 5:x}".encode() + b"\r\n" + plain[5:] + b"\r\n0\r\n\r\n"
    ways = {
        "plain": http(plain, f"content-length: {len(plain)}"),
        "gzip": http(packed, f"Content-Length: {len(packed)}", "Content-Encoding: gzip"),
        "chunked": http(chunks, "transfer-encoding: chunked"),
        **{f"form {n}": http(form, f"content-length: {len(form)}") for n, form in enumerate(sorted(forms(text)))},
        **{f"base64 at {n}": b"x: " + base64.b64encode(b"." * n + plain + b"...") for n in range(7)},
    }
    after = http(b"nothing", "content-length: 7")
    for way, stream in ways.items():
        for shift in range(9):  # wherever it begins
            data = stream if way.startswith("base64") else after * shift + stream + after
            looked_at = [b"-" * shift + data] if way.startswith("base64") else [data, *decoded(data)]
            assert find(looked_at, needles([text])) == {text}, way
    assert find([after, packed, b"Zo\xc3\xab Br\xc3\xb8gge, 1931"], needles([text])) == set()


def test_the_search_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="not HTTP"):
        list(decoded(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
    with pytest.raises(ValueError, match="packed"):
        list(decoded(http(b"....", "content-length: 4", "content-encoding: br")))
    with pytest.raises(ValueError, match="by chance"):
        needles(["Bo Li"])


# One gate in this process, and Flower's own bytes of its replies: not the wire, but a look at each change.

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\\"',#"), min_size=8, max_size=16)
ENDINGS = [{"place": "execute", "call": 1, "kind": kind} for kind in ENDS] + [{"place": "journal#all", "kind": "OSError"}]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[bytes, Case, str]]:
    """Puts a case to a gate: the bytes that would be sent, what the site says of the case, and the reply's code, if any."""
    folder = tmp_path_factory.mktemp("gate") / "oslo"
    make_site(folder, "oslo")
    study, cases, outcomes = validate(Study, plan_of(["oslo"]), "leaks.toml"), {}, list[Case]()
    site = read_site(folder)
    gate = Gate(site, prepare_state(site))
    approve(site.state, study, "Dr. Test")
    handle = faulty(HANDLE, folder, calm_person("oslo"), cases, "png", outcomes.append)
    grid = InProcessGrid(lambda message, context: handle(gate, message, context), [{}])
    agreed = agree(study, grid)
    model = {**agreed.record(), "arrays": pack(learned(build_model(study, agreed.layout(study))))}
    parts = {"describe": [], "statistics": ["agreement"], "round": list(model), "evaluate": list(model)}

    def message(phase: str, number: int) -> Message:
        config = ConfigRecord({"study": study.canonical, "phase": phase, "round": number} | PROXIMAL.get(phase, {}))
        kind = {"round": "train", "evaluate": "evaluate"}.get(phase, "query")
        return Message(RecordDict({"config": config, **{key: model[key] for key in parts[phase]}}), next(iter(agreed.nodes)), kind)

    own = own_numbers(study)

    def put(case: Case) -> tuple[bytes, Case, str]:
        number = own.get(case["phase"], case["round"])
        cases[case["phase"], number] = case
        gate._accepted.clear()  # as if each case were of a run of its own
        (sent,) = grid.push_messages([message(case["phase"], number)])
        try:
            (reply,) = grid.pull_messages([sent])
        except BaseException:
            return b"", outcomes[-1], "left"
        data = message_to_proto(reply).SerializeToString() + b"".join(o.deflate() for o in get_all_nested_objects(reply).values())
        return data, outcomes[-1], reply.error.reason if reply.has_error() else ""

    for phase in PHASES:  # without a fault: where the faults may be is seen here
        gate._accepted.clear()
        (sent,) = grid.push_messages([message(phase, own.get(phase, 1))])
        (reply,) = grid.pull_messages([sent])
        assert not reply.has_error(), phase
    return put


@settings(max_examples=40)
@given(data=st.data(), first=NAMES, family=NAMES, phase=st.sampled_from(list(PHASES)), seed=st.integers(0, 2**32))
def test_a_refusal_holds_nothing_of_a_person(ask: Any, data: st.DataObject, first: str, family: str, phase: str, seed: int) -> None:
    number = next(ROUNDS)
    case = person(random.Random(seed), number) | {"given": first, "family": family, "phase": phase, "round": number}
    case |= data.draw(st.one_of(st.randoms(use_true_random=True).map(lambda draw: draw_fault(draw, phase)), st.sampled_from(ENDINGS)))
    sent, outcome, code = ask(case)
    assume(outcome["met"] or case["place"] != "line")  # a line that a process passes once, such as an import, is not met again
    assert outcome["met"], f"the fault was not met: {case}"
    assert find([sent], needles(planted(case), plainly=crowd(case))) == set()
    if case["kind"] in ("KeyboardInterrupt", "SystemExit"):
        assert code == "left", "who stops a site stops it"
    else:
        # A line may be passed after the reply is complete, and one unusable image of a hundred is excluded, not refused.
        harmless = case["place"] == "line" or case.get("data") in ("image", "shape")
        assert code in set(Reason) or (harmless and not code), f"no refusal: {case} {outcome}"


@pytest.mark.parametrize("place", sorted(PLACES))
def test_each_place_of_a_fault_is_reached(ask: Any, place: str) -> None:
    """A name that has moved would be a fault that no case meets."""
    for phase in PLACES[place][2]:
        number = next(ROUNDS)
        case = person(random.Random(place), number) | {"phase": phase, "round": number, "place": place, "call": 1, "kind": "KeyError"}
        assert ask(case)[1]["met"], phase


def test_that_look_finds_a_gate_that_tells(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reason_of", "refusal"):
        monkeypatch.setattr(fedml.clients.gate.gate, name, getattr(fedml.clients.gate.gate, name))  # put back afterwards
    leak()
    number = next(ROUNDS)
    case = person(random.Random(1), number) | {
        "phase": "describe",
        "round": number,
        "place": "check_reply",
        "call": 1,
        "kind": "ValueError",
    }
    assert find([ask(case)[0]], needles(planted(case))) == set(planted(case))


# The federation.

DRIVER = '''
"""Agrees with the sites as a study does, sends what a file lists, and writes what comes back."""
import json, time, traceback
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from fedml.models.fusion import build_model, learned
from fedml.wire.records import pack
from fedml.study.study import parse_study
from fedml.strategies.agreement.agree import agree

ASK, OUT = Path({ask!r}), Path({out!r})
KINDS = {{"describe": "query", "statistics": "query", "round": "train", "evaluate": "evaluate"}}
server = ServerApp()

def send(grid, messages, patience):
    left = dict(zip(grid.push_messages([m for _, m in messages]), [n for n, _ in messages]))
    reported, until = {{}}, time.monotonic() + patience
    while left and time.monotonic() < until:
        for reply in grid.pull_messages(list(left)):
            error = [reply.error.code, reply.error.reason] if reply.has_error() else None
            reported[left.pop(reply.metadata.reply_to_message_id)] = {{"error": error, "records": [] if error else sorted(reply.content)}}
        time.sleep(0.05)
    return reported

def drive(grid):
    asked = json.loads(ASK.read_text())
    study = parse_study(asked["study"])
    agreed = agree(study, grid)
    shared = {{**agreed.record(), "arrays": pack(learned(build_model(study, agreed.layout(study))))}}
    wanted = {{"describe": [], "statistics": ["agreement"], "round": ["agreement", "arrays"], "evaluate": ["agreement", "arrays"]}}
    nodes = {{site: node for node, site in agreed.nodes.items()}}
    reported = {{}}
    for batch in asked["batches"]:
        messages = []
        for m in batch:
            config = {{"study": asked["study"], "phase": m["phase"], "round": m["round"]}} | {proximal!r}.get(m["phase"], {{}})
            content = RecordDict({{"config": ConfigRecord(config), **{{k: shared[k] for k in wanted[m["phase"]]}}}})
            messages.append((m["number"], Message(content, nodes[m["site"]], KINDS[m["phase"]], ttl=600.0)))
        reported |= send(grid, messages, asked["patience"])
    return {{"reported": reported}}

@server.main()
def main(grid, context):
    try:
        result = drive(grid)
    except Exception:
        result = {{"failed": traceback.format_exc()}}
    OUT.with_suffix(".part").write_text(json.dumps(result))
    OUT.with_suffix(".part").rename(OUT)
'''
APP = """
[project]
name = "driver"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "driver:server"
clientapp = "driver:server"
[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Federation:
    """One that is up, with a wire in between; ``folders`` are the sites', which bear persons' names."""

    work: Path
    study: Study
    folders: dict[str, Path]

    @property
    def home(self) -> Path:
        return self.work / "sites" / ".federation"

    @property
    def wire(self) -> Path:
        return self.work / "wire"

    def names(self) -> list[str]:
        """What is planted for all cases: site folders, the sites' environment, persons of messages without a fault."""
        calm = [text for site in SITES for text in planted(calm_person(site))]
        return [folder.name for folder in self.folders.values()] + list(self.environment().values()) + calm

    def environment(self) -> dict[str, str]:
        """Environment variables of the site processes."""
        someone = person(random.Random("environment"), 1)
        return {"PATIENT": someone["given"], "USER": someone["family"], "LOGNAME": someone["family"], "HOSTNAME": f"pc-{someone['id']}"}

    def start(self, sites: Sequence[str], cases: Sequence[Case], name: str, *words: str) -> None:
        """Stops ``sites``, and starts them to fail as ``cases`` say; returns when the SuperLink knows them (up to a minute)."""
        self.stop(sites)
        plan, script = self.work / f"{name}-plan.json", ROOT / "tests" / "faulty_site.py"
        calm = {site: calm_person(site) for site in SITES}
        planned = {"cases": list(cases), "calm": calm, "form": SITES, "own": own_numbers(self.study)}
        plan.write_text(json.dumps(planned), encoding="utf-8")
        waiting = {}
        for site in sites:
            state = self.folders[site] / ".fedml"
            (state / "supernode.log").unlink(missing_ok=True)
            line = [
                sys.executable,
                "-P",
                str(script),
                str(self.folders[site]),
                str(plan),
                str(self.work / f"{name}-outcomes.jsonl"),
                *words,
            ]
            with (state / "start.log").open("ab") as out:
                waiting[state] = subprocess.Popen(
                    line,
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env=os.environ | self.environment() | {"PYTHONPATH": str(ROOT)},
                )
        deadline = time.monotonic() + 240
        while waiting:
            time.sleep(0.2)
            assert time.monotonic() < deadline, f"not up: {list(waiting)}"
            for state, process in list(waiting.items()):
                assert process.poll() is None, (state / "start.log").read_text()[-2000:]
                log = state / "supernode.log"
                if log.exists() and "SuperNode ID:" in log.read_text(errors="replace"):
                    del waiting[state]

    def stop(self, sites: Sequence[str]) -> None:
        """Ends the processes of ``sites``: all are asked before any is waited for."""
        processes = [p for p in (running(self.folders[site] / ".fedml") for site in sites) if p]
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGTERM)
        for process in processes:
            stop_group(process, 30)

    def drive(self, messages: Sequence[Case], name: str, patience: int = 120) -> dict[int, Any]:
        """Sends ``messages`` in one submitted app; the replies by number."""
        app, ask, out = self.work / name, self.work / f"{name}-ask.json", self.work / f"{name}-reported.json"
        app.mkdir()
        asked = [{k: m[k] for k in ("number", "site", "phase", "round")} for m in messages]
        batches = [asked[i : i + BATCH] for i in range(0, len(asked), BATCH)]
        ask.write_text(json.dumps({"study": self.study.canonical, "batches": batches, "patience": patience}))
        (app / "pyproject.toml").write_text(APP)
        (app / "driver.py").write_text(DRIVER.format(ask=str(ask), out=str(out), proximal=PROXIMAL))
        line = [command_path("flwr"), "run", str(app), "own"]
        sent = subprocess.run(line, env=environment(self.home.resolve()), capture_output=True, text=True, timeout=120, check=False)
        assert sent.returncode == 0, sent.stderr + sent.stdout
        deadline = time.monotonic() + 120 + len(batches) * patience
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.3)
        reported = json.loads(out.read_text())
        assert "failed" not in reported, reported["failed"]
        return {int(number): reply for number, reply in reported["reported"].items()}

    def outcomes(self, name: str) -> dict[int, Any]:
        """What the sites say of their cases, by number."""
        lines = (self.work / f"{name}-outcomes.jsonl").read_text(encoding="utf-8").splitlines()
        return {reported["number"]: reported for reported in map(json.loads, lines) if reported["number"] >= 0}


def calm_messages(first: int) -> list[Case]:
    """One message of each phase to each site, without a fault."""
    pairs = [(site, phase) for phase in PHASES for site in SITES]
    return [{"number": first + n, "site": site, "phase": phase, "round": first + n} for n, (site, phase) in enumerate(pairs)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three sites behind a recording wire, up as a user would have them, and the study approved at each."""
    work = tmp_path_factory.mktemp("leaks")
    home = work / "sites" / ".federation"
    study = validate(Study, plan_of(list(SITES)), "leaks.toml")
    (work / "leaks.toml").write_text(to_toml(plan_of(list(SITES))))
    people = [person(random.Random(f"folder {site}"), 2) for site in SITES]
    folders = {site: work / "sites" / f"{p['given']} {p['family']} {p['born']}" for site, p in zip(SITES, people, strict=True)}
    made = Federation(work, study, folders)
    with recording(made.wire, lambda: (read_centre(home).port, home / "ca.pem")) as port:
        for site, folder in folders.items():
            make_site(folder, site, port)
            (folder / "wire.pem").write_bytes((made.wire / "ca.pem").read_bytes())
        done = command("fedml", "federation", "up", "--sites", "sites", cwd=work)
        try:
            assert done.returncode == 0, done.stderr
            for folder in folders.values():
                reported = command("fedml-site", "approve", "leaks.toml", "--site", folder, "--yes", "--by", "Dr. Test", cwd=work)
                assert reported.returncode == 0, reported.stderr
            yield made
        finally:
            made.stop(list(SITES))
            command("fedml", "federation", "down", "--sites", "sites", cwd=work)


@pytest.mark.long
def test_no_byte_of_a_person_leaves_through_an_exception(federation: Federation, record_property: Any) -> None:
    cases = draw_cases("long", CASES, list(SITES), FIRST_ROUND)
    warm, after = calm_messages(1), calm_messages(FIRST_ROUND + CASES)
    federation.start(list(SITES), cases, "all")
    reported = federation.drive([*warm, *cases, *after], "all")
    outcomes = federation.outcomes("all")

    for message in (*warm, *after):
        assert reported[message["number"]]["error"] is None, f"{message}: a site that failed goes on as before"
    handled: list[str] = []
    missed: list[Case] = []
    for case in cases:
        outcome, reply = outcomes[case["number"]], reported.get(case["number"])
        if case["place"] == "line" and not outcome["met"]:
            missed.append(case)  # a line that is passed once in a process, as where something is made that is kept
            continue
        assert outcome["met"], f"the fault was not met: {case}"
        assert reply, f"no answer: {case}"
        assert outcome["left"] == "", f"an exception left the gate: {outcome}"
        if case["place"] == "line" and reply["error"] is None:
            handled.append(outcome["met"][0])  # as where text is tried as a number: the message is answered
            continue
        if case.get("data") in ("image", "shape") and reply["error"] is None:
            continue  # one unusable image of a hundred is excluded, not refused
        assert reply["error"], f"answered in spite of a fault: {case} {outcome}"
        assert reply["error"][0] == 600, f"not the gate's refusal: {case} {reply}"
        assert reply["error"][1] in set(Reason), f"not a code: {case} {reply}"
    assert len(handled) + len(missed) < len(cases) / 20

    texts = [text for case in cases for text in planted(case)] + federation.names()
    others = [i for case in (*cases, *map(calm_person, SITES)) for i in crowd(case)]
    data = searchable(federation.wire)
    hits = find(data, needles(texts, plainly=others))
    sent = captured(federation.wire, SENT)
    figures = {
        "cases": len(cases),
        "bytes sent": sum(map(len, sent.values())),
        "bytes searched": sum(map(len, data)),
        "connections": len(sent),
        "identifiers": len(set(texts)) + len(set(others)),
        "places": len({outcome["met"][0] for outcome in outcomes.values() if outcome["met"]}),
        "kinds": len({case["kind"] for case in cases}),
        "reasons": dict(Counter((reported[case["number"]]["error"] or [0, "answered"])[1] for case in cases)),
        "answered at": handled,
        "faults not met": len(missed),
        "phases": dict(Counter(case["phase"] for case in cases)),
    }
    record_property("leaks", figures)
    print(json.dumps(figures))
    assert hits == set()

    # The search has teeth: what may leave is found among what was sent, and what must not leave is in the sites' own logs.
    markers = {calm_person(site)["marker"] for site in SITES} | {f"{reason}" for reason in (Reason.BAD_DATA, Reason.INTERNAL)}
    assert find(sent.values(), needles([m for m in markers if len(m) >= 8])) == markers
    logs = [(folder / ".fedml" / "site.log").read_bytes() for folder in federation.folders.values()]
    logged = find(logs, needles(texts))
    assert sum(bool(logged & set(planted(case))) for case in cases) > len(cases) / 2


@pytest.mark.long
def test_what_is_hard_to_refuse_is_refused(federation: Federation) -> None:
    """A panic of compiled code that is no ``Exception``, a journal that cannot be written, an error whose text cannot be made."""
    cases = draw_cases("deaths", len(SITES), list(SITES), 20)
    ends = ({"place": "execute", "kind": "panic"}, {"place": "journal#all", "kind": "OSError"}, {"place": "execute", "kind": "endless"})
    cases = [case | {"phase": "describe", "call": 1} | end for case, end in zip(cases, ends, strict=True)]
    federation.start(list(SITES), cases, "deaths")
    reported = federation.drive(cases, "deaths", 90)
    outcomes = federation.outcomes("deaths")
    assert all(outcomes[case["number"]]["met"] for case in cases)
    for case in cases:
        code, reason = reported[case["number"]]["error"]
        assert code == 600, case["kind"]
        assert reason in (Reason.INTERNAL, Reason.BAD_DATA), case["kind"]
    print(json.dumps({case["kind"]: reported.get(case["number"], {"error": "no answer"})["error"] for case in cases}))
    texts = [text for case in cases for text in planted(case)] + federation.names()
    assert find(searchable(federation.wire), needles(texts, plainly=[i for case in cases for i in crowd(case)])) == set()


@pytest.mark.long
def test_the_same_search_finds_a_gate_that_tells(federation: Federation) -> None:
    kinds = ("ValueError", "KeyError", "OSError", "InputError", "SiteError", "UnicodeDecodeError", "loud", "ExceptionGroup")
    cases = draw_cases("leaky", len(kinds), ["oslo"], 10)
    cases = [case | {"phase": "describe", "place": "check_reply", "call": 1, "kind": kind} for case, kind in zip(cases, kinds, strict=True)]
    federation.start(["oslo"], cases, "leaky", "leaky")
    reported = federation.drive(cases, "leaky")
    assert all(reported[case["number"]]["error"] for case in cases)
    hits = find(searchable(federation.wire), needles([text for case in cases for text in planted(case)]))
    for case in cases:
        assert hits & set(planted(case)), f"the search missed {case['kind']}"
    assert hits >= {text for case in cases if case["kind"] in ("ValueError", "InputError") for text in planted(case)}
