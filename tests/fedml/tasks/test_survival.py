"""Survival: measures equal to references on the pooled persons, losses, and what of the counts of few persons leaves a site."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index
from scipy.optimize import minimize

from fedml.study.study import Study
from fedml.tasks.counts import add_counts
from fedml.tasks.interval_tools import Floats
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.tasks.survival import cox_loss, discrete_loss, drawn_c_index, partial_likelihood
from fedml.tasks.survival_counts import BEYOND, BINS, RANKS, TIMES, bin_of, count, grouped, merged, scored_places, withheld
from fedml.tasks.survival_measures import _auroc
from fedml.tasks.task import Task
from tests.conftest import make_study

EDGES = [30.0, 60.0, 90.0, 150.0, 240.0, 360.0, 540.0, 720.0]
HORIZONS = [90.0, 360.0, 720.0]
LAST = len(EDGES) - 1


def study_of(kind: str = "discrete", **target: Any) -> Study:
    return make_study(
        model__task="survival", model__survival=kind, cohort__target={"time": "t", "event": "e", **target},
        survival={"time_unit": "days", "grid": EDGES, "horizons": HORIZONS},
    )  # fmt: skip


def persons(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a network that knows something, and labels with heavy ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    died, lost = rng.exponential(300 * np.exp(-0.8 * x)), rng.uniform(10, 1000, count)
    time = np.minimum(died, lost)
    place = np.searchsorted(EDGES, time)
    label = np.stack([np.minimum(place, LAST), (died <= lost) & (place <= LAST)], 1)
    output = 0.8 * x[:, None] + rng.normal(0, 0.3, (count, len(EDGES))) + np.linspace(0, 1, len(EDGES))
    return torch.from_numpy(output), torch.from_numpy(label.astype(np.float64))


def alive_of(output: torch.Tensor) -> Floats:
    """Independent of the task: the product over intervals of 1 - expit(output - log(intervals))."""
    return np.cumprod(1 - 1 / (1 + np.exp(-(output.numpy() - np.log(output.shape[1])))), axis=1)


def binned_risk(output: torch.Tensor) -> npt.NDArray[np.int64]:
    return bin_of(np.log(-np.log(alive_of(output)[:, LAST])))


def metrics(task: Task, sites: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    return task.metrics(add_counts([task.counts(*site) for site in sites]))


SITES = [persons(n, seed) for seed, n in enumerate((150, 40, 260))]
OUTPUT, LABEL = (torch.cat(parts) for parts in zip(*SITES, strict=True))
TIME, EVENT = np.array(EDGES)[LABEL[:, 0].long().numpy()], LABEL[:, 1].numpy() == 1


def test_the_c_index_over_sites_is_that_of_lifelines_on_the_pooled_persons() -> None:
    found = metrics(make_task(study_of()), SITES)["c_index"]
    assert found == pytest.approx(concordance_index(TIME, -binned_risk(OUTPUT), EVENT), abs=1e-12)
    exact = concordance_index(TIME, alive_of(OUTPUT)[:, LAST], EVENT)
    assert found == pytest.approx(exact, abs=1e-3)  # what the bins of the risk cost
    once = np.ones((1, len(TIME)), dtype=np.int64)
    assert drawn_c_index(LABEL.numpy(), -alive_of(OUTPUT)[:, LAST])(once)[0] == pytest.approx(exact, abs=1e-12)


def test_the_limits_of_the_c_index_are_those_of_a_bootstrap() -> None:
    task = make_task(study_of())
    found = interval([task.counts(*site) for site in SITES], task, "c_index", seed=1)
    rng = np.random.default_rng(0)
    drawn = drawn_c_index(LABEL.numpy(), binned_risk(OUTPUT).astype(float))(
        rng.multinomial(len(TIME), np.full(len(TIME), 1 / len(TIME)), 600)
    )
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(float(np.std(drawn)), rel=0.12)


def no_censoring_before(u: float) -> float:
    """G(u-) by a loop over the persons: events first at a tie; the end of follow-up is no censoring."""
    out = 1.0
    for t in sorted({t for t, e in zip(TIME, EVENT, strict=True) if not e and t < u and t < EDGES[-1]}):
        at_risk = sum(1 for s, e in zip(TIME, EVENT, strict=True) if s > t or (s == t and not e))
        out *= 1 - sum(1 for s, e in zip(TIME, EVENT, strict=True) if s == t and not e) / at_risk
    return out


def test_brier_auroc_and_calibration_are_those_of_loops_over_the_pooled_persons() -> None:
    found, alive = metrics(make_task(study_of()), SITES), alive_of(OUTPUT)
    before = {u: no_censoring_before(u) for u in EDGES}
    after = {u: no_censoring_before(np.nextafter(u, np.inf)) for u in EDGES}
    briers = []
    for k, t in enumerate(EDGES):
        total = 0.0
        for s, e, p in zip(TIME, EVENT, alive[:, k], strict=True):
            if e and s <= t:
                total += p**2 / before[s]
            elif s > t or t == EDGES[-1] == s:
                total += (1 - p) ** 2 / after[t]
        briers.append(total / len(TIME))
    assert found["ibs"] == pytest.approx(np.trapezoid(briers, EDGES) / (EDGES[-1] - EDGES[0]), rel=1e-10)
    risk = binned_risk(OUTPUT)
    for horizon in HORIZONS:
        k = EDGES.index(horizon)
        cases = [(r, 1 / before[s]) for r, s, e in zip(risk, TIME, EVENT, strict=True) if e and s <= horizon]
        controls = np.array([r for r, s, e in zip(risk, TIME, EVENT, strict=True) if s > horizon or (s == EDGES[-1] == horizon and not e)])
        right = sum(w * ((controls < r).sum() + 0.5 * (controls == r).sum()) for r, w in cases)
        assert found[f"auroc_{horizon:g}"] == pytest.approx(right / (sum(w for _, w in cases) * len(controls)), rel=1e-10)
        observed = 1 - KaplanMeierFitter().fit(TIME, EVENT).predict(horizon)
        assert found[f"ratio_{horizon:g}"] == pytest.approx(observed / (1 - alive[:, k]).mean(), rel=1e-10)
    pairs = np.zeros(2)
    for r, s, e in zip(risk, TIME, EVENT, strict=True):
        if e:
            there = (s < TIME) | ((s == TIME) & ~EVENT)
            pairs += np.array([((risk < r) + 0.5 * (risk == r))[there].sum(), there.sum()]) / before[s] ** 2
    assert found["c_index_ipcw"] == pytest.approx(pairs[0] / pairs[1], rel=1e-10)


def test_after_the_last_person_is_censored_there_is_no_brier_score_and_no_observed_risk() -> None:
    """Before: the persons who are not known to be alive or dead counted as if the model were right about them."""
    task, (output, label) = make_task(study_of()), persons(120, 3)
    label[:, 0] = torch.where(label[:, 1] == 1, label[:, 0].clamp_max(EDGES.index(HORIZONS[0])), EDGES.index(HORIZONS[0]) + 1)
    counts = task.counts(output, label)
    assert task.over_time is not None
    found = task.over_time(counts)
    assert found is not None
    there = np.array(EDGES) < EDGES[EDGES.index(HORIZONS[0]) + 1]
    np.testing.assert_array_equal(np.isfinite(found["brier"]), there)
    place = np.array(EDGES) <= EDGES[EDGES.index(HORIZONS[0]) + 1]
    np.testing.assert_array_equal(np.isfinite(found["observed"]), place)
    scores = task.metrics(counts)
    assert np.isfinite(scores[f"ratio_{HORIZONS[0]:g}"])
    assert np.isnan(scores[f"ratio_{HORIZONS[-1]:g}"])
    assert np.isnan(scores["ibs"])
    assert "observed until then" in interval(counts, task, f"ratio_{HORIZONS[-1]:g}", seed=1).method
    label[:, 1] = 1  # with all events known, nobody is missing: half of the squares
    half = task.counts(torch.zeros_like(output), label)
    assert np.isfinite(task.metrics(half)["ibs"])


def test_log_losses_are_the_likelihood_of_hazards_and_their_gradient_adds_over_sites() -> None:
    hazard = 1 / (1 + np.exp(-(OUTPUT.numpy() - np.log(len(EDGES)))))
    total = 0.0
    for h, (place, event) in zip(hazard, LABEL.long().tolist(), strict=True):
        total -= np.log(1 - h[:place]).sum() + (np.log(h[place]) if event else np.log(1 - h[place]))
    assert float(discrete_loss(OUTPUT, LABEL)) == pytest.approx(total / len(LABEL), rel=1e-12)
    entry = torch.cat([LABEL, torch.ones(len(LABEL), 1)], 1)[LABEL[:, 0] >= 1]
    late = float(discrete_loss(OUTPUT[LABEL[:, 0] >= 1], entry))
    first = float(-np.log(1 - hazard[LABEL[:, 0].numpy() >= 1, 0]).mean())
    assert late == pytest.approx(float(discrete_loss(OUTPUT[LABEL[:, 0] >= 1], LABEL[LABEL[:, 0] >= 1])) - first, rel=1e-9)

    def gradient(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(discrete_loss(weight * output, label), weight)
        return found * len(label)

    torch.testing.assert_close(sum(gradient(*site) for site in SITES), gradient(OUTPUT, LABEL), rtol=1e-12, atol=1e-12)


def test_the_partial_likelihood_has_its_maximum_at_the_estimate_of_an_independent_implementation() -> None:
    """statsmodels' PHReg with Breslow's ties, with and without late entry (half an interval before: it counts who enters at an event)."""
    from statsmodels.duration.hazard_regression import PHReg

    x = OUTPUT[:, 0].numpy()
    for first in (None, np.minimum(LABEL[:, 0].numpy(), np.arange(len(x)) % 3)):
        label = LABEL if first is None else torch.cat([LABEL, torch.from_numpy(first)[:, None].double()], 1)
        place = LABEL[:, 0].numpy() + 1
        peer = PHReg(place, x[:, None], status=EVENT.astype(int), entry=None if first is None else first + 0.5, ties="breslow").fit()
        got = minimize(lambda b, y: float(partial_likelihood(torch.from_numpy(b[0] * x), y)), [0.0], args=(label,), tol=1e-12)
        assert got.x[0] == pytest.approx(peer.params[0], rel=1e-5)
        assert -got.fun * len(x) == pytest.approx(peer.llf, rel=1e-9)


def test_the_baseline_gives_the_scores_no_gradient_and_no_event_no_loss() -> None:
    output = torch.zeros(5, 1 + len(EDGES), requires_grad=True)
    label = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [7.0, 0.0]])
    (found,) = torch.autograd.grad(cox_loss(output, label), output)
    assert not found[:, 0].any()
    assert found[:, 1:].any()
    assert torch.isfinite(found).all()


def test_a_cox_model_counts_survival_of_its_own_baseline() -> None:
    task = make_task(study_of("cox"))
    score, baseline = OUTPUT[:, :1], torch.linspace(-0.3, 0.4, len(EDGES)).expand(len(OUTPUT), -1)
    answer = task.answer.columns(torch.cat([score, baseline], 1), {})
    np.testing.assert_allclose(answer["survival_360"], alive_of(score + baseline)[:, EDGES.index(360.0)], rtol=1e-9)
    assert metrics(task, [(torch.cat([score, baseline], 1), LABEL)])["c_index"] == pytest.approx(
        concordance_index(TIME, -score[:, 0].numpy(), EVENT), abs=1e-3
    )


# --- what of few persons leaves a site


@pytest.mark.parametrize("smallest", [3, 5, 10])
@pytest.mark.parametrize("site", range(3))
def test_no_cell_that_leaves_holds_fewer_than_min_count(smallest: int, site: int) -> None:
    exact = make_task(study_of()).counts(*SITES[site])
    sent = grouped(exact, smallest)
    for name in (RANKS, TIMES):
        assert sent[name].sum() == exact[name].sum()
        assert sent[name][sent[name] > 0].min() >= smallest
        assert exact[name][exact[name] > 0].min() < smallest, "the test has few persons in a cell"
    # Sums of predictions are of the persons of a cell of times, and nothing else.
    for name in ("alive_sum", "alive_sq_sum"):
        assert ((sent[name] != 0).any(2) == (sent[TIMES] > 0)).all()
        np.testing.assert_allclose(sent[name].sum((0, 1)), exact[name].sum((0, 1)))
    assert {name: (v.dtype, v.shape) for name, v in sent.items()} == {name: (v.dtype, v.shape) for name, v in exact.items()}
    # The places of the table of risks are unions of those of the table of times: no difference of the two is about few persons.
    for kind in (0, 1):
        tables, many = np.cumsum(sent[TIMES][kind]), np.cumsum(sent[RANKS][kind].sum(1))
        assert set(many[sent[RANKS][kind].any(1)]) <= set(tables)


def test_one_site_has_its_own_c_index_also_when_grouped() -> None:
    task = make_task(study_of())
    for site in SITES:
        exact = task.counts(*site)
        assert grouped(exact, 10)[BEYOND].any()
        assert task.metrics(grouped(exact, 10))["c_index"] == pytest.approx(task.metrics(exact)["c_index"], abs=1e-12)
    both = task.metrics(add_counts(grouped(task.counts(*site), 5) for site in SITES))
    exact_of_all = metrics(task, SITES)
    assert both["c_index"] == pytest.approx(exact_of_all["c_index"], abs=0.02)
    for name in ("ibs", "ratio_360", "ratio_720"):
        assert both[name] == pytest.approx(exact_of_all[name], rel=0.05), name


def test_measures_at_a_horizon_hold_for_grouped_counts_also_at_the_end_of_the_grid() -> None:
    """Persons until a horizon are not put together with those after it, nor with those who are without an event at the end."""
    random = np.random.default_rng(1)
    times = study_of().times
    places, n = len(times.edges), 800
    risk = random.normal(size=n)
    place = np.minimum(np.floor(random.exponential(places / 2 * np.exp(-risk))), places - 1).astype(int)
    event = (random.random(n) < 0.6) & (place < places - 1)
    exact = count(risk, np.full((n, len(scored_places(times))), 0.5), place, event, places)
    at = (times.places[0], places - 1)
    for horizon in at:
        sent = [grouped(exact, 5, several) for several in ((), at)]
        one, plain, cut = (_auroc(horizon)(counts, None) for counts in (exact, *sent))
        assert abs(cut - one) < 0.02
        assert np.isnan(plain) or abs(cut - one) < abs(plain - one)


def test_with_fewer_events_than_min_count_nothing_about_times_leaves() -> None:
    task = make_task(study_of())
    output, label = persons(60, 9)
    label[:, 1] = 0
    label[:4, 1] = 1
    sent = grouped(task.counts(output, label), 5)
    assert not any(sent[name].any() for name in (RANKS, TIMES, "alive_sum", "alive_sq_sum", BEYOND))
    assert sent["persons"][0] == 60
    assert withheld(sent)
    assert all(np.isnan(task.metrics(sent)[name]) for name in ("c_index", "ibs", "auroc_360", "ratio_360"))
    label[:, 1] = 0  # no event at all is not about few persons
    assert grouped(task.counts(output, label), 5)[TIMES].sum() == 60


def test_runs_of_places_hold_enough_persons_and_are_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = rng.poisson(1.2, rng.integers(1, 30))
        runs = merged(row, 4)
        assert [place for run in runs for place in run] == np.flatnonzero(row).tolist()
        assert all(row[run].sum() >= 4 for run in runs) or row.sum() < 4
    assert merged(np.zeros(3, int), 4) == []
    assert BINS % 2 == 0


def test_what_the_report_draws_over_time_is_kaplan_meier_and_the_mean_prediction_of_the_pooled_persons() -> None:
    task, sites = make_task(study_of()), [persons(n, seed) for seed, n in enumerate((150, 40, 260))]
    counts = add_counts([task.counts(*site) for site in sites])
    assert task.over_time is not None
    found = task.over_time(counts)
    assert found is not None
    peer = KaplanMeierFitter().fit(TIME, EVENT, timeline=EDGES, alpha=0.05)
    np.testing.assert_allclose(found["observed"], peer.survival_function_.to_numpy()[:, 0], rtol=1e-10)
    limits = peer.confidence_interval_.to_numpy()
    np.testing.assert_allclose(np.stack([found["low"], found["high"]], 1)[:-1], limits[:-1], rtol=1e-8)
    alive = alive_of(OUTPUT)
    np.testing.assert_allclose(found["predicted"], alive.mean(0), rtol=1e-10)
    assert [row["time"] for row in found["horizons"]] == HORIZONS
    at = [EDGES.index(h) for h in HORIZONS]
    np.testing.assert_allclose([row["predicted"] for row in found["horizons"]], 1 - alive.mean(0)[at], rtol=1e-10)
    assert np.trapezoid(found["brier"], EDGES) / (EDGES[-1] - EDGES[0]) == pytest.approx(task.metrics(counts)["ibs"], rel=1e-12)


def test_groups_of_risk_hold_all_persons_in_order_and_their_observed_risk_is_kaplan_meier() -> None:
    task = make_task(study_of())
    assert task.over_time is not None
    found = task.over_time(task.counts(OUTPUT, LABEL))
    assert found is not None
    groups, risk, bins = found["groups"], 1 - alive_of(OUTPUT)[:, LAST], binned_risk(OUTPUT)
    assert sum(g["persons"] for g in groups) == len(TIME)
    assert [g["predicted"] for g in groups] == sorted(g["predicted"] for g in groups)
    assert all(g["events"] >= 5 for g in groups)
    order = np.argsort(bins, kind="stable")
    rows = np.split(order, np.cumsum([g["persons"] for g in groups])[:-1])
    for group, own in zip(groups, rows, strict=True):
        peer = KaplanMeierFitter().fit(TIME[own], EVENT[own])
        assert group["observed"] == pytest.approx(1 - float(peer.predict(EDGES[LAST])), abs=1e-10)
        assert group["predicted"] == pytest.approx(float(risk[own].mean()), abs=0.01)  # what the bins of the risk cost


def test_nothing_is_drawn_over_time_where_no_site_tells_of_times() -> None:
    task = make_task(study_of())
    none = {name: np.zeros_like(value) for name, value in task.counts(OUTPUT, LABEL).items()}
    assert task.over_time is not None
    assert task.over_time(none) is None
