"""The ledger: the privacy cost of a person is never too low, after any crash, for any name of a study and any excluded persons.

What is true is worked out here from a list of its own: the charges that returned, and for each person the accountant's epsilon of all
events of all studies that could have drawn the person.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.journal import About, Journal
from fedml.clients.gate.ledger import Ledger
from fedml.clients.gate.ledger_view import show, to_json
from fedml.errors import InputError, Reason, SiteError
from fedml.privacy.accounting import epsilon, gaussian, sampled_gaussian
from fedml.privacy.releases import message_events, training_events
from fedml.wire.records import Phase
from tests.command import ROOT
from tests.conftest import make_study

DELTA = 1e-5
Charge = tuple[frozenset[str], float]  # persons, noise multiplier


def reported(name: str = "heart", run: str = "1", round: int = 1, granted: float = 50.0, **more: Any) -> dict[str, Any]:
    study = name.encode().hex().ljust(64, "0")[:64]
    rest = {"phase": "round", "round": round, "max_epsilon": granted, "delta": DELTA}
    return {"run": run, "study": study, "study_name": name} | rest | more


def borne(charges: Sequence[Charge], person: str) -> float:
    return epsilon([e for persons, z in charges if person in persons for e in gaussian(z)], DELTA)


def worst(charges: Sequence[Charge], among: frozenset[str] | None = None) -> float:
    persons = among if among is not None else frozenset().union(*(p for p, _ in charges))
    return max((borne(charges, p) for p in persons), default=0.0)


def rows(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM charge ORDER BY id").fetchall()


def everything(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def refused(ledger: Ledger, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SiteError) as caught:
        ledger.charge_all([args], **kwargs)
    assert caught.value.reason is Reason.BUDGET
    return str(caught.value)


# What is counted

PEOPLE = st.frozensets(st.sampled_from("abcdef"), min_size=1)
CHARGES = st.lists(st.tuples(PEOPLE, st.sampled_from([2.0, 3.0, 5.5])), min_size=1, max_size=8)


@settings(max_examples=20)
@given(CHARGES, st.randoms(use_true_random=False))
def test_spent_is_the_largest_over_persons_in_any_order_under_any_name(
    tmp_path_factory: pytest.TempPathFactory, charges: list[Charge], r: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    one, other = Ledger(folder / "one.db"), Ledger(folder / "other.db")
    for persons, z in charges:
        bound = one.charge_all([(sorted(persons), gaussian(z))], **reported(granted=math.inf))
        assert bound >= worst(charges[: len(rows(one.path))], persons)
    for k, (persons, z) in enumerate(r.sample(charges, len(charges))):
        other.charge_all(
            [(r.sample(sorted(persons), len(persons)), gaussian(z))], **reported(name=f"study-{k}", run=str(k), granted=math.inf)
        )
    assert one.spent(DELTA) == other.spent(DELTA) == Ledger(one.path).spent(DELTA) == worst(charges)
    assert one.persons() == len(frozenset().union(*(p for p, _ in charges)))


@given(CHARGES, st.floats(0.3, 4.0), st.lists(st.integers(0, 20), min_size=8, max_size=8))
def test_what_is_refused_is_what_would_pass_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, charges: list[Charge], granted: float, ahead: list[int]
) -> None:
    ledger, kept = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.db"), list[Charge]()
    for (persons, z), more in zip(charges, ahead, strict=False):
        before = everything(ledger.path)
        if worst([*kept, (persons, z)], persons) > granted:
            refused(ledger, sorted(persons), gaussian(z), **reported(granted=granted, ahead=more))
            assert everything(ledger.path) == before
        else:
            assert ledger.charge_all([(sorted(persons), gaussian(z))], **reported(granted=granted, ahead=more)) <= granted
            kept.append((persons, z))
    assert len(rows(ledger.path)) == len(kept)
    assert ledger.spent(DELTA) == worst(kept) <= granted


def test_sampled_events_are_composed_over_studies(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    first, second, third = sampled_gaussian(0.1, 1.2, 10), sampled_gaussian(0.3, 2.0, 4), gaussian(4.0)
    for k in range(3):
        ledger.charge_all([(["a", "b"], first)], **reported("one", round=k + 1, ahead=2 - k))
        ledger.charge_all([(["b", "c"], second)], **reported("two", round=k + 1))
    ledger.charge_all([(["c", "d"], third)], **reported("three"))
    assert ledger.spent(DELTA) == max(epsilon(3 * first + 3 * second, DELTA), epsilon(3 * second + third, DELTA))
    alone = {row.study_name: (row.epsilon, row.messages, row.persons) for row in ledger.spends(DELTA)}
    assert alone == {
        "one": (epsilon(3 * first, DELTA), 3, 2),
        "two": (epsilon(3 * second, DELTA), 3, 2),
        "three": (epsilon(third, DELTA), 1, 2),
    }


def test_leaving_one_person_out_or_renaming_does_not_reset_the_budget(tmp_path: Path) -> None:
    ledger, persons = Ledger(tmp_path / "ledger.db"), [f"p{k}" for k in range(30)]
    granted = worst([(frozenset("a"), 3.0)] * 4)
    for k in range(4):
        ledger.charge_all([(persons, gaussian(3.0))], **reported(round=k, granted=granted))
    refused(ledger, persons, gaussian(3.0), **reported(round=5, granted=granted))
    for k in range(30):
        refused(ledger, [p for p in persons if p != f"p{k}"], gaussian(3.0), **reported(f"another-{k}", "2", granted=granted))
    refused(ledger, ["p7"], gaussian(1000.0), **reported("small", "3", granted=granted))
    refused(ledger, ["new", "p7"], gaussian(3.0), **reported("mixed", "3", granted=granted))
    assert ledger.charge_all([(["new"], gaussian(3.0))], **reported("new", "3", granted=granted)) == borne([(frozenset("a"), 3.0)], "a")
    assert len(rows(ledger.path)) == 5


def test_the_same_answer_made_again_counts_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for _ in range(2):
        ledger.charge_all([(["a"], gaussian(3.0))], **reported())
    assert ledger.spent(DELTA) == borne([(frozenset("a"), 3.0)] * 2, "a")


def test_a_person_named_twice_is_one_person(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.charge_all([(["a", "b", "a"], gaussian(3.0))], **reported())
    ledger.charge_all([(["b", "a"], gaussian(3.0))], **reported())
    assert {row[2] for row in rows(ledger.path)} == {1}
    assert ledger.persons() == 2


def test_an_answer_about_two_parts_is_charged_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger, once = Ledger(tmp_path / "ledger.db"), borne([(frozenset("a"), 3.0)], "a")
    ledger.charge_all([(["a", "b"], gaussian(3.0)), (["c"], gaussian(3.0))], **reported(granted=once))
    assert ledger.spent(DELTA) == once  # a person is in one part: they are not added
    before = everything(ledger.path)
    with pytest.raises(SiteError, match="the policy grants"):
        ledger.charge_all([(["new"], gaussian(3.0)), (["c", "d"], gaussian(3.0))], **reported(granted=once))
    assert everything(ledger.path) == before
    ledger.charge_all([(["e"], gaussian(3.0)), (["e"], gaussian(3.0))], **reported())  # in both: they are
    assert ledger.spent(DELTA) == borne([(frozenset("e"), 3.0)] * 2, "e")


def test_a_study_of_exactly_the_budget_runs_to_its_end_and_no_further(tmp_path: Path) -> None:
    plan = {"unit": "patient", "epsilon": 3.0, "delta": DELTA, "persons": {"a": 140}, "statistics": "private"}
    study = make_study(sites=("a",), federation__rounds=12, privacy=plan | {"ranges": {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}})
    ledger, persons = Ledger(tmp_path / "ledger.db"), [f"a{k}" for k in range(140)]
    what: dict[str, Any] = {"granted": 3.0, "study": study.sha256}
    ledger.charge_all(
        [(persons, message_events(study, "a", Phase.STATISTICS, 0)["train"])], **reported(phase="statistics", round=0, **what)
    )
    for k in range(1, 13):
        ledger.charge_all([(persons, message_events(study, "a", Phase.ROUND, k)["train"])], **reported(round=k, ahead=12 - k, **what))
    assert ledger.spent(DELTA) == epsilon(training_events(study, "a"), DELTA) <= 3.0
    refused(ledger, persons, message_events(study, "a", Phase.ROUND, 1)["train"], **reported(run="2", **what))


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert "epsilon to infinity" in refused(ledger, ["a"], gaussian(0.0), **reported())
    assert "epsilon of this reply cannot be computed" in refused(ledger, ["a"], sampled_gaussian(1.0, 900.0, 10**6 + 1), **reported())
    assert "epsilon of this reply cannot be computed" in refused(ledger, ["a"], gaussian(3.0), **reported(delta=1e-12))
    refused(ledger, ["a"], gaussian(3.0), **reported(granted=0.0))
    refused(ledger, ["a"], gaussian(3.0), **reported(granted=math.nan))
    for persons, events in (([], gaussian(3.0)), (["a"], [])):
        with pytest.raises(ValueError, match="about persons"):
            ledger.charge_all([(persons, events)], **reported())
    assert rows(ledger.path) == []
    assert (
        ledger.charge_all([(["a"], sampled_gaussian(1.0, 900.0, 10))], **reported(ahead=10**6)) < 0.1
    )  # too far ahead to count, itself not


def test_what_has_no_privacy_is_kept_apart(tmp_path: Path) -> None:
    ledger, noted = (
        Ledger(tmp_path / "ledger.db"),
        {k: reported("open")[k] for k in ("run", "study", "study_name", "phase", "round")},
    )
    ledger.note_unprotected(["a", "b", "c"], **noted)
    assert (ledger.spent(DELTA), ledger.persons()) == (0.0, 0)
    ledger.charge_all([(["a"], gaussian(3.0))], **reported())
    once = borne([(frozenset("a"), 3.0)], "a")
    assert (ledger.spent(DELTA), ledger.persons()) == (once, 1)
    assert [(r.study_name, r.epsilon, r.persons) for r in ledger.spends(DELTA)] == [("open", math.inf, 3), ("heart", once, 1)]
    text = show(ledger.path, 8.0, DELTA)
    assert text.index("heart") < text.index("Without differential privacy") < text.index("open (")


def test_show_says_what_was_spent_by_which_study_and_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    assert "spent    epsilon 0.00" in show(path, 8.0, DELTA)
    assert not path.exists()
    ledger = Ledger(path)
    for k in range(4):
        ledger.charge_all([(["a", "b"], gaussian(3.0))], **reported("heart", run=str(k % 2), round=k))
    ledger.charge_all([(["b"], gaussian(2.0))], **reported("lung"))
    text, spent = show(path, 8.0, DELTA), ledger.spent(DELTA)
    assert f"spent    epsilon {math.ceil(100 * spent) / 100:.2f}, the most" in text
    assert f"left     epsilon {math.floor(100 * (8 - spent)) / 100:.2f} for that person" in text
    assert "2 persons with any epsilon spent" in text
    assert f"factor\nof at most about {math.exp(spent):.3g}," in text
    assert "2 persons, 4 answers in 2 runs" in text
    assert "1 person, 1 answer in 1 run" in text
    assert "more was spent than the policy grants now" in show(path, 1.0, DELTA)
    made = json.loads(to_json(path, 8.0, DELTA))
    assert (made["spent"], made["left"], made["persons"]) == (spent, 8.0 - spent, 2)
    assert {s["study_name"]: s["epsilon"] for s in made["studies"]} == {r.study_name: r.epsilon for r in ledger.spends(DELTA)}
    ledger.charge_all([(["c"], gaussian(0.0))], **reported("bare", granted=math.inf))
    assert "spent    epsilon infinity" in show(path, math.inf, DELTA)
    assert "left     epsilon 0.00" in show(path, math.inf, DELTA)
    assert json.loads(to_json(path, 8.0, DELTA))["spent"] is None


def test_no_person_can_be_read_off_the_file(tmp_path: Path) -> None:
    persons = [f"NHS-{k:07d}" for k in range(50)]
    for name in ("one.db", "other.db"):
        Ledger(tmp_path / name).charge_all([(persons, gaussian(3.0))], **reported())
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert not any(p.encode() in path.read_bytes() for p in persons)
    with closing(sqlite3.connect(tmp_path / "one.db")) as one, closing(sqlite3.connect(tmp_path / "other.db")) as other:
        hashed = [{p for (p,) in db.execute("SELECT person FROM member")} for db in (one, other)]
    assert [len(h) for h in hashed] == [50, 50]
    assert not hashed[0] & hashed[1]  # keyed: a list of known ids cannot be tried without this very ledger


# Kills

CHILD = r"""
import os, random, resource, signal, sqlite3, sys
from pathlib import Path
from fedml.clients.gate.ledger import Ledger
from fedml.errors import SiteError
from fedml.privacy.accounting import epsilon, gaussian
epsilon(gaussian(20.0), 1e-5)  # all that is imported late

def release(folder, run, number, persons, z):  # what left the site, on the disk
    with open(folder / "released", "ab", 0) as file:
        file.write(f"{run} {number} {persons} {z}\n".encode())
        os.fsync(file.fileno())

def serve(folder, run, most):
    ledger, r = Ledger(folder / "ledger.db"), random.Random(run)
    for number in range(most):
        persons, z = r.choice(["ab", "bc", "cde", "b", "".join(r.sample("abcdefgh", 4))]), r.choice([20.0, 30.0])
        ledger.charge_all([(list(persons), gaussian(z))], run=run, study="s" * 64, study_name="s", phase="round", round=number,
                      max_epsilon=1e6, delta=1e-5)
        release(folder, run, number, persons, z)

def at_statement(number):
    whole, left = sqlite3.connect, [int(number)]
    def traced(statement):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect(*args, **kwargs):
        db = whole(*args, **kwargs)
        db.set_trace_callback(traced)
        return db
    sqlite3.connect = connect

def at_step(number):
    whole, left = sqlite3.connect, [int(number)]
    def stepped():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect(*args, **kwargs):
        db = whole(*args, **kwargs)
        db.set_progress_handler(stepped, 10)
        return db
    sqlite3.connect = connect

def at_byte(number):  # the write that would make a file larger kills, in the middle of a commit
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def at_reply(number):
    global release
    whole, left = release, [int(number)]
    def last(*args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*args)
    release = last

def full(number):  # the same write fails, as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))

for line in sys.stdin:
    folder, run, most, how, number = line.split()
    child = os.fork()
    if not child:
        try:
            {"statement": at_statement, "step": at_step, "byte": at_byte, "full": full, "reply": at_reply}.get(how, int)(number)
            serve(Path(folder), run, int(most))
        except Exception as error:
            os.write(2, f"{how} {number}: {type(error).__name__} {error}\n".encode())
            os._exit(9)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Site:
    """A prepared process that forks a site a kill: forks are cheap, imports are not."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, run: str, most: int, how: str = "whenever", number: int = 0) -> int:
        self._pipe(self.process.stdin).write(f"{folder} {run} {most} {how} {number}\n")
        self._pipe(self.process.stdin).flush()
        return int(self._pipe(self.process.stdout).readline())

    def ended(self) -> int:
        return int(self._pipe(self.process.stdout).readline())

    def close(self) -> str:
        return self.process.communicate(timeout=60)[1]

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def recovered(folder: Path, run: str) -> int:
    """Holds the ledger against what was released, then charges and releases once more. Returns how many charges had no release."""
    path, file = folder / "ledger.db", folder / "released"
    ledger = Ledger(path)  # verifies it
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    released, charged = Counter((r, int(n)) for r, n, _, _ in lines), Counter((row[4], row[8]) for row in rows(path))
    assert not released - charged
    true = worst([(frozenset(p), float(z)) for _, _, p, z in lines])
    assert ledger.spent(DELTA) >= true
    ledger.charge_all([(["a", "h"], gaussian(20.0))], **reported(run=run, round=9999, granted=1e6))
    assert not path.with_name("ledger.db-journal").exists()
    with file.open("a") as out:
        out.write(f"{run} 9999 ah 20.0\n")
    return (charged - released).total()


def kill_at_random(site: Site, folder: Path, times: int) -> None:
    r = random.Random(4)
    for k in range(times):
        process = site.start(folder, f"run-{k}", 10**6)
        time.sleep(r.uniform(0, 0.06))
        os.kill(process, signal.SIGKILL)
        assert site.ended() == -signal.SIGKILL
        recovered(folder, f"after-{k}")
    assert len(rows(folder / "ledger.db")) > times  # it was killed at work, not before


def test_20_kills_at_random_points(site: Site, tmp_path: Path) -> None:
    kill_at_random(site, tmp_path, 20)


@pytest.mark.long
def test_200_kills_at_random_points(site: Site, tmp_path: Path) -> None:
    kill_at_random(site, tmp_path, 200)


def systematically(site: Site, folder: Path, how: str, step: int, end: int, made: bool = False) -> list[int]:
    """Ends a site that charges twice at ``step``, twice it, ..., until it gets through. Returns each time's charges without a release."""
    out = []
    for k in range(step, 10**6, step):
        (at := folder / f"{how}-{k}").mkdir(parents=True)
        if made:
            filled(at / "ledger.db", 2)
        site.start(at, "run", 2, how, k)
        code = site.ended()
        out.append(recovered(at, "after") - 2 * made)
        if code == 0:
            assert len((at / "released").read_text().splitlines()) == 3
            return out
        assert code == end
    raise AssertionError("it never got through")


def test_a_kill_before_every_statement_of_making_and_charging(site: Site, tmp_path: Path) -> None:
    left = systematically(site, tmp_path, "statement", 1, -signal.SIGKILL)
    assert len(left) > 40
    assert set(left) == {0}  # all of a transaction or nothing


def test_a_kill_between_charge_and_reply_counts_the_charge(site: Site, tmp_path: Path) -> None:
    assert systematically(site, tmp_path, "reply", 1, -signal.SIGKILL) == [1, 1, 0]


@pytest.mark.long
def test_a_kill_in_the_midst_of_statements(site: Site, tmp_path: Path) -> None:
    assert len(systematically(site, tmp_path, "step", 2, -signal.SIGKILL)) > 40


@pytest.mark.parametrize("made", [False, True])
def test_a_kill_in_the_midst_of_a_write(site: Site, tmp_path: Path, made: bool) -> None:
    assert len(systematically(site, tmp_path, "byte", 2900, -signal.SIGXFSZ, made)) > 8


def test_a_full_disk_refuses_and_loses_nothing(site: Site, tmp_path: Path) -> None:
    assert len(systematically(site, tmp_path, "full", 2900, 9, made=True)) > 8
    said = site.close()
    assert "SiteError" in said
    assert "the privacy ledger cannot be used (" in said
    assert "nothing was written; check the free disk space" in said
    assert "restore it" not in said


def test_a_charge_is_on_the_disk_when_it_returns_not_after_the_reply(site: Site, tmp_path: Path) -> None:
    for k in range(5):
        site.start(tmp_path, f"run-{k}", k + 1)  # the last thing it does after ``charge`` is to end without a word, by _exit
        assert site.ended() == 0
    ledger = Ledger(tmp_path / "other.db")
    ledger.charge_all([(["a"], gaussian(3.0))], **reported())
    seen = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM charge').fetchone()[0])"
    command = [sys.executable, "-c", seen]
    assert subprocess.run([*command, str(ledger.path)], capture_output=True, text=True, check=True).stdout == "1\n"
    assert subprocess.run([*command, str(tmp_path / "ledger.db")], capture_output=True, text=True, check=True).stdout == "15\n"
    with closing(sqlite3.connect(ledger.path, timeout=0)) as db:
        db.execute("BEGIN EXCLUSIVE")  # nothing is held open, nothing is left to write
    assert {p.name for p in tmp_path.iterdir()} == {"ledger.db", "other.db", "released"}


def test_charges_are_durable_through_a_power_loss_by_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = list[str](), sqlite3.connect

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = whole(*args, **kwargs)
        db.set_trace_callback(lambda s: seen.extend(settings_of(db)) if s.startswith("INSERT INTO charge") else None)
        return db

    def settings_of(db: sqlite3.Connection) -> list[str]:
        db.set_trace_callback(None)
        return [f"{name} {db.execute(f'PRAGMA {name}').fetchone()[0]}" for name in ("journal_mode", "synchronous")]

    monkeypatch.setattr(sqlite3, "connect", connect)
    Ledger(tmp_path / "ledger.db").charge_all([(["a"], gaussian(3.0))], **reported())
    assert seen == ["journal_mode delete", "synchronous 3"]


# Two at once

RIVAL = """
import sys, time
from pathlib import Path
from fedml.clients.gate.ledger import Ledger
from fedml.errors import SiteError
from fedml.privacy.accounting import epsilon, gaussian
path, label, granted = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
epsilon(gaussian(3.0), 1e-5)
print("ready", flush=True)
sys.stdin.readline()
ledger, passed = Ledger(path), 0
for number in range(30):
    try:
        ledger.charge_all([(["a", "b", label], gaussian(3.0))], run=label, study=label, study_name=label, phase="round", round=number,
                      max_epsilon=granted, delta=1e-5)
        passed += 1
    except SiteError as error:
        assert "the policy grants" in str(error), error
print(passed)
"""


def test_two_processes_cannot_both_spend_what_is_left(tmp_path: Path) -> None:
    path, granted = tmp_path / "ledger.db", worst([(frozenset("a"), 3.0)] * 25)
    rivals = [
        subprocess.Popen([sys.executable, "-c", RIVAL, *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for words in ((str(path), "start", repr(granted)), (str(path), "dry-run", repr(granted)))
    ]
    for rival in rivals:
        assert Site._pipe(rival.stdout).readline() == "ready\n"
    for rival in rivals:  # from here both, the making of the file included
        Site._pipe(rival.stdin).write("\n")
        Site._pipe(rival.stdin).flush()
    passed = [int(rival.communicate(timeout=120)[0]) for rival in rivals]
    assert sum(passed) == len(rows(path)) == 25
    assert Ledger(path).spent(DELTA) == granted


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    ledger, granted, passed = Ledger(tmp_path / "ledger.db"), worst([(frozenset("a"), 3.0)] * 25), list[int]()

    def work(label: str) -> None:
        for k in range(15):
            try:
                ledger.charge_all([(["a", label, str(k)], gaussian(3.0))], **reported(run=label, round=k, granted=granted))
            except SiteError:
                continue
            passed.append(k)
            ledger.spent(DELTA)

    threads = [threading.Thread(target=work, args=(label,)) for label in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == len(rows(ledger.path)) == 25
    assert ledger.spent(DELTA) == granted


# A ledger that cannot be relied on


def filled(path: Path, charges: int = 12) -> Ledger:
    ledger = Ledger(path)
    for k in range(charges):
        ledger.charge_all([([f"p{j}" for j in range(k % 3, 40)], gaussian(3.0 + k % 2))], **reported(f"study-{k % 2}", round=k))
    return ledger


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DROP TABLE charge", "no such table: charge"),
        ("DROP TABLE member", "no such table: member"),
        ("DROP TABLE secret", "no such table: secret"),
        ("DELETE FROM secret", "damaged"),
        ("UPDATE secret SET key = zeroblob(32)", "was changed at charge 1"),
        ("DELETE FROM charge WHERE id = 5", "was changed at charge 5"),
        ("DELETE FROM charge WHERE id = 1", "was changed at charge 1"),
        ("UPDATE charge SET events = replace(events, '3.0', '300.0') WHERE id = 7", "was changed at charge 7"),
        ("UPDATE charge SET events = NULL WHERE id = 7", "was changed at charge 7"),
        ("UPDATE charge SET persons = 2 WHERE id = 4", "was changed at charge 4"),
        ("UPDATE charge SET persons = 77 WHERE id = 4", "damaged"),
        ("UPDATE charge SET study_name = 'x' WHERE id = 12", "was changed at charge 12"),
        ("UPDATE charge SET events = x'00' WHERE id = 2", "damaged"),
        ("DELETE FROM member WHERE persons = 2 AND person = (SELECT max(person) FROM member WHERE persons = 2)", "of group 2"),
        ("UPDATE member SET person = zeroblob(16) WHERE person = (SELECT min(person) FROM member)", "in the persons of group"),
        ("UPDATE member SET person = 'text' WHERE person = (SELECT min(person) FROM member)", "damaged"),
        ("PRAGMA user_version = 2", "of version 2"),
        ("PRAGMA application_id = 0", "is not a privacy ledger"),
    ],
)
def test_a_changed_ledger_refuses(tmp_path: Path, statement: str, says: str) -> None:
    path = tmp_path / "ledger.db"
    filled(path)
    change(path, statement)
    for look in (lambda: Ledger(path), lambda: show(path, 8.0, DELTA), lambda: to_json(path, 8.0, DELTA)):
        with pytest.raises(InputError, match=says):
            look()


def test_a_charge_that_was_written_again_with_the_right_digest_does_not_fit_the_next(tmp_path: Path) -> None:
    """With the key one row can be signed (keyed BLAKE2b of the previous digest and the row); the next row still follows the old one."""
    path = tmp_path / "ledger.db"
    filled(path, 6)
    with closing(sqlite3.connect(path)) as db:
        key = db.execute("SELECT key FROM secret").fetchone()[0]
        before = db.execute("SELECT digest FROM charge WHERE id = 3").fetchone()[0]
        columns = "id, time, persons, events, run, study, study_name, phase, round, digest"
        row = list(db.execute(f"SELECT {columns} FROM charge WHERE id = 4").fetchone())  # noqa: S608

    def digest() -> bytes:
        text = json.dumps(row[:9], separators=(",", ":")).encode()
        return hashlib.blake2b(before + text, key=key, person=b"charge", digest_size=32).digest()

    assert digest() == row[9], "the digest covers the one before it"
    row[4] = "another"
    change(path, f"UPDATE charge SET run = 'another', digest = x'{digest().hex()}' WHERE id = 4")  # noqa: S608
    with pytest.raises(InputError, match="was changed at charge 5"):
        Ledger(path)


def test_rows_are_only_added(tmp_path: Path) -> None:
    filled(tmp_path / "ledger.db")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        for table in ("secret", "persons", "member", "charge"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            db.execute("UPDATE charge SET events = NULL")


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    ledger, r, found = filled(tmp_path / "ledger.db"), random.Random(1), 0
    whole, before = ledger.path.read_bytes(), (ledger.spent(DELTA), ledger.spends(DELTA), ledger.persons())
    for k in range(150):
        at, bit = r.randrange(len(whole)), 1 << r.randrange(8)
        path = tmp_path / f"{k}.db"
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        try:
            other = Ledger(path)
            after = (other.spent(DELTA), other.spends(DELTA), other.persons())
        except InputError:
            found += 1
        else:
            assert after == before
    assert found > 30


@pytest.mark.parametrize("keep", [10, 99, 4096, 5000, 20000])
def test_a_ledger_cut_short_refuses(tmp_path: Path, keep: int) -> None:
    path = filled(tmp_path / "ledger.db").path
    os.truncate(path, keep)
    with pytest.raises(InputError, match="restore it from a backup"):
        Ledger(path)


def test_a_file_of_another_kind_refuses(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a ledger\n" * 100)
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE t (a)")
    (tmp_path / "folder.db").mkdir()
    for name in ("text.db", "other.db", "folder.db"):
        with pytest.raises(InputError, match=f"{name}: (the privacy ledger cannot be used|is not a privacy ledger)"):
            Ledger(tmp_path / name)
    with pytest.raises(InputError, match="cannot be created"):
        Ledger(tmp_path / "nowhere" / "ledger.db")


def answered(state: Path, unit: str, run: str, rounds: int, **privacy: Any) -> str:
    """A study that was approved at the site, and its answers in the site's journal."""
    plan: dict[str, Any] = {"unit": unit, "noise_multiplier": 2.0, "ranges": {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}}
    plan |= {"persons": {"a": 40}} if unit == "patient" else {}
    study = make_study(sites=("a",), **({"privacy": plan | privacy} if unit != "none" else {}))
    approve(state, study, "test")
    for number in range(rounds):
        for direction in ("in", "out"):
            Journal(state / "journal.jsonl").append(
                direction=direction, verdict="accepted", about=About(run, study.sha256, "toy", "round", number + 1)
            )
    return study.sha256


@pytest.mark.parametrize("lose", [lambda path: path.unlink(), lambda path: os.truncate(path, 0), lambda path: empty_database(path)])
def test_a_lost_ledger_is_not_recreated(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    path, sha = tmp_path / "ledger.db", answered(tmp_path, "patient", "7", 0)
    ledger = Ledger(path)
    for k in range(3):
        ledger.charge_all([(["a"], gaussian(3.0))], **reported(run="7", round=k + 1, study=sha))
    answered(tmp_path, "patient", "7", 3)
    Ledger(path)
    lose(path)
    before = path.read_bytes() if path.exists() else None
    assert "restore it from a backup" in refused(ledger, ["a"], gaussian(3.0), **reported(run="7", round=4))
    for look in (lambda: Ledger(path), lambda: show(path, 8.0, DELTA)):
        with pytest.raises(InputError, match="is missing, but the journal in its folder holds 3 answers"):
            look()
    assert (path.read_bytes() if path.exists() else None) == before
    shutil.rmtree(tmp_path / "studies")  # the studies in the journal are then unknown
    with pytest.raises(InputError, match="is missing"):
        Ledger(path)


def empty_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM")


def test_a_site_that_was_killed_before_its_first_charge_begins_one(tmp_path: Path) -> None:
    for unit in ("none", "site"):
        answered(tmp_path, unit, "3", 2)
    sha = answered(tmp_path, "patient", "7", 0)
    log = Journal(tmp_path / "journal.jsonl")
    about = About("7", sha, "toy", "round", 1)
    log.append(direction="in", verdict="accepted", about=about)
    log.append(direction="out", verdict="refused", about=about, reason="internal")
    assert "No study has been charged." in show(tmp_path / "ledger.db", 8.0, DELTA)
    assert Ledger(tmp_path / "ledger.db").charge_all([(["a"], gaussian(3.0))], **reported()) > 0


def test_an_older_copy_is_found(tmp_path: Path) -> None:
    path, copy, sha = tmp_path / "ledger.db", tmp_path / "copy", answered(tmp_path, "patient", "7", 0)
    ledger = Ledger(path)
    ledger.charge_all([(["a"], gaussian(3.0))], **reported(run="7", round=1, study=sha))
    shutil.copy(path, copy)
    ledger.charge_all([(["a"], gaussian(3.0))], **reported(run="7", round=2, study=sha))
    shutil.copy(copy, path)
    assert "replaced while it was in use" in refused(ledger, ["a"], gaussian(3.0), **reported(run="7", round=3))
    answered(tmp_path, "patient", "7", 2)
    with pytest.raises(InputError, match="lacks 1 charges whose answers are in the journal"):
        Ledger(path)
    (tmp_path / "elsewhere").mkdir()
    other = filled(tmp_path / "elsewhere" / "ledger.db")
    shutil.copy(other.path, path)
    assert "replaced while it was in use" in refused(ledger, ["a"], gaussian(3.0), **reported(run="7", round=3))


def test_noised_statistics_must_have_their_charge(tmp_path: Path) -> None:
    sha = answered(tmp_path, "patient", "7", 0, statistics="private")
    Journal(tmp_path / "journal.jsonl").append(direction="out", verdict="accepted", about=About("7", sha, "toy", "statistics", 0))
    with pytest.raises(InputError, match="is missing"):
        Ledger(tmp_path / "ledger.db")
