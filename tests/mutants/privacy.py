"""Mistakes in differential privacy: noise, clipping, sampling, divisors, the accountant."""

from __future__ import annotations

from tests.mutants.mutant import Mutants

SITE_NOISE = "add_gaussian(value, self.z * self.norm)"
PATIENT_NOISE = "add_gaussian(value, std, entropy=entropy)"
MUTANTS: Mutants = {
    "noise left out (patient)": (
        [("fedml/privacy/dpsgd.py", PATIENT_NOISE, "value.clone()")],
        "fedml/privacy/test_dpsgd.py::test_noise_at_the_release_has_the_promised_standard_deviation",
    ),
    "noise left out (site)": (
        [("strategies/algorithms/private.py", SITE_NOISE, "value.float()")],
        "strategies/test_private.py::test_the_noise_on_the_released_mean_is_z_c_over_n",
    ),
    "noise divided by 10 (patient)": (
        [("fedml/privacy/dpsgd.py", PATIENT_NOISE, "add_gaussian(value, std / 10, entropy=entropy)")],
        "fedml/privacy/test_dpsgd.py::test_noise_at_the_release_has_the_promised_standard_deviation",
    ),
    "noise divided by 10 (site)": (
        [("strategies/algorithms/private.py", SITE_NOISE, "add_gaussian(value, self.z * self.norm / 10)")],
        "strategies/test_private.py::test_the_noise_on_the_released_mean_is_z_c_over_n",
    ),
    "each image clipped instead of each person": (
        [
            (
                "fedml/privacy/dpsgd.py",
                "part = clipped_gradient_sum(model, losses, clipping_norm=clipping_norm, rows_of=rows_of)",
                "part = clipped_gradient_sum(model, losses, clipping_norm=clipping_norm * "
                "max(1, len(batch.get('image', [])) // max(1, len(chosen))), rows_of=rows_of)",
            )
        ],
        "fedml/privacy/test_dpsgd.py::test_one_person_more_changes_the_sum_by_at_most_the_clipping_norm",
    ),
    "divided by the drawn batch": (
        [
            ("fedml/privacy/dpsgd.py", "import math\n", "import math\nfrom dataclasses import replace\n"),
            (
                "fedml/privacy/dpsgd.py",
                "for k, v in total.items()}, privacy, entropy=entropy)",
                "for k, v in total.items()}, replace(privacy, expected_batch=max(len(sampled), 1)), entropy=entropy)",
            ),
        ],
        "fedml/privacy/test_dpsgd.py::test_the_divisor_is_the_expected_batch_for_any_sample",
    ),
    "weighted mean": (
        [
            ("strategies/algorithms/averaging.py", 'weight = 1.0 if self.weighting == "equal" else float(', "weight = float("),
            ("strategies/algorithms/private.py", "alpha=factor)", "alpha=factor * weight)"),
        ],
        "strategies/test_private.py::test_the_mean_is_over_the_roster_and_the_sizes_do_not_count",
    ),
    "buffers not clipped (site)": (
        [
            (
                "strategies/algorithms/private.py",
                "sum(float((u * u).sum()) for u in update.values())",
                "sum(float((u * u).sum()) for k, u in update.items() if 'running' not in k)",
            )
        ],
        "strategies/test_private.py::test_a_buffer_is_clipped_like_any_array",
    ),
    "buffers released as they are (patient)": (
        [("fedml/privacy/dpsgd.py", "    refuse_shared_statistics(model)\n", "")],
        "fedml/privacy/test_dpsgd.py::test_batch_norm_is_refused_with_the_fix",
    ),
    "batches of a fixed size, counted as Poisson's": (
        [
            (
                "fedml/privacy/dpsgd.py",
                "return rows if threshold >= 2**64 else rows[uniform_words(len(rows), entropy) < np.uint64(threshold)]",
                "return rows[np.argsort(uniform_words(len(rows), entropy))[: max(1, round(rate * len(rows)))]] if threshold else rows",
            )
        ],
        "fedml/privacy/test_dpsgd.py::test_batch_sizes_are_binomial_and_persons_independent",
    ),
    "noise with a constant seed (patient)": (
        [
            ("fedml/privacy/noise.py", "entropy: Entropy = os.urandom", "entropy: Entropy = lambda n: np.random.default_rng(7).bytes(n)"),
            ("fedml/privacy/dpsgd.py", "entropy: Entropy = os.urandom", "entropy: Entropy = lambda n: np.random.default_rng(7).bytes(n)"),
        ],
        "fedml/privacy/test_dpsgd.py::test_two_runs_differ_whatever_the_study_s_seed_and_torchs",
    ),
    "noise with a constant seed (site)": (
        [("fedml/privacy/noise.py", "entropy: Entropy = os.urandom", "entropy: Entropy = lambda n: np.random.default_rng(7).bytes(n)")],
        "strategies/test_private.py::test_the_noise_in_a_whole_run_is_that_of_its_rounds",
    ),
    "noise of private metrics 18 % too small": (
        [("fedml/privacy/counts.py", "_BRIER_BOUND**2", "_BRIER_BOUND")],
        "experiments/studies/test_patient.py::test_private_metrics_are_noised_and_counted",
    ),
    "noise of private metrics without their sensitivity": (
        [("fedml/privacy/counts.py", "metrics_multiplier(study) * sensitivity(classes)", "metrics_multiplier(study)")],
        "experiments/studies/test_patient.py::test_private_metrics_are_noised_and_counted",
    ),
    "noise on no grid": (
        [("fedml/privacy/noise.py", "(part / step).round_().mul_(step)", "part")],
        "fedml/privacy/test_dpsgd.py::test_every_release_lies_on_a_grid_that_no_value_shifts",
    ),
    "a gradient that is not finite is summed": (
        [("fedml/privacy/persongrad.py", "else ~torch.isfinite(norms)", "else torch.zeros_like(norms, dtype=torch.bool)")],
        "fedml/privacy/test_genes.py::test_a_person_with_a_gradient_that_is_not_finite_adds_nothing",
    ),
    "small gradients scaled up to the clipping norm": (
        [("fedml/privacy/persongrad.py", "norms.clamp_min(clipping_norm)", "norms.clamp_min(1e-12)")],
        "fedml/privacy/test_dpsgd.py::test_variants_alone",
    ),
    "one release counted instead of all": (
        [("fedml/privacy/accounting.py", "math.fsum(count / z**2", "math.fsum(1 / z**2")],
        "fedml/privacy/test_accounting.py::test_ten_thousand_single_events_equal_one_composed",
    ),
    "epsilon rounded down": (
        [("fedml/privacy/claims.py", "rounding=ROUND_CEILING", "rounding='ROUND_FLOOR'")],
        "fedml/privacy/test_accounting.py::test_epsilon_is_printed_upwards",
    ),
    "the last evaluation not counted": (
        [("fedml/privacy/releases.py", "EVALUATIONS_AT_END = 1", "EVALUATIONS_AT_END = 0")],
        "experiments/studies/test_patient.py::test_private_metrics_are_noised_and_counted",
    ),
    "the divisor is all persons": (
        [("fedml/privacy/releases.py", "Sampling(rate, float(expected),", "Sampling(rate, float(persons),")],
        "experiments/studies/test_patient.py::test_rate_and_divisor_follow_from_the_study_not_from_who_is_there",
    ),
    "a rest of few persons is told": (
        [("fedml/cohort/variants/cells.py", "unsafe(table.block(_rest(table, kept))) & kept", "~kept.any(0) & kept")],
        "fedml/cohort/test_cells.py::test_no_difference_of_what_is_told_is_about_few_persons",
    ),
    "the gate forgets the rest of the populations": (
        [("fedml/cohort/variants/cells.py", "left &= ~(members[other] & mask[other])", "pass")],
        "fedml/cohort/test_cells.py::test_a_table_that_tells_a_small_cell_or_what_is_left_of_one_is_found_by_the_gate",
    ),
    "populations are not remembered": (
        [("clients/work/genomics.py", "    if request.study.frequencies is None:\n", "    if True:\n")],
        "clients/gate/test_frequencies_gate.py::test_populations_that_differ_by_one_person_are_refused",
    ),
}
