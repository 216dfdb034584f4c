"""The panel that sites with different files share: whatever was swapped, flipped or left out at one of them, nothing means something
else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants.checks import strand_checks
from fedml.cohort.variants.frequency import genotype_counts
from fedml.cohort.variants.harmonise import align, draft_panel, quality, settle
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.matching import Match, place
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.normalise import NOTES, UNSURE
from fedml.cohort.variants.packed import Packed
from fedml.cohort.variants.palindromes import SiteStrand, strand_known, unproven
from fedml.study.cohort_section import Variants

PAIRS = [(r, a) for r in "ACGT" for a in "ACGT" if r != a]
COMPLEMENT = {"A": "T", "T": "A", "C": "G", "G": "C"}


def ambiguous(key: Variant) -> bool:
    return COMPLEMENT[key.ref] == key.alt


def flipped(key: Variant) -> Variant:
    return key._replace(ref=COMPLEMENT[key.ref], alt=COMPLEMENT[key.alt])


def swapped(key: Variant) -> Variant:
    return key._replace(ref=key.alt, alt=key.ref)


def turned(column: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    return np.where(column < 0, -1, 2 - column).astype(np.int8)


def site(keys: Sequence[Variant], columns: Sequence[npt.NDArray[np.int8]], persons: int) -> Dosages:
    return Dosages(tuple(keys), np.array(columns, np.int8).T.reshape(persons, len(keys)), np.ones(persons, bool))


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Dosages, Dosages, dict[str, set[str]]]:
    """Site A; site B with the same persons, its variants dropped, shuffled, allele-swapped, strand-flipped; what was done to each."""
    count = draw(st.integers(1, 12))
    keys = tuple(Variant("1", 10 * k + 1, f"rs{k}", *draw(st.sampled_from(PAIRS))) for k in range(count))
    persons = draw(st.integers(1, 4))
    dosage = np.array(
        draw(st.lists(st.lists(st.integers(-1, 2), min_size=persons, max_size=persons), min_size=count, max_size=count)), np.int8
    )
    done: dict[str, set[str]] = {}
    own, columns = [], []
    for at in draw(st.permutations(range(count))):
        key, column = keys[at], dosage[at]
        what = done[key.id] = draw(st.sets(st.sampled_from(["dropped", "swapped", "flipped", "twice"]), max_size=2))
        key, column = (swapped(key), turned(column)) if "swapped" in what else (key, column)
        key = flipped(key) if "flipped" in what else key
        for _ in range(0 if "dropped" in what else 2 if "twice" in what else 1):
            own.append(key)
            columns.append(column)
    return site(keys, list(dosage), persons), site(own, columns, persons), done


@pytest.mark.parametrize("match", ["position", "rsid"])
@pytest.mark.parametrize("counted", [False, True])
@given(made=cohorts())
def test_every_variant_comes_back_as_it_was_or_is_dropped(
    match: Match, counted: bool, made: tuple[Dosages, Dosages, dict[str, set[str]]]
) -> None:
    a, b, done = made
    draft = draft_panel({"a": a.keys, "b": b.keys}, match)
    own = {name: align(d, draft.keys, draft.flips[name], match) for name, d in (("a", a), ("b", b))}
    counts = {name: genotype_counts(np.asarray(d.dosage)) for name, d in own.items()} if counted else None
    panel, kept = settle(draft, counts)
    assert panel.keys == tuple(k for k, yes in zip(draft.keys, kept, strict=True) if yes)
    back = {name: align(d, panel.keys, panel.flips[name], match) for name, d in (("a", a), ("b", b))}
    column = {k.id: i for i, k in enumerate(a.keys)}
    strands = any("flipped" in done[k.id] and not done[k.id] & {"dropped", "twice"} for k in draft.keys if not ambiguous(k))
    for at, key in enumerate(panel.keys):
        np.testing.assert_array_equal(np.asarray(back["a"].dosage)[:, at], np.asarray(a.dosage)[:, column[key.id]])
        # With no other SNP turned, letters are believed; they cannot tell a palindrome that was flipped.
        if not (ambiguous(key) and "flipped" in done[key.id] and not strands):
            np.testing.assert_array_equal(
                np.asarray(back["b"].dosage)[:, at], np.asarray(a.dosage)[:, column[key.id]], err_msg=str((key, done))
            )
    sure = {k.id for k in a.keys if not done[k.id] & {"dropped", "twice"} and not ambiguous(k)}
    assert sure <= {k.id for k in panel.keys}
    assert not {k.id for k in panel.keys} & {k for k, what in done.items() if what & {"dropped", "twice"}}
    packed = align(Dosages(b.keys, Packed.of(np.asarray(b.dosage)), b.present), panel.keys, panel.flips["b"], match)
    np.testing.assert_array_equal(packed.dosage[np.arange(len(b.present))], np.asarray(back["b"].dosage))


def many(count: int, frequency: float, persons: int = 200, seed: int = 0) -> tuple[list[Variant], list[npt.NDArray[np.int8]]]:
    """Half palindromes, half not, all of one ALT frequency."""
    rng = np.random.default_rng(seed)
    keys = [Variant("1", 10 * k + 1, f"rs{k}", *(("A", "T") if k % 2 else ("A", "G"))) for k in range(count)]
    return keys, [rng.binomial(2, frequency, persons).astype(np.int8) for _ in range(count)]


@pytest.mark.parametrize("frequency", [0.1, 0.45, 0.9])
def test_a_file_on_the_other_strand_is_turned_whole_whatever_the_frequencies(frequency: float) -> None:
    keys, columns = many(60, frequency)
    own = {"a": site(keys, columns, 200), "b": site([flipped(k) for k in keys], columns, 200)}
    panel, _ = settle(draft_panel({n: d.keys for n, d in own.items()}, "position"), None)
    assert panel.keys == tuple(keys)
    np.testing.assert_array_equal(np.asarray(align(own["b"], panel.keys, panel.flips["b"], "position").dosage), np.asarray(own["a"].dosage))
    assert panel.matching["b"]["palindrome turned"] == 30


@pytest.mark.parametrize(("frequency", "kept"), [(0.1, 60), (0.92, 60), (0.45, 30), (0.3, 30)])
def test_of_a_mixed_file_frequencies_tell_the_strand_or_the_palindrome_is_dropped(frequency: float, kept: int) -> None:
    keys, columns = many(60, frequency)
    mixed = [flipped(k) if k.position % 40 < 20 else k for k in keys]
    own = {"a": site(keys, columns, 200), "b": site(mixed, columns, 200)}
    draft = draft_panel({n: d.keys for n, d in own.items()}, "position")
    counts = {n: genotype_counts(np.asarray(align(d, draft.keys, draft.flips[n], "position").dosage)) for n, d in own.items()}
    panel, _ = settle(draft, counts)
    assert len(panel.keys) == kept
    assert panel.dropped == ({"A/T or C/G of unknown strand": 30} if kept == 30 else {})
    where = [keys.index(k) for k in panel.keys]
    back = np.asarray(align(own["b"], panel.keys, panel.flips["b"], "position").dosage)
    np.testing.assert_array_equal(back, np.asarray(own["a"].dosage)[:, where])
    assert len(settle(draft, None)[0].keys) == 30


@pytest.mark.parametrize("match", ["position", "rsid"])
@pytest.mark.parametrize("share", [1, 2, 3, 15, 27, 28, 29])
def test_no_palindrome_of_a_file_that_is_flipped_in_part_is_kept_without_counts(share: int, match: Match) -> None:
    """Of 30 plain SNPs ``share`` stand on the other strand: such a file says nothing about A/T and C/G."""
    keys, _ = many(60, 0.2)
    plain = [k for k in keys if not ambiguous(k)]
    turned_keys = set(plain[:share])
    palindromes = {k for k in keys if ambiguous(k)}
    for other in (set[Variant](), palindromes):  # the palindromes themselves as they stand, or on the other strand
        mixed = [flipped(k) if k in turned_keys | other else k for k in keys]
        draft = draft_panel({"a": keys, "b": mixed, "c": keys}, match)
        assert draft.doubtful["b"].tolist() == [ambiguous(k) for k in draft.keys]
        panel, _ = settle(draft, None)
        assert panel.keys == tuple(plain)
        assert panel.dropped == {"A/T or C/G of unknown strand": 30}
        assert not any(panel.flips[name].any() for name in "abc"), "the letters of plain SNPs tell their strand: no dosage is turned"


@pytest.mark.parametrize(("ref", "alt"), [("A", "T"), ("T", "A"), ("C", "G"), ("G", "C")])
def test_a_lone_palindrome_is_taken_by_rsid_only_as_it_stands(ref: str, alt: str) -> None:
    a, other = [Variant("1", 5, "rs1", ref, alt)], [Variant("1", 5, "rs1", alt, ref)]
    assert settle(draft_panel({"a": a, "b": a}, "rsid"), None)[0].keys == tuple(a)
    assert settle(draft_panel({"a": a, "b": other}, "rsid"), None)[0].keys == ()
    assert settle(draft_panel({"a": a, "b": other}, "position"), None)[0].flips["b"].tolist() == [1]


def test_the_panel_is_what_all_sites_have_in_the_spelling_of_most() -> None:
    v = [Variant("1", 10 * k, f"rs{k}", "A", "G") for k in range(5)]
    own = {"a": v[:4], "b": [swapped(k) for k in v[1:]], "c": [v[3], v[1], v[0]]}
    panel = draft_panel(own, "position")
    assert panel.keys == (v[1], v[3])
    assert panel.flips["b"].tolist() == [1, 1]
    assert panel.matching["b"]["swapped"] == 2
    assert panel.dropped == {"not at every site": 2}
    first = draft_panel({"b": own["b"], "a": own["a"], "c": own["c"]}, "position")
    assert set(first.keys) == {v[1], v[3]}, "the site that comes first does not decide the spelling against the others"
    assert draft_panel({"a": v, "b": [swapped(k) for k in v]}, "position", checked=["b"]).keys == tuple(swapped(k) for k in v)


def test_a_deletion_is_not_the_insertion_at_the_same_place() -> None:
    deletion, insertion = Variant("1", 5, "rs1", "CA", "C"), Variant("1", 5, "rs1", "C", "CA")
    assert draft_panel({"a": [deletion], "b": [insertion]}, "position").keys == ()
    panel = draft_panel({"a": [deletion], "b": [insertion]}, "rsid")
    assert panel.keys == ()
    assert panel.dropped == {"other alleles": 1}
    both = draft_panel({"a": [deletion, insertion], "b": [insertion, deletion]}, "position")
    assert both.keys == (deletion, insertion)
    assert not both.flips["b"].any()


def test_other_alleles_at_one_place_are_another_variant() -> None:
    a, b = [Variant("1", 5, "rs1", "A", "G")], [Variant("1", 5, "rs1", "A", "C")]
    assert draft_panel({"a": a, "b": b}, "position").keys == ()
    panel = draft_panel({"a": a, "b": b}, "rsid")
    assert panel.keys == ()
    assert panel.matching["b"]["none"] == 1
    assert place(a[0], "position") != place(b[0], "position")


def test_variants_without_an_rsid_never_match_by_rsid() -> None:
    dots = [Variant("1", 5, ".", "A", "G")]
    assert draft_panel({"a": dots, "b": dots}, "rsid").keys == ()


def test_align_leaves_what_is_absent_missing_and_never_takes_other_alleles() -> None:
    own = site([Variant("1", 5, "rs1", "A", "G"), Variant("1", 9, "rs2", "C", "T")], [np.array([0, 1, 2, -1], np.int8)] * 2, 4)
    panel = (Variant("9", 1, "rs9", "A", "C"), own.keys[1], own.keys[0]._replace(alt="C"))
    out = align(own, panel, np.array([0, 1, 0], np.uint8), "rsid")
    np.testing.assert_array_equal(np.asarray(out.dosage), [[-1, 2, -1], [-1, 1, -1], [-1, 0, -1], [-1, -1, -1]])


def test_quality_says_which_threshold_fails() -> None:
    counts = np.array([[50, 0, 100, 25, 0, 0], [40, 0, 0, 0, 0, 0], [10, 0, 0, 25, 0, 90], [0, 100, 0, 50, 0, 10], [0, 0, 0, 1, 0, 0]])
    keep, failed = quality(counts, Variants(min_call_rate=0.6, min_maf=0.05, min_hwe_p=1e-6))
    assert keep.tolist() == [True, False, False, False, False, False]
    assert failed == {
        "no counts reported (too few carriers, or none called)": 2,
        "call rate below 0.6": 1, "minor allele frequency below 0.05": 2,
    }  # fmt: skip
    assert quality(counts, Variants(min_hwe_p=1e-6))[1]["Hardy-Weinberg p below 1e-06 at a site"] == 1


# --- ids in lists


def test_one_id_in_common_is_enough_by_rsid() -> None:
    a = (
        Variant("1", 10, "rs1", "A", "G"),
        Variant("1", 20, "rs2;rs22", "A", "G"),
        Variant("1", 30, "rs3", "A", "G"),
        Variant("1", 40, "rs4", "A", "G"),
    )
    b = (
        Variant("7", 1, "rs9;rs1", "A", "G"),
        Variant("7", 2, "rs22;rs222", "G", "A"),
        Variant("7", 3, "rs33", "A", "G"),
        Variant("7", 4, "rs4", "A", "C"),
    )
    panel = draft_panel({"a": a, "b": b}, "rsid")
    assert panel.keys == a[:2]
    assert panel.flips["b"].tolist() == [0, 1]
    assert panel.dropped == {"not at every site": 1, "other alleles": 1}
    dosage = np.array([[0, 1, 2, 0], [2, 0, 1, 1]], np.int8)
    own = align(Dosages(b, dosage, np.ones(2, bool)), panel.keys, panel.flips["b"], "rsid")
    np.testing.assert_array_equal(own.dosage, [[0, 1], [2, 2]])


def test_an_id_of_two_variants_of_a_file_is_ambiguous_also_in_a_list() -> None:
    a = (Variant("1", 10, "rs1", "A", "G"), Variant("1", 20, "rs2", "A", "G"))
    b = (Variant("1", 10, "rs1;rs5", "A", "G"), Variant("1", 15, "rs5", "A", "G"), Variant("1", 20, "rs2", "A", "G"))
    panel = draft_panel({"a": a, "b": b}, "rsid")
    assert panel.keys == a[1:]
    assert panel.matching["b"]["twice"] == 2


def test_two_ids_that_only_a_third_site_lists_together_are_not_one_variant() -> None:
    one, both, other = (Variant("1", 10, name, "A", "G") for name in ("rs1", "rs1;rs2", "rs2"))
    assert draft_panel({"a": [one], "b": [both]}, "rsid").keys == (one,)
    assert draft_panel({"a": [one], "b": [both], "c": [other]}, "rsid").keys == ()  # the key of a does not name c's


# --- A/T and C/G near 0.5


def _notes(**counts: int) -> list[int]:
    return [counts.get(name.replace(" ", "_"), 0) for name in NOTES]


def test_palindromes_near_a_half_are_left_out_unless_the_strand_is_checked() -> None:
    alleles = [("A", "T"), ("C", "G"), ("A", "G"), ("A", "T")]
    keys = [Variant("1", 10 * at + 10, f"rs{at}", *pair) for at, pair in enumerate(alleles)]
    table = np.zeros((5, 4), np.int64)
    table[0], table[2] = [60, 59, 50, 75], [40, 41, 50, 25]  # ALT 0.40, 0.41, 0.50, 0.25
    counts = {"a": table, "b": table}
    draft = draft_panel({"a": keys, "b": keys}, "position")
    unsure = unproven(draft, {n: SiteStrand(keys, _notes(), n == "a") for n in "ab"})
    assert unsure.tolist() == [True, True, False, True]
    panel, kept = settle(draft, counts, unsure, 0.4)
    assert kept.tolist() == [True, False, True, True]
    assert panel.dropped == {"A/T or C/G, strand not checked, minor allele frequency above 0.4": 1}
    assert settle(draft, counts, unsure, 0.2)[1].tolist() == [False, False, True, False]
    assert settle(draft, counts, unsure, 0.5)[1].all()
    assert settle(draft, None, unsure, 0.4)[1].all()
    known = unproven(draft, {n: SiteStrand(keys, _notes(), True) for n in "ab"})
    assert settle(draft, counts, known, 0.0)[1].all()
    assert not unproven(draft_panel({"a": keys}, "position"), {"a": SiteStrand(keys, _notes(), False)}).any()


def test_a_reference_shows_the_strand_only_where_nothing_else_explains_the_letters() -> None:
    palindrome = [Variant("1", 5, "rs0", "A", "T")]
    others = [Variant("1", 10 * at + 10, f"rs{at}", "A", "G") for at in range(20)]
    swapped, mixed = _notes(alleles_swapped_to_the_reference=1), _notes(**{UNSURE.replace(" ", "_"): 1})
    assert sum(swapped) == sum(mixed) == 1
    assert strand_known(SiteStrand(palindrome, _notes(), True))  # its REF is the reference's base
    assert not strand_known(SiteStrand(palindrome, swapped, True))  # swapped, or on the other strand
    assert not strand_known(SiteStrand(palindrome + others[:19], swapped, True))
    assert strand_known(SiteStrand(palindrome + others, swapped, True))
    assert not strand_known(SiteStrand(palindrome + others, mixed, True))
    assert not strand_known(SiteStrand(palindrome + others, _notes(), False))
    assert not strand_known(SiteStrand(palindrome + others, None, True))


def test_the_table_of_checks_counts_palindromes_without_a_checked_strand() -> None:
    (check,) = strand_checks(np.array([True, False, True]), True)
    assert (check.site, check.check, check.value, check.verdict) == ("all sites", "A/T or C/G, strand not checked", "2", "warn")
    assert "so they are left out; give data.variants reference at each site" in check.fix
    assert "no frequencies are compared" in strand_checks(np.array([True]), False)[0].fix
    assert strand_checks(np.zeros(3, dtype=bool), True) == []
