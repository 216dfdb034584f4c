"""Damaged images made from real ones: recognisable damage is excluded with its reason, harmless changes are read as the clean image.

No input ends the process, takes longer than 10 s or needs 2 GB. Each is read as a study reads it, in a separate process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from fedml.clients.site.quarantine import read
from tests.command import ROOT, command
from tests.conftest import DATA, make_plan, public_data, to_toml, write_csv, write_manifest
from tests.image_mutations import CASES, KINDS, PERSON, Bench, Case, make

SECONDS, MB = 10.0, 2048  # of the processor, and of memory at its peak
PATIENCE = 60.0  # by the clock, on a machine that others use too; the 10 s are of its own time
MAKING = 120.0  # seconds for imports, clean readings and the making of a case; nothing is held against it
Report = dict[str, Any]


def lines_of(process: subprocess.Popen[str]) -> Queue[str]:
    """The lines of a process as they come, and "" once it has ended."""
    lines: Queue[str] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    return lines


def read_all(start: int, end: int, patience: float = PATIENCE) -> Iterator[Report]:
    """What became of each case: one process after another, a new one where one ended or hung."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    while start < end:
        words = [sys.executable, "-m", "tests.image_mutations", str(DATA), str(start), str(end)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        errors: list[str] = []
        assert process.stderr is not None
        drain = threading.Thread(target=lambda p=process.stderr, e=errors: e.append(p.read()), daemon=True)
        drain.start()
        lines, reading = lines_of(process), False
        try:
            while start < end:
                line = lines.get(timeout=patience if reading else MAKING)
                if not line:
                    drain.join(10)
                    assert reading, f"making case {start} ({CASES[start]}) failed: {errors}"
                    yield {"number": start, "error": f"the process ended with {process.wait()}: {''.join(errors)[-300:]}"}
                    start += 1
                    break
                reported = json.loads(line)
                reading = "begin" in reported
                if not reading:
                    yield reported
                    start += 1
        except Empty:
            assert reading, f"making case {start} ({CASES[start]}) takes too long"
            yield {"number": start, "error": f"hangs for {patience} s", "seconds": patience}
            start += 1
        finally:
            process.kill()
            process.wait()


def verdict_of(case: Case, reported: Report) -> str:
    """What is wrong with how a case was read; "" if nothing is."""
    if "error" in reported:
        return str(reported["error"])
    if reported["seconds"] > SECONDS or reported["mb"] > MB:
        return f"took {reported['seconds']} s and {reported['mb']} MB"
    if reported["reasons"] and not all(text.startswith("/") for text in reported["texts"]):
        return f"the sentence does not begin with the file: {reported['texts']}"
    if case.verdict == "harmless" and (reported["reasons"] or not reported["equal"]):
        return f"is harmless, but {reported['texts'] or 'is read otherwise'}"
    if case.verdict == "wrong" and not reported["reasons"]:
        return "is wrong, but was not excluded" + (", and read as the clean one" if reported["equal"] else "")
    if case.verdict == "wrong" and not set(reported["reasons"]) <= case.reasons:
        return f"is excluded as {reported['reasons']}, not as {sorted(case.reasons)}: {reported['texts']}"
    return ""


def table(reported: dict[int, Report]) -> str:
    """Kind and verdict, and how many were excluded, read as the clean one, read otherwise."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for case in CASES:
        if (one := reported.get(case.number)) is not None:
            how = "failed" if "error" in one else "excluded" if one["reasons"] else "equal" if one["equal"] else "other"
            counts.setdefault((case.kind, case.verdict), Counter())[how] += 1
    names = ("excluded", "equal", "other", "failed")
    rows = [f"{k:14}{v:10}" + "".join(f"{c[n]:>8}" for n in (*names,)) + f"{c.total():>8}" for (k, v), c in sorted(counts.items())]
    return "\n".join([f"{'kind':14}{'verdict':10}" + "".join(f"{n:>8}" for n in (*names, "all")), *rows])


@pytest.mark.long
def test_recognisable_damage_is_excluded_and_nothing_crashes() -> None:
    for name in ("dicom_mr", "nifti", "wbc_two_labs", "wsi"):
        public_data(name)
    reported = {one["number"]: one for one in read_all(0, len(CASES))}
    print("\n" + table(reported))
    reasons = Counter(reason for one in reported.values() for reason in one.get("reasons", []))
    print("reasons:", ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))
    slowest = max(reported.values(), key=lambda one: one.get("seconds", 0))
    largest = max(reported.values(), key=lambda one: one.get("mb", 0))
    print(f"slowest {slowest.get('seconds')} s ({CASES[slowest['number']].mutation}), largest {largest.get('mb')} MB "
          f"({CASES[largest['number']].mutation})")  # fmt: skip
    assert len(reported) == len(CASES) >= 300
    wrong = {(c.number, c.kind, c.mutation): text for c in CASES if (text := verdict_of(c, reported[c.number]))}
    assert not wrong, json.dumps({str(k): v for k, v in wrong.items()}, indent=1, ensure_ascii=False)


WHOLE = {  # kind -> how many of its wrong cases, drawn over the table, go through a whole run
    "DICOM": 8,
    "NIfTI": 7,
    "PNG": 7,
}


@pytest.mark.long
@pytest.mark.parametrize("kind", list(WHOLE))
def test_a_run_goes_on_without_what_is_broken(tmp_path: Path, kind: str) -> None:
    """``fedml run`` over a site with some broken images among whole ones: a result, and a list of the exclusions with reasons."""
    for name in ("dicom_mr", "nifti", "wbc_two_labs"):
        public_data(name)
    how = KINDS[kind]
    wrong = [c for c in CASES if c.kind == kind and c.verdict == "wrong" and not c.reasons & {"geometry", "duplicate-slices"}]
    cases = wrong[:: max(1, len(wrong) // WHOLE[kind])][: WHOLE[kind]]
    site = tmp_path / "sites" / "a"
    broken: dict[str, Case] = {}
    ids = [f"p{k:02d}" for k in range(2 * len(cases) + 8)]
    for k, person in enumerate(ids):
        if k % 2 and len(broken) < len(cases):
            broken[person] = cases[len(broken)]
            make(broken[person], bench := Bench(DATA, tmp_path / "bench" / person))
        else:
            how.lay(bench := Bench(DATA, tmp_path / "bench" / person))
        for item in bench.images.iterdir():
            (site / "images").mkdir(parents=True, exist_ok=True)
            item.rename(site / "images" / (person + item.name.removeprefix(PERSON)))
    write_csv(site / "persons.csv", ids, {"y": [k // 2 % 2 for k in range(len(ids))]})
    manifest = write_manifest(site, "a", image=f'{{ path = "images", format = "{how.format}" }}')
    manifest.write_text(manifest.read_text() + '[policy]\nmax_quarantined = 0.6\ndeidentification = "warn"\n')
    size = [16, 16] if kind == "PNG" else [16, 16, 8]
    image = {"size": size, "crop": True, "channels": how.channels}
    plan = make_plan(("image",), sites=("a",), cohort__image=image, model__image={"net": "cnn", "channels": [4]})
    (tmp_path / "study.toml").write_text(to_toml(plan))
    done = command("fedml", "run", "study.toml", "--sites", "sites", "--runs", "runs", "--no-track", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    reported = {entry["person"]: entry["reason"] for entry in read(site / ".fedml")}
    assert set(reported) == set(broken)
    for person, case in broken.items():
        assert reported[person] in case.reasons, (case.mutation, reported[person])
    assert "excluded" in done.stdout
