"""Somatic files in a manifest, and what the doctor says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedml.clients.desk.doctor import examine
from fedml.clients.site.manifest import read_site
from fedml.errors import InputError
from tests.conftest import write_csv, write_manifest

PERSONS = ["P1", "P2", "P3", "P4"]


def files(folder: Path, *more: str) -> None:
    rows = ["Hugo_Symbol\tVariant_Classification\tTumor_Sample_Barcode", "TP53\tMissense_Mutation\tP1", *more]
    (folder / "data_mutations.txt").write_text("\n".join(rows) + "\n")
    (folder / "sequenced.txt").write_text("P1\nP2\nP3\n")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('path = "data_mutations.txt", format = "maf"', 'format = "maf" needs sequenced'),
        ('path = "data_cna.txt", format = "cna", sequenced = "sequenced.txt"', 'sequenced goes with format = "maf"'),
        ('path = "data_cna.txt", format = "cna", id = "sample"', 'id goes with format = "table"'),
        ('path = "data_cna.txt", samples = "tcga"', 'samples goes with format = "maf"'),
        ('path = "data_cna.txt", format = "vcf"', "format"),
    ],
)
def test_the_manifest_is_checked(tmp_path: Path, section: str, said: str) -> None:
    write_manifest(tmp_path, "oslo", omics=f"{{ {section} }}")
    with pytest.raises(InputError, match=said):
        read_site(tmp_path)


def test_the_doctor_counts_persons_and_quotes_no_cell(tmp_path: Path) -> None:
    files(tmp_path)
    write_csv(tmp_path / "persons.csv", PERSONS, {"y": [0, 1, 0, 1]})
    write_manifest(tmp_path, "oslo", omics='{ path = "data_mutations.txt", format = "maf", sequenced = "sequenced.txt" }')
    assert "3 persons sequenced or profiled" in " ".join(finding.text for finding in examine(read_site(tmp_path)))
    files(tmp_path, "TP53\tSecret_Cell\tP1")
    texts = " ".join(repr(finding) for finding in examine(read_site(tmp_path)))
    assert "cannot be read with its lists" in texts
    assert "Secret_Cell" not in texts
