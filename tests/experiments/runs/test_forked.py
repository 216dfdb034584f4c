"""A copy of a process: in a process of its own, because this one has threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TASK = """
import os, sys, time
def main():
    line = sys.stdin.readline().strip()
    print("errors", file=sys.stderr, flush=True)
    if line == "wait":
        time.sleep(600)
    if line == "raise":
        raise SystemExit(3)
    print(line, sys.stdin.read() == "", os.getsid(0) == os.getpid(), len(os.listdir("/proc/self/fd")) < 8, flush=True)
    os._exit(4)
"""
HEAD = """
import os, sys, threading, time
from subprocess import TimeoutExpired
from fedml import quiet
from fedml.experiments.runs.forked import Forked, may_fork
"""


def said(folder: Path, script: str) -> str:
    """What a Python script says, with ``task`` as a module that it can run."""
    (folder / "task.py").write_text(TASK)
    done = subprocess.run([sys.executable, "-c", HEAD + script], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_copy_reads_answers_and_ends(tmp_path: Path) -> None:
    script = """
quiet.hush_process()
assert may_fork()
copy = Forked("task")
print("one", file=copy.stdin, flush=True)
print(copy.communicate(60), copy.returncode)
"""
    assert said(tmp_path, script) == "('one True True True\\n', 'errors\\n') 4"


def test_a_copy_that_hangs_is_ended(tmp_path: Path) -> None:
    script = """
copy = Forked("task")
print("wait", file=copy.stdin, flush=True)
try:
    copy.communicate(0.5)
except TimeoutExpired:
    copy.kill()
    copy.communicate(60)
    print(copy.returncode)
"""
    assert said(tmp_path, script) == "-9"


def test_a_copy_that_fails_is_not_the_command_twice(tmp_path: Path) -> None:
    script = """
copy = Forked("task")
print("raise", file=copy.stdin, flush=True)
copy.communicate(60)
print(copy.returncode)
"""
    assert said(tmp_path, script) == "1"


def test_no_copy_where_there_are_threads_or_libraries_that_start_some(tmp_path: Path) -> None:
    script = """
print(may_fork())
thread = threading.Thread(target=time.sleep, args=(0.5,))
thread.start()
print(may_fork())
thread.join()
import pyarrow
print(may_fork())
"""
    assert said(tmp_path, script).split() == ["True", "False", "False"]
