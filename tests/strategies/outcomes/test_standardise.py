"""Standardisation (g-formula) over sites is that of the pooled persons, with the sandwich of the stacked equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch

from fedml.clients.gate.approvals import approve
from fedml.errors import InputError
from tests.clients.gate.centre import Centre
from tests.outcomes import Drawn, gates_of, run_job, study_of, write_sites
from tests.strategies.outcomes.test_lying_outcomes_centre import ask

REAL = '[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n'
LEVELS = ["I", "II", "III"]
FAMILIES = {
    "regression": ("y", sm.families.Gaussian(), lambda eta: eta),
    "classification": ("b", sm.families.Binomial(), torch.sigmoid),
    "count": ("count", sm.families.Poisson(), torch.exp),
}


def pooled_answer(pooled: pd.DataFrame, task: str, each: bool) -> tuple[Any, Any]:
    """(levels,) means and their covariance: one row of equations a person, derivatives by automatic differentiation."""
    target, family, mean = FAMILIES[task]

    def design(stage: Any) -> Any:
        own = [pooled.site == s for s in sorted(set(pooled.site))] if each else [np.ones(len(pooled))]
        return np.column_stack([*own, pooled.age, pooled.sex, stage == "II", stage == "III"]).astype(float)

    offset = np.log(pooled.exposure) if task == "count" else np.zeros(len(pooled))
    fit = sm.GLM(pooled[target], design(pooled.stage), family=family, offset=offset).fit(tol=1e-15, maxiter=200)
    x, y, shift = (torch.from_numpy(np.array(v, float)) for v in (design(pooled.stage), pooled[target], offset))
    set_to = [torch.from_numpy(design(np.full(len(pooled), level))) for level in LEVELS]

    def rows(theta: torch.Tensor) -> torch.Tensor:
        beta = theta[3:]
        equations = [mean(own @ beta + shift) - theta[k] for k, own in enumerate(set_to)]
        return torch.hstack([torch.stack(equations, 1), x * (y - mean(x @ beta + shift))[:, None]])

    beta = torch.from_numpy(np.array(fit.params))
    means = np.array([float(mean(own @ beta + shift).mean()) for own in set_to])
    at = torch.from_numpy(np.concatenate([means, fit.params]))
    bread = np.linalg.inv(torch.autograd.functional.jacobian(lambda theta: rows(theta).sum(0), at).numpy())
    own = rows(at).numpy()
    return means, (bread @ (own.T @ own) @ bread.T)[:3, :3]


@pytest.mark.parametrize(
    ("task", "intercept"), [("regression", "one"), ("classification", "site"), ("classification", "one"), ("count", "site")]
)
def test_standardised_means_are_those_of_the_pooled_persons(tmp_path: Path, task: str, intercept: str) -> None:
    pooled = write_sites(tmp_path, Drawn())
    plan = {"covariates": ["age", "sex", "stage"], "intercept": intercept, "standardise": "stage"}
    study = study_of(task=task, target=FAMILIES[task][0], glm=plan, more={"exposure": "exposure"} if task == "count" else {})
    found = run_job(study, tmp_path, tmp_path / "run", "glm")["glm"]["standardised"]
    means, covariance = pooled_answer(pooled, task, intercept == "site")
    assert [row["level"] for row in found["levels"]] == LEVELS
    np.testing.assert_allclose([row["mean"]["estimate"] for row in found["levels"]], means, rtol=1e-8)
    np.testing.assert_allclose([row["mean"]["error"] for row in found["levels"]], np.sqrt(np.diag(covariance)), rtol=1e-8)
    by = np.array([-1.0, 0, 1])
    gap, ratio = (found["levels"][2][key] for key in ("difference", "log_ratio"))
    assert gap["estimate"] == pytest.approx(means[2] - means[0], rel=1e-8)
    assert gap["error"] == pytest.approx(np.sqrt(by @ covariance @ by), rel=1e-8)
    if task == "regression":
        assert ratio is None
    else:
        assert ratio["estimate"] == pytest.approx(np.log(means[2] / means[0]), rel=1e-7)
        assert ratio["error"] == pytest.approx(np.sqrt((by / means) @ covariance @ (by / means)), rel=1e-7)
    assert "Standardised by stage" in (tmp_path / "run" / "outcomes.html").read_text()
    assert len((tmp_path / "run" / "standardised.tsv").read_text().splitlines()) == (1 + 3 + 2 if task == "regression" else 1 + 3 + 4)


def test_through_gates_the_answer_is_the_local_one(tmp_path: Path) -> None:
    drawn = Drawn(persons=(400, 320, 500), policy=REAL)
    write_sites(tmp_path, drawn)
    plan = {"covariates": ["age", "sex", "arm"], "standardise": "arm"}
    study = study_of(drawn, task="classification", target="b", glm=plan, more={"classes": [0, 1]})
    local = run_job(study, tmp_path, tmp_path / "local", "glm")
    assert run_job(study, tmp_path, tmp_path / "gated", "glm", gates_of(study, tmp_path)) == local


def test_coefficients_that_count_who_is_beyond_a_value_are_refused(tmp_path: Path) -> None:
    """With very large coefficients a mean of a logistic model is the share of persons beyond a line of the centre's choice."""
    drawn = Drawn(persons=(500,), policy=REAL)
    write_sites(tmp_path, drawn)
    own = study_of(drawn, task="classification", target="b", more={"classes": [0, 1]},
                   glm={"covariates": ["age", "arm"], "standardise": "arm", "intercept": "one"})  # fmt: skip
    site = Centre(own, tmp_path / "sites" / "s0")
    approve(site.state, own, "Dr. Test")
    design = {"centre": np.array([60.0, 0.0]), "scale": np.ones(2), "at": np.zeros(2)}
    assert ask(site, "standardised", 0, 1, own, **design, beta_one=np.array([-2.05e4, 1e3, 0.0])) == "too-few-persons"
    # Half of the persons are beyond this line, and the steps of the line are of few.
    assert ask(site, "standardised", 0, 2, own, **design, beta_one=np.array([0.0, 60.0, 0.0])) == "too-few-persons"
    assert ask(site, "standardised", 0, 3, own, **design, beta_one=np.array([0.0, 0.02, 0.1])) == ""
    assert ask(site, "standardised", 2, 3, own, **design, beta_one=np.array([0.0, 0.02, 0.1])) == "rounds-beyond-policy"
    plain = study_of(drawn, name="plain", task="classification", target="b", more={"classes": [0, 1]}, glm={"covariates": ["age", "arm"]})
    approve(site.state, plain, "Dr. Test")
    assert ask(site, "standardised", 0, 4, plain, **design, beta_one=np.zeros(3)) == "undeclared-record"


def test_a_column_that_cannot_be_set_is_named() -> None:
    with pytest.raises(InputError, match=r'standardise is "age", which is no category among \[glm\] covariates'):
        study_of(task="regression", target="y", glm={"covariates": ["age", "arm"], "standardise": "age"})
