"""Absolute limits of a study: everything in its text that costs memory or time before or after it is approved.

Each number of a section has its own limit at its field (``fedml.study.sections``, ``cohort_section``, ``imaging``). Here are the limits of
the text as a whole, which are checked before the text is parsed and before its values are validated, and the limit of the model's size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedml.text import printable, unsafe_character

TOML_BYTES = 4 * 2**20  # tomllib reads about 2 MB a second
TEXT_BYTES = 32 * 2**20  # canonical JSON, with the genes and features of other files
VALUES = 2_000_000  # of the whole text
KEYS = 10_000  # of one section or table
DEPTH = 16
CHARACTERS = 10_000  # of one text
KEY_CHARACTERS = 200
WHOLE = 2**62
LARGEST = 1e15  # absolute value of a decimal number

FEATURES = 1_000_000  # listed variants, columns of omics
COLUMNS = 5_000  # of a clinical table
GENES = 200_000
GENE_BYTES = 4 * 2**30  # of a file of genes, unpacked; GENCODE's has 1.6 GB
SITES = 1_000
CLASSES = 1_000
LAYERS = 32
WIDTH = 65_536  # features of a dense layer
CHANNELS = 4_096  # of a layer of an image network
VOXELS = 2**28  # values of one image, all channels: 1 GiB of float32
FEATURES_OF_TILE = 2**12  # of a frozen encoder
TILE_VALUES = 2**30  # of all tiles of a person in one step
PARAMETERS = 2**28  # 1 GiB of float32
EPOCHS = 1_000_000  # local epochs of all rounds together
STEPS = 100_000_000  # local steps of all rounds together
PRIVATE_STEPS = 1_000_000  # noised steps of all rounds together, as many as the accountant composes
STEPS_PER_DELTA = 5e14  # noised steps for each unit of delta, as far as the accountant is exact

# A key of more dotted parts than this takes tomllib a time that grows with the square of their number.
_DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){17}""")


def text_problem(text: str | bytes, limit: int) -> str:
    """Why a text is not parsed at all; "" if nothing speaks against it."""
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="surrogatepass"))
    if size > limit:
        return f"is {size:,} bytes long, the limit is {limit:,}"
    marks = sum(text.count(mark) if isinstance(text, str) else text.count(mark.encode()) for mark in ",[{")
    if marks > VALUES:
        return f"has {marks:,} values or lists, the limit is {VALUES:,}"
    return ""


def toml_problem(text: str) -> str:
    """What in a TOML text would take its reader too long; "" if there is nothing."""
    found = _DOTTED.search(text)
    return f"line {text.count(chr(10), 0, found.start()) + 1} has a key of more than {DEPTH} parts with dots" if found else ""


def value_problem(plan: Any) -> str:
    """What is wrong with a value of a plan that is too large, or would be shown otherwise than it is written; "" if there is none."""
    waiting: list[tuple[str, Any, int]] = [("", plan, 0)]
    while waiting:  # not by recursion: a plan may be nested deeply
        key, value, depth = waiting.pop()
        where = key or "the study"
        if depth > DEPTH:
            return f"{where} is nested too deeply; the limit is {DEPTH} levels"
        if isinstance(value, Mapping):
            if len(value) > KEYS:
                return f"{where} has {len(value):,} keys, the limit is {KEYS:,}"
            for name in map(str, value):
                if len(name) > KEY_CHARACTERS:
                    return f"a key of {where} has {len(name):,} characters, the limit is {KEY_CHARACTERS}"
                if character := unsafe_character(name):
                    return f"a key of {where} has the character {character}, which is {_HIDDEN}"
            waiting += [(f"{key}.{printable(str(name))}".removeprefix("."), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(key, item, depth + 1) for item in value]
        elif problem := _plain_problem(key, value):
            return f"{where} {problem}"
    return ""


_HIDDEN = "invisible or changes what a terminal shows; delete it"


def _plain_problem(key: str, value: Any) -> str:
    if isinstance(value, str):
        if len(value) > CHARACTERS:
            return f"has {len(value):,} characters, the limit is {CHARACTERS:,}"
        if character := unsafe_character(value, "\n\t" if key == "study.question" else ""):
            return f"has the character {character}, which is {_HIDDEN}"
    elif isinstance(value, int) and abs(value) > WHOLE:
        return "is a whole number above the limit of 2^62"
    elif isinstance(value, float) and not abs(value) <= LARGEST:
        return f"is {value:g}; a number is at most {LARGEST:g}"
    return ""


def values_of(size: Sequence[int], channels: int = 1) -> int:
    """The number of values of an image."""
    return channels * math.prod(size)
