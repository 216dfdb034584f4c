"""Summary statistics files hold what was computed, as GWAS-SSF v1.0 wants it; pictures are small and the same each time."""

from __future__ import annotations

import gzip
import hashlib
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pysam
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedml.analytics import sumstats
from fedml.cohort.variants.keys import Variant

KEYS = [
    Variant("chr22", 300, "rs3", "A", "G"),
    Variant("X", 50, "rs4", "a", "gt"),
    Variant("22", 7, "22:7", "AC", "A"),
    Variant("MT", 9, ".", "T", "C"),
    Variant("2", 100, "rs1", "C", "T"),
    Variant("GL000", 1, "rs9", "C", "T"),
    Variant("2", 101, "rs2", "C", "<DEL>"),
    Variant("2", 102, "rs5", "C", "T"),
]


def results(**changes: Any) -> sumstats.Results:
    n = len(KEYS)
    values: dict[str, Any] = {
        "keys": KEYS,
        "beta": np.array([0.1, -2.5e-7, 1 / 3, 0.0, -1, 1, 1, np.nan]),
        "standard_error": np.full(n, 0.25),
        "frequency": np.linspace(0, 1, n),
        "log10_p": np.array([-400.25, -3.0, -0.5, 0.0, -320.0, -1, -1, np.nan]),
        "n": np.arange(1000, 1000 + n),
        "own": {"hwe_p": np.array([np.nan, *np.full(n - 1, 0.5)]), "sites": ["oslo,porto", None, "a\tb", "", *["oslo"] * 4]},
    }
    return sumstats.Results(**{**values, **changes})


META = sumstats.Meta("heart: #1", "GRCh38", 1500, 500, 1000, ("age", "PC1"), modified=date(2025, 1, 2), more={"sites": ["oslo", "porto"]})


def rows(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    assert lines[-1] == ""
    head, *rest = (line.split("\t") for line in lines[:-1])
    assert {len(r) for r in rest} <= {len(head)}
    return head, rest


def test_the_file_is_what_the_standard_wants(tmp_path: Path) -> None:
    path = tmp_path / "heart.tsv.gz"
    assert sumstats.write(path, results(), META) == {"contig": 1, "alleles": 1, "no estimate": 1}
    head, table = rows(path)
    assert head == [*sumstats.MANDATORY, *sumstats.ENCOURAGED, "hwe_p", "sites"]
    assert head[0:8:7] == ["chromosome", "p_value"]
    assert table == [
        ["2", "100", "T", "C", "-1", "0.25", "0.571428571", "1.000000e-320", "2_100_C_T", "rs1", "OA", "1004", "0.5", "oslo"],
        ["22", "7", "A", "AC", "0.333333333", "0.25", "0.285714286", "3.162278e-01", "22_7_AC_A", "#NA", "OA", "1002", "0.5", "a b"],
        ["22", "300", "G", "A", "0.1", "0.25", "0", "5.623413e-401", "22_300_A_G", "rs3", "OA", "1000", "#NA", "oslo,porto"],
        ["23", "50", "GT", "A", "-2.5e-7", "0.25", "0.142857143", "1.000000e-03", "23_50_A_GT", "rs4", "OA", "1001", "0.5", "#NA"],
        ["25", "9", "C", "T", "0", "0.25", "0.428571429", "1.000000e+00", "25_9_T_C", "#NA", "OA", "1003", "0.5", "#NA"],
    ]


def test_a_region_is_found_by_its_index(tmp_path: Path) -> None:
    path = tmp_path / "heart.tsv.gz"
    sumstats.write(path, results(), META)
    with pysam.TabixFile(str(path)) as table:
        assert table.contigs == ["2", "22", "23", "25"]
        assert [line.split("\t")[1] for line in table.fetch(region="22:1-100")] == ["7"]
        assert [line.split("\t")[1] for line in table.fetch(region="22:7-300")] == ["7", "300"]


def test_the_metadata_file(tmp_path: Path) -> None:
    path = tmp_path / "heart.tsv.gz"
    sumstats.write(path, results(), META)
    reported = yaml.safe_load((tmp_path / "heart.tsv.gz-meta.yaml").read_text())
    assert reported == {
        "date_metadata_last_modified": date(2025, 1, 2),
        "trait_description": ["heart: #1"],
        "genome_assembly": "GRCh38",
        "coordinate_system": "1-based",
        "samples": [
            {
                "sample_size": 1500,
                "sample_ancestry_category": ["NR"],
                "case_control_study": True,
                "case_count": 500,
                "control_count": 1000,
            }
        ],
        "data_file_name": "heart.tsv.gz",
        "file_type": "GWAS-SSF v1.0",
        "data_file_md5sum": hashlib.md5(path.read_bytes()).hexdigest(),  # noqa: S324 - the standard's
        "analysis_software": "fedml-cohorts",
        "adjusted_covariates": ["age", "PC1"],
        "is_harmonised": False,
        "is_sorted": True,
        "sites": ["oslo", "porto"],
    }


words = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda k: yaml.safe_load(k) == k)  # not "no" or "null"
scalars = st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8))
def test_yaml_is_read_back_as_it_was(value: Any) -> None:
    reported = yaml.safe_load(sumstats._yaml({"field": value}))
    assert reported == {"field": value}


def test_no_variant_at_all_is_a_head_with_an_index(tmp_path: Path) -> None:
    path = tmp_path / "none.tsv.gz"
    nothing = np.zeros(0)
    none = sumstats.Results([], nothing, nothing, nothing, nothing, np.zeros(0, np.int64))
    assert sumstats.write(path, none, sumstats.Meta("t", "GRCh37", 0)) == {}
    assert rows(path)[1] == []
    assert (tmp_path / "none.tsv.gz.tbi").exists()


def test_thousands_of_rows_are_all_there_in_order(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 25_000
    keys = [Variant(str(c), int(p), ".", "A", "C") for c, p in zip(rng.integers(1, 23, count), rng.integers(1, 10**8, count), strict=True)]
    n = np.arange(count)
    sumstats.write(
        tmp_path / "x.tsv.gz",
        sumstats.Results(keys, rng.normal(size=count), np.ones(count), rng.random(count), -rng.random(count), n),
        META,
    )
    _, table = rows(tmp_path / "x.tsv.gz")
    assert sorted(int(r[11]) for r in table) == n.tolist()
    places = [(int(r[0]), int(r[1])) for r in table]
    assert places == sorted(places)
    assert all((keys[int(r[11])].contig, keys[int(r[11])].position) == (r[0], int(r[1])) for r in table)


@given(st.floats(-1e6, 0))
def test_a_p_value_keeps_seven_digits_however_small(log10_p: float) -> None:
    text = sumstats.p_text(log10_p)
    mantissa, exponent = text.split("e")
    assert 1 <= float(mantissa) < 10
    assert np.log10(float(mantissa)) + int(exponent) == pytest.approx(log10_p, abs=3e-7)


def test_p_values_at_the_ends() -> None:
    texts = [sumstats.p_text(x) for x in (0.0, -1e-12, -13 + 1e-12, np.nan, -np.inf)]
    assert texts == ["1.000000e+00", "1.000000e+00", "1.000000e-13", "#NA", "0"]


def test_inflation_is_one_without_and_the_factor_with() -> None:
    from scipy.stats import chi2

    z2 = chi2.ppf((np.arange(100_001) + 0.5) / 100_001, 1)
    assert sumstats.genomic_inflation(chi2.sf(z2, 1)) == pytest.approx(1, abs=1e-9)
    assert sumstats.genomic_inflation(np.append(chi2.sf(1.21 * z2, 1), np.nan)) == pytest.approx(1.21, abs=1e-9)
    assert np.isnan(sumstats.genomic_inflation(np.array([np.nan])))


def simulated(count: int) -> tuple[list[str], Any, Any]:
    rng = np.random.default_rng(0)
    contig, log10_p = rng.choice([*map(str, range(1, 23)), "X"], count).tolist(), np.log10(rng.random(count))
    log10_p[:3], log10_p[3] = np.nan, -60
    return contig, rng.integers(1, 10**8, count), log10_p


def picture(path: Path) -> str:
    """Its text; it must be SVG below 2 MB."""
    assert path.stat().st_size < 2_000_000
    assert ElementTree.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - our own
    return path.read_text()


@pytest.mark.parametrize("contigs", ["all", "one", "none"])
def test_manhattan_is_small_and_the_same_each_time(tmp_path: Path, contigs: str) -> None:
    contig, position, log10_p = simulated({"all": 60_000, "one": 5000, "none": 4}[contigs])
    contig = ["22"] * len(contig) if contigs == "one" else contig
    log10_p = log10_p if contigs != "none" else np.full(4, np.nan)
    for name in ("a.svg", "b.svg"):
        sumstats.manhattan(
            tmp_path / name, [Variant(c, p, ".", "A", "C") for c, p in zip(contig, position.tolist(), strict=True)], log10_p, "title"
        )
    text = picture(tmp_path / "a.svg")
    assert text == (tmp_path / "b.svg").read_text()
    assert text.count("<image") >= (contigs != "none")  # points are pixels
    assert text.count("<use") < 3000


@pytest.mark.parametrize("count", [60_000, 4, 0])
def test_quantile_quantile_is_small_and_the_same_each_time(tmp_path: Path, count: int) -> None:
    log10_p = simulated(max(count, 4))[2][: count or 3]
    for name in ("a.svg", "b.svg"):
        sumstats.quantile_quantile(tmp_path / name, log10_p, 1.02)
    assert picture(tmp_path / "a.svg") == (tmp_path / "b.svg").read_text()
