"""The events of a run: what is written is what it was, an older log still reads, and what is not known is refused by name."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.site.manifest import find_sites
from fedml.errors import InputError
from fedml.experiments.runs.record import read_record
from fedml.experiments.runs.run import new_run, run
from fedml.runs.events import KINDS, NO_END, SCHEMA, End, Event, Final, Gwas, Privacy, Round, Start, body, from_row, to_row
from fedml.runs.log import EVENTS, emit, last, read_events, read_log
from tests.conftest import clinical_site, make_study

HERE = Path(__file__).parent
GOLDEN, VERSION_0 = HERE / "golden_events.jsonl", HERE / "version_0"
# Of the moment, the folder, the machine or the code.
PASSING = {"time", "seconds", "run_id", "git_commit", "versions", "weights_sha256", "code", "code_sha256", "first_sha256", "meaning_sha256"}

OPTIONAL = {
    "start": {"code"},
    "agreed": {"disclosed", "started", "first_sha256", "columns"},
    "final": {"kept", "meaning_sha256"},
    "gwas": {"cases", "controls", "pca_variants", "pca_steps", "pca_columns", "pca_angle_rad", "eigenvalues"},
}


def canonical(value: Any) -> Any:
    """Without what another moment or machine changes; numbers to six digits."""
    if isinstance(value, dict):
        return {key: canonical(inner) for key, inner in value.items() if key not in PASSING}
    if isinstance(value, list):
        return [canonical(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def without_newer(value: Any) -> Any:
    """Without the metrics that version 0 did not have, and the size of replies, which had no ``beyond``."""
    return (
        {k: without_newer(v) for k, v in value.items() if k not in ("f1", "f1_macro", "bytes_in", "update_norm")}
        if isinstance(value, dict)
        else value
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run whose events are in ``golden_events.jsonl`` and, as an older version wrote them, in ``version_0``."""
    folder = tmp_path_factory.mktemp("golden")
    for seed, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, 60, seed)
    study = make_study(training={"lr": 0.05}, cohort__split={"train": 0.6, "val": 0.2, "test": 0.2})
    made = new_run(study, folder / "runs", None, engine="local", job="train")
    sites = find_sites(folder / "sites", ("a", "b"))[0]
    assert run(study, sites, made).status == "finished"
    return made


def test_the_events_of_a_run_are_the_golden_ones(finished: Path) -> None:
    wanted = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    found = [canonical(row) for row in read_events(finished)[0]]
    assert [row["event"] for row in found] == [row["event"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert row == other
        assert list(row) == list(other)


def test_a_log_reads_as_it_was_written(finished: Path) -> None:
    rows, _ = read_events(finished)
    events, _ = read_log(finished, strict=True)
    assert [to_row(event) for event in events] == rows


def test_a_log_of_version_0_still_reads(finished: Path) -> None:
    old, new = read_record(VERSION_0), read_record(finished)
    assert (old.start.schema, new.start.schema) == (0, SCHEMA)
    assert old.status == "finished"
    assert [e.round for e in old.rounds] == [1, 2]
    assert canonical(old.final.metrics) == canonical(without_newer(new.final.metrics))
    assert canonical(without_newer(body(old.rounds[0]))) == canonical(without_newer(body(new.rounds[0])))
    assert [site.persons for site in old.sites] == [site.persons for site in new.sites]
    later = ("centre", "public", "trust", "code_sha256")  # what older sites do not disclose
    limits = [{k: v for k, v in (site.policy or {}).items() if k not in later} for site in new.sites]
    assert [site.policy for site in old.sites] == limits
    assert all(site.policy for site in old.sites), "what a site disclosed had another key"


def test_keys_of_version_0_have_their_new_names(tmp_path: Path) -> None:
    cell = {"site": "a", "check": "genome build", "value": "GRCh38", "verdict": "fail"}
    policy = {"a": {"policy": {"min_persons": 20}, "dataset": None, "quarantined": None}}
    figures: dict[str, Any] = {"tested": 1, "variants": 1, "lambda": 1.0, "left_out": {}, "top": [], "hits": 0, "methods": {}}
    lines: list[dict[str, Any]] = [
        {"event": "start", "time": 1.0, "run_id": "old", "study": "toy", "study_sha256": "0" * 64},
        {"event": "checks", "time": 2.0, "checks": [{**cell, "mend": "lift the file over"}]},
        {"event": "agreed", "time": 3.0, "sites": ["a"], "persons": {}, "told": policy},
        {"event": "step", "time": 4.0, "doing": "x", "done": 1, "told": True},
        {"event": "gwas", "time": 5.0, "seconds": 1.0, "sites": {}, "persons": {}, **figures, "partly_told": 3},
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, checks, agreed, step, found = read_log(tmp_path)[0]
    assert body(checks) == {"checks": [{**cell, "fix": "lift the file over"}]}
    assert body(agreed)["disclosed"] == policy
    assert body(step)["log"] is True
    assert body(found)["partly_reported"] == 3


def test_what_version_0_lacked_is_filled_in(tmp_path: Path) -> None:
    """A log from before sites spoke of themselves and of journals, and before jobs and subgroups."""
    lines = [
        {"event": "start", "time": 1.0, "run_id": "old", "study": "toy", "study_sha256": "0" * 64, "no_longer_read": 1},
        {"event": "agreed", "time": 2.0, "sites": ["a"], "persons": {"a": {"train": [3, 4]}}},
        {"event": "round", "time": 3.0, "round": 1, "seconds": 0.5, "sites": {"a": {"train_loss": 0.7, "seen": 7}}},
        {"event": "privacy", "time": 4.0, "unit": "none"},
        {"event": "final", "time": 5.0, "round": 1, "weights_sha256": "1" * 64, "metrics": {}, "sites": {"a": {"bytes_in": 5}}},
        {"event": "end", "time": 6.0, "status": "finished"},
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    start, agreed, one, privacy, final, end = read_log(tmp_path, strict=True)[0]
    assert isinstance(start, Start)
    assert (start.schema, start.job, start.versions) == (0, "train", {})
    assert body(agreed)["matching"] == {}
    assert isinstance(one, Round)
    assert one.sites["a"] == {
        "train_loss": 0.7,
        "seen": 7,
        "seconds": 0.0,
        "update_norm": None,
        "bytes_out": 0,
        "bytes_in": 0,
        "journal": None,
    }
    assert isinstance(privacy, Privacy)
    assert (privacy.epsilon, privacy.claims) == (None, {})
    assert isinstance(final, Final)
    assert (final.groups, final.refused, final.sites["a"]["bytes_in"]) == ({}, {}, 5)
    assert isinstance(end, End)
    assert end.reason == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[-1].update(event="ended"), 'event "ended" is not known'),
        (lambda rows: rows[2].update(mood="good"), 'event "round" has a field that is not known: mood'),
        (lambda rows: rows[2].pop("refused"), 'event "round" lacks the field refused'),
        (lambda rows: rows[-1].pop("time"), 'event "end" lacks the field time'),
        (lambda rows: rows[0].update(schema=SCHEMA + 1), f"version {SCHEMA + 1}, this software reads up to {SCHEMA}"),
    ],
)
def test_what_is_not_known_is_refused_by_name(finished: Path, tmp_path: Path, change: Any, words: str) -> None:
    rows, _ = read_events(finished)
    change(rows)
    (tmp_path / EVENTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "study.json").write_bytes((finished / "study.json").read_bytes())
    with pytest.raises(InputError, match=words):
        read_record(tmp_path)


def test_who_only_watches_leaves_out_what_is_not_known(finished: Path, tmp_path: Path) -> None:
    rows, _ = read_events(finished)
    rows.insert(2, {"event": "weather", "time": 1.0})
    rows[1]["mood"] = "good"
    (tmp_path / EVENTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [event.kind for event in read_log(tmp_path)[0]] == [row["event"] for row in rows if row["event"] != "weather"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_survives_the_log(kind: str, tmp_path: Path) -> None:
    """Each class with values of its fields' types; of a log of this version, in which every field is refused when it is missing."""
    plain: dict[str, Any] = {"str": "x", "int": 3, "float": 0.5, "float | None": 0.25, "int | None": 2, "str | None": "y", "bool": True}
    given = {f.name: plain.get(str(f.type), [] if str(f.type).startswith("list") else {}) for f in fields(KINDS[kind]) if f.name != "time"}
    given |= {"schema": SCHEMA} if kind == "start" else {}
    start = Start(run_id="r", study="s", study_sha256="0", git_commit="none", seed=0, versions={}, engine="local", job="train", code=None)
    event = KINDS[kind](**given)
    emit(tmp_path, start)
    emit(tmp_path, event)
    (_, back), _ = read_log(tmp_path, strict=True)
    assert back.came
    assert not event.came
    assert body(back) == body(event)
    row = read_events(tmp_path)[0][1]
    for key in row.keys() - OPTIONAL.get(kind, set()):
        with pytest.raises(ValueError, match="is not known" if key == "event" else "lacks the field"):
            from_row({k: v for k, v in row.items() if k != key}, schema=SCHEMA, strict=True)


def test_no_field_has_a_default_that_hides_a_gap() -> None:
    for kind in KINDS.values():
        assert {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING} <= {"time", "schema"}


def test_what_a_study_does_not_have_is_not_written() -> None:
    base: dict[str, Any] = dict.fromkeys(("cases", "controls", "pca_variants", "pca_steps", "pca_columns", "pca_angle_rad", "eigenvalues"))
    figures: dict[str, Any] = {"tested": 1, "variants": 1, "inflation": 1.0, "left_out": {}, "top": [], "hits": 0, "partly_reported": 0}
    event = Gwas(seconds=1.0, sites={}, persons={}, methods={}, **base, **figures)
    assert "lambda" in body(event)
    assert not base.keys() & body(event).keys()
    assert body(Privacy(unit="none", epsilon=None, delta=0.0, claims={}, sentence=None)) == {"unit": "none"}


def test_the_last_event_of_a_kind_or_what_stands_for_it() -> None:
    events: list[Event] = [End(status="failed", reason="a"), End(status="finished", reason="")]
    assert last(events, NO_END).status == "finished"
    assert last([], NO_END).status == "unfinished"
