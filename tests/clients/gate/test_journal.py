"""The journal: whatever is done to the file is found, and whatever a crash does to it is repaired without losing what was acknowledged."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.clients.gate.history import seen
from fedml.clients.gate.journal import START, About, Entry, Journal, RecordNote, entries, to_json, verify
from fedml.clients.gate.journal_view import show
from fedml.errors import InputError
from tests.command import ROOT

STUDY = hashlib.sha256(b"study").hexdigest()
NOTES = (RecordNote("arrays", 300, hashlib.sha256(b"a").hexdigest()), RecordNote("config", 2100, hashlib.sha256(b"c").hexdigest()))
WRITER = """
import os, sys, time
from pathlib import Path
from fedml.clients.gate.journal import About, Journal
name, label, count, slow = sys.argv[1:]
if slow == "slow":  # short writes, as a full pipe or a signal leaves them: a kill then falls into the middle of a line
    whole = os.write
    os.write = lambda fd, data: (time.sleep(0.0002), whole(fd, data[:16]))[1]
journal = Journal(Path(name))
for number in range(int(count)):
    entry = journal.append(direction="in", verdict="accepted", about=About(run=label, phase="round", round=number))
    sys.stdout.write(entry.digest + chr(10))
    sys.stdout.flush()
"""


def append(journal: Journal, **values: Any) -> Entry:
    """``Journal.append`` with the fields of ``About`` among the others."""
    about = About(**{name: values.pop(name) for name in About._fields if name in values})
    return journal.append(about=about, **values)


def fill(path: Path, count: int) -> list[Entry]:
    journal = Journal(path)
    out = []
    for number in range(count):
        refused = number % 7 == 3
        out.append(
            append(
                journal,
                direction=("in", "out")[number % 2],
                run="r1",
                study=STUDY,
                study_name="heart",
                phase="train",
                round=number // 2,
                records=NOTES[: number % 3],
                verdict="refused" if refused else "accepted",
                reason="bad-message" if refused else "",
            )
        )
    return out


def line_of(fields: dict[str, Any]) -> bytes:
    """A line as somebody who knows the format would write it, with a new digest."""
    fields = {k: v for k, v in fields.items() if k != "digest"}
    fields["digest"] = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Entry]]:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    written = fill(path, 60)
    return path.read_bytes(), written


def test_chain_verifies(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written = fill(path, 300)
    assert list(entries(path)) == written
    assert (Journal(path).head, Journal(path).count) == (written[-1].digest, 300)
    assert path.stat().st_mode & 0o777 == 0o600
    assert written[0].previous == START
    assert [e.seq for e in written] == list(range(1, 301))
    for entry in written[::29]:
        assert verify(path, entry.digest, entry.seq) == []
    assert verify(path) == []
    assert [line.encode() for line in to_json(entries(path))] == path.read_bytes().splitlines()


def test_digest_is_of_the_canonical_rest(sixty: tuple[bytes, list[Entry]]) -> None:
    for line, entry in zip(sixty[0].splitlines(keepends=True), sixty[1], strict=True):
        assert line == line_of(json.loads(line))
        assert json.loads(line)["digest"] == entry.digest


def flip(data: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]


def delete(data: bytes, r: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[r.randrange(len(lines))]
    return b"".join(lines)


def swap(data: bytes, r: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    i, j = r.sample(range(len(lines)), 2)
    lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def duplicate(data: bytes, r: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(r.randrange(len(lines) + 1), r.choice(lines))
    return b"".join(lines)


def insert(data: bytes, r: random.Random) -> bytes:
    """An entry that is right in itself and follows from the one before it, or rubbish."""
    lines = data.splitlines(keepends=True)
    at = r.randrange(len(lines))
    rubbish = r.choice([b"\n", b"{}\n", b" \n", b"\r\n", b"null\n", b"\xff\n", b"[" * 100_000 + b"\n", b"9" * 9_000 + b"\n"])
    if r.random() < 0.4:
        lines.insert(r.randrange(len(lines) + 1), rubbish)
        return b"".join(lines)
    fields = json.loads(lines[at])
    fields["run"] = "forged"
    if at:
        fields["previous"] = json.loads(lines[at - 1])["digest"]
    lines.insert(at, line_of(fields))
    return b"".join(lines)


def truncate(data: bytes, r: random.Random) -> bytes:
    """At any byte, or at the end of a line."""
    if r.random() < 0.5:
        return data[: r.randrange(len(data))]
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: r.randrange(len(lines))])


def changed(fields: dict[str, Any], r: random.Random) -> dict[str, Any]:
    change = r.choice(
        [
            {"verdict": "accepted" if fields["verdict"] != "accepted" else "refused"},
            {"round": fields["round"] + 1},
            {"run": "r2"},
            {"records": [*fields["records"], {"name": "extra", "bytes": 1, "sha256": STUDY}]},
            {"reason": "nothing to see"},
            {"time": "2001-01-01T00:00:00.000000+00:00"},
        ]
    )
    return fields | change


def edit(data: bytes, r: random.Random) -> bytes:
    """A value changed, the digest left."""
    lines = data.splitlines(keepends=True)
    at = r.randrange(len(lines))
    lines[at] = json.dumps(changed(json.loads(lines[at]), r), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return b"".join(lines)


def clever(data: bytes, r: random.Random) -> bytes:
    """A value changed and the digest recomputed."""
    lines = data.splitlines(keepends=True)
    at = r.randrange(len(lines))
    lines[at] = line_of(changed(json.loads(lines[at]), r))
    return b"".join(lines)


def rewrite(data: bytes, r: random.Random) -> bytes:
    """A value changed and the chain recomputed from there to the end, so that only a head kept elsewhere reveals it."""
    lines = data.splitlines(keepends=True)
    at = r.randrange(len(lines))
    lines[at] = line_of(changed(json.loads(lines[at]), r))
    for i in range(at + 1, len(lines)):
        lines[i] = line_of(json.loads(lines[i]) | {"previous": json.loads(lines[i - 1])["digest"]})
    return b"".join(lines)


def respell(data: bytes, r: random.Random) -> bytes:
    """The same values in other bytes."""
    lines = data.splitlines(keepends=True)
    at = r.randrange(len(lines))
    line, fields = lines[at][:-1], json.loads(lines[at])
    lines[at] = r.choice(
        [
            line + b" \n",
            line + b"\r\n",
            b" " + line + b"\n",
            json.dumps(fields, sort_keys=True).encode() + b"\n",
            json.dumps(dict(reversed(fields.items())), separators=(",", ":")).encode() + b"\n",
            line.replace(b"accepted", b"\\u0061ccepted").replace(b"refused", b"\\u0072efused") + b"\n",
            line.replace(fields["digest"].encode(), fields["digest"].upper().encode()) + b"\n",
            b'{"round":7,' + line[1:] + b"\n",
            line[:-1] + b',"note":1}\n',
            b"\xef\xbb\xbf" + line + b"\n",
        ]
    )
    return b"".join(lines)


HARMS: list[Callable[[bytes, random.Random], bytes]] = [
    flip,
    flip,
    delete,
    swap,
    duplicate,
    insert,
    truncate,
    edit,
    clever,
    rewrite,
    respell,
]


def test_a_thousand_harms_are_found(tmp_path: Path, sixty: tuple[bytes, list[Entry]]) -> None:
    data, written = sixty
    path = tmp_path / "journal.jsonl"
    r = random.Random(20260131)
    found: Counter[str] = Counter()
    missed = []
    for number in range(1000):
        harm = r.choice(HARMS)
        harmed = harm(data, r)
        assert harmed != data
        path.write_bytes(harmed)
        problems = verify(path, written[-1].digest, written[-1].seq if number % 2 else None)
        assert all(p.what.isprintable() and 0 <= p.line <= 62 for p in problems)
        if problems:
            found[harm.__name__] += 1
        else:
            missed.append((number, harm.__name__))
    print(sum(found.values()), "of 1000 found:", dict(found))
    assert not missed
    assert sum(found.values()) == 1000
    assert len(found) == 10


def test_every_harm_inside_the_file_is_found_without_a_digest_kept_elsewhere(tmp_path: Path, sixty: tuple[bytes, list[Entry]]) -> None:
    """What is not at the end breaks the chain by itself; the last entry is left alone here."""
    path = tmp_path / "journal.jsonl"
    r = random.Random(7)
    last = sixty[0].splitlines(keepends=True)[-1]
    for harm in [flip, delete, swap, duplicate, insert, edit, clever, respell]:
        for _ in range(15):
            path.write_bytes(harm(sixty[0][: -len(last)], r) + last)
            assert verify(path), harm.__name__


def test_every_bit_of_a_short_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, 1)
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        assert verify(path), bit


def test_truncation_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    head = fill(path, 5)[-1].digest
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert verify(path) == []  # nothing in the file can tell
    [problem] = verify(path, head, 5, reported="2026-01-31 10:15")
    assert problem.line == 3
    assert "the journal ends before the entry that was reported to the server on 2026-01-31 10:15: 5 entries were" in problem.what
    assert verify(path, head)
    assert verify(path, count=5)
    for nothing in (b"", None):
        path.unlink()
        if nothing is not None:
            path.write_bytes(nothing)
        assert [p.line for p in verify(path, head)] == [0]
        assert [p.line for p in verify(path, count=5)] == [0]
        assert verify(path) == verify(path, START, 0) == []
        path.touch()
    path.write_bytes(b"".join(lines))
    assert "as entry 4" in verify(path, head, 4)[0].what


def test_one_problem_is_reported_once(tmp_path: Path, sixty: tuple[bytes, list[Entry]]) -> None:
    path = tmp_path / "journal.jsonl"
    lines = sixty[0].splitlines(keepends=True)
    for harmed, line, word in [
        (lines[:9] + lines[10:], 10, "missing"),
        ([*lines[:9], lines[8], *lines[9:]], 10, "copy of line 9"),
        ([*lines[:9], lines[9].replace(b"r1", b"r9"), *lines[10:]], 10, "edited"),
        ([*lines[:9], line_of(json.loads(lines[9]) | {"run": "r9"}), *lines[10:]], 11, "does not follow"),
        ([*lines[:9], b"\n", *lines[10:]], 10, "not an entry"),
        (lines[1:], 1, "missing"),
        ([*lines[:-1], lines[-1][:-1]], 60, "cut short"),
    ]:
        path.write_bytes(b"".join(harmed))
        [problem] = verify(path)
        assert problem.line == line
        assert word in problem.what


def start(path: Path, label: str, count: int, slow: bool = False) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-c", WRITER, str(path), label, str(count), "slow" if slow else "fast"]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    children = [start(path, label, 200) for label in ("site", "approve")]
    reported = [child.communicate(timeout=60)[0].split() for child in children]
    written = list(entries(path))
    assert verify(path, count=400) == []
    for label, digests in zip(("site", "approve"), reported, strict=True):
        assert [e.digest.encode() for e in written if e.run == label] == digests
        assert [e.round for e in written if e.run == label] == list(range(200))
    assert not list(tmp_path.glob("*.torn-*"))


def test_threads_write_one_chain_while_others_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    threads = [threading.Thread(target=fill, args=(path, 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    looks = 0
    while any(t.is_alive() for t in threads):
        head = Journal(path).head
        assert verify(path, head) == []
        looks += 1
    assert looks
    assert verify(path, count=200) == []


def test_killed_twenty_times(tmp_path: Path) -> None:
    """Every other child writes 16 bytes at a time, so that kills fall into lines too."""
    path = tmp_path / "journal.jsonl"
    r = random.Random(3)
    acknowledged: list[str] = []
    for number in range(20):
        child = start(path, f"run{number}", 10**6, slow=number % 2 == 0)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(r.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        rest = child.communicate(timeout=30)[0]
        acknowledged += [word.decode().strip() for word in (first + rest).splitlines(keepends=True) if word.endswith(b"\n")]
        list(entries(path))  # a site that starts again reads what was seen
        if number % 3 == 0:
            acknowledged.append(Journal(path).append(direction="site", verdict="noted", reason="start").digest)
            assert verify(path) == []
    acknowledged.append(Journal(path).append(direction="site", verdict="noted", reason="stop").digest)
    written = list(entries(path))
    assert verify(path, acknowledged[-1], len(written)) == []
    kept = {e.digest for e in written}
    assert not [digest for digest in acknowledged if digest not in kept]
    torn = [e for e in written if e.reason == "torn-line"]
    print(len(acknowledged), "acknowledged,", len(written), "in the journal,", len(torn), "torn lines copied")
    assert torn
    for entry in torn:
        [note] = entry.records
        data = (tmp_path / f"{path.name}.{note.name}").read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (note.bytes, note.sha256)


def test_torn_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # speed only
    whole = tmp_path / "whole.jsonl"
    written = fill(whole, 3)
    data = whole.read_bytes()
    begin = len(b"".join(data.splitlines(keepends=True)[:2]))
    for cut in range(begin + 1, len(data)):
        path = tmp_path / "torn" / str(cut) / "journal.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(data[:cut])
        assert verify(path)
        assert list(entries(path)) == written[:2]
        journal = Journal(path)
        assert (journal.head, journal.count) == (written[1].digest, 2)
        append(journal, direction="site", verdict="noted", reason="start")
        assert verify(path, written[1].digest, 2) == []
        assert [e.reason for e in entries(path)][2:] == ["torn-line", "start"]
        copy = path.with_name("journal.jsonl.torn-1")
        assert copy.read_bytes() == data[begin:cut]
        assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("tail", [b"\n", b"\0" * 40, b"\0" * 40 + b"\n", b"{}\n", b'{"seq":1', b"\xff\xfe\n", b"x" * 60_000])
@pytest.mark.parametrize("before", [0, 3])
def test_other_ends_are_copied_to_another_file(tmp_path: Path, before: int, tail: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, before)
    with path.open("ab") as file:
        file.write(tail)
    os.chmod(path, 0o644)
    assert len(list(entries(path))) == before
    Journal(path).append(direction="site", verdict="noted", reason="start")
    assert verify(path, count=before + 2) == []
    assert (tmp_path / "journal.jsonl.torn-1").read_bytes() == tail
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("tail", [b"x" * 2000, b"x" * 2000 + b"\n", b"x" * 10])  # longer and shorter than the note
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_crash_amid_the_mending_leaves_a_note_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes, call: str
) -> None:
    """At every write of 50 bytes and at every fsync, from the copy of the torn line to the entry that repairs it."""
    whole: dict[str, Callable[..., Any]] = {"write": os.write, "fsync": lambda fd: None}  # nothing reaches the disk: speed only
    left = 0

    def counted(name: str, *values: Any) -> Any:
        nonlocal left
        left -= name == call
        if left < 0:
            raise OSError("no space")
        return whole[name](*values)

    monkeypatch.setattr(os, "write", lambda fd, data: counted("write", fd, data[:50]))
    monkeypatch.setattr(os, "fsync", lambda fd: counted("fsync", fd))
    for stop in range(100):
        path = tmp_path / str(stop) / "journal.jsonl"
        path.parent.mkdir()
        left = 10**6
        head = fill(path, 2)[-1].digest
        with path.open("ab") as file:
            file.write(tail)
        left = stop
        try:
            Journal(path).append(direction="site", verdict="noted", reason="first")
        except OSError:
            ended = False
        else:
            ended = True
        left = 10**6
        Journal(path).append(direction="site", verdict="noted", reason="second")
        assert verify(path, head, 2) == []
        reasons = [e.reason for e in entries(path)][2:]
        assert reasons[0] == "torn-line"
        assert reasons[-1] == "second"
        kept = [(path.parent / f"{path.name}.{e.records[0].name}").read_bytes() for e in entries(path) if e.reason == "torn-line"]
        assert any(data == tail for data in kept) or (path.parent / "journal.jsonl.torn-1").read_bytes() == tail
        if ended:
            break
    assert ended
    assert stop > 3


def test_more_than_a_torn_line_stops_the_site(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    for harmed in ([*lines[:2], b"{}\n", b"{}\n"], [b"{}\n", b"{}\n"], [*lines, b"x" * 200_000]):
        path.write_bytes(b"".join(harmed))
        with pytest.raises(InputError, match="damaged in more than its last line"):
            Journal(path).append(direction="site", verdict="noted", reason="start")
        assert path.read_bytes() == b"".join(harmed)
    path.write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    with pytest.raises(InputError, match="line 2 is not an entry"):
        seen(path)


HOSTILE = ["a\nb", "a\r", "\x1b[2J", "\0", "\x7f", "\x9b31m", "\u202etxt", "\u2028", "\ud800", "\u200b", "a\tb"]


@pytest.mark.parametrize(
    "bad",
    [{field: text} for field in ("run", "study_name", "phase", "reason", "study", "direction", "verdict") for text in HOSTILE]
    + [{"records": [RecordNote(text, 1, STUDY)]} for text in HOSTILE]
    + [
        {"run": "x" * 65},
        {"reason": "x" * 201},
        {"study_name": "x" * 64},
        {"phase": "x" * 33},
        {"study": "x" * 64},
        {"study": STUDY.upper()},
        {"study": STUDY + "\n"},
        {"run": 7},
        {"run": None},
        {"round": -1},
        {"round": True},
        {"round": 1.0},
        {"round": 2**63},
        {"direction": "up"},
        {"verdict": "maybe"},
        {"records": [RecordNote("a", 1, STUDY)] * 65},
        {"records": [RecordNote("a", -1, STUDY)]},
        {"records": [RecordNote("a", 1, "")]},
        {"records": [RecordNote("x" * 65, 1, STUDY)]},
    ],
)
def test_hostile_values_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(ValueError, match="a journal takes"):
        append(Journal(path), **{"direction": "in", "verdict": "refused", **bad})
    assert not path.exists()


def test_the_longest_line_fits(tmp_path: Path) -> None:
    wide = "\N{GRINNING FACE}"
    journal = Journal(tmp_path / "journal.jsonl")
    for _ in range(3):
        append(
            journal,
            direction="site",
            verdict="accepted",
            run=wide * 64,
            study=STUDY,
            study_name=wide * 63,
            phase=wide * 32,
            round=2**63 - 1,
            records=[RecordNote(wide * 64, 2**63 - 1, STUDY)] * 64,
            reason=wide * 200,
        )
    assert len(journal.path.read_bytes()) / 3 < 2**16
    assert verify(journal.path, journal.head, journal.count) == []
    assert journal.count == 3


def test_show(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    assert show(entries(path)) == f"0 entries, 0 refused, head {START}"
    common: dict[str, Any] = {"direction": "in", "run": "7", "study": STUDY, "study_name": "heart", "phase": "train", "round": 3}
    append(journal, direction="site", verdict="noted", reason="start")
    append(journal, verdict="accepted", records=NOTES, **common)
    append(journal, verdict="refused", reason="not-in-roster", **common)
    lines = show(entries(path)).splitlines()
    assert lines[0] == f"3 entries, 1 refused, head {journal.head}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  site  noted     start", lines[1])
    assert lines[2][19:] == f"  in    accepted  study heart ({STUDY[:8]}…) round 3: train  arrays 0.3 kB, config 2.1 kB"
    assert lines[3][19:] == f"  in    refused   study heart ({STUDY[:8]}…) round 3: train"
    assert lines[4].strip() == "because: the study does not name this site"
    assert show(entries(path), 1).splitlines() == [lines[0] + "; the last 1:", *lines[3:]]


@given(st.text(st.characters(codec=None), max_size=40), st.sampled_from(["accepted", "refused"]))
def test_show_has_no_control_characters(text: str, verdict: Any) -> None:
    """Even for entries that never passed a check."""
    entry = Entry(1, text, "in", text, text, text, text, 1, (RecordNote(text, 1, text),), verdict, text, START, START)
    reported = show([entry]).split("\n")
    assert len(reported) == (2 if verdict == "accepted" else 3)
    assert all(line.isprintable() for line in reported)


def test_seen_is_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert seen(path) == {}
    journal = Journal(path)
    append(journal, direction="in", verdict="accepted", run="a", phase="train", round=1)
    append(journal, direction="in", verdict="refused", run="a", phase="train", round=2)
    append(journal, direction="out", verdict="accepted", run="a", phase="train", round=3)
    append(journal, direction="in", verdict="accepted", run="b", phase="describe")
    assert seen(path).keys() == {("a", "train", 1), ("b", "describe", 0)}


PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=32)
RECORD = st.builds(RecordNote, PRINTABLE, st.integers(0, 2**63 - 1), st.binary().map(lambda b: hashlib.sha256(b).hexdigest()))
ENTRY = st.fixed_dictionaries(
    {
        "direction": st.sampled_from(["in", "out", "site"]),
        "verdict": st.sampled_from(["accepted", "refused", "noted"]),
        "run": PRINTABLE,
        "study": st.sampled_from(["", STUDY]),
        "study_name": PRINTABLE,
        "phase": PRINTABLE,
        "round": st.integers(0, 2**63 - 1),
        "records": st.lists(RECORD, max_size=4).map(tuple),
        "reason": PRINTABLE,
    }
)


@settings(max_examples=60)
@given(st.lists(ENTRY, min_size=1, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, given_entries: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    written = [append(Journal(path), **fields) for fields in given_entries]
    back = list(entries(path))
    assert back == written
    assert [{k: getattr(e, k) for k in given_entries[0]} for e in back] == given_entries
    assert verify(path, written[-1].digest, len(written)) == []
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == len(written)
