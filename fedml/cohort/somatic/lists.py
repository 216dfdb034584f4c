"""Which samples a pipeline read, whose they are, and which genes it covered: knowledge that a table of mutations itself does not hold.

    of = persons_of("tcga", Path("data_mutations.txt"))     # of(["TCGA-05-4249-01A-01D-1105-08"]) -> ["TCGA-05-4249"]
    samples_in(Path("cases_sequenced.txt"))                 # the samples of cBioPortal's case list, or one a line
    genes_in(Path("data_gene_panel_impact468.txt"))         # the genes of cBioPortal's panel, or one a line

Barcodes: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/. Case lists, panels and samples' tables: cBioPortal's file formats.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from fedml.cohort.somatic.tab import clean, head_of, place_of, read_columns
from fedml.errors import InputError
from fedml.text import numbered_lines, printable

TCGA = "tcga"
PersonsOf = Callable[[Sequence[str]], list[str]]
_BARCODE = re.compile(r"^(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-(\d\d)[A-Z]?(?:-[A-Z0-9-]+)?$")
_NORMAL = range(10, 20)  # sample types of a person's healthy tissue
_BYTES = 1 << 26


def persons_of(samples: str, folder: Path, where: str) -> PersonsOf:
    """The function from samples to their persons that ``samples`` of a manifest means: "" the sample's name is the person's id; ``tcga``
    the first 12 characters of a barcode; else the path of a table with the columns SAMPLE_ID and PATIENT_ID.

    Raises:
        InputError: the table cannot be read; and from the function, a sample is no TCGA barcode, is healthy tissue, or is not in the table.
    """
    if not samples:
        return list
    if samples == TCGA:
        return lambda names: [_case(name, where) for name in names]
    path = folder / samples
    known = _table(path)

    def of(names: Sequence[str]) -> list[str]:
        for name in names:
            if name not in known:
                text = f'sample "{printable(name)}" is not in {path}, so that its person is not known'
                raise InputError(f"{where}: {text}; add it there, or export both files together.")
        return [known[name] for name in names]

    return of


def _case(name: str, where: str) -> str:
    found = _BARCODE.match(name)
    if not found:
        raise InputError(f'{where}: "{printable(name)}" is no barcode of a TCGA sample; correct samples in site.toml.')
    if int(found.group(2)) in _NORMAL:
        raise InputError(f"{where}: {printable(name)} is a sample of healthy tissue, not of a tumour; remove it.")
    return found.group(1)


def _table(path: Path) -> dict[str, str]:
    """Sample -> person."""
    head = head_of(path)
    sample, person = (place_of(head, name, path, "a table of samples as cBioPortal has it") for name in ("SAMPLE_ID", "PATIENT_ID"))
    table = read_columns(path, head, sorted({sample, person}))
    known: dict[str, str] = {}
    for name, owner in zip(clean(table, sample), clean(table, person), strict=True):
        if not name or not owner:
            raise InputError(f"{path}: a row has no SAMPLE_ID or no PATIENT_ID; complete or remove it.")
        if known.setdefault(name, owner) != owner:
            raise InputError(f'{path}: sample "{printable(name)}" is of two persons; correct the table.')
    return known


def looks_like_tcga(names: Collection[str], persons: Collection[str]) -> bool:
    """Whether ``names`` are barcodes of samples of ``persons``, who have the shorter barcodes of cases."""
    return any((found := _BARCODE.match(name)) and found.group(1) in persons for name in names)


def check_several(samples: Collection[str], of: PersonsOf, where: str, fix: str) -> None:
    """Raises ``InputError`` if a person has several of the different ``samples``."""
    names = sorted(samples)
    for person, count in Counter(of(names)).items():
        if count > 1:
            raise InputError(f'{where}: person "{printable(person)}" has {count} samples; {fix}.')


def samples_in(path: Path) -> list[str]:
    """The samples of a case list of cBioPortal (the line ``case_list_ids:``), or of a text with one on each line.

    Raises:
        InputError: the file cannot be read, or names no sample, or one twice.
    """
    return _listed(path, "case_list_ids", "sample", header=("SAMPLE_ID", "Tumor_Sample_Barcode", "id", "sample"))


def genes_in(path: Path) -> list[str]:
    """The genes of a gene panel of cBioPortal (the line ``gene_list:``), or of a text with one on each line.

    Raises:
        InputError: the file cannot be read, or names no gene, or one twice.
    """
    return _listed(path, "gene_list", "gene", header=("Hugo_Symbol", "gene", "symbol"))


def _listed(path: Path, key: str, what: str, header: Sequence[str]) -> list[str]:
    lines = [line.lstrip("\ufeff").strip() for _, line in numbered_lines(path, _BYTES)]
    lines = [line for line in lines if line and not line.startswith("#")]
    stated = [line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == key]
    if stated:
        names = [name for line in stated for name in line.split()]
    else:
        names = lines[1:] if lines and lines[0].casefold() in {h.casefold() for h in header} else lines
        for name in names:
            if "\t" in name or "," in name or ": " in name:
                raise InputError(f'{path}: the line "{printable(name[:60])}" is no name of a {what}; write one name on each line.')
    if not names:
        raise InputError(f"{path}: names no {what}; write one on each line.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f'{path}: names the {what} "{printable(twice[0])}" twice; keep one.')
    return names
