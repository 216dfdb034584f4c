"""Association of imputed dosages: every format gives the table of one analysis of all persons' dosages, by dense regression and PLINK 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pysam.bcftools
import pytest
import statsmodels.api as sm
from flwr.app import RecordDict

from fedml.clients.work.genomics import analyse, check_small
from fedml.clients.work.request import Request
from fedml.cohort.variants.fine import SCALE
from fedml.cohort.variants.keys import Variant, to_text
from fedml.errors import SiteError
from fedml.wire.records import Phase, pack, unpack
from tests.dosages import KEYS, MISSING, PEOPLE, PERSONS, VARIANTS, plink2, site_files, study_of, vcf
from tests.trait import Ran, firth, gates, observed, run


def rows_of(name: str) -> Any:
    return np.flatnonzero(name == PEOPLE.site)


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sites with a VCF of DS."""
    folder = tmp_path_factory.mktemp("ds") / "sites"
    site_files(folder, "cohort.vcf")
    for name in PERSONS:
        rows = rows_of(name)
        (folder / name / "cohort.vcf").write_text(vcf([PEOPLE.ids[r] for r in rows], PEOPLE.haplotype[rows], "DS"))
    return folder


@pytest.fixture(scope="module")
def linear(ds: Path) -> Ran:
    return run(study_of("DS"), ds, ds.parent / "linear")


def imputed(dosage: Any) -> Any:
    """A missing dosage counts as twice the pooled frequency."""
    return np.where(np.isnan(dosage), np.nanmean(dosage, 0), dosage)


def test_linear_is_dense_regression(linear: Ran) -> None:
    x, g = sm.add_constant(PEOPLE.age), imputed(PEOPLE.dosage)
    fits = [sm.OLS(PEOPLE.y, np.column_stack([x, g[:, at]])).fit() for at in range(VARIANTS)]
    table = linear.table.loc[[f"rs{at + 1}" for at in range(VARIANTS)]]
    assert (table.n == len(PEOPLE.ids)).all()
    errors = np.abs(table.beta - [fit.params[-1] for fit in fits]) / [fit.bse[-1] for fit in fits]
    assert errors.max() < 2e-4, "a dosage is stored to 1/32768"
    assert np.allclose(table.standard_error, [fit.bse[-1] for fit in fits], rtol=2e-4)
    assert np.allclose(table.effect_allele_frequency, np.nanmean(PEOPLE.dosage, 0) / 2, atol=1e-5)


def test_linear_is_plink2(linear: Ran, tmp_path: Path) -> None:
    (tmp_path / "all.vcf").write_text(vcf(PEOPLE.ids, PEOPLE.haplotype, "DS"))
    people = pd.DataFrame({"#IID": PEOPLE.ids, "y": PEOPLE.y, "age": PEOPLE.age})
    people[["#IID", "y"]].to_csv(tmp_path / "y.txt", sep="\t", index=False)
    people[["#IID", "age"]].to_csv(tmp_path / "age.txt", sep="\t", index=False)
    words = ("--pheno", "y.txt", "--covar", "age.txt", "--glm", "hide-covar", "omit-ref", "--covar-variance-standardize")
    plink2("--vcf", "all.vcf", "dosage=DS", *words, "--freq", "--out", "glm", cwd=tmp_path)
    theirs = pd.read_csv(tmp_path / "glm.y.glm.linear", sep="\t").set_index("ID")
    frequency = pd.read_csv(tmp_path / "glm.afreq", sep="\t").set_index("ID")
    complete = [f"rs{at + 1}" for at in range(VARIANTS) if at not in MISSING]  # PLINK leaves persons out, where they have no dosage
    ours, theirs = linear.table.loc[complete], theirs.loc[complete]
    assert np.allclose(ours.beta, theirs.BETA, rtol=2e-5, atol=1e-7), np.abs(ours.beta / theirs.BETA - 1).max()
    assert np.allclose(ours.standard_error, theirs.SE, rtol=2e-5)
    assert np.allclose(linear.table.effect_allele_frequency, frequency.ALT_FREQS.loc[linear.table.index], atol=1e-6)


def test_logistic_is_dense_maximum_likelihood(ds: Path) -> None:
    """One intercept for each site, as is the default of two classes."""
    table = run(study_of("DS", "case", gwas={"firth": "never"}), ds, ds.parent / "logistic").table
    sites = np.stack([name == PEOPLE.site for name in PERSONS], 1).astype(float)
    g = imputed(PEOPLE.dosage)
    for at in range(0, VARIANTS, 4):
        fit = sm.Logit(PEOPLE.case, np.column_stack([sites, PEOPLE.age, g[:, at]])).fit(disp=0, method="newton")
        row = table.loc[f"rs{at + 1}"]
        assert row.method == "wald"
        assert abs(row.beta - fit.params[-1]) < 2e-4 * fit.bse[-1]
        assert abs(row.standard_error / fit.bse[-1] - 1) < 2e-4


def test_firth_is_the_penalised_likelihood_of_dosages(ds: Path) -> None:
    table = run(study_of("DS", "rare", gwas={"intercept": "one"}), ds, ds.parent / "firth").table
    rows = table[table.method == "firth"]
    g, x = imputed(PEOPLE.dosage), sm.add_constant((PEOPLE.age - PEOPLE.age.mean()) / PEOPLE.age.std())
    assert len(rows)
    for name in rows.index[:3]:
        beta, error, p = firth(np.column_stack([x, g[:, int(name[2:]) - 1]]), PEOPLE.rare)
        assert abs(rows.beta[name] - beta) < 1e-3 * error
        assert abs(10 ** -rows.neg_log10_p[name] / p - 1) < 1e-3


FORMATS = ("HDS", "GP", "bcf DS", "bcf HDS", "bcf GP", "any")


@pytest.fixture(scope="module", params=FORMATS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Ran]:
    """The sites with another kind of file."""
    kind, _, field = str(request.param).rpartition(" ")
    folder = tmp_path_factory.mktemp("other") / "sites"
    file = "cohort.bcf" if kind else "cohort.vcf"
    site_files(folder, file)
    for name in PERSONS:
        rows, place = rows_of(name), folder / name
        written = vcf([PEOPLE.ids[r] for r in rows], PEOPLE.haplotype[rows], "HDS" if field == "any" else field)
        (place / "cohort.vcf").write_text(written)
        if kind:
            pysam.bcftools.view("-Ob", "-o", str(place / file), str(place / "cohort.vcf"), catch_stdout=False)
    return field, run(study_of(field), folder, folder.parent / "run")


def test_every_format_gives_one_table(linear: Ran, other: tuple[str, Ran]) -> None:
    field, ran = other
    numbers = ["beta", "standard_error", "effect_allele_frequency", "neg_log10_p"]
    ours, theirs = ran.table.loc[linear.table.index], linear.table
    assert (ours[["n", "an", "sites", "call_rate"]] == theirs[["n", "an", "sites", "call_rate"]]).all(None)
    if field == "GP":  # probabilities have six decimals
        assert np.allclose(ours[numbers], theirs[numbers], rtol=3e-5, atol=1e-6)
    else:
        assert (ours[numbers] == theirs[numbers]).all(None), "the same decimals are the same codes"


PRECISION = {"pgen": 0.0, "bgen bits=16": 1 / 65535, "bgen bits=8": 1 / 255, "bgen zstd": 1 / 65535, "vcf.gz": 1e-4}


@pytest.fixture(scope="module", params=list(PRECISION))
def converted(request: pytest.FixtureRequest, ds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Ran]:
    """The sites with what PLINK 2 writes of their VCF."""
    kind, folder = request.param, tmp_path_factory.mktemp("converted") / "sites"
    words = {
        "pgen": ("--make-pgen", "vzs"), "bgen bits=16": ("--export", "bgen-1.2", "ref-first", "bits=16"),
        "bgen bits=8": ("--export", "bgen-1.2", "ref-first", "bits=8"), "bgen zstd": ("--export", "bgen-1.3", "ref-first"),
        "vcf.gz": ("--export", "vcf", "bgz", "vcf-dosage=DS"),
    }[kind]  # fmt: skip
    if kind == "pgen":
        pytest.importorskip("pgenlib", reason="pgenlib is not installed")
    site_files(folder, f"cohort.{kind.split()[0]}")
    for name in PERSONS:
        plink2("--vcf", ds / name / "cohort.vcf", "dosage=DS", *words, "--out", "cohort", cwd=folder / name)
    return kind, run(study_of("any"), folder, folder.parent / "run")


def test_what_plink2_writes_gives_the_same_table(linear: Ran, converted: tuple[str, Ran]) -> None:
    kind, ran = converted
    numbers = ["beta", "standard_error", "effect_allele_frequency", "neg_log10_p"]
    ours, theirs = ran.table.loc[linear.table.index], linear.table
    assert (ours[["n", "an", "sites"]] == theirs[["n", "an", "sites"]]).all(None)
    if kind == "pgen":
        assert (ours[numbers] == theirs[numbers]).all(None), "the same whole numbers of 1/16384"
    else:  # a number of 330 rounded ones, and then the effect of such errors of a dosage on a regression
        rounding = PRECISION[kind] + 1 / SCALE
        assert np.abs(ours.effect_allele_frequency - theirs.effect_allele_frequency).max() < rounding / 2
        assert (np.abs(ours.beta - theirs.beta) / theirs.standard_error).max() < 3 * rounding
        assert np.allclose(ours.standard_error, theirs.standard_error, rtol=3 * rounding)


# --- what the centre reads ----------------------------------------------------------------------------------------------------------------


def told(folder: Path, fractions: Sequence[float], min_count: int, target: str = "y") -> list[tuple[Phase, dict[str, Any]]]:
    """What north tells in a run through its gate, where of rs40 it has whole dosages except for a person with each of ``fractions``."""
    site_files(folder, "cohort.vcf", min_count=min_count)
    for name in PERSONS:
        rows = rows_of(name)
        haplotype = PEOPLE.haplotype[rows].copy()
        if name == "north":
            haplotype[:, 39] = np.round(haplotype[:, 39])
            people = np.flatnonzero(haplotype[:, 39].sum(1) == 0)[: len(fractions)]
            haplotype[people, 39, 0] = fractions
        (folder / name / "cohort.vcf").write_text(vcf([PEOPLE.ids[r] for r in rows], haplotype, "DS"))
    study = study_of("DS", target, gwas={"components": 2})
    steps = observed(study, folder, folder.parent / f"{folder.name}-run", gates(study, folder))
    return [(step.phase, step.reported) for step in steps if step.site == "north"]


def same(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(
        a[0] is b[0] and a[1].keys() == b[1].keys() and all(np.array_equal(a[1][name], b[1][name]) for name in a[1])
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("target", ["y", "case"])
def test_fractions_of_few_persons_are_not_told(tmp_path: Path, target: str) -> None:
    """One person's dosage of 0.3 among whole ones, or of four, changes no byte that leaves; those of eight persons are told."""
    plain = told(tmp_path / "none", [], 5, target)
    assert same(plain, told(tmp_path / "one", [0.3], 5, target))
    assert same(plain, told(tmp_path / "four", [0.3, 0.25, 0.4, 0.1], 5, target))
    assert not same(plain, told(tmp_path / "eight", [0.3] * 8, 5, target))
    assert not same(plain, told(tmp_path / "open", [0.3], 1, target)), "a site that hides nothing tells it"


def test_one_persons_large_fraction_among_tiny_ones_is_not_told(tmp_path: Path) -> None:
    """0.4 of one person and 0.001 of twenty are the dosages of 1.1 effective persons."""
    tiny = [0.001] * 20
    assert same(told(tmp_path / "a", [0.4, *tiny], 5), told(tmp_path / "b", [0.3, *tiny], 5))


def test_the_gate_refuses_a_sum_of_few_fractions(ds: Path, tmp_path: Path) -> None:
    """Whatever computed the reply: the gate counts the persons itself."""
    told(tmp_path / "sites", [0.3], 5)
    study, manifest = study_of("DS"), str(tmp_path / "sites" / "north" / "site.toml")
    key = to_text([Variant(*KEYS[39])])
    content = RecordDict({
        "agreement": pack({"panel": np.frombuffer(key, np.uint8), "flips": np.zeros(3, np.uint8)}), "analysis": pack({}),
    })  # fmt: skip
    request = Request(study, Phase.GENOTYPES, 0, {}, "north", (manifest,))
    honest = analyse(request, content)
    check_small(request, honest, content, 5)
    counts = unpack(honest.array_records["analysis"])["counts"].copy()
    counts[7] += round(0.3 * SCALE)
    with pytest.raises(SiteError, match="sums of dosages"):
        check_small(request, RecordDict({"analysis": pack({"counts": counts})}), content, 5)
