"""Mistakes in what holds against a centre, or a site, that lies."""

from __future__ import annotations

from tests.mutants.mutant import Mutants

MUTANTS: Mutants = {
    "a rounded cell below zero": (
        [
            (
                "fedml/tasks/counts.py",
                "kept = [place for place in up if tuple(place) != tuple(largest)][: max(missing // smallest - 1, 0)]",
                "kept = up",
            )
        ],
        "fedml/tasks/test_rounding.py::test_no_cell_is_small_and_the_total_stays",
    ),
    "first weights of the centre's choice": (
        [
            (
                "clients/gate/course.py",
                "if any(not np.allclose(value, last[name], *_SAME)",
                "if False and any(not np.allclose(value, last[name], *_SAME)",
            )
        ],
        "clients/gate/test_lying_centre.py::test_weights_that_write_columns_into_the_answer_are_refused",
    ),
    "weights as far away as one likes": (
        [("clients/gate/course.py", "if not far <= allowed:", "if False:")],
        "clients/gate/test_lying_centre.py::test_weights_that_write_columns_into_the_answer_are_refused",
    ),
    "rounds in any order": (
        [
            ("clients/gate/course.py", "if number <= course.round:", "if False:"),
            ("clients/gate/course.py", "rounds = min(number - course.round, _ROUNDS)", "rounds = min(abs(number - course.round), _ROUNDS)"),
        ],
        "clients/gate/test_lying_centre.py::test_rounds_come_in_order_and_in_their_own_number",
    ),
    "another round in the strategy's key": (
        [("clients/gate/course.py", 'if int(config.get("server-round", number)) != number:', "if False:")],
        "clients/gate/test_lying_centre.py::test_rounds_come_in_order_and_in_their_own_number",
    ),
    "mu of the message": (
        [("clients/gate/course.py", "if config.get(key) != value:", "if False:")],
        "clients/gate/test_lying_centre.py::test_mu_is_that_of_the_study",
    ),
    "a control variate of any length": (
        [("clients/gate/course.py", "if not length(records[name]) <= max_drift * course.returned + 1e-6:", "if False:")],
        "clients/gate/test_lying_centre.py::test_a_control_variate_is_no_longer_than_what_was_returned",
    ),
    "constants of any kind": (
        [("clients/gate/course.py", "if ((count > 1) & (small | far)).any() or (agreed_std < 0).any():", "if False:")],
        "clients/gate/test_lying_centre.py::test_constants_fit_the_sites_own_persons",
    ),
    "test persons evaluated with any number of models": (
        [("clients/gate/repeats.py", "len(before.evaluated) >= policy.max_evaluations", "False")],
        "clients/gate/test_lying_centre.py::test_test_persons_are_evaluated_with_one_model_a_study",
    ),
    "any learning rate": (
        [("clients/gate/bounds.py", "if plan.lr > policy.max_lr:", "if False:")],
        "clients/gate/test_lying_centre.py::test_a_plan_that_could_hold_persons_is_refused_though_approved",
    ),
    "steps of few persons": (
        [("clients/gate/bounds.py", "if 0 < plan.batch_size < min_count:", "if False:")],
        "clients/gate/test_lying_centre.py::test_a_plan_that_could_hold_persons_is_refused_though_approved",
    ),
    "any number of steps": (
        [("clients/gate/bounds.py", "if steps > policy.max_local_steps:", "if False:")],
        "clients/gate/test_lying_centre.py::test_a_plan_that_could_hold_persons_is_refused_though_approved",
    ),
    "layers wider than there are persons": (
        [("clients/gate/bounds.py", "if width > training_persons:", "if False:")],
        "clients/gate/test_lying_centre.py::test_a_plan_that_could_hold_persons_is_refused_though_approved",
    ),
    "a person added between two runs": (
        [("clients/site/released.py", "0 < (apart := len(own ^ other)) < smallest", "0 < (apart := len(own ^ other)) < 1")],
        "clients/gate/test_lying_centre.py::test_a_patient_added_between_two_runs_is_not_told_by_subtraction",
    ),
    "a distrusted centre is answered": (
        [("clients/gate/trust.py", 'if level == "distrusted" and', 'if level == "never" and')],
        "clients/gate/test_lying_centre.py::test_a_distrusted_centre_is_answered_in_private_studies_only",
    ),
    "an approval without its journal entry": (
        [("clients/gate/approvals.py", "if found and _noted(state, found[-1]) else None", "if found else None")],
        "clients/gate/test_lying_centre.py::test_an_approval_needs_its_journal_entry_and_a_file_that_others_cannot_write",
    ),
    "approvals that others can write": (
        [("clients/gate/approvals.py", "if about.st_mode & 0o022 or", "if")],
        "clients/gate/test_lying_centre.py::test_an_approval_needs_its_journal_entry_and_a_file_that_others_cannot_write",
    ),
    "a journal that was cut off": (
        [("clients/gate/journal.py", "if last is not None and (last.seq > int(count) or last.digest == digest):", "if True:")],
        "clients/gate/test_lying_centre.py::test_a_journal_that_was_cut_starts_no_replays",
    ),
    "data of yesterday": (
        [("clients/gate/gate.py", "if now != self._stamp:", "if False:")],
        "clients/gate/test_lying_centre.py::test_data_that_change_are_read_anew_and_end_the_run",
    ),
    "a run goes on with other data": (
        [("clients/gate/gate.py", 'if self.site.manifest.policy.changed_data == "refuse":', "if False:")],
        "clients/gate/test_lying_centre.py::test_data_that_change_are_read_anew_and_end_the_run",
    ),
    "scores of single persons": (
        [("clients/work/client.py", "    elif protected(request):\n        smallest", "    elif False:\n        smallest")],
        "clients/gate/test_lying_centre.py::test_an_honest_run_is_answered_to_its_end",
    ),
    "sums of one person's image": (
        [("clients/site/few.py", "if 0 < int(there.sum()) < smallest:", "if False:")],
        "clients/gate/test_lying_centre.py::test_sums_of_one_persons_image_do_not_leave",
    ),
    "a category of one person": (
        [("clients/site/few.py", "column[np.isin(column, levels[persons < smallest])] = common", "pass")],
        "clients/site/test_few.py::test_the_centre_reads_neither_from_an_update",
    ),
    "a gap of one person": (
        [("clients/site/few.py", "if 0 < gaps < smallest:", "if False:")],
        "clients/site/test_few.py::test_the_centre_reads_neither_from_an_update",
    ),
    "a column in which one person differs": (
        [("clients/site/few.py", "or 0 < len(known) - persons.max(initial=0) < smallest:", "or False:")],
        "clients/site/test_few.py::test_a_column_in_which_few_differ_is_left_out",
    ),
    "a variant that one person carries": (
        [("clients/site/few.py", "| ((others > 0) & (others < smallest))", "")],
        "clients/site/test_few.py::test_a_variant_that_few_carry_is_left_out",
    ),
    "a list of the site's own variants in a private study": (
        [("clients/work/client.py", "(stated := request.study.cohort.variants.stated)", "(stated := ())")],
        "experiments/studies/test_stated_variants.py::test_what_a_site_says_of_its_variants_is_the_same_with_and_without_a_carrier",
    ),
    "a study of any size": (
        [("fedml/study/limits.py", "if size > limit:", "if False:")],
        "experiments/studies/test_limits.py::test_a_text_too_long_is_not_parsed",
    ),
    "numbers of any size": (
        [("fedml/study/limits.py", "and not abs(value) <= LARGEST:", "and False:")],
        "experiments/studies/test_limits.py::test_a_limit_is_named_with_its_key",
    ),
    "a local run without the ledger": (
        [("clients/gate/local.py", "if has_ledger(site, request.study):", "if False:")],
        "clients/gate/test_local_ledger.py::test_a_budget_that_another_study_spends_meanwhile_ends_the_run",
    ),
    "a comparison without a look at the budget": (
        [("clients/gate/local.py", "if not after <= policy.max_epsilon:", "if False:")],
        "clients/gate/test_local_ledger.py::test_a_comparison_that_exceeds_the_budget_is_not_begun",
    ),
    "the best attacker from half of the releases": (
        [("fedml/privacy/accounting.py", "return (1 + _total_variation(", "return (1 + 0.9 * _total_variation(")],
        "fedml/privacy/test_best_accuracy.py::test_gaussians_have_their_closed_form",
    ),
    "a change of the control variate of any length": (
        [("strategies/judge.py", "lengths += [[{a.site: record_norm(a, record) for a in valid}] for record in records]", "pass")],
        "strategies/test_lying_site.py::test_a_change_of_the_control_variate_is_judged_like_an_update",
    ),
    "a rehearsal that imports the strategy": (
        [("clients/desk/rehearsal.py", 'if ":" not in study.strategy.name:', "if True:")],
        "clients/desk/test_rehearsal.py::test_a_site_imports_no_strategy_that_a_study_names",
    ),
    "strangers that are only forgotten": (
        [("fedml/flower/strangers.py", "oldest._transport.abort()", "pass")],
        "experiments/federation/test_strangers.py::test_the_oldest_strangers_are_ended_before_their_time",
    ),
    "a stranger's connection without an end": (
        [("fedml/flower/strangers.py", "if self.received > CONNECTION_BYTES:", "if False:")],
        "experiments/federation/test_strangers.py::test_headers_and_trailers_have_an_end",
    ),
    "a child whose parent was gone at once": (
        [("fedml/flower/parent.py", "int(os.environ.pop(_PARENT, os.getppid()))", "os.getppid()")],
        "clients/test_service.py::test_a_child_ends_when_its_parent_is_killed",
    ),
    "exact metrics beside a budget": (
        [("clients/gate/charge.py", 'elif study.privacy.metrics != "private":', "elif False:")],
        "clients/gate/test_lying_centre.py::test_a_budget_covers_exact_metrics_and_delta",
    ),
    "an association about one person": (
        [("clients/work/effective.py", "< max(smallest, FEWEST_SHARE * len(eta))", "< 0")],
        "strategies/gwas/test_lying_gwas_centre.py::test_coefficients_that_leave_one_person_are_refused",
    ),
    "an update of any length": (
        [("strategies/judge.py", "norms[site] > LONGEST * median(others) > 0", "False")],
        "strategies/test_lying_site.py::test_the_liar_is_named_and_the_run_goes_on",
    ),
    "more pairs than there are": (
        [("fedml/contract/plausible.py", 'if name == "beyond" and histogram is not None:', "if False:")],
        "strategies/test_lying_site.py::test_the_liar_is_named_and_the_run_goes_on",
    ),
    "a learning rate of the strategy's choice": (
        [("fedml/study/training_round.py", "if value > own[key] or value < 0", "if value < 0")],
        "strategies/test_flower_config.py::test_a_site_bounds_the_config_by_the_approved_study",
    ),
    "training after the last evaluation": (
        [("clients/gate/repeats.py", "if key.phase == Phase.ROUND and any(", "if False and any(")],
        "clients/gate/test_training_plan.py::test_test_persons_are_not_evaluated_early_without_patience_and_nothing_is_trained_afterwards",
    ),
    "any weights of classes": (
        [("clients/gate/course.py", "if abs((1 / present).sum() / len(present) - 1) > 1e-3 or", "if")],
        "clients/gate/test_training_plan.py::test_weights_of_classes_are_inverse_to_frequencies",
    ),
    "stated weights that leave few persons": (
        [("clients/gate/bounds.py", "if effective < fewest:", "if False:")],
        "clients/gate/test_training_plan.py::test_a_plan_beyond_the_bounds_is_refused_though_approved",
    ),
    "an earlier round's weights in any study": (
        [("clients/gate/course.py", 'min(number, _ROUNDS) if study.training.keep == "best" else 0', "number")],
        "clients/gate/test_training_plan.py::test_an_early_round_is_evaluated_only_where_the_study_keeps_the_best",
    ),
    "steps of a round that epsilon does not count": (
        [("fedml/privacy/releases.py", "plan.local_steps or plan.local_epochs", "plan.local_epochs")],
        "strategies/test_training_options.py::test_the_accountant_counts_the_steps_of_the_plan",
    ),
    "epsilon of as many rounds as the metrics allowed": (
        [("strategies/epsilon.py", "if study.training.patience:", "if False:")],
        "strategies/test_training_options.py::test_a_run_that_metrics_ended_early_claims_the_epsilon_of_all_its_rounds",
    ),
}
