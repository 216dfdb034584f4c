"""Mistakes at a site's gate: approvals, limits, journal, ledger, and the contract that both ends check."""

from __future__ import annotations

from tests.mutants.mutant import Mutants

CHARGED = '            charge(self.ledger, self.site.manifest.policy, request, note["about"].run)\n'
WORK = "            work = self._work(request)\n"
ANSWERED = """\
            memory = Memory(context.state, note["about"].run, self._kept(request.study, note["about"].run), durable=True)
            recall(request, memory)
            content = work.execute(self._teller.of(request, self.site), message.content, memory)
"""
MUTANTS: Mutants = {
    "a study that was not approved is answered": (
        [
            ("clients/gate/approvals.py", "if a.stands and a.sha256 == sha256]", "if a.stands]"),
            ("clients/gate/approvals.py", "and _noted(state, found[-1])", ""),
        ],
        "clients/gate/test_gate_plan.py::test_a_study_that_was_not_approved_is_not_answered",
    ),
    "a request is answered twice": (
        [("clients/gate/repeats.py", "if known is not None and not", "if False and not")],
        "clients/gate/test_gate_plan.py::test_test_persons_are_looked_at_once_a_run_at_its_end",
    ),
    "test persons looked at in every round": (
        [("clients/gate/checks.py", "Phase.EVALUATE: (earliest, rounds)", "Phase.EVALUATE: (0, rounds)")],
        "clients/gate/test_gate_plan.py::test_test_persons_are_looked_at_once_a_run_at_its_end",
    ),
    "constants may change within a run": (
        [("clients/gate/pins.py", "if fixed.get(name, value) != value:", "if False:")],
        "clients/gate/test_gate_plan.py::test_a_run_goes_on_with_what_was_agreed_on",
    ),
    "runs of a study are not counted": (
        [("clients/gate/repeats.py", ">= policy.max_runs", ">= 10**9")],
        "clients/gate/test_gate_plan.py::test_a_study_is_run_as_often_as_the_policy_allows_also_after_a_restart",
    ),
    "columns of genotypes counted in one run only": (
        [("clients/gate/gate.py", "sum(known.values()) + columns > persons", "columns > persons")],
        "strategies/gwas/test_gwas.py::test_columns_are_counted_over_all_runs_of_a_study",
    ),
    "few persons can be computed by subtraction": (
        [("clients/gate/checks.py", "if _too_few(_rest(", "if False and _too_few(_rest(")],
        "clients/gate/test_gate_plan.py::test_no_metrics_of_few_persons_leave_neither_plainly_nor_by_subtraction",
    ),
    "metrics of few persons leave a private study": (
        [("clients/gate/checks.py", 'if any(key.endswith("/persons") and ', "if any(False and ")],
        "experiments/studies/test_budget.py::test_exact_metrics_of_too_few_do_not_leave_a_private_study_either",
    ),
    "the journal's digest does not cover the records": (
        [("clients/gate/journal.py", 'if k != "digest"}', 'if k not in ("digest", "records")}')],
        "clients/gate/test_journal.py::test_digest_is_of_the_canonical_rest",
    ),
    "an entry that was replaced is not missed": (
        [("clients/gate/journal.py", "elif previous and entry.previous != previous:", "elif False:")],
        "clients/gate/test_journal.py::test_every_harm_inside_the_file_is_found_without_a_digest_kept_elsewhere",
    ),
    "requests that were refused count as answered": (
        [
            (
                "clients/gate/history.py",
                'for e in entries(path) if e.direction == "in" and e.verdict == "accepted"}',
                'for e in entries(path) if e.direction == "in"}',
            )
        ],
        "clients/gate/test_journal.py::test_seen_is_what_was_accepted",
    ),
    "a budget may be passed once": (
        [("clients/gate/ledger.py", "if not spent <= granted:", "if not spent <= 2 * granted:")],
        "clients/gate/test_ledger.py::test_what_is_refused_is_what_would_pass_and_leaves_nothing",
    ),
    "persons in the ledger by a hash without a key": (
        [("clients/gate/ledger.py", '_hash(self._key, b"person", person', '_hash(b"", b"person", person')],
        "clients/gate/test_ledger.py::test_no_person_can_be_read_off_the_file",
    ),
    "a charge does not follow from the one before": (
        [("clients/gate/ledger_check.py", "before + json.dumps(list(row)", "json.dumps(list(row)")],
        "clients/gate/test_ledger.py::test_a_charge_that_was_written_again_with_the_right_digest_does_not_fit_the_next",
    ),
    "records that are not declared pass": (
        [("fedml/contract/replies.py", "if not must <= set(reply) <= must | may | {JOURNAL}:", "if not must <= set(reply):")],
        "fedml/contract/test_replies.py::test_a_record_that_is_not_declared_does_not_pass",
    ),
    "numbers that are not finite pass": (
        [("fedml/contract/replies.py", 'return value.dtype.kind != "f" or bool(np.isfinite(value).all())', "return True")],
        "fedml/contract/test_replies.py::test_arrays_and_metrics_are_those_that_are_declared",
    ),
    "a fine histogram of a subgroup passes": (
        [("fedml/contract/replies.py", "if label and ((coarse", "if False and ((coarse")],
        "experiments/studies/test_groups.py::test_a_finer_histogram_of_a_group_is_refused",
    ),
    "exact counts of few excluded persons leave": (
        [("fedml/contract/disclosure.py", "(counts > 0) & (counts < min_count)", "(counts < 0)")],
        "fedml/contract/test_replies.py::test_few_persons_without_an_image_are_not_counted",
    ),
    "the ledger written after the reply": (
        [
            (
                "clients/gate/gate.py",
                CHARGED + WORK + ANSWERED,
                WORK + ANSWERED + CHARGED,
            )
        ],
        "experiments/studies/test_budget.py::test_the_charge_is_on_the_disk_before_the_work_begins",
    ),
}
