"""Claims of README, guides, report and card, each with the test that would fail if it were untrue (``claims.tsv``: file, words, tests).

The words of a claim stand in its file, its tests exist, and a sentence with a number, or with never, always, every or equal, is listed.
"""

from __future__ import annotations

import ast
import csv
import re
from functools import lru_cache
from typing import NamedTuple

import pytest

from tests.command import ROOT

LISTED = ("README.md", "docs/evidence.md", "docs/report.md")
TEMPLATES = (
    "experiments/report/words.py", "experiments/report/persons.py", "experiments/report/utility.py", "experiments/report/sections.py",
    "experiments/evidence/model_card.py", "strategies/describe.py",
)  # fmt: skip
STRONG = re.compile(r"\b(never|always|every|equals?)\b|(?<![\w.`#{-])\d(?!\d* %? ?interval)", re.IGNORECASE)
# Not claims: numbers in names, versions, dates, addresses, code and examples of values.
NO_CLAIM = re.compile(
    r"`[^`]*`|\]\([^)]*\)|et al\. \d{4}|\b(?:Vickers and Elkin|Okabe and Ito) \d{4}|BMJ \d+|RO-Crate 1\.1|Crate 0\.5|PKCS "
    r"#8|SHA-256|x86-64|"
    r"Ed25519|95 %|\b\d \d\b"
)


class Claim(NamedTuple):
    file: str
    words: str
    tests: list[str]


def claims() -> list[Claim]:
    with (ROOT / "tests" / "claims.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["file", "words", "tests"]
    return [Claim(file, words, tests.split()) for file, words, tests in rows[1:]]


@lru_cache
def texts(file: str) -> list[str]:
    """The sentences of a guide; the texts of a Python file without docstrings, ``{}`` for what is filled in."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return _strings(text) if file.endswith(".py") else _sentences(text)


def _strings(text: str) -> list[str]:
    tree, out = ast.parse(text), list[str]()
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if id(node) in docs or (id(node) in inner and not isinstance(node, ast.JoinedStr)):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            out.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            out.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
    return [" ".join(one.split()) for one in out if " " in one.strip()]


def _sentences(text: str) -> list[str]:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?: {4}.*\n?)+", "\n", text, flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?=[-|#*] )|\n?^\d+\. ", text, flags=re.MULTILINE)
    return [s for block in blocks for s in re.split(r"(?<=[.;?])\s+(?=[A-Z*\[`])", " ".join(block.split())) if s]


def strong(sentence: str) -> bool:
    return bool(STRONG.search(NO_CLAIM.sub("", sentence)))


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_claim_names_tests_that_exist() -> None:
    assert len(claims()) >= 60
    for claim in claims():
        assert claim.tests, claim.words
        for name in claim.tests:
            file, _, function = name.partition("::")
            assert (ROOT / file).is_file(), f"{name}: no such file; {claim.words}"
            assert function.partition("[")[0] in functions(file), f"{name}: no such test; {claim.words}"


def test_the_words_of_each_claim_are_still_in_its_file() -> None:
    gone = []
    for claim in claims():
        whole = " ".join((ROOT / claim.file).read_text(encoding="utf-8").split()) if not claim.file.endswith(".py") else ""
        if claim.words not in whole and not any(claim.words in one for one in texts(claim.file)):
            gone.append(f"{claim.file}: {claim.words}")
    assert not gone


@pytest.mark.parametrize("file", [*LISTED, *TEMPLATES])
def test_a_strong_sentence_is_in_the_list(file: str) -> None:
    """Write a test that fails if the sentence is untrue and add both to tests/claims.tsv, or weaken the sentence."""
    listed = [claim.words for claim in claims() if claim.file == file]
    new = [one for one in texts(file) if strong(one) and not any(words in one or one in words for words in listed)]
    assert not new


def test_each_row_of_the_threat_model_names_its_test_or_says_that_it_is_open() -> None:
    """What is stopped has a test in its last column; what is not is open."""
    rows = [line for line in (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    heads = [k for k, line in enumerate(rows) if line.rstrip().endswith("| Shown by |")]
    assert len(heads) >= 4
    for k, line in enumerate(rows):
        if k in heads or set(line) <= set("|- "):
            continue
        last = line.rstrip().rstrip("|").rpartition("|")[2]
        named = re.findall(r"`([\w/]+\.py)`", last)
        assert named or "the same" in last or "**open**" in line.lower(), line
        for name in named:
            assert list(ROOT.glob(f"tests/**/{name.removeprefix('tests/')}")), name


def test_a_claim_that_is_not_listed_is_found() -> None:
    assert strong("It never fails.")
    assert strong("It takes 3 seconds.")
    assert not strong("The lists are by `x 3` of Collins et al. 2016, with a 95 % interval.")
    assert _strings('"""Never."""\nx = f"a {y} b" "c"\n') == ["a {} bc"]
    assert _sentences("# A\n\nOne thing. Another\nthing; `b` too.\n\n    code 3\n") == ["# A", "One thing.", "Another thing;", "`b` too."]


def test_what_make_uses_is_what_the_readme_asks_for() -> None:
    assert "PYTHON ?= python3.11" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
