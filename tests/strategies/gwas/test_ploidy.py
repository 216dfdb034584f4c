"""Association on X, Y and MT: a site whose VCF writes men's calls as 0 and 1 and a site whose PLINK file writes 0/0 and 1/1 together give
what one analysis of all persons gives, by dense regression and by PLINK 2."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from fedml.cohort.variants.frequency import hardy_weinberg_p
from fedml.cohort.variants.genotypes import Genome, genotype_counts, read_variants
from fedml.errors import Reason, RunError
from fedml.runs.log import read_events
from fedml.strategies.agreement.step import take
from fedml.study.study import Study, parse_study, validate
from fedml.wire.records import Phase
from tests.conftest import vcf_text, write_bed, write_csv
from tests.trait import Ran, agreed, run

PERSONS = {"north": 170, "south": 210}
# GRCh38: the last base of the first pseudoautosomal region and the first base of the second are diploid, their neighbours on X are not.
EDGES = {2_781_479: False, 2_781_480: True, 155_701_382: True, 155_701_383: False}
KEYS = [
    *(("1", 1_000 + at, f"rs1{at:02d}", "A", "G") for at in range(12)),
    *(("X", at, f"rs2{number:02d}", "A", "G") for number, at in enumerate([*EDGES, *range(5_000_000, 5_000_010)])),
    *(("Y", 6_000_000 + at, f"rs3{at:02d}", "A", "G") for at in range(8)),
    *(("MT", 100 + at, f"rs4{at:02d}", "A", "G") for at in range(8)),
]
CONTIG, POSITION, NAMES = (np.array([key[at] for key in KEYS]) for at in (0, 1, 2))
ON_X = (CONTIG == "X") & np.array([EDGES.get(int(at), True) for at in POSITION])
ON_Y, ON_MT = CONTIG == "Y", CONTIG == "MT"
SEX = {"column": "sex", "male": "M", "female": "F"}


class People(NamedTuple):
    """All persons: ``dosage`` (persons, variants) as it should be coded, -1 missing, and ``raw`` as a file without haploid calls has it."""

    ids: list[str]
    site: Any
    man: Any
    age: Any
    y: Any
    case: Any
    raw: Any
    dosage: Any


def drawn() -> People:
    random = np.random.default_rng(11)
    count = sum(PERSONS.values())
    site = np.repeat(list(PERSONS), list(PERSONS.values()))
    man, age = random.random(count) < 0.45, random.normal(50, 10, count)
    frequency = random.uniform(0.2, 0.5, len(KEYS))
    raw = random.binomial(2, frequency, (count, len(KEYS))).astype(np.int8)
    one = ON_Y | ON_MT | (ON_X & man[:, None])
    raw[one] = 2 * (random.random((count, len(KEYS))) < frequency)[one]
    dosage = raw.copy()
    # Wrong calls, which no analysis may use: heterozygous men on the last variant of X and of Y, mixed MT, and women with calls on Y.
    for name, people in (("rs213", man), ("rs307", man), ("rs407", man | ~man)):
        at = int(np.flatnonzero(name == NAMES)[0])
        raw[np.flatnonzero(people)[::9], at] = 1
        dosage[np.flatnonzero(people)[::9], at] = -1
    dosage[:, ON_Y] = np.where(man[:, None], dosage[:, ON_Y], -1)
    missing = random.random((count, 4)) < 0.04
    some = [int(np.flatnonzero(name == NAMES)[0]) for name in ("rs111", "rs212", "rs306", "rs406")]
    raw[:, some], dosage[:, some] = (np.where(missing, -1, values[:, some]) for values in (raw, dosage))
    effect = np.where(dosage < 0, 0, dosage)[:, [int(np.flatnonzero(name == NAMES)[0]) for name in ("rs205", "rs300", "rs400")]]
    y = effect @ [0.35, 0.3, 0.25] + 0.8 * man + 0.02 * age + random.normal(size=count)
    ids = [f"{name}-{at}" for at, name in enumerate(site)]
    return People(ids, site, man, age, y, (y > np.median(y)).astype(int), raw, dosage)


PEOPLE = drawn()


def haploid_vcf(samples: Sequence[str], man: Any, raw: Any) -> str:
    """A VCF in which men have one letter on X and Y outside the pseudoautosomal regions, and everybody on MT; women have none on Y."""
    words, records = {-1: "./.", 0: "0/0", 1: "0/1", 2: "1/1"}, []
    for at, (contig, position, name, ref, alt) in enumerate(KEYS):
        calls = []
        for person in range(len(samples)):
            value = int(raw[person, at])
            one = ON_MT[at] or (man[person] and (ON_X[at] or ON_Y[at]))
            letter = {-1: ".", 0: "0", 2: "1"}.get(value, words[value])
            calls.append(letter if one else words[value])
        records.append((f"chr{contig}".replace("MT", "M"), position, name, ref, alt, calls))
    return vcf_text(samples, records)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ploidy")
    for name in PERSONS:
        rows, place = np.flatnonzero(name == PEOPLE.site), folder / "sites" / name
        place.mkdir(parents=True)
        ids = [PEOPLE.ids[row] for row in rows]
        if name == "north":
            (place / "cohort.vcf").write_text(haploid_vcf(ids, PEOPLE.man[rows], PEOPLE.raw[rows]))
        else:
            write_bed(place / "cohort.bed", ids, KEYS, PEOPLE.raw[rows])
        write_csv(place / "persons.csv", ids, {"y": PEOPLE.y[rows], "case": PEOPLE.case[rows]})
        write_csv(place / "clinical.csv", ids, {"sex": np.where(PEOPLE.man, "M", "F")[rows], "age": PEOPLE.age[rows]})
        file = "cohort.vcf" if name == "north" else "cohort.bed"
        data = f'persons = "persons.csv"\nvariants = {{ path = "{file}", build = "GRCh38" }}\nclinical = {{ path = "clinical.csv" }}'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\nmin_count = 1\n')
    return folder / "sites"


def study_of(task: str = "regression", covariates: Sequence[str] = ("sex", "age"), **variants: Any) -> Study:
    plan = {
        "study": {"name": "ploidy", "seed": 1},
        "cohort": {
            "inputs": ["variants", "clinical"],
            "target": "y" if task == "regression" else "case",
            "variants": {"build": "GRCh38", "sex": SEX, **variants},
            "clinical": {"columns": ["sex", "age"], "categories": {"sex": ["F", "M"]}},
        },
        "model": {"task": task},
        "gwas": {"components": 0, "first_pass_p": 1.0, "min_mac": 0, "covariates": list(covariates)},
        "federation": {"sites": list(PERSONS)},
    }
    return parse_study(validate(Study, plan, "the study of ploidy").canonical)


@pytest.fixture(scope="module")
def linear(sites: Path) -> Ran:
    return run(study_of(), sites, sites.parent / "linear")


@pytest.fixture(scope="module")
def logistic(sites: Path) -> Ran:
    return run(study_of("classification"), sites, sites.parent / "logistic")


def alleles(at: int) -> tuple[int, int]:
    """ALT alleles and called alleles of all persons, each person's copies by sex and contig."""
    copies = np.where(ON_MT[at] | ((ON_X | ON_Y)[at] & PEOPLE.man), 1, 2)
    called = PEOPLE.dosage[:, at] >= 0
    return int((PEOPLE.dosage[called, at] * copies[called] // 2).sum()), int(copies[called].sum())


def design(at: int) -> tuple[Any, Any]:
    """Rows of the persons of variant ``at``, and their columns: ones, sex except on Y, age, dosage (its expected value where missing)."""
    rows = PEOPLE.man if ON_Y[at] else np.ones(len(PEOPLE.man), bool)
    alt, called = alleles(at)
    g = np.where(PEOPLE.dosage[rows, at] < 0, 2 * alt / called, PEOPLE.dosage[rows, at])
    columns = [np.ones(rows.sum()), *([] if ON_Y[at] else [PEOPLE.man[rows]]), PEOPLE.age[rows] - 50, g]
    return rows, np.column_stack(columns).astype(float)


def test_frequencies_and_numbers_are_those_of_all_persons(linear: Ran) -> None:
    table = linear.table.loc[NAMES]
    expected = [alleles(at) for at in range(len(KEYS))]
    assert table.an.tolist() == [called for _, called in expected]
    assert np.abs(table.effect_allele_frequency - [alt / called for alt, called in expected]).max() < 1e-9
    assert table.n.tolist() == np.where(ON_Y, PEOPLE.man.sum(), len(PEOPLE.man)).tolist()
    who = np.where(ON_Y, PEOPLE.man.sum(), len(PEOPLE.man))
    called = (PEOPLE.dosage >= 0).sum(0)
    assert np.abs(table.call_rate - called / who).max() < 1e-9
    assert (table.sites == 2).all()
    assert (table.hwe_fails == 0).all(), "men on X and everybody on Y and MT lack heterozygotes, and are not tested"


def test_linear_is_dense_regression(linear: Ran) -> None:
    difference = []
    for at, name in enumerate(NAMES):
        rows, x = design(at)
        fitted = sm.OLS(PEOPLE.y[rows], x).fit()
        ours = linear.table.loc[name]
        difference.append(
            [ours.beta - fitted.params[-1], ours.standard_error / fitted.bse[-1] - 1, float(ours.p_value) / fitted.pvalues[-1] - 1]
        )
    assert np.abs(difference).max(0)[0] < 1e-8
    assert np.abs(difference).max(0)[1] < 1e-7
    assert np.abs(difference).max(0)[2] < 1e-5
    strong = linear.table.loc[["rs205", "rs300", "rs400"]]
    assert (np.abs(strong.beta - [0.35, 0.3, 0.25]) < 3 * strong.standard_error).all(), "one copy of a man is worth two of a woman"


def test_logistic_is_the_dense_maximum(logistic: Ran) -> None:
    assert set(logistic.table.method) == {"wald"}
    for at, name in enumerate(NAMES):
        rows, x = design(at)
        x[:, -2] /= 10
        x = np.column_stack([x[:, :1], PEOPLE.site[rows] == "south", x[:, 1:]])  # an intercept for each site
        fitted = sm.Logit(PEOPLE.case[rows], x).fit(disp=0, tol=1e-13)
        ours = logistic.table.loc[name]
        assert ours.beta == pytest.approx(fitted.params[-1], abs=1e-6 * fitted.bse[-1])
        assert ours.standard_error == pytest.approx(fitted.bse[-1], rel=1e-6)
        assert ours.n == rows.sum()


def test_what_leaves_a_site_adds_to_the_pooled_counts(linear: Ran) -> None:
    counted = [s for s in linear.steps if s.phase is Phase.GENOTYPES]
    assert [s.site for s in counted] == ["north", "south"]
    own = PEOPLE.dosage[:, [NAMES.tolist().index(name) for name in counted[0].rsid]]
    one = np.array([[ON_X, ON_Y, ON_MT][k][NAMES.tolist().index(name)] for name in counted[0].rsid for k in range(3)]).reshape(-1, 3)
    copy = one[:, 2] | (one[:, :2].any(1) & PEOPLE.man[:, None])
    may = ~one[:, 1] | PEOPLE.man[:, None]
    expected = [(own == 0), (own == 1), (own == 2), (own < 0) & may, np.zeros_like(may), (own == 0) & copy, (own == 2) & copy]
    assert np.array_equal(np.sum([s.reported["counts"] for s in counted], axis=0), np.stack(expected).sum(1))


@pytest.fixture(scope="module")
def plink(sites: Path) -> Path:
    """PLINK 2 on all persons: wrong calls set to missing, then frequencies, tests of equilibrium and regressions."""
    if shutil.which("plink2") is None:
        pytest.skip("PLINK 2 is not installed")
    folder = sites.parent / "plink"
    folder.mkdir()
    # PLINK's own "--split-par hg38" (2.00a3.5) leaves the first base of the second region on X, so the regions are written here.
    par = {2_781_479: "PAR1", 155_701_383: "PAR2"}
    write_bed(folder / "raw.bed", PEOPLE.ids, [(par.get(key[1], key[0]), *key[1:]) for key in KEYS], PEOPLE.raw)
    sex = ["1" if man else "2" for man in PEOPLE.man]
    lines = [f"{name} {name} 0 0 {code} -9" for name, code in zip(PEOPLE.ids, sex, strict=True)]
    (folder / "raw.fam").write_text("\n".join(lines) + "\n")
    ids = pd.MultiIndex.from_arrays([PEOPLE.ids, PEOPLE.ids], names=["#FID", "IID"])
    pd.DataFrame({"age": PEOPLE.age - 50}, index=ids).to_csv(folder / "covar", sep="\t")
    pd.DataFrame({"y": PEOPLE.y}, index=ids).to_csv(folder / "pheno", sep="\t")
    split = ["--bfile", "raw", "--set-hh-missing", "--set-mixed-mt-missing", "--make-pgen", "--out", "all"]
    tests = ["--pfile", "all", "--freq", "counts", "--hardy", "cols=+femalep", "--pheno", "pheno", "--covar", "covar", "--glm", "sex"]
    for words in (["--sort-vars", *split], [*tests, "omit-ref", "hide-covar", "--out", "own"]):
        done = subprocess.run(["plink2", *words, "--threads", "1"], cwd=folder, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_allele_counts_are_those_of_plink(plink: Path, linear: Ran) -> None:
    theirs = pd.read_csv(plink / "own.acount", sep="\t").set_index("ID").loc[NAMES]
    assert linear.table.loc[NAMES].an.tolist() == theirs.OBS_CT.tolist()
    ours = linear.table.loc[NAMES].effect_allele_frequency * linear.table.loc[NAMES].an
    assert np.abs(ours - theirs.ALT_CTS).max() < 1e-6


def test_regression_is_that_of_plink(plink: Path, linear: Ran) -> None:
    theirs = pd.read_csv(plink / "own.y.glm.linear", sep="\t").set_index("ID")
    whole = [name for at, name in enumerate(NAMES) if name in theirs.index and theirs.OBS_CT[name] == linear.table.n[name]]
    assert {CONTIG[name == NAMES][0] for name in whole} == {"1", "X", "Y", "MT"}
    assert len(whole) == len(KEYS) - 7, "of four with missing and three with wrong calls, PLINK leaves persons out"
    ours, theirs = linear.table.loc[whole], theirs.loc[whole]
    assert (ours.effect_allele == theirs.A1).all()
    # PLINK takes 0 and 1 on Y and MT, and 0 and 2 on X: there its estimates are of a whole copy, twice those of ours.
    scale = np.where(np.isin([CONTIG[name == NAMES][0] for name in whole], ("Y", "MT")), 2, 1)
    beta, error = np.abs(theirs.BETA - scale * ours.beta).max(), np.abs(theirs.SE - scale * ours.standard_error).max()
    p = np.abs(theirs.P / ours.p_value.astype(float) - 1).max()
    print(f"largest differences from PLINK 2: beta {beta:.1e}, standard error {error:.1e}, p {p:.1e} (relative); it prints 6 digits")
    assert beta < 1e-6
    assert error < 1e-6
    assert p < 1e-5


def test_equilibrium_of_women_on_x_is_that_of_plink(plink: Path, sites: Path, tmp_path: Path) -> None:
    theirs = pd.read_csv(plink / "own.hardy.x", sep="\t").set_index("ID")
    write_bed(tmp_path / "own.bed", PEOPLE.ids, KEYS, PEOPLE.raw)
    shutil.copyfile(plink / "raw.fam", tmp_path / "own.fam")
    own = read_variants(tmp_path / "own.bed", PEOPLE.ids, genome=Genome("GRCh38"), cache=tmp_path / "cache")  # sex as in the .fam
    p = hardy_weinberg_p(*genotype_counts(own, np.flatnonzero(~PEOPLE.man))[:3])
    ours = dict(zip([key.id for key in own.keys], p.tolist(), strict=True))
    assert len(theirs) == ON_X.sum() == 12
    for name, row in theirs.iterrows():
        assert ours[str(name)] == pytest.approx(row.FEMALE_ONLY_P, rel=1e-5)


def test_another_spelling_gives_the_same_table(linear: Ran, sites: Path, tmp_path: Path) -> None:
    """The site with haploid calls as a PLINK file: byte for byte the same table."""
    shutil.copytree(sites, tmp_path / "sites", ignore=shutil.ignore_patterns(".fedml"))
    north, rows = tmp_path / "sites" / "north", np.flatnonzero(PEOPLE.site == "north")
    write_bed(north / "cohort.bed", [PEOPLE.ids[row] for row in rows], KEYS, PEOPLE.raw[rows])
    (north / "site.toml").write_text((north / "site.toml").read_text().replace("cohort.vcf", "cohort.bed"))
    other = run(study_of(), tmp_path / "sites", tmp_path / "out")
    pd.testing.assert_frame_equal(other.table, linear.table)


def checks_of(folder: Path) -> dict[tuple[str, str], tuple[str, str, str]]:
    found = [e for e in read_events(folder)[0] if e["event"] == "checks"][-1]["checks"]
    return {(c["site"], c["check"]): (c["value"], c["verdict"], c["fix"]) for c in found}


def test_the_checks_tell_of_wrong_calls_and_of_x_without_sex(linear: Ran, sites: Path, tmp_path: Path) -> None:
    name = "heterozygous calls of one copy set to missing"
    advice = "a man's on X or Y outside the pseudoautosomal regions, or anyone's on MT; check the persons' sex and the build"
    for site in PERSONS:
        assert checks_of(linear.folder)[site, name] == ("3", "warn", advice)
    assert ("all sites", "X without sex as a covariate") not in checks_of(linear.folder)
    bare = run(study_of(covariates=("age",), listed=["rs100", "rs205"]), sites, tmp_path / "bare")
    warned = checks_of(bare.folder)["all sites", "X without sex as a covariate"]
    assert warned == ("1", "warn", 'add "sex" to [gwas] covariates')


def test_without_sex_x_and_y_are_not_analysed(sites: Path, tmp_path: Path) -> None:
    ran = run(study_of(sex=None), sites, tmp_path / "out")
    assert sorted(ran.table.index) == sorted(NAMES[~(ON_X | ON_Y)].tolist())
    value, verdict, advice = checks_of(ran.folder)["north", "on X or Y, sex not known"]
    assert (value, verdict) == ("20", "warn")
    assert advice == (
        'left out: say which column has each person\'s sex, such as [cohort.variants] sex = { column = "sex", male = "M", female = "F" } '
        "in the study (in a .fam: column 5)"
    )


def test_the_men_are_asked_about_y_only(sites: Path) -> None:
    """A centre that asks for sums of the men about another variant, or of a study without Y, is refused: sex is no group there."""
    for number, listed in enumerate((["rs300", "rs301"], ["rs205", "rs206"], ["rs300", "rs205"])):
        study = study_of(listed=listed, covariates=("age",))
        grid, agreement = agreed(study, sites, number + 1)
        given = {"centre": np.zeros(2), "scale": np.ones(2), "loadings": np.zeros((0, 0)), "loading_values": np.zeros(0)}
        given |= {"loading_frequency": np.zeros(0), "loading_panel": np.zeros(0, np.uint8), "loading_flips": np.zeros(0, np.uint8)}
        given |= {"theta": np.zeros(2), "frequency": np.full(2, 0.3), "everyone": np.zeros(1, np.uint8)}
        if number == 0:
            sums = take(study, grid, agreement, Phase.ASSOCIATION, 0, given)
            assert all(s["used"].all() for s in sums.values())
        else:
            with pytest.raises(RunError, match=Reason.OFF_PLAN):
                take(study, grid, agreement, Phase.ASSOCIATION, 0, given)


def test_a_site_of_few_men_tells_nothing_of_x_and_y(sites: Path, tmp_path: Path) -> None:
    """Four men at one site: of X and Y it sends neither counts nor sums, and of the others all."""
    shutil.copytree(sites, tmp_path / "sites", ignore=shutil.ignore_patterns(".fedml"))
    manifest, path = (tmp_path / "sites" / "north" / name for name in ("site.toml", "clinical.csv"))
    manifest.write_text(manifest.read_text().replace("min_count = 1", "min_count = 5"))
    clinical = pd.read_csv(path, index_col="id")
    men = clinical.index[clinical.sex == "M"]
    clinical.drop(index=men[4:]).to_csv(path)
    ran = run(study_of(covariates=("age",)), tmp_path / "sites", tmp_path / "out")
    secret = set(NAMES[ON_X | ON_Y])
    seen = set()
    for step in (s for s in ran.steps if s.site == "north"):
        mine = np.array([name in secret for name in step.rsid], bool)
        seen.add(step.phase)
        if step.phase is Phase.GENOTYPES:
            assert (step.reported["counts"][:, mine] == -1).all()
            assert (step.reported["counts"][:, ~mine] >= 0).all()
        elif step.phase is Phase.ASSOCIATION:
            assert np.array_equal(step.reported["used"], ~mine)
            for name in ("xg", "gg", "gy"):
                assert not step.reported[name][..., mine].any()
                assert step.reported[name][..., ~mine].any()
    assert seen == {Phase.GENOTYPES, Phase.COVARIATES, Phase.NULL, Phase.ASSOCIATION}
    assert (ran.table.loc[sorted(secret)].sites == 1).all()
    assert (ran.table.loc[NAMES[~(ON_X | ON_Y)]].sites == 2).all()
    assert ran.table.loc["rs300"].n == int(PEOPLE.man[PEOPLE.site == "south"].sum())
    assert len([s for s in ran.steps if s.site == "north" and s.phase is Phase.NULL]) == 1, "the men of north are not asked for"
    assert len([s for s in ran.steps if s.site == "south" and s.phase is Phase.NULL]) == 2
    assert json.loads(json.dumps(ran.event["persons"])) == {"north": 170 - len(men) + 4, "south": 210}


def test_men_of_one_class_at_a_site_end_the_tests_on_y_alone(logistic: Ran, sites: Path, tmp_path: Path) -> None:
    """No man of one site is a case: variants on Y are left out and counted, all others are tested."""
    shutil.copytree(sites, tmp_path / "sites", ignore=shutil.ignore_patterns(".fedml"))
    path = tmp_path / "sites" / "north" / "persons.csv"
    persons, clinical = pd.read_csv(path, index_col="id"), pd.read_csv(path.with_name("clinical.csv"), index_col="id")
    persons.loc[clinical.index[clinical.sex == "M"], "case"] = 0
    persons.to_csv(path)
    ran = run(study_of("classification"), tmp_path / "sites", tmp_path / "out")
    assert set(ran.table.index) == set(logistic.table.index) - set(NAMES[ON_Y])
    lost = ran.event["left_out"]["on Y, and the men cannot be analysed"]
    assert lost == ON_Y.sum() > 0
    assert ran.event["variants"] == logistic.event["variants"]
