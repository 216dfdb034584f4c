"""Association on real genotypes with a planted trait: equal to pooled data however persons are dealt to sites, and nothing small leaves."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pysam
import pytest
import statsmodels.api as sm
from scipy.linalg import subspace_angles

from fedml.analytics.forms import REQUEST, sizes
from fedml.clients.gate.journal import entries
from fedml.cohort.variants.keys import Variant
from fedml.errors import InputError, Reason, RunError
from fedml.experiments.bench.gwas import PIECES, deal
from fedml.experiments.report.association import render_association
from fedml.experiments.report.page import embedded
from fedml.experiments.runs.association import HIT
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.step import take
from fedml.study.read import read_study
from fedml.study.study import Study, for_roster, parse_study
from fedml.wire.records import Phase
from tests.command import STUDIES
from tests.command import quick as command
from tests.conftest import write_bed
from tests.report_runs import parsed
from tests.trait import SITES, Pool, Ran, agreed, chosen, copy_site, firth, gates, prepared, read_pool, run, study_of, worst


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two studies as two sites, with the planted trait."""
    return prepared(tmp_path_factory.mktemp("trait"))


@pytest.fixture(scope="module")
def pool(sites: Path) -> Pool:
    return read_pool(sites)


@pytest.fixture(scope="module")
def components(pool: Pool) -> Any:
    f = pool.frequency()
    return pool.components(np.minimum(f, 1 - f) >= 0.01, 4)


@pytest.fixture(scope="module")
def pieces(sites: Path) -> Path:
    """The same persons as six sites of unequal size, by population."""
    return deal(sites, sites.parent / "pieces")


@pytest.fixture(scope="module")
def two(sites: Path) -> Ran:
    """Height, two sites."""
    return run(study_of("height"), sites, sites.parent / "two")


@pytest.fixture(scope="module")
def six(pieces: Path) -> Ran:
    """Height, six sites."""
    return run(study_of("height", list(PIECES)), pieces, pieces.parent / "six")


@pytest.fixture(scope="module", params=["two", pytest.param("six", marks=pytest.mark.long)])
def height(request: pytest.FixtureRequest) -> Ran:
    ran: Ran = request.getfixturevalue(request.param)
    return ran


# --- federated is pooled ------------------------------------------------------------------------------------------------------------------


def test_genotype_counts_are_the_pooled_ones(height: Ran, pool: Pool) -> None:
    counted = [s for s in height.steps if s.phase is Phase.GENOTYPES]
    at = [pool.rsid.index(r) for r in counted[0].rsid]
    own = pool.dosage[:, at]
    own = np.where(np.array([pool.alt[j] for j in at]) == counted[0].effect, own, 2 - own)
    expected = np.stack([(own == 0).sum(0), (own == 1).sum(0), (own == 2).sum(0), np.isnan(own).sum(0)])
    assert len(at) == 14079
    assert np.array_equal(np.sum([s.reported["counts"][:4] for s in counted], axis=0), expected)
    f = (expected[1] + 2 * expected[2]) / (2 * expected[:3].sum(0))
    written = height.table.loc[counted[0].rsid]
    same = written.effect_allele.to_numpy() == counted[0].effect
    assert same.all()
    assert np.array_equal(written.effect_allele_frequency.to_numpy(), [float(f"{x:.9g}") for x in f])
    assert (written.n == len(pool.persons)).all()


def test_components_are_the_pooled_ones(height: Ran, pool: Pool, components: Any) -> None:
    design = next(s for s in height.steps if s.phase is Phase.NULL).given
    lines = [line.split("\t") for line in design["loading_panel"].tobytes().decode().splitlines()]
    at = [pool.rsid.index(x[2]) for x in lines]
    g = np.where(np.array([pool.alt[j] for j in at]) == [x[4] for x in lines], pool.dosage[:, at], 2 - pool.dosage[:, at])
    f = design["loading_frequency"]
    z = np.nan_to_num((g - 2 * f) / np.sqrt(2 * f * (1 - f)))
    scores = z @ design["loadings"] / np.sqrt(design["loading_values"])
    assert subspace_angles(scores, components).max() < 1e-6
    assert np.allclose((scores**2).sum(0), 1, atol=1e-9)


def test_linear_is_statsmodels_on_pooled_data(height: Ran, pool: Pool, components: Any) -> None:
    y, x = pool.persons.height.to_numpy(), pool.design(components)
    reference = {}
    for rsid in chosen(height.table, 150):
        fitted = sm.OLS(y, np.column_stack([x, pool.genotype(pool.rsid.index(rsid), height.table.effect_allele[rsid])])).fit()
        reference[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
    beta, error, p = worst(height.table, reference)
    assert beta < 1e-6
    assert error < 1e-6
    assert p < 1e-5
    assert set(height.table.method) == {"linear"}


@pytest.mark.long
def test_two_sites_and_six_give_one_table(two: Ran, six: Ran) -> None:
    numbers = ["beta", "standard_error", "effect_allele_frequency", "neg_log10_p", "n", "call_rate"]
    a, b = two.table, six.table.loc[two.table.index]
    assert np.array_equal(a.effect_allele, b.effect_allele)
    assert np.allclose(a[numbers], b[numbers], rtol=1e-5, atol=1e-7)
    assert (a.sites == 2).all()
    assert (b.sites == 6).all()


@pytest.fixture(scope="module")
def some(pool: Pool) -> list[str]:
    """The 50 rarest variants, and 150 of the others."""
    f = pool.frequency()
    order = np.argsort(np.minimum(f, 1 - f))
    return [pool.rsid[j] for j in (*order[:50], *np.random.default_rng(5).choice(order[50:], 150, replace=False))]


@pytest.fixture(scope="module", params=["two", pytest.param("six", marks=pytest.mark.long)])
def tall(request: pytest.FixtureRequest, sites: Path, some: list[str]) -> Ran:
    """Tall or not, each of some variants fitted in full."""
    folder, roster = (sites, SITES) if request.param == "two" else (request.getfixturevalue("pieces"), tuple(PIECES))
    # Closer components than the default's 1e-7 rad: of some betas, a hundredth of their standard error, that changes the sixth digit.
    exact = {"gwas__first_pass_p": 1.0, "gwas__pca_tolerance": 1e-10, "gwas__intercept": "one", "gwas__min_mac": 0}
    study = study_of("tall", roster, cohort__variants={"match": "rsid", "listed": some}, **exact)
    return run(study, folder, sites.parent / f"tall-{request.param}")


def test_logistic_is_the_pooled_maximum(tall: Ran, pool: Pool, some: list[str]) -> None:
    at = [pool.rsid.index(rsid) for rsid in some]
    f = pool.frequency()[at]
    x = pool.design(pool.components(np.array(at)[np.minimum(f, 1 - f) >= 0.01], 4))
    x[:, 1] = (x[:, 1] - x[:, 1].mean()) / x[:, 1].std()
    y = pool.persons.tall.to_numpy(float)
    plain, penalised = {}, {}
    for j in at:
        row = tall.table.loc[pool.rsid[j]]
        own = np.column_stack([x, pool.genotype(j, row.effect_allele)])
        if row.method == "wald":
            fitted = sm.Logit(y, own).fit(disp=0, tol=1e-13)
            plain[pool.rsid[j]] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
        elif row.method == "firth":
            penalised[pool.rsid[j]] = firth(own, y)
    assert len(plain) + len(penalised) == len(some)
    assert len(penalised) >= 10
    beta, error, p = worst(tall.table, plain)
    assert beta < 1e-6
    assert error < 1e-6
    assert p < 1e-5
    for rsid, (beta, error, p) in penalised.items():
        found = tall.table.loc[rsid]
        assert found.beta == pytest.approx(beta, abs=1e-6 * error), "Newton stops at 1e-7 standard errors"
        assert found.standard_error == pytest.approx(error, rel=1e-6)
        assert float(found.p_value) == pytest.approx(p, rel=1e-4)


@pytest.mark.skipif(shutil.which("plink2") is None, reason="PLINK 2 is not installed")
def test_linear_is_that_of_plink(six: Ran, pool: Pool, components: Any, tmp_path: Path) -> None:
    called = np.flatnonzero(~np.isnan(pool.dosage).any(0))
    keys = [(pool.contig[j], pool.position[j], pool.rsid[j], pool.ref[j], pool.alt[j]) for j in called]
    write_bed(tmp_path / "all.bed", pool.persons.index.tolist(), keys, pool.dosage[:, called].astype(np.int8))
    x = pool.design(components)[:, 1:]
    names = ["age", "sex", "pc1", "pc2", "pc3", "pc4"]
    ids = pd.MultiIndex.from_arrays([pool.persons.index, pool.persons.index], names=["#FID", "IID"])
    pd.DataFrame(x, index=ids, columns=names).to_csv(tmp_path / "covar", sep="\t")
    pool.persons.height.set_axis(ids).to_csv(tmp_path / "pheno", sep="\t")
    words = ["--bfile", "all", "--pheno", "pheno", "--covar", "covar", "--covar-variance-standardize", "--glm", "omit-ref", "hide-covar"]
    subprocess.run(["plink2", *words, "--threads", "1", "--out", "own"], cwd=tmp_path, check=True, capture_output=True)
    theirs = pd.read_csv(tmp_path / "own.height.glm.linear", sep="\t").set_index("ID")
    ours = six.table.loc[theirs.index]
    assert len(ours) > 5000
    assert (ours.n == theirs.OBS_CT).all()
    sign = np.where(ours.effect_allele == theirs.A1, 1, -1)
    assert np.abs(sign * theirs.BETA - ours.beta).max() < 2e-5 * ours.beta.abs().max()
    assert np.abs(theirs.SE / ours.standard_error - 1).max() < 1e-5
    assert np.abs(-np.log10(theirs.P) / ours.neg_log10_p - 1)[ours.neg_log10_p > 0.01].max() < 1e-3


# --- the planted trait --------------------------------------------------------------------------------------------------------------------


def test_confounding_is_real_and_undone(two: Ran, sites: Path, tmp_path: Path) -> None:
    bare = run(study_of("height", gwas__components=0), sites, tmp_path / "bare").event
    print(f"lambda with components {two.event['lambda']:.3f}, without {bare['lambda']:.2f}; hits {two.event['hits']}, {bare['hits']}")
    assert bare["lambda"] > 5
    assert bare["hits"] > 500
    assert 0.95 < two.event["lambda"] < 1.12


def test_what_was_planted_is_found(two: Ran, sites: Path) -> None:
    planted = pd.DataFrame(json.loads((sites / "truth.json").read_text())["planted"]).set_index("id")
    found = two.table.loc[planted.index]
    effect = np.where(found.effect_allele == planted.effect_allele, 1, -1) * planted.effect_cm
    assert np.corrcoef(effect, found.beta)[0, 1] > 0.95
    assert (np.abs(found.beta - effect) < 4 * found.standard_error).all()
    hits = two.table[two.table.neg_log10_p > -np.log10(HIT)]
    assert len(hits) == two.event["hits"] >= 5
    for _, hit in hits.iterrows():
        near = (found.chromosome == hit.chromosome) & ((found.base_pair_location - hit.base_pair_location).abs() < 1_000_000)
        assert near.any(), f"{hit.variant_id} is near nothing that was planted"


# --- small cells --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(sites: Path) -> Ran:
    """Height, where one of the two sites lets nothing leave about fewer than five persons."""
    folder = sites.parent / "strict"
    copy_site(sites / "hapmap3", folder / "hapmap3", "hapmap3")
    copy_site(sites / "kg1", folder / "kg1", "kg1", min_count=5)
    return run(study_of("height", gwas__min_mac=0), folder, sites.parent / "strict-run")


def hidden(pool: Pool) -> Any:
    """(variants,): has kg1 one to four carriers of an allele, among all, men or women? (No variant has homozygotes of both kinds so few
    that they could not be told in alleles.)"""
    out = np.zeros(len(pool.rsid), bool)
    here, sex = (pool.persons.site == "kg1").to_numpy(), pool.persons.sex.to_numpy()
    for group, alleles in itertools.product((True, sex == 0, sex == 1), ((1, 2), (0, 1))):
        count = np.isin(pool.dosage[here & group], alleles).sum(0)
        out |= (count > 0) & (count < 5)
    return out


def test_no_small_cell_leaves(strict: Ran, pool: Pool) -> None:
    secret = {rsid for rsid, yes in zip(pool.rsid, hidden(pool), strict=True) if yes}
    assert 20 < len(secret) < 13_000
    seen = set()
    for step in (s for s in strict.steps if s.site == "kg1"):
        mine = np.array([rsid in secret for rsid in step.rsid], bool)
        seen.add(step.phase)
        if step.phase is Phase.GENOTYPES:
            counts = step.reported["counts"]
            assert (counts[:, mine] == -1).all()
            cells = counts[:3, ~mine]
            assert ((cells == 0) | (cells >= 5)).all()
        elif step.phase is Phase.ASSOCIATION:
            assert np.array_equal(step.reported["used"], ~mine)
            for name in ("xg", "gg", "gy"):
                assert not step.reported[name][..., mine].any()
                assert step.reported[name][..., ~mine].any()
        elif step.phase is Phase.SUBSPACE:
            assert not mine.any()
    assert seen == {Phase.GENOTYPES, Phase.COVARIATES, Phase.SUBSPACE, Phase.NULL, Phase.ASSOCIATION}


def test_what_a_site_may_not_tell_is_pooled_without_it(strict: Ran, pool: Pool) -> None:
    secret = hidden(pool)
    f = pool.frequency()
    components = pool.components(~secret & (np.minimum(f, 1 - f) >= 0.01), 4)
    table, there = strict.table, (pool.persons.site == "hapmap3").to_numpy()
    reported = dict(zip(pool.rsid, ~secret, strict=True))
    all_rows = np.ones(len(there), bool)
    whole = table.index.map(reported).to_numpy(bool)
    assert np.array_equal(table.sites, np.where(whole, 2, 1))
    assert np.array_equal(table.n, np.where(whole, len(there), there.sum()))
    assert strict.event["partly_reported"] == secret.sum()
    for rows, own in ((all_rows, table[whole]), (there, table[~whole])):
        reference = {}
        for rsid in chosen(own, 40, 5):
            x = np.column_stack([pool.design(components, rows), pool.genotype(pool.rsid.index(rsid), own.effect_allele[rsid], rows)])
            fitted = sm.OLS(pool.persons.height.to_numpy()[rows], x).fit()
            reference[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
        assert max(worst(own, reference)) < 1e-5


def test_logistic_without_the_site_that_may_not_tell(strict: Ran, pool: Pool, some: list[str], sites: Path) -> None:
    bare = {"gwas__first_pass_p": 1.0, "gwas__components": 0, "gwas__intercept": "one", "gwas__min_mac": 0}
    study = study_of("tall", **bare, cohort__variants={"match": "rsid", "listed": some})
    table = run(study, sites.parent / "strict", sites.parent / "strict-tall").table
    case, there = pool.persons.tall.to_numpy(), (pool.persons.site == "hapmap3").to_numpy()
    secret = hidden(pool)
    x, seen, reference = pool.design(np.zeros((len(there), 0))), [], {}
    x[:, 1] -= x[:, 1].mean()
    for rsid in some:
        j = pool.rsid.index(rsid)
        seen.append(secret[j])
        rows = there if secret[j] else np.ones(len(there), bool)
        assert table.n[rsid] == rows.sum()
        own = np.column_stack([x[rows], pool.genotype(j, table.effect_allele[rsid], rows)])
        if table.method[rsid] == "wald":
            fitted = sm.Logit(case[rows], own).fit(disp=0, tol=1e-13)
            reference[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
        else:
            reference[rsid] = firth(own, case[rows])
    assert 20 < np.sum(seen) < len(some) - 20
    assert max(worst(table, reference)) < 1e-5


def test_suppressed_numbers_are_not_released_elsewhere(sites: Path, pool: Pool, tmp_path: Path) -> None:
    """A server that goes astray asks for components of a variant that the site may not tell: their sums would be its genotype counts."""
    copy_site(sites / "kg1", tmp_path / "kg1", "kg1", min_count=5)
    secret, sure = (np.flatnonzero(hidden(pool) == yes)[0] for yes in (True, False))
    listed = {"match": "rsid", "listed": [pool.rsid[secret], pool.rsid[sure]]}
    study = study_of("height", ["kg1"], cohort__variants=listed, gwas__components=1)
    grid, agreement = agreed(study, tmp_path, 1)
    assert [key.id for key in agreement.shared.keys] == [pool.rsid[sure]], "the honest way leaves it out"
    shared = replace(agreement.shared, keys=(_key(pool, secret),), flips={"kg1": np.zeros(1, np.uint8)})
    astray = replace(agreement, shared=shared)
    design = {"centre": np.zeros(3), "scale": np.ones(3), "loadings": np.ones((1, 1)), "loading_values": np.ones(1)}
    design |= {"loading_frequency": np.array([0.3]), "theta": np.zeros(4), "everyone": np.ones(1, np.uint8)}
    for number, own in enumerate((agreement, astray)):
        grid, _ = agreed(study, tmp_path, 2 + number)  # a run of its own: within one, other components are refused whatever they are
        loaded = {"loading_panel": np.frombuffer(own.panel, np.uint8), "loading_flips": own.flips()}
        product = {"frequency": np.array([0.3]), "basis": np.ones((1, 1))}
        steps = [(Phase.SUBSPACE, 2 * number + 1, own, product), (Phase.NULL, number, own.part(slice(0, 0)), design | loaded)]
        for phase, step, about, given in steps:
            if own is agreement:
                assert take(study, grid, about, phase, step, given)
            else:
                with pytest.raises(RunError, match=Reason.TOO_FEW):
                    take(study, grid, about, phase, step, given)


def _key(pool: Pool, j: int) -> Variant:
    return Variant(pool.contig[j], int(pool.position[j]), pool.rsid[j], pool.ref[j], pool.alt[j])


def test_persons_without_a_covariate_are_nowhere_in_it(sites: Path, pool: Pool, some: list[str], tmp_path: Path) -> None:
    for site in SITES:
        copy_site(sites / site, tmp_path / "sites" / site, site)
    path = tmp_path / "sites" / "hapmap3" / "clinical.csv"
    clinical = pd.read_csv(path, index_col="id")
    clinical.loc[clinical.index[::9], "age"] = np.nan
    clinical.iloc[5:].to_csv(path)
    rows = ~pool.persons.index.isin([*clinical.index[:5], *clinical.index[::9]])
    ran = run(
        study_of("height", gwas__components=0, cohort__variants={"match": "rsid", "listed": some}), tmp_path / "sites", tmp_path / "out"
    )
    assert (ran.table.n == rows.sum()).all()
    assert ran.event["persons"] == {"hapmap3": int(rows[:957].sum()), "kg1": 501}
    f, reference = pool.frequency(rows), {}
    for rsid in some[60:90]:
        j, effect = pool.rsid.index(rsid), ran.table.effect_allele[rsid]
        assert ran.table.effect_allele_frequency[rsid] == pytest.approx(f[j] if effect == pool.alt[j] else 1 - f[j], rel=1e-8)
        x = np.column_stack([pool.design(np.zeros((len(rows), 0)), rows), pool.genotype(j, effect, rows)])
        fitted = sm.OLS(pool.persons.height.to_numpy()[rows], x).fit()
        reference[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
    assert max(worst(ran.table, reference)) < 1e-6


# --- gates and commands -------------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_gates_change_no_byte(two: Ran, sites: Path, tmp_path: Path) -> None:
    study = study_of("height")
    with pytest.raises(RunError, match=Reason.NOT_APPROVED):
        run(study, sites, tmp_path / "before", gates(study, sites, approved=False, run_id=7))
    through = run(study, sites, tmp_path / "through", gates(study, sites, run_id=8))
    assert (through.folder / "gwas.tsv.gz").read_bytes() == (two.folder / "gwas.tsv.gz").read_bytes()
    for site in SITES:
        reported = [e for e in entries(sites / site / ".fedml" / "journal.jsonl") if e.run == "8"]
        assert {e.verdict for e in reported} == {"accepted"}
        assert {Phase(e.phase) for e in reported} >= {Phase.GENOTYPES, Phase.COVARIATES, Phase.SUBSPACE, Phase.NULL, Phase.ASSOCIATION}


@pytest.fixture
def small(pieces: Path, tmp_path: Path) -> Path:
    """Two of the smaller sites, of 87 and 89 persons."""
    for name in ("gujarat", "finland"):
        shutil.copytree(pieces / name, tmp_path / "small" / name, symlinks=True, ignore=shutil.ignore_patterns(".fedml"))
    return tmp_path / "small"


def test_more_columns_than_persons_are_refused(small: Path, tmp_path: Path) -> None:
    study = study_of("height", ("gujarat", "finland"), gwas__components=40)
    with pytest.raises(RunError, match="40 components need 124 or more columns of every site's genotypes, and gujarat has 87 persons"):
        run(study, small, tmp_path / "out", gates(study, small))
    asked = [e.round for e in entries(small / "gujarat" / ".fedml" / "journal.jsonl") if e.phase == "subspace" and e.verdict == "accepted"]
    assert 44 <= max(asked) <= 87, "what fits is answered, the column too many is not"


def test_columns_are_counted_over_all_runs_of_a_study(small: Path) -> None:
    """40 columns a run of 87 persons: two runs are allowed, a third is refused to any coordinator; the same columns again are allowed."""
    names = ("gujarat", "finland")
    study = for_roster(read_study(STUDIES / "height.toml", overrides={"cohort.variants.listed": ["rs4970383", "rs3748592"]}), names)
    rng, bases = np.random.default_rng(1), []
    for number in (1, 2, 3, 4):
        grid, agreement = agreed(study, small, number)
        given = given_for(Phase.SUBSPACE, study, agreement)
        if number < 4:
            bases.append(rng.normal(size=(agreement.variants, 40)).astype(given["basis"].dtype))
        given["basis"] = bases[0 if number == 4 else number - 1]
        if number == 3:
            with pytest.raises(RunError, match=Reason.TOO_FEW):
                take(study, grid, agreement, Phase.SUBSPACE, 40, given)
        else:
            assert set(take(study, grid, agreement, Phase.SUBSPACE, 40, given)) == set(names)


def given_for(phase: Phase, study: Study, agreement: Agreement) -> dict[str, Any]:
    """Ones of the shapes that a step declares."""
    size = sizes(study, agreement.variants, 2)
    return {
        name: np.ones([size[n] if isinstance(n, str) else 0 if n is None else n for n in shape], dtype)
        for name, (dtype, shape) in REQUEST[phase].items()
    }


def test_no_association_without_an_approved_plan_of_it(small: Path) -> None:
    study = for_roster(
        read_study(STUDIES / "height.toml", overrides={"cohort.variants.listed": ["rs4970383", "rs3748592"]}), ("gujarat", "finland")
    )
    grid, agreement = agreed(study, small, 1)
    for phase in (Phase.COVARIATES, Phase.ASSOCIATION):
        given = given_for(phase, study, agreement)
        assert set(take(study, grid, agreement, phase, 3, given)) == {"gujarat", "finland"}
        with pytest.raises(RunError, match=Reason.REPLAYED):
            take(study, grid, agreement, phase, 3, given)
    with pytest.raises(RunError, match=Reason.REPLAYED):  # one run, one design: other components would make sums of other genotypes
        take(study, grid, agreement, Phase.ASSOCIATION, 4, {**given, "centre": given["centre"] + 1})
    assert take(study, grid, agreement, Phase.ASSOCIATION, 5, given)
    with pytest.raises(RunError, match=Reason.ROUNDS):
        take(study, grid, agreement, Phase.NULL, 51, given_for(Phase.NULL, study, agreement))
    bare = parse_study(json.dumps(study.model_dump(mode="json") | {"gwas": None}))
    grid, agreement = agreed(bare, small, 2)
    take(bare, grid, agreement, Phase.GENOTYPES, 1, {})
    for phase in (Phase.COVARIATES, Phase.SUBSPACE, Phase.NULL, Phase.ASSOCIATION, Phase.FIT):
        with pytest.raises(RunError, match=Reason.UNDECLARED):
            take(bare, grid, agreement, phase, 4, given_for(phase, study, agreement))


@pytest.mark.parametrize("meta", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_command(two: Ran, sites: Path, tmp_path: Path, meta: bool) -> None:
    also = ["--meta"] if meta else []
    words = ("--set", "cohort.variants.max_palindromic_maf=0.5", *also, "--json", "--no-track")
    done = command("fedml", "gwas", STUDIES / "height.toml", "--sites", sites, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    folder = tmp_path / reported["folder"]
    assert (folder / "gwas.tsv.gz").read_bytes() == (two.folder / "gwas.tsv.gz").read_bytes(), "another process, the same bytes"
    assert reported["status"] == "finished"
    assert reported["metrics"]["lambda"] == two.event["lambda"]
    assert reported["metrics"]["hits"] == two.event["hits"]
    assert reported["metrics"]["persons"] == {"hapmap3": 957, "kg1": 501}
    assert reported["bytes"]["in"] > 0
    assert ("meta" in reported) == meta
    if meta:
        compared = reported["meta"]
        assert compared["sites"] == list(SITES)
        assert compared["variants_federated"] == 14079
        assert 0.8 < compared["correlation_of_betas"] < 1
        assert compared["median_standard_error_ratio"] > 1, "each site alone pays for covariates and components of its own"
    with pysam.TabixFile(str(folder / "gwas.tsv.gz")) as table:
        rows = [line.split("\t") for line in table.fetch("22", 20_000_000, 30_000_000)]
    expected = two.table[(two.table.chromosome == "22") & two.table.base_pair_location.between(20_000_001, 30_000_000)]
    assert [row[9] for row in rows] == expected.index.tolist()
    assert "adjusted_covariates" in (folder / "gwas.tsv.gz-meta.yaml").read_text()
    for picture in ("manhattan.svg", "qq.svg"):
        text = (folder / picture).read_text()
        assert text.startswith("<?xml")
        assert text.rstrip().endswith("</svg>")
    _is_in_its_report(folder, two)
    refused = command("fedml", "gwas", STUDIES / "ancestry.toml", "--sites", sites, cwd=tmp_path)
    assert refused.returncode == 2
    assert "has no [gwas] section" in refused.stderr


def _is_in_its_report(folder: Path, two: Ran) -> None:
    """The page of the run has the figures of its log and of its table, and the two plots."""
    page = render_association(folder)
    assert page == render_association(folder)
    found = embedded(page)
    assert (found["hits"], found["tested"], found["persons"]) == (two.event["hits"], two.event["tested"], {"hapmap3": 957, "kg1": 501})
    for row in found["top"]:
        own = two.table.loc[row["rsid"]]
        assert row["beta"]["value"] == pytest.approx(float(own.beta), rel=1e-5)
        assert row["meta_beta"] == pytest.approx(float(own.meta_beta), rel=1e-5)
        assert row["i2"] == pytest.approx(float(own.i2), rel=1e-5, abs=1e-9)
        assert row["p"] == own.p_value
    parsed_page = parsed(page)
    assert [e.attributes["src"][:26] for e in parsed_page.all("img")] == ["data:image/svg+xml;base64,"] * 2
    assert f"{found['hits']:,} of {found['tested']:,} tested variants have p below 5e-8" in parsed_page.section("answer")
    (folder / "events.jsonl").rename(folder / "away")
    with pytest.raises(InputError, match=r"is not a run's folder|has no association"):
        render_association(folder)
    (folder / "away").rename(folder / "events.jsonl")


@pytest.mark.long
def test_whole_logistic_scan_does_not_depend_on_the_sites(sites: Path, pieces: Path, tmp_path: Path) -> None:
    one = {"gwas__intercept": "one", "gwas__min_mac": 0}
    a = run(study_of("tall", **one), sites, tmp_path / "a").table
    b = run(study_of("tall", list(PIECES), **one), pieces, tmp_path / "b").table.loc[a.index]
    assert np.array_equal(a.method, b.method)
    assert set(a.method) == {"score", "wald", "firth"}
    assert np.allclose(a[["beta", "standard_error", "neg_log10_p"]], b[["beta", "standard_error", "neg_log10_p"]], rtol=1e-5, atol=1e-7)
