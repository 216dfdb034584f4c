"""`fedml survival` against R's package survival on the pooled table: limits, log-rank, Cox with Efron's ties, robust errors, cox.zph."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.outcomes import Drawn, run_job, study_of, write_sites

HAS_R = shutil.which("Rscript") is not None
SCRIPT = """
suppressPackageStartupMessages(library(survival))
d <- read.csv("pooled.csv", stringsAsFactors = FALSE)
say <- function(name, values) cat(name, sprintf("%.17g", as.numeric(values)), "\\n")
fine <- coxph.control(eps = 1e-14, iter.max = 100)
x <- c("age", "sex", "armB", "stageII", "stageIII")
f <- function(left) as.formula(paste(left, "~", paste(x, collapse = " + ")))
say("version", 1)
m <- coxph(f("Surv(grid, event)"), d, ties = "efron", control = fine)
say("beta", coef(m)); say("se", sqrt(diag(vcov(m))))
r <- coxph(f("Surv(grid, event)"), d, ties = "efron", robust = TRUE, control = fine, cluster = id)
say("robust", sqrt(diag(vcov(r))))
s <- coxph(update(f("Surv(grid, event)"), . ~ . + strata(site)), d, ties = "efron", control = fine)
say("beta_site", coef(s)); say("se_site", sqrt(diag(vcov(s))))
z <- cox.zph(m, transform = "km", terms = FALSE)
say("zph", z$table[, "chisq"])
k <- survfit(Surv(grid, event) ~ 1, d[d$armB == 1, ], conf.type = "log-log")
say("time", k$time); say("surv", k$surv); say("lower", k$lower); say("upper", k$upper)
say("logrank", survdiff(Surv(grid, event) ~ armB, d)$chisq)
say("logrank_site", survdiff(Surv(grid, event) ~ armB + strata(site), d)$chisq)
"""


WEIGHTED = """
suppressPackageStartupMessages(library(survival))
d <- read.csv("pooled.csv", stringsAsFactors = FALSE)
say <- function(name, values) cat(name, sprintf("%.17g", as.numeric(values)), "\\n")
fine <- coxph.control(eps = 1e-14, iter.max = 100)
x <- "age + sex + armB + stageII + stageIII"
both <- function(name, m, bread) {
  say(paste0(name, "_beta"), coef(m)); say(paste0(name, "_robust"), sqrt(diag(m$var))); say(paste0(name, "_model"), sqrt(diag(m$naive.var)))
}
for (ties in c("efron", "breslow")) for (strata in c("", " + strata(site)")) {
  f <- as.formula(paste("Surv(first, grid, event) ~", x, strata))
  m <- coxph(f, d, weights = w, ties = ties, robust = TRUE, cluster = id, control = fine)
  both(paste0(ties, if (strata == "") "" else "_site"), m)
  if (ties == "efron" && strata == "" && all(d$first == 0)) {
    z <- cox.zph(coxph(as.formula(paste("Surv(grid, event) ~", x)), d, weights = w, control = fine), transform = "km", terms = FALSE)
    say("zph", z$table[, "chisq"])
    say("rise", basehaz(m, centered = FALSE)$hazard)
  }
}
"""
FINE_GRAY = """
suppressPackageStartupMessages(library(survival))
d <- read.csv("pooled.csv", stringsAsFactors = FALSE)
say <- function(name, values) cat(name, sprintf("%.17g", as.numeric(values)), "\\n")
fine <- coxph.control(eps = 1e-14, iter.max = 100)
d$status <- factor(d$cause, 0:2, c("censor", "death", "relapse"))
x <- "age + sex + armB + stageII + stageIII"
for (ties in c("efron", "breslow")) for (strata in c("", " + strata(site)")) {
  g <- finegray(as.formula(paste("Surv(grid, status) ~ id + w + site +", x, strata)), d, etype = "death")
  m <- coxph(as.formula(paste("Surv(fgstart, fgstop, fgstatus) ~", x, strata)), g, weights = fgwt, ties = ties, robust = TRUE, cluster = id,
             control = fine)
  name <- paste0(ties, if (strata == "") "" else "_site")
  say(paste0(name, "_beta"), coef(m)); say(paste0(name, "_robust"), sqrt(diag(m$var)))
}
"""


def in_r(folder: Path, pooled: pd.DataFrame, script: str = SCRIPT) -> dict[str, Any]:
    table = pooled.assign(armB=(pooled.arm == "B") + 0, stageII=(pooled.stage == "II") + 0, stageIII=(pooled.stage == "III") + 0)
    table.assign(id=range(len(table)), event=(table.event == 1) + 0, cause=table.event).to_csv(folder / "pooled.csv", index=False)
    done = subprocess.run(["Rscript", "--vanilla", "-e", script], cwd=folder, capture_output=True, text=True, timeout=120)
    if "there is no package called" in done.stderr:
        pytest.skip("R's package survival is not installed")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    return {name: np.array(values, float) for name, *values in rows}


@pytest.mark.skipif(not HAS_R, reason="R is not installed")
def test_estimates_errors_and_tests_are_those_of_r(tmp_path: Path) -> None:
    drawn = Drawn(silent=1, step=90.0)
    pooled = write_sites(tmp_path, drawn)
    want = in_r(tmp_path, pooled)
    cox = {"covariates": ["age", "sex", "arm", "stage"], "ties": "efron"}
    study = study_of(drawn, until=2700.0, curves={"groups": "arm"}, cox=cox)
    found = run_job(study, tmp_path, tmp_path / "run", "survival")
    rows = found["cox"]["coefficients"]
    np.testing.assert_allclose([row["estimate"] for row in rows], want["beta"], rtol=1e-8)
    np.testing.assert_allclose([row["model"]["error"] for row in rows], want["se"], rtol=1e-8)
    np.testing.assert_allclose([row["robust"]["error"] for row in rows], want["robust"], rtol=1e-6)
    tests = [row["chi2"] for row in found["cox"]["proportional"]["terms"]]
    np.testing.assert_allclose([*tests, found["cox"]["proportional"]["global"]["chi2"]], want["zph"], rtol=1e-6)
    meta = pd.read_csv(tmp_path / "run" / "meta.tsv", sep="\t")
    alone = meta[meta.model.str.startswith("site ") & meta.error.notna()]
    assert len(alone)
    np.testing.assert_allclose(alone.upper - alone.estimate, 1.959963984540054 * alone.error, rtol=1e-9)
    np.testing.assert_allclose(alone.estimate - alone.lower, 1.959963984540054 * alone.error, rtol=1e-9)
    group = found["curves"]["groups"]["B"]["survival"]
    at = want["time"].astype(int) - 1
    np.testing.assert_allclose(np.array(group["estimate"])[at], want["surv"], rtol=1e-8)
    for end in ("lower", "upper"):
        mine, theirs = np.array(group[end], float)[at], want[end]
        both = np.isfinite(mine) & np.isfinite(theirs)
        assert both.sum() > 5
        np.testing.assert_allclose(mine[both], theirs[both], rtol=1e-8)
    found_tests = [found["curves"][name]["chi2"] for name in ("log_rank", "log_rank_by_site")]
    np.testing.assert_allclose(found_tests, [want["logrank"][0], want["logrank_site"][0]], rtol=1e-8)
    by_site = study_of(drawn, until=2700.0, cox={**cox, "baseline": "site"})
    rows = run_job(by_site, tmp_path, tmp_path / "strata", "survival")["cox"]["coefficients"]
    np.testing.assert_allclose([row["estimate"] for row in rows], want["beta_site"], rtol=1e-8)
    np.testing.assert_allclose([row["model"]["error"] for row in rows], want["se_site"], rtol=1e-8)


@pytest.mark.skipif(not HAS_R, reason="R is not installed")
@pytest.mark.parametrize("entry", [False, True])
def test_weighted_cox_models_are_those_of_r(tmp_path: Path, entry: bool) -> None:
    """Heavy ties, unequal sites, strata, left truncation."""
    drawn = Drawn(silent=1, step=90.0, entry=entry)
    want = in_r(tmp_path, write_sites(tmp_path, drawn), WEIGHTED)
    for ties in ("efron", "breslow"):
        for baseline, end in (("common", ""), ("site", "_site")):
            cox = {"covariates": ["age", "sex", "arm", "stage"], "ties": ties, "baseline": baseline, "weights": "w"}
            study = study_of(drawn, until=2700.0, cox=cox, columns=["w"])
            found = run_job(study, tmp_path, tmp_path / (ties + baseline), "survival")["cox"]
            rows, name = found["coefficients"], ties + end
            np.testing.assert_allclose([row["estimate"] for row in rows], want[name + "_beta"], rtol=1e-8)
            np.testing.assert_allclose([row["model"]["error"] for row in rows], want[name + "_model"], rtol=1e-8)
            np.testing.assert_allclose([row["robust"]["error"] for row in rows], want[name + "_robust"], rtol=1e-7)
            if ties + end == "efron" and not entry:
                tests = [row["chi2"] for row in found["proportional"]["terms"]]
                np.testing.assert_allclose([*tests, found["proportional"]["global"]["chi2"]], want["zph"], rtol=1e-6)


@pytest.mark.skipif(not HAS_R, reason="R is not installed")
def test_subdistribution_hazards_are_those_of_r(tmp_path: Path) -> None:
    drawn = Drawn(causes=2, step=90.0)
    want = in_r(tmp_path, write_sites(tmp_path, drawn), FINE_GRAY)
    for ties in ("efron", "breslow"):
        for baseline, end in (("common", ""), ("site", "_site")):
            cox = {"covariates": ["age", "sex", "arm", "stage"], "ties": ties, "baseline": baseline, "hazard": "subdistribution"}
            found = run_job(study_of(drawn, until=2700.0, cox=cox), tmp_path, tmp_path / (ties + baseline), "survival")["cox"]
            rows, name = found["coefficients"], ties + end
            np.testing.assert_allclose([row["estimate"] for row in rows], want[name + "_beta"], rtol=1e-6)
            np.testing.assert_allclose([row["robust"]["error"] for row in rows], want[name + "_robust"], rtol=1e-6)
