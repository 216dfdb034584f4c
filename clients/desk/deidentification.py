"""What is found in this site's images that may identify a person, for the person at the site who answers for its data. Never sent.

report = examine(site, pixels=True)
print(show(report))                     # counts by what, where and level; no value of a file, and no name in which something was found
raise SystemExit(report.code)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from fedml.clients.site.manifest import Site
from fedml.cohort.deidentification import looked_at
from fedml.cohort.identifiers import ocr
from fedml.cohort.identifiers.rules import Severity
from fedml.cohort.sheet import read_table
from fedml.errors import InputError
from fedml.modalities.image import ImageData
from fedml.modalities.radiomics import RadiomicsData

NOTHING, TO_CHECK, SET_ASIDE = 0, 1, 3  # exit codes
_DOES = {
    "refuse": "the site takes no part in a study that reads such a file",
    "strict": "excluded, and so is an image of which something is to be checked",
    "quarantine": "excluded from every study",
    "warn": "used, with a line in the site's log",
}


@dataclass(frozen=True)
class Row:
    """A kind of finding: ``why`` at ``where`` of files of a ``kind``, in how many files and of how many persons."""

    level: str
    why: str
    where: str
    kind: str
    files: int
    persons: int


@dataclass(frozen=True)
class Report:
    """The findings of a site. ``files``: that were looked at; ``listed``: each finding as (level, person, file, where, why)."""

    site: str
    policy: str
    files: int
    persons: int
    rows: tuple[Row, ...]
    listed: tuple[tuple[str, str, str, str, str], ...]
    not_done: str

    @property
    def code(self) -> int:
        """The exit code: 0 nothing found, 1 something to check, 3 something for which the policy sets a file aside."""
        levels = {row.level for row in self.rows}
        return SET_ASIDE if Severity.REFUSE in levels else TO_CHECK if levels else NOTHING

    def as_json(self) -> dict[str, Any]:
        """The report as JSON has it, with the exit code."""
        return {**asdict(self), "code": self.code}


def examine(site: Site, *, pixels: bool) -> Report:
    """Looks at every file in the folders of images and masks.

    Raises:
        InputError: the site has no images, or they cannot be looked at.
    """
    radiomics = site.manifest.data.radiomics
    regions = None if radiomics is None or radiomics.format == "table" else radiomics
    data = site.manifest.data.image or regions
    if not isinstance(data, ImageData | RadiomicsData):
        raise InputError(f"{site.file}: [data] has no image and no radiomics of images; add it, or there is nothing to look at.")
    path = site.folder / site.manifest.data.persons
    ids = {str(i) for i in read_table(path, site.manifest.data.id).index}
    named = [name for one in (site.manifest.data.image, regions) if one is not None for name in (one.path, one.masks)]
    roots = [site.folder / name for name in dict.fromkeys(named) if name]
    roots = [root if root.is_dir() else root.parent for root in roots if root.exists()]
    if not roots:
        raise InputError(f"{site.folder / data.path}: does not exist; correct data.image or data.radiomics in site.toml.")
    files, persons, listed = 0, set[str](), list[tuple[str, str, str, str, str]]()
    found = defaultdict[tuple[str, str, str, str], list[tuple[str, str]]](list)
    for root in dict.fromkeys(root for root in roots if not any(other in root.parents for other in roots)):
        for one in looked_at(root, ids, pixels=pixels):
            files += 1
            persons.add(one.person)
            for finding in dict.fromkeys(one.findings):
                found[str(finding.severity), finding.why, _place(finding.where), one.kind].append((one.person, one.where))
                listed.append((str(finding.severity), one.person, one.where, finding.where, finding.why))
    rows = [Row(*key, len({file for _, file in at}), len({p for p, _ in at} - {""})) for key, at in found.items()]
    rows.sort(key=lambda row: (row.level != Severity.REFUSE, -row.files, row.why, row.where))
    not_done = ocr.missing() if pixels else "text in pixels was not looked for: --no-pixels"
    return Report(site.name, site.manifest.policy.deidentification, files, len(persons - {""}), tuple(rows), tuple(listed), not_done)


def _place(where: str) -> str:
    """The path of an attribute without the numbers of items of sequences, so that equal findings are one row."""
    return "".join(part.partition("]")[2] if "]" in part else part for part in where.split("["))


def show(report: Report, *, files: bool = False) -> str:
    """The report as text. ``files``: also a line for each finding of each file."""
    lines = [f"{report.site}: {report.files} files of {report.persons} persons were looked at"]
    for level, head in (
        (Severity.REFUSE, f'not de-identified ([policy] deidentification = "{report.policy}": {_DOES[report.policy]})'),
        (Severity.REVIEW, "a person has to check whether these identify someone"),
    ):
        if rows := [row for row in report.rows if row.level == level]:
            lines += [f"{head}:", *(f"  {row.files:6} files, {row.persons:5} persons  {row.where} ({row.kind}): {row.why}" for row in rows)]
        if files:
            lines += [f"    {person or '-'}  {file}  {where}: {why}" for at, person, file, where, why in report.listed if at == level]
    if not report.rows:
        lines.append("no rule found an identifier; a name that is only a word, and a face in a head scan, no rule finds")
    return "\n".join([*lines, *([report.not_done] if report.not_done else [])])
