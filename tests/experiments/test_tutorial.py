"""The commands of docs/from-data-to-table.md, run as they stand there."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from tests.command import ROOT, command
from tests.conftest import public_data


@pytest.mark.long
def test_the_commands_of_the_tutorial_give_a_table_and_a_bundle_that_verifies(tmp_path: Path) -> None:
    data = public_data("fed_tcga_brca")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    commands = re.findall(r"^ {7}fedml (.*)$", (ROOT / "docs" / "from-data-to-table.md").read_text(), re.MULTILINE)
    assert len(commands) == 7
    for line in commands:
        words = [str(data) if word.startswith("DATA/") else word for word in shlex.split(line)]
        words = [str(found) for word in words for found in (sorted(tmp_path.glob(word)) if "*" in word else [word])]
        done = command("fedml", *words, cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "config"))
        assert done.returncode == 0, f"{line}: {done.stderr[-600:]}"
    (run,) = (tmp_path / "runs" / "survival").iterdir()
    with (run / "cox.tsv").open() as file:
        rows = {row["term"]: float(row["estimate"]) for row in csv.DictReader(file, delimiter="\t")}
    assert 0.01 < rows["age_at_index"] < 0.03  # about 2 % more hazard for each year
    assert "rests on the signer's word alone" in done.stdout
