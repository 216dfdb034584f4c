"""Mistakes in what is computed: analytics, learning, models."""

from __future__ import annotations

from tests.mutants.mutant import Mutants

MUTANTS: Mutants = {
    "a linear test with a degree of freedom too many": (
        [("fedml/analytics/linear.py", "total.n - int(rank) - 1", "total.n - int(rank)")],
        "fedml/analytics/test_gwas_math.py::test_linear_is_that_of_statsmodels",
    ),
    "Firth's penalty twice": (
        [("fedml/analytics/logistic.py", "0.5 * log_determinant", "1.0 * log_determinant")],
        "fedml/analytics/test_gwas_math.py::test_firth_is_the_maximum_of_the_penalised_likelihood",
    ),
    "components of dosages that are not standardised": (
        [
            (
                "fedml/analytics/pca.py",
                "return np.where(usable, 1 / np.sqrt(np.where(usable, variance, 1.0)), 0.0)",
                "return np.where(usable, 1.0, 0.0)",
            )
        ],
        "fedml/analytics/test_pca.py::test_any_split_gives_the_pooled_components",
    ),
    "inflation by the mean instead of the median": (
        [("fedml/analytics/sumstats.py", "np.median(known)", "np.mean(known)")],
        "fedml/analytics/test_sumstats.py::test_inflation_is_one_without_and_the_factor_with",
    ),
    "statistics of all parts": (
        [("fedml/learning/statistics.py", '    rows = cohort.rows("train")\n', "    rows = np.arange(len(cohort))\n")],
        "fedml/learning/test_models.py::test_sums_never_look_at_other_parts",
    ),
    "a standard deviation by n - 1": (
        [
            (
                "fedml/learning/statistics.py",
                "squares / np.maximum(count, 1) - mean**2",
                "(squares - count * mean**2) / np.maximum(count - 1, 1)",
            )
        ],
        "fedml/learning/test_models.py::test_sums_over_unequal_sites_give_the_moments_of_the_pooled_training_persons",
    ),
    "Wilson's limits without their correction": (
        [("fedml/tasks/interval_tools.py", "k * (n - k) / n + z2 / 4", "k * (n - k) / n")],
        "fedml/privacy/test_intervals.py::test_wilson_equals_statsmodels",
    ),
    "a bootstrap over sites pooled": (
        [
            (
                "fedml/tasks/interval_tools.py",
                "rng.multinomial(persons, table[cell] / persons, size=rows)",
                "rng.poisson(table[cell], size=(rows, len(cell)))",
            )
        ],
        "fedml/privacy/test_intervals.py::test_every_draw_keeps_each_sites_number_and_only_what_was_seen",
    ),
    "the other class of two not mirrored": (
        [("fedml/learning/calibration.py", "histogram[0][::-1, ::-1]", "histogram[0][::-1]")],
        "fedml/learning/test_calibration.py::test_one_class_of_several_is_against_the_rest_and_of_two_the_other_is_the_mirror",
    ),
    "calibration in the large without the offset": (
        [("fedml/learning/calibration.py", "_newton(np.ones((len(x), 1)), x,", "_newton(np.ones((len(x), 1)), np.zeros_like(x),")],
        "fedml/learning/test_calibration.py::test_the_fit_is_statsmodels_own_where_every_person_is_at_the_middle_of_a_bin",
    ),
    "ties won in the AUROC": (
        [("fedml/tasks/classification_counts.py", "below + negative / 2", "below + negative")],
        "fedml/tasks/test_metrics.py::test_auroc_of_perfect_opposite_and_constant_scores",
    ),
    "the Brier score of two classes counted over both": (
        [("fedml/tasks/classification_measures.py", "/ (2 if _two(counts) else 1)", "/ 1")],
        "fedml/tasks/test_metrics.py::test_classification_metrics_equal_sklearns",
    ),
    "HD95 with swapped spacing axes": (
        [("fedml/tasks/segmentation_counts.py", "[float(s) for s in spacing]", "[float(s) for s in spacing[::-1]]")],
        "fedml/models/test_segmentation.py::test_hd95_of_a_plate_moved_along_one_axis_is_voxels_times_that_axiss_spacing",
    ),
    "the mean of a person's images over all images": (
        [("fedml/models/fusion.py", "/ count * present", "/ count.max() * present")],
        "fedml/learning/test_models.py::test_a_person_with_several_images_has_the_mean_of_their_features",
    ),
}
