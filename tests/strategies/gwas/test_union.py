"""Sites with different arrays: a variant is tested with the sites that have it, and equals the pooled analysis of their persons. The
persons do not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants.harmonise import align, draft_panel
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.errors import RunError
from fedml.runs.log import read_events
from fedml.study.study import Study, parse_study, validate
from tests.conftest import DATA, write_bed, write_csv
from tests.trait import Ran, run, worst

CASES = DATA.parent / "cases" / "genomes" / "c35_union"
VARIANTS = 40
HAS = {"a": range(40), "b": range(10, 40), "c": range(20, 30)}  # 10 at one site, 20 at two, 10 at three


def study_of(sites: list[str], task: str = "regression", **gwas: Any) -> Study:
    plan = {
        "study": {"name": "union", "seed": 1},
        "cohort": {"inputs": ["variants"], "target": "y", "variants": {"min_call_rate": 0.9}},
        "model": {"task": task},
        "gwas": {"components": 0, "min_mac": 0, "first_pass_p": 1.0, **gwas},
        "federation": {"sites": sites},
    }
    return parse_study(validate(Study, plan, "the study").canonical)


@pytest.fixture(scope="module", params=["regression", "classification"])
def pooled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(task, folder of sites, dosages (persons, variants) with -1 where a site lacks the variant, y, site (persons,))."""
    folder, random, parts = tmp_path_factory.mktemp("union"), np.random.default_rng(4), []
    for number, (name, has) in enumerate(HAS.items()):
        count = 150 + 50 * number
        dosage = random.binomial(2, np.linspace(0.2, 0.5, VARIANTS), (count, VARIANTS)).astype(np.int8)
        y = random.normal(number, 1, count) if request.param == "regression" else random.binomial(1, 0.4, count)
        ids, place = [f"{name}-{at}" for at in range(count)], folder / name
        place.mkdir()
        # Site b writes the other allele first, and lists its variants in another order.
        keys = [("1", 1000 + 100 * at, f"rs{at + 1}", *("GA" if name == "b" else "AG")) for at in has]
        own = dosage[:, has]
        order = random.permutation(len(keys)) if name == "b" else np.arange(len(keys))
        write_bed(place / "genotypes.bed", ids, [keys[at] for at in order], (2 - own if name == "b" else own)[:, order])
        write_csv(place / "persons.csv", ids, {"y": y})
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
        dosage[:, [at for at in range(VARIANTS) if at not in has]] = -1
        parts.append((dosage, y, np.full(count, number)))
    return request.param, folder, *(np.concatenate(part) for part in zip(*parts, strict=True))


def ran(pooled: Any, tmp_path: Path, **gwas: Any) -> Ran:
    task, folder, *_ = pooled
    return run(study_of(list(HAS), task, **gwas), folder, tmp_path / "run")


@pytest.mark.parametrize(("least", "rows"), [(0, 10), (3, 10), (2, 30), (1, 40)])
def test_a_variant_is_tested_with_the_sites_that_have_it(pooled: Any, tmp_path: Path, least: int, rows: int) -> None:
    task, _, dosage, y, site = pooled
    found = ran(pooled, tmp_path, min_sites=least, intercept="site")
    assert len(found.table) == rows
    assert found.event["partly_reported"] == rows - 10
    reference = {}
    for rsid in found.table.index:
        g = dosage[:, int(rsid[2:]) - 1]
        has = g >= 0
        g, own = g[has].astype(float), site[has]
        row = found.table.loc[rsid]
        assert (row.sites, row.n) == (len(np.unique(own)), has.sum())
        effect = g if row.effect_allele == "G" else 2 - g
        assert row.effect_allele_frequency == pytest.approx(effect.mean() / 2, abs=1e-9)
        assert row.call_rate == 1
        x = np.column_stack([np.eye(3)[own][:, np.unique(own)], effect])
        fitted = sm.OLS(y[has], x).fit() if task == "regression" else sm.Logit(y[has], x).fit(disp=0, tol=1e-13)
        reference[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
    assert max(worst(found.table, reference)) < 1e-5


def test_what_a_site_lacks_is_said_and_is_no_missing_call(pooled: Any, tmp_path: Path) -> None:
    found = ran(pooled, tmp_path, min_sites=1)
    checks = next(e["checks"] for e in read_events(found.folder)[0] if e["event"] == "checks")
    told = {(c["site"], c["check"]): (c["value"], c["verdict"]) for c in checks}
    assert told["b", "variants of the panel that it lacks"] == ("10", "ok")
    assert told["c", "variants of the panel that it lacks"] == ("30", "ok")
    assert ("a", "variants of the panel that it lacks") not in told
    assert {told[name, "call rate"][0] for name in HAS} == {"100.00%"}
    assert not [check for _, check in told if check.startswith(("no genotype", "counts withheld", "excluded"))]


def test_more_sites_than_there_are_is_an_error(pooled: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"\[gwas\] min_sites is 4, but 3 sites have variants; lower min_sites, or add sites"):
        ran(pooled, tmp_path, min_sites=4)


@given(st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=4), st.integers(1, 4), st.data())
def test_the_panel_has_each_variant_of_enough_sites_in_one_orientation(has: list[set[int]], least: int, data: st.DataObject) -> None:
    """Whatever is swapped or complemented as a whole at a site: after alignment, every dosage is that of the same allele."""
    truth = np.random.default_rng(0).integers(0, 3, (3, 8)).astype(np.int8)
    pairs = [("A", "C"), ("G", "A"), ("C", "T"), ("T", "G"), ("A", "G"), ("C", "A"), ("G", "T"), ("T", "C")]
    sites = {}
    for number, own in enumerate(has):
        order = data.draw(st.permutations(sorted(own)))
        swap = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
        keys = [Variant("1", 10 + at, f"rs{at}", *(pairs[at][::-1] if swap[at] else pairs[at])) for at in order]
        dosage = np.stack([2 - truth[:, at] if swap[at] else truth[:, at] for at in order], axis=1).astype(np.int8)
        sites[f"s{number}"] = Dosages(tuple(keys), dosage, np.ones(3, bool))
    least = min(least, len(sites))
    panel = draft_panel({name: own.keys for name, own in sites.items()}, "position", min_sites=least)
    assert [key.position - 10 for key in panel.keys] == [at for at in range(8) if sum(at in own for own in has) >= least]
    for name, own in sites.items():
        aligned = align(own, panel.keys, panel.flips[name], "position").dosage
        for column, key in enumerate(panel.keys):
            at = key.position - 10
            there = at in has[int(name[1:])]
            assert bool(panel.lacks(name)[column]) is not there
            expected = truth[:, at] if (key.ref, key.alt) == pairs[at] else 2 - truth[:, at]
            assert np.array_equal(aligned[:, column], expected if there else [-1, -1, -1])


@pytest.mark.skipif(not CASES.is_dir(), reason=f"the cases are not at {CASES}")
@pytest.mark.parametrize(("least", "rows"), [(0, 10), (2, 30), (1, 30)])
def test_the_case(tmp_path: Path, least: int, rows: int) -> None:
    table = run(study_of(["a", "b", "c"], min_sites=least), CASES, tmp_path / "run").table
    assert len(table) == rows
