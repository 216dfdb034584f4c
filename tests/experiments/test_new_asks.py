"""``fedml new`` without its options: on a terminal (a pseudo-terminal) it asks; elsewhere it says what is missing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from select import select

import numpy as np
import pandas as pd
import pytest

from tests.command import quick

SECONDS = 300


class Terminal:
    """A command whose terminal is a pseudo-terminal: it sees a person who reads and types."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        line = [str(Path(sys.executable).parent / "fedml"), *words]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"COLUMNS": "200", "TERM": "dumb"}
        self.process = subprocess.Popen(line, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.shown, self.read = "", 0

    def wait_for(self, words: str) -> None:
        """Reads until ``words`` are on the screen, after what was waited for before."""
        deadline = time.monotonic() + SECONDS
        while words not in self.shown[self.read :]:
            assert time.monotonic() < deadline, self.shown
            if select([self.ours], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.ours, 65536).decode()
                except OSError:  # the other end is closed
                    assert words in self.shown[self.read :], self.shown
        self.read = self.shown.index(words, self.read) + len(words)

    def answer(self, question: str, text: str) -> None:
        self.wait_for(question)
        os.write(self.ours, f"{text}\n".encode())

    def end(self) -> int:
        code = self.process.wait(SECONDS)
        os.close(self.ours)
        return code


def people(path: Path, ids: str = "Patient ID") -> None:
    rng = np.random.default_rng(2)
    age = rng.normal(60, 10, 120).round(1)
    columns = {ids: [f"{k:03d}" for k in range(120)], "Hospital": ["A", "B"] * 60, "age": age, "result": np.where(age > 60, "ill", "well")}
    pd.DataFrame(columns).to_csv(path, index=False)


def test_questions_their_guesses_and_the_run(tmp_path: Path) -> None:
    people(tmp_path / "export.csv")
    screen = Terminal(tmp_path, "new")
    screen.answer("Table of persons (CSV, TSV or Parquet), folder of images, or VCF", "exprt.csv")
    screen.wait_for("exprt.csv: no such file or folder")
    screen.answer("Table of persons", "export.csv")
    screen.answer("Another file of the same persons (Enter: none)", "")
    screen.answer("Column of ids [Patient ID]", "")
    screen.answer("Column to predict", "resul")
    screen.wait_for('no column "resul" (did you mean "result"?); the columns are Hospital, age, result')
    screen.answer("Column to predict", "result")
    screen.answer('Column of sites ("-": none) [Hospital]', "")
    screen.answer("Are the data published or synthetic, so that exact counts may leave a site? [y/N]", "y")
    screen.answer("Folder to create [export-study]", "mine")
    screen.wait_for('"result" has the classes ill, well')
    screen.wait_for("mine: 2 sites (a 60, b 60 persons)")
    screen.answer("Run it now? [Y/n]", "")
    screen.wait_for("record: ")
    assert screen.end() == 0
    study = tomllib.loads((tmp_path / "mine" / "study.toml").read_text())
    assert study["cohort"]["target"] == "result"
    assert study["federation"]["sites"] == ["a", "b"]
    assert "public = true" in (tmp_path / "mine" / "sites" / "a" / "site.toml").read_text()
    assert len(list((tmp_path / "fedml-runs").iterdir())) == 1


def test_ids_without_a_usual_name_and_no_column_of_sites(tmp_path: Path) -> None:
    people(tmp_path / "export.csv", ids="code")
    screen = Terminal(tmp_path, "new", "mine", "--table", "export.csv", "--public")
    assert screen.end() == 2, "with a table and a folder nothing is asked: what cannot be guessed is an error, as before"
    screen = Terminal(tmp_path, "new", "--table", "export.csv", "--public")
    screen.wait_for("no column looks like ids of persons")
    screen.answer("Column of ids", "code")
    screen.answer("Column to predict", "result")
    screen.answer('Column of sites ("-": none) [Hospital]', "-")
    screen.answer("Number of simulated sites [3]", "4")
    screen.answer("Folder to create", "mine")
    screen.answer("Run it now? [Y/n]", "n")
    assert screen.end() == 0
    assert len(tomllib.loads((tmp_path / "mine" / "study.toml").read_text())["federation"]["sites"]) == 4
    assert not (tmp_path / "fedml-runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "fedml new: give DIR, the folder to create and --table FILE (persons and their columns), --images DIR, or both"),
        (["mine"], "fedml new: give --table FILE (persons and their columns), --images DIR, or both"),
        (["--table", "export.csv"], "fedml new: give DIR, the folder to create; --id, --target and --site-column name columns"),
    ],
)
def test_without_a_terminal_what_is_missing_is_said(tmp_path: Path, words: list[str], told: str) -> None:
    people(tmp_path / "export.csv")
    done = quick("fedml", "new", *words, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr
    assert not (tmp_path / "mine").exists()


def test_no_column_of_sites_by_option(tmp_path: Path) -> None:
    people(tmp_path / "export.csv")
    done = quick("fedml", "new", "mine", "--table", "export.csv", "--target", "result", "--site-column", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dealt at random to 3 simulated sites" in done.stdout
