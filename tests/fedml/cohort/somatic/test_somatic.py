"""Mutations and copy numbers of genes from files as pipelines and spreadsheets write them."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.cohort.somatic.read import Somatic, features_in, people_in, read_somatic
from fedml.errors import InputError

HEAD = "Hugo_Symbol\tEntrez_Gene_Id\tVariant_Classification\tTumor_Sample_Barcode\tMutation_Status\tHGVSp_Short"
PERSONS = ["P1", "P2", "P3", "P4"]
ROWS = [
    "TP53\t7157\tMissense_Mutation\tP1\tSomatic\tp.R175H",
    "TP53\t7157\tNonsense_Mutation\tP2\t\tp.R213*",
    "TP53\t7157\tSilent\tP3\tSomatic\tp.P36P",
    "KRAS\t3845\tMissense_Mutation\tP1\tSOMATIC\tp.G12C",
    "KRAS\t3845\tMissense_Mutation\tP1\tSOMATIC\tp.G12C",
    "KRAS\t3845\tMissense_Mutation\tP2\tGermline\tp.G12D",
    "TERT\t7015\t5'Flank\tP3\tSomatic\t",
    "Unknown\t0\tIGR\tP3\tSomatic\t",
]
COLUMNS = ["TP53_mut", "KRAS_mut", "TP53_truncating", "TERT_promoter", "TERT_mut"]
EXPECTED = [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [np.nan] * 5]
CNA = "Hugo_Symbol\tEntrez_Gene_Id\tP1\tP2\tP4\nERBB2\t2064\t2\t-1\tNA\nTP53\t7157\t-2\t0\t1\n"


def files(folder: Path, rows: Sequence[str] = ROWS, sequenced: str = "P1\nP2\nP3\n", cna: str = CNA, **more: Any) -> Somatic:
    (folder / "data_mutations.txt").write_text("\n".join(["#version 2.4", HEAD, *rows]) + "\n")
    (folder / "sequenced.txt").write_text(sequenced)
    (folder / "data_cna.txt").write_text(cna)
    return Somatic(folder / "data_mutations.txt", folder / "data_cna.txt", folder / "sequenced.txt", folder=folder, **more)


def test_who_was_sequenced_and_has_no_row_is_0_and_others_are_missing(tmp_path: Path) -> None:
    table = read_somatic(files(tmp_path), COLUMNS, PERSONS)
    np.testing.assert_array_equal(table.values, EXPECTED)
    assert table.present.tolist() == [True, True, True, False]


def test_copy_numbers_are_levels_or_what_of_them(tmp_path: Path) -> None:
    columns = ["ERBB2_cnv", "ERBB2_amplified", "ERBB2_lost", "TP53_deleted", "TP53_gained", "TP53_mut"]
    table = read_somatic(files(tmp_path), columns, PERSONS)
    nan = np.nan
    wanted = [[2, 1, 0, 1, 0, 1], [-1, 0, 1, 0, 0, 1], [nan, nan, nan, nan, nan, 0], [nan, nan, nan, 0, 1, nan]]
    np.testing.assert_array_equal(table.values, wanted)
    assert table.present.all()  # P3 was sequenced, P4 has a profile of copies


def utf16(text: str) -> bytes:
    return text.encode("utf-16")


def quoted(text: str) -> bytes:
    lines = [line if line.startswith("#") else "\t".join(f'"{cell}"' for cell in line.split("\t")) for line in text.splitlines()]
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: gzip.compress(text.encode()),
        lambda text: text.rstrip("\n").encode(),
        lambda text: ('#isolated "quote\n# a comment\n\n' + text).encode(),
        lambda text: text.replace("TP53\t", " TP53 \t").encode(),
        lambda text: text.replace("p.G12C", 'p."G12C').encode(),
        lambda text: text.replace("p.G12C", "Gaißmaier").encode("latin-1"),
        lambda text: "\n".join([*text.splitlines()[:2], *reversed(text.splitlines()[2:])]).encode() + b"\n",
        utf16,
        quoted,
    ],
    ids=["bom", "crlf", "gzip", "no last line end", "comments", "spaces", "a lone quote", "latin-1 elsewhere", "order", "utf-16", "quotes"],
)
def test_exports_that_mean_the_same_are_read_the_same(tmp_path: Path, harm: Callable[[str], bytes]) -> None:
    there = files(tmp_path)
    path = tmp_path / "data_mutations.txt"
    path.write_bytes(harm(path.read_text()))
    np.testing.assert_array_equal(read_somatic(there, COLUMNS, PERSONS).values, EXPECTED)


def test_a_case_list_of_cbioportal_and_one_of_lines(tmp_path: Path) -> None:
    text = "cancer_study_identifier: x\nstable_id: x_sequenced\ncase_list_name: Sequenced\ncase_list_ids: P1\tP2\tP3\n"
    for listed in (text, "\ufeff" + text.replace("\n", "\r\n"), "SAMPLE_ID\nP1\n\nP2\nP3", "# three\nP1\nP2\nP3\n"):
        np.testing.assert_array_equal(read_somatic(files(tmp_path, sequenced=listed), COLUMNS, PERSONS).values, EXPECTED)


def test_a_list_of_genes_makes_a_gene_without_a_row_0(tmp_path: Path) -> None:
    there = files(tmp_path)
    with pytest.raises(InputError, match=r'no row of the gene "EGFR": nobody .* genes = "FILE"'):
        read_somatic(there, ["EGFR_mut"], PERSONS)
    panel = tmp_path / "panel.txt"
    for text in ("EGFR\nTP53\nKRAS\nTERT\n", "stable_id: IMPACT\ndescription: x\ngene_list: EGFR\tTP53\tKRAS\tTERT\n"):
        panel.write_text(text)
        assert read_somatic(replace(there, genes=panel), ["EGFR_mut"], PERSONS).values[:3].tolist() == [[0.0]] * 3
    with pytest.raises(InputError, match=r'the gene "BRAF" of the study is not in the list'):
        read_somatic(replace(there, genes=panel), ["BRAF_mut"], PERSONS)
    panel.write_text("EGFR\nTP53\nKRAS\n")
    with pytest.raises(InputError, match=r'has 1 genes that its list of sequenced genes lacks, such as "TERT"'):
        read_somatic(replace(there, genes=panel), ["EGFR_mut"], PERSONS)


BARCODES = {"P1": "TCGA-05-4249-01A-01D-1105-08", "P2": "TCGA-05-4250-01", "P3": "TCGA-44-2655-01B"}
CASES = ["TCGA-05-4249", "TCGA-05-4250", "TCGA-44-2655", "TCGA-44-2656"]


def tcga(folder: Path, changes: dict[str, str] | None = None, **more: Any) -> Somatic:
    names = BARCODES | (changes or {})
    rows = ["\t".join(names.get(cell, cell) for cell in row.split("\t")) for row in ROWS]
    listed = "\n".join(name[:15] for name in names.values()) + "\n"
    return files(folder, rows, listed, cna="Hugo_Symbol\tTCGA-05-4249-01\nERBB2\t1\n", **more)


def test_barcodes_are_of_cases_only_where_the_key_says_so(tmp_path: Path) -> None:
    table = read_somatic(tcga(tmp_path, samples="tcga"), [*COLUMNS, "ERBB2_cnv"], CASES)
    np.testing.assert_array_equal(table.values[:, :5], EXPECTED)
    np.testing.assert_array_equal(table.values[:, 5], [1, np.nan, np.nan, np.nan])
    with pytest.raises(InputError, match=r'barcodes of TCGA\'s samples.*samples = "tcga"'):
        read_somatic(tcga(tmp_path), COLUMNS, CASES)
    with pytest.raises(InputError, match=r'"S3" is no barcode of a TCGA sample'):
        read_somatic(tcga(tmp_path, {"P3": "S3"}, samples="tcga"), COLUMNS, CASES)
    with pytest.raises(InputError, match=r"TCGA-44-2655-11 is a sample of healthy tissue"):
        read_somatic(tcga(tmp_path, {"P3": "TCGA-44-2655-11A"}, samples="tcga"), COLUMNS, CASES)


def test_several_samples_of_a_person_are_refused_or_joined(tmp_path: Path) -> None:
    """P1 and P2 are two tumours of one person."""
    there = tcga(tmp_path, {"P2": "TCGA-05-4249-06A"}, samples="tcga")
    with pytest.raises(InputError, match=r'person "TCGA-05-4249" has 2 samples; write several = "any"'):
        read_somatic(there, COLUMNS, CASES)
    found = read_somatic(replace(there, several="any"), COLUMNS, CASES).values
    assert found[0].tolist() == [1, 1, 1, 0, 0]
    assert np.isnan(found[1]).all()
    (tmp_path / "data_cna.txt").write_text("Hugo_Symbol\tTCGA-05-4249-01\tTCGA-05-4249-06\nERBB2\t1\t2\n")
    with pytest.raises(InputError, match=r"has 2 samples; levels of several cannot be joined"):
        read_somatic(replace(there, several="any"), ["ERBB2_cnv"], CASES)


def test_a_table_says_whose_a_sample_is(tmp_path: Path) -> None:
    rows = [row.replace("\tP", "\tS-") for row in ROWS]
    there = files(tmp_path, rows, "S-1\nS-2\nS-3\n", samples="data_clinical_sample.txt")
    text = "#Patient\tSample\n#STRING\tSTRING\nPATIENT_ID\tSAMPLE_ID\tSAMPLE_TYPE\nP1\tS-1\tPrimary\nP2\tS-2\tPrimary\n"
    (tmp_path / "data_clinical_sample.txt").write_text(text)
    with pytest.raises(InputError, match=r'sample "S-3" is not in .*data_clinical_sample\.txt, so that its person is not known'):
        read_somatic(there, COLUMNS, PERSONS)
    (tmp_path / "data_clinical_sample.txt").write_text(text + "P3\tS-3\tPrimary\n")
    np.testing.assert_array_equal(read_somatic(there, COLUMNS, PERSONS).values, EXPECTED)
    (tmp_path / "data_clinical_sample.txt").write_text(text + "P3\tS-1\tPrimary\n")
    with pytest.raises(InputError, match=r'sample "S-1" is of two persons'):
        read_somatic(there, COLUMNS, PERSONS)


@pytest.mark.parametrize("symbol", ["1-Mar", "Mar-01", "2021-03-01", "01/03/2021", "44256", "44256.0"])
def test_a_symbol_that_a_spreadsheet_damaged_is_refused_only_where_it_may_be_a_gene_of_the_study(tmp_path: Path, symbol: str) -> None:
    row = f"{symbol}\t0\tMissense_Mutation\tP2\tSomatic\tp.X1Y"
    there = files(tmp_path, [*ROWS, row])
    np.testing.assert_array_equal(read_somatic(there, COLUMNS, PERSONS).values, EXPECTED)
    for gene in ("MARCH1", "MARCHF1", "MTARC1"):
        whole = files(tmp_path, [*ROWS, row, f"{gene}\t0\tMissense_Mutation\tP1\tSomatic\tp.X1Y"])
        with pytest.raises(InputError, match=rf"which a spreadsheet made of a symbol and which may be {gene}"):
            read_somatic(whole, [f"{gene}_mut"], PERSONS)
    with pytest.raises(InputError, match="may be MARCHF1"):
        read_somatic(files(tmp_path, cna=f"{CNA}{symbol}\t1\t0\t0\t0\nMARCHF1\t1\t0\t0\t0\n"), ["MARCHF1_cnv"], PERSONS)
    assert f"{symbol}_mut" not in features_in(there)


def test_another_gene_of_the_family_is_not_meant_by_a_damaged_symbol(tmp_path: Path) -> None:
    rows = [*ROWS, "2-Sep\t0\tSilent\tP2\tSomatic\t", "SEPTIN9\t0\tMissense_Mutation\tP2\tSomatic\t"]
    assert read_somatic(files(tmp_path, rows), ["SEPTIN9_mut"], PERSONS).values[:3, 0].tolist() == [0, 1, 0]
    with pytest.raises(InputError, match=r"made a date or a number of this gene"):
        read_somatic(files(tmp_path), ["2-Sep_mut"], PERSONS)


@pytest.mark.parametrize(
    ("change", "column", "said"),
    [
        ({"rows": [*ROWS, "TP53\t1\tMissence_Mutation\tP1\tSomatic\t"]}, "TP53_mut", r'"Missence_Mutation" in a row.*Missense_Mutation'),
        ({"rows": [*ROWS, "TP53\t1\t\tP1\tSomatic\t"]}, "TP53_mut", r'Variant_Classification is "" in a row'),
        ({"rows": [*ROWS, "TP53\t1\tSilent\tP1\tPerhaps\t"]}, "TP53_mut", r'Mutation_Status is "perhaps"'),
        ({"rows": [*ROWS, "TP53\t1\tSilent\t\tSomatic\t"]}, "TP53_mut", "a row has no Tumor_Sample_Barcode"),
        ({"rows": [*ROWS, "TP53\t1\tSilent\tP1"]}, "TP53_mut", "has 4 cells, the header has 6"),
        ({"rows": [*ROWS, HEAD]}, "TP53_mut", "Mutation_Status is"),
        ({"rows": [*ROWS, "TP53\t1\tSilent\tP4\tSomatic\t"]}, "TP53_mut", r'sample "P4" has mutations but is not in the list'),
        ({"sequenced": "P1\nP1\nP2\nP3\n"}, "TP53_mut", r'names the sample "P1" twice'),
        ({"sequenced": ""}, "TP53_mut", "names no sample"),
        ({"sequenced": "id,sequenced\nP1,1\n"}, "TP53_mut", "is no name of a sample"),
        ({"sequenced": "P01\nP02\nP03\n"}, "TP53_mut", "persons are not in it, 3 of them by their spelling"),
        ({}, "TP53", r'column "TP53" does not say what of a gene.*TP53_mut'),
        ({}, "TP53_expression", r'"TP53_expression" does not say what of a gene'),
        ({}, "TP33_mut", r'no row of the gene "TP33"'),
        ({"cna": CNA.replace("2\t-1", "2.7\t-1")}, "ERBB2_cnv", "none of GISTIC's levels"),
        ({"cna": CNA.replace("2\t-1", "high\t-1")}, "ERBB2_cnv", r'column "P1": .*high'),
        ({"cna": CNA + "ERBB2\t2064\t1\t-1\t0\n"}, "ERBB2_cnv", r'"ERBB2" 2 times with different levels'),
        ({"cna": CNA}, "MYC_cnv", r'has no gene "MYC"'),
        ({"cna": CNA.replace("P4", "P1", 1)}, "ERBB2_cnv", r'the sample "P1" is there twice'),
        ({"cna": CNA.replace("Hugo_Symbol", "Name")}, "ERBB2_cnv", r'has no column "Hugo_Symbol"'),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_with_its_file(tmp_path: Path, change: dict[str, Any], column: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_somatic(files(tmp_path, **change), [column], PERSONS)


def test_equal_rows_of_a_gene_are_one(tmp_path: Path) -> None:
    found = read_somatic(files(tmp_path, cna=CNA + "ERBB2\t2064\t2\t-1\tNA\n"), ["ERBB2_cnv"], PERSONS)
    np.testing.assert_array_equal(found.values[:, 0], [2, -1, np.nan, np.nan])


def test_missing_files_are_named(tmp_path: Path) -> None:
    there = files(tmp_path)
    for key in ("mutations", "copies", "sequenced", "genes"):
        broken = replace(there, **{key: tmp_path / "nowhere.txt"})
        with pytest.raises(InputError, match=r"nowhere\.txt"):
            read_somatic(broken, ["TP53_mut", "ERBB2_cnv"], PERSONS)
    with pytest.raises(InputError, match=r"of copy numbers, of which .* names no file"):
        read_somatic(replace(there, copies=None), ["ERBB2_cnv"], PERSONS)


def test_names_and_persons_of_the_files(tmp_path: Path) -> None:
    there = files(tmp_path)
    assert {"TP53_mut", "KRAS_truncating", "ERBB2_cnv"} <= set(features_in(there))
    assert people_in(there) == ["P1", "P2", "P3", "P4"]
