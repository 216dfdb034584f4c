"""Tests of genes over sites are those of the pooled persons, computed densely and by other means (``tests.rare``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedml.errors import InputError, RunError
from fedml.study.annotation import read_annotation
from tests.command import quick as command
from tests.rare import (
    Drawn,
    Sites,
    cauchy,
    dense_skat_o,
    event_of,
    lambdas_of,
    mixture_sf,
    moments,
    pooled_columns,
    pooled_null,
    run_genes,
    study_of,
    write_rare,
)

OPEN = "[policy]\nmin_count = 1\n"


def compared(sites: Sites, table: pd.DataFrame, *, binary: bool, by_site: bool, exact: tuple[int, ...], **columns: object) -> None:
    """Every row of the table is what the pooled persons give; SKAT-O of the genes ``exact``."""
    from scipy import stats

    null = pooled_null(sites, binary=binary, by_site=by_site)
    checked = 0
    for gene in np.unique(sites.gene):
        for plof in (True, False):
            row = table.loc[(f"G{gene}", "pLoF" if plof else "pLoF_missense")]
            pooled = pooled_columns(sites, gene, plof=plof, **columns)  # type: ignore[arg-type]
            u, a = moments(pooled, null)
            weighted, cover = pooled.weight * u, a * np.outer(pooled.weight, pooled.weight)
            burden = weighted.sum() ** 2 / cover.sum()
            scale = stats.beta.pdf(0, 1, 25) if columns.get("beta", True) else 1.0
            assert row["columns"] == len(u)
            assert row.alleles == pooled.g.sum()
            assert row.burden_beta == pytest.approx(weighted.sum() / cover.sum() * scale, rel=1e-6)
            if binary and max(burden, (u**2 / np.diag(a)).max()) > 4:  # there the saddle point widens the covariance
                continue
            checked += 1
            assert row.burden_standard_error == pytest.approx(scale / np.sqrt(cover.sum()), rel=1e-6)
            single = stats.chi2.sf(u**2 / np.diag(a), 1)
            expected = [stats.chi2.sf(burden, 1), float(mixture_sf(weighted @ weighted, lambdas_of(cover))[0])]
            expected.append(cauchy(single, pooled.weight**2 * pooled.frequency * (1 - pooled.frequency)))
            np.testing.assert_allclose([row.burden_p, row.skat_p, row.acat_v_p], expected, rtol=2e-6)
            assert row.combined_p == pytest.approx(cauchy(expected, np.ones(3)), rel=3e-6)
            if gene in exact:
                assert row.skat_o_p == pytest.approx(dense_skat_o(weighted, cover), rel=1e-3)
    assert checked >= len(np.unique(sites.gene))


def test_a_number_is_tested_as_on_the_pooled_persons(tmp_path: Path) -> None:
    """Three sites, linked variants, missing calls; the site's own minimum is 1, so that no column is changed."""
    sites = write_rare(tmp_path, Drawn(policy=OPEN, linked=0.1, missing=0.01))
    table = run_genes(study_of(sites, collapse=4, block=4), tmp_path, tmp_path / "run")
    compared(sites, table, binary=False, by_site=False, exact=(0, 1), collapse=4)
    event = event_of(tmp_path / "run")
    assert (event.genes, event.tested) == (6, 12)
    assert event.persons == {"s0": 200, "s1": 300, "s2": 250}


def test_two_classes_are_tested_as_on_the_pooled_persons_with_an_intercept_a_site(tmp_path: Path) -> None:
    sites = write_rare(tmp_path, Drawn(policy=OPEN, share=0.4, linked=0.1))
    table = run_genes(study_of(sites, task="classification", weights="flat"), tmp_path, tmp_path / "run")
    compared(sites, table, binary=True, by_site=True, exact=(1,), beta=False)
    assert event_of(tmp_path / "run").classes["cases"] == int(sites.y.sum())


def test_an_effect_of_a_gene_is_found(tmp_path: Path) -> None:
    sites = write_rare(tmp_path, Drawn(persons=(600, 700), effect=1.2, low=0.001, high=0.006, genes=4))
    table = run_genes(study_of(sites, policy=5, min_alleles=10), tmp_path, tmp_path / "run")
    assert table.loc[("G0", "pLoF_missense"), "combined_p"] < 1e-5
    assert table.drop("G0", level=0).combined_p.min() > 1e-3


def test_an_annotation_is_read_from_a_table_vep_and_snpeff(tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    table.write_text("gene\tvariant\tconsequence\nBRCA2\tchr13:32340300:g:A\tstop_gained&splice_region_variant\nTTN\trs7\tmissense\n")
    assert [tuple(e) for e in read_annotation(table)] == [
        ("13:32340300:G:A", "BRCA2", {"stop_gained", "splice_region_variant"}),
        ("rs7", "TTN", {"missense"}),
    ]
    head = '##fileformat=VCFv4.2\n##INFO=<ID=CSQ,Number=.,Type=String,Description="VEP. Format: Allele|Consequence|IMPACT|SYMBOL">\n'
    lines = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n1\t5\trs1\tC\tA,G\t.\t.\t"
    lines += "DP=3;CSQ=A|stop_gained|HIGH|ABC,G|missense_variant|LOW|ABC\n"
    vep = tmp_path / "vep.vcf"
    vep.write_text(head + lines)
    assert [tuple(e) for e in read_annotation(vep)] == [("1:5:C:A", "ABC", {"stop_gained"}), ("1:5:C:G", "ABC", {"missense_variant"})]
    snpeff = tmp_path / "ann.vcf"
    snpeff.write_text(
        "##fileformat=VCFv4.2\n##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: 'Allele | Annotation'\">\n"
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchrX\t9\t.\tC\tCT\t.\t.\tANN=CT|frameshift_variant|HIGH|XYZ|ENSG1\n"
    )
    assert [tuple(e) for e in read_annotation(snpeff)] == [("X:9:C:CT", "XYZ", {"frameshift_variant"})]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("variant\tgene\nrs1\tA\n", "an annotation has variant, gene, consequence"),
        ("variant\tgene\tconsequence\nrs1\tA\n", "line 2: variant, gene or consequence is missing"),
        ("variant\tgene\tconsequence\n1:5:A\tA\tx\n", "is no rsID and not contig:position:ref:alt"),
        ("##fileformat=VCFv4.2\n1\t5\t.\tA\tC\t.\t.\tDP=1\n", "declares neither CSQ"),
        ("", "an annotation has variant, gene, consequence"),
    ],
)
def test_a_file_that_is_no_annotation_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(InputError, match=says):
        list(read_annotation(tmp_path / "a.tsv"))


def test_a_record_of_several_alts_that_vep_did_not_number_is_refused(tmp_path: Path) -> None:
    """For an insertion and a deletion at one place VEP writes trimmed alleles, which could be either."""
    head = '##fileformat=VCFv4.2\n##INFO=<ID=CSQ,Number=.,Type=String,Description="Format: Allele|Consequence|SYMBOL">\n'
    (tmp_path / "v.vcf").write_text(head + "1\t5\t.\tCA\tC,CAA\t.\t.\tCSQ=-|frameshift_variant|ABC\n")
    with pytest.raises(InputError, match="could be of several ALT alleles"):
        list(read_annotation(tmp_path / "v.vcf"))


def test_a_study_without_a_gene_to_test_says_so(tmp_path: Path) -> None:
    sites = write_rare(tmp_path, Drawn(persons=(100, 100), genes=2))
    with pytest.raises(RunError, match="no gene has a rare variant that a mask"):
        run_genes(study_of(sites, masks={"other": ["start_lost"]}), tmp_path, tmp_path / "run")


def test_the_commands_refuse_each_others_studies(tmp_path: Path) -> None:
    sites = write_rare(tmp_path, Drawn(persons=(100, 100), genes=2))
    plain = '[study]\nname = "g"\n[cohort]\ninputs = ["variants"]\ntarget = "y"\n[model]\ntask = "regression"\n[gwas]\ncomponents = 0\n'
    (tmp_path / "plain.toml").write_text(plain + '[federation]\nsites = ["s0", "s1"]\n')
    (tmp_path / "genes.toml").write_text(plain + '[gwas.genes]\nfile = "annotation.tsv"\n[federation]\nsites = ["s0", "s1"]\n')
    (tmp_path / "lost.toml").write_text(plain + '[gwas.genes]\nfile = "other.tsv"\n[federation]\nsites = ["s0", "s1"]\n')
    assert sites.annotation.exists()
    for words, says in (
        (("genes", "plain.toml"), "has no [gwas.genes] section"),
        (("gwas", "genes.toml"), "run fedml genes"),
        (("genes", "lost.toml"), "other.tsv: cannot be read"),
    ):
        done = command("fedml", *words, "--sites", "sites", "--no-track", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr.replace("\n", " ")
