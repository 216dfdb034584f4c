"""What a mutant is: a mistake made on purpose in a copy of the source, and the test that must fail for it."""

from __future__ import annotations

Patch = tuple[str, str, str]  # file, the text that stands there, the text that the mistake writes
Mutants = dict[str, tuple[list[Patch], str]]  # name -> (patches, test below tests/)
