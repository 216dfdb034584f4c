"""Mistakes at the coordinator: strategies, evidence, tracking, the study and the wire."""

from __future__ import annotations

from tests.mutants.mutant import Mutants

MUTANTS: Mutants = {
    "a deadline per site in place of per round": (
        [("strategies/exchange.py", "start + until", "time.monotonic() + until")],
        "strategies/test_exchange.py::test_silent_sites_share_one_deadline",
    ),
    "a quorum of one": (
        [("strategies/exchange.py", "if len(answered) < study.federation.needed:", "if len(answered) < 1:")],
        "strategies/test_strategies.py::test_a_site_that_fails_is_excluded_if_the_quorum_allows_it",
    ),
    "orientation of variants without the rows of absent sites": (
        [
            (
                "strategies/agreement/agreement.py",
                "for site in self.roster]",
                "for site in self.roster if self.shared is None or site in self.shared.flips]",
            )
        ],
        "strategies/agreement/test_agreement.py::test_each_site_has_its_row_of_the_orientation_if_others_are_absent",
    ),
    "adaptive moments begin at zero": (
        [("strategies/algorithms/fedopt.py", "torch.full_like(delta, tau**2)", "torch.zeros_like(delta)")],
        "strategies/test_strategies.py::test_adaptive_optimisers_follow_algorithm_2",
    ),
    "the proximal term away from the round's model": (
        [("strategies/algorithms/fedprox.py", "alpha=mu)", "alpha=-mu)")],
        "strategies/test_strategies.py::test_fedprox_without_mu_is_fedavg_bit_by_bit_and_a_large_mu_holds_the_model",
    ),
    "the best site shown as the worst": (
        [("strategies/rounds.py", "(min if task.higher else max)", "(max if task.higher else min)")],
        "strategies/test_rounds.py::test_the_worst_site_is_the_one_with_the_lowest_auroc_or_the_highest_error",
    ),
    "a signature that is not looked at": (
        [("experiments/evidence/signing.py", "        key.verify(signed, data)\n", "        pass\n")],
        "experiments/evidence/test_evidence.py::test_any_changed_byte_of_any_file_is_detected",
    ),
    "a bundle of another key passes": (
        [("experiments/evidence/verify.py", "if signer != fingerprint:", "if False:")],
        "experiments/evidence/test_evidence.py::test_another_key_is_refused_where_the_right_one_is_known",
    ),
    "epsilon is not counted again": (
        [("experiments/evidence/verify.py", "lambda: _epsilon(record))", "tuple)")],
        "experiments/evidence/test_evidence.py::test_a_lowered_epsilon_is_caught_for_any_signer",
    ),
    "journals may stand still": (
        [
            (
                "experiments/evidence/verify.py",
                "any(later[1] < earlier[1] + 2 or later[0] == earlier[0] for earlier, later in pairwise(rows))",
                "False",
            )
        ],
        "experiments/evidence/test_evidence.py::test_journals_that_do_not_grow_are_caught_for_any_signer",
    ),
    "a site's signature is not looked at": (
        [
            (
                "fedml/contract/witness.py",
                "    except (InvalidSignature, ValueError):\n        return False\n",
                "    except (InvalidSignature, ValueError):\n        pass\n",
            )
        ],
        "experiments/evidence/test_witnesses.py::test_a_signature_is_on_every_field",
    ),
    "the model may mean something else": (
        [("experiments/evidence/closed.py", "    if found != final.meaning_sha256:", "    if False:")],
        "experiments/evidence/test_tamperings.py::test_the_quick_tamperings_are_found",
    ),
    "a run that is recorded in part is not owed": (
        [("fedml/tracking/outbox.py", '.get("events_bytes") != size', '.get("events_bytes") is None')],
        "experiments/studies/test_tracking.py::test_pending_delivers_what_was_to_be_recorded_and_nothing_else",
    ),
    "two processes record a run at a time": (
        [("fedml/tracking/outbox.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB")],
        "experiments/studies/test_tracking.py::test_a_run_is_recorded_by_one_process_at_a_time",
    ),
    "the study's hash follows the order of its keys": (
        [
            (
                "fedml/study/study.py",
                'json.dumps(self.model_dump(mode="json"), sort_keys=True',
                'json.dumps(self.model_dump(mode="json"), sort_keys=False',
            )
        ],
        "fedml/study/test_study.py::test_canonical_is_sorted_compact_ascii_json_and_its_sha256_the_identity",
    ),
    "sites weigh by their persons under privacy of a site": (
        [("fedml/study/study.py", 'self.strategy.options.get("weighting") == "persons"', "False")],
        "fedml/study/test_study.py::test_what_mixes_persons_or_weighs_by_them_is_refused_under_privacy",
    ),
    "a seed's parts without their types": (
        [("fedml/seeds.py", 'f"{type(p).__name__}:{p}"', 'f"{p}"')],
        "fedml/test_seeds.py::test_seeds_of_known_parts_never_change",
    ),
    "arrays of a message may share bytes": (
        [("fedml/wire/packing.py", "not end <= at or ", "")],
        "fedml/wire/test_bundle.py::test_a_malformed_bundle_is_refused",
    ),
    "objects may stand in an array": (
        [("fedml/wire/records.py", "if dtype.kind not in _KINDS or fortran:", "if fortran:")],
        "fedml/wire/test_records.py::test_pickles_objects_and_fortran_order_are_refused",
    ),
}
