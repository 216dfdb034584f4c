"""Variants in columns: what is read and written, and that matching whole columns finds what matching one variant at a time finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedml.cohort.variants.harmonise import align, draft_panel
from fedml.cohort.variants.keys import Keys, Variant, columns_of, from_text, joined, to_text
from fedml.cohort.variants.matching import Places, place_hashes, places_of
from fedml.cohort.variants.model import Dosages, Selection
from fedml.cohort.variants.plink import PlinkSource
from fedml.errors import InputError

COMPLEMENT = dict(zip("ACGT", "TGCA", strict=True))


def some(count: int, seed: int = 0) -> tuple[Variant, ...]:
    """Variants of two contigs, by position: most of one letter, some of several, one in twenty symbolic."""
    random = np.random.default_rng(seed)
    out = []
    for at in range(count):
        ref, alt = random.choice(list("ACGT"), 2, replace=False)
        if at % 7 == 0:
            alt = ref + "ACGT"[at % 4] * int(random.integers(1, 4))
        out.append(Variant("1" if at < count // 2 else "X", 100 + 3 * at, f"rs{at}", str(ref), "<DEL>" if at % 20 == 19 else str(alt)))
    return tuple(out)


def test_columns_behave_as_the_sequence_of_variants() -> None:
    variants = some(500)
    keys = columns_of(variants)
    assert isinstance(keys, Keys)
    assert keys == variants
    assert keys != variants[::-1]
    assert keys[-1] == variants[-1]
    assert keys[7:30] == variants[7:30]
    assert keys[400:3] == ()
    assert keys[5:100:9] == variants[5:100:9]
    assert keys.take(np.array([400, 3, 3])) == [variants[400], variants[3], variants[3]]
    assert joined([keys[:100], variants[100:101], keys[101:]]) == variants
    assert [len(alt) for *_, alt in variants] == keys.by_alleles(lambda ref, alt: len(alt), int).tolist()
    assert [contig == "X" for contig, *_ in variants] == keys.by_contig(lambda name: name == "X").tolist()
    with pytest.raises(IndexError):
        keys[500]


def test_text_is_the_same_and_comes_back() -> None:
    variants = some(300)
    text = to_text(variants)
    assert to_text(columns_of(variants)) == text
    assert to_text(columns_of(variants)[17:250]) == to_text(variants[17:250])
    assert from_text(text) == variants
    assert from_text(b"") == ()


@pytest.mark.parametrize(
    "odd",
    [
        Variant("1", 2, 'a "quoted" id', "A", "C"),
        Variant("1", 2, "two\rlines\u2028of text", "A", "C"),
        Variant("NA", 2, "null", "NULL", "NaN"),
        Variant("HLA-A*01:01", 2, "", "A", "<INS:ME>"),
        Variant("1", -5, "æ;ø", "A", "*"),
    ],
)
def test_odd_names_come_back(odd: Variant) -> None:
    variants = (Variant("1", 1, ".", "A", "C"), odd, Variant("1", 3, ".", "A", "C"))
    assert from_text(to_text(variants)) == variants
    assert to_text(columns_of(variants)) == to_text(variants)


@pytest.mark.parametrize(
    "text",
    [b"1\t2\t3\n", b"\n", b"1\tx\trs\tA\tC\n", b"1\t2\t3\tA\tC\n\n", b"1\t\trs\tA\tC\n", b"\xff\t2\t.\tA\tC\n", b"1\t2\t3\tA\tC\t\n",
     b"1\t99999999999999999999\t.\tA\tC\n", b"1\tx\ra\trs\tA\tC\n", b"1\t99999999999999999999\t\r\tA\tC\n"],
)  # fmt: skip
def test_text_that_is_no_list_of_variants_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of Arrow's reader, or of Python's
        from_text(text)


def turned(key: Variant) -> Variant:
    return key._replace(ref=COMPLEMENT[key.ref], alt=COMPLEMENT[key.alt])


def swapped(key: Variant) -> Variant:
    return key._replace(ref=key.alt, alt=key.ref)


@pytest.mark.parametrize("seed", range(40))
def test_whole_columns_find_what_one_variant_at_a_time_finds(seed: int) -> None:
    """By position and by rsID are two programs; where every site gives a variant the same id, they must find the same panel."""
    random = np.random.default_rng(seed)
    base = some(int(random.integers(2, 120)), seed)
    changes: list[Callable[[Variant], Variant]] = [turned, swapped, lambda key: swapped(turned(key))]
    sites = {}
    for name in ("a", "b", "c", "d")[: int(random.integers(2, 5))]:
        share, one = random.choice([0, 0.02, 0.5, 1.0]), changes[int(random.integers(3))]
        rows = [
            one(key) if len(key.ref + key.alt) == 2 and random.random() < share else key
            for key in base if random.random() < 0.9
        ]  # fmt: skip
        sites[name] = (*rows, *rows[:1]) if random.random() < 0.3 else tuple(rows)  # once more: no site has it unambiguously
    least, checked = int(random.integers(0, len(sites) + 1)), ["b"] if random.random() < 0.3 else []
    by_place = draft_panel({name: columns_of(keys) for name, keys in sites.items()}, "position", checked, None, least)
    by_id = draft_panel(sites, "rsid", checked, None, least)
    order = sorted(range(len(by_id.keys)), key=lambda at: by_id.keys[at].position)
    assert by_place.keys == [by_id.keys[at] for at in order]
    for name in sites:
        assert np.array_equal(by_place.lacks(name), by_id.lacks(name)[order])
        flips = by_id.flips[name][order]
        doubtful = by_place.doubtful[name] | by_id.doubtful[name][order]  # with few other SNPs, ids are not enough to believe letters
        assert np.array_equal(by_place.flips[name][~doubtful], flips[~doubtful])
        own = Dosages(sites[name], random.integers(-1, 3, (3, len(sites[name]))).astype(np.int8), np.ones(3, bool))
        one, other = (align(own, by_place.keys, by_place.flips[name], match).dosage for match in ("position", "rsid"))  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_another_variant_with_the_same_hash_is_as_good_as_absent() -> None:
    """A centre that finds a hash's twin must not get its dosages under another name."""
    own, wanted = columns_of([Variant("1", 100, "rs1", "A", "C")]), columns_of([Variant("2", 900, "rs1", "A", "C")])
    dosages = Dosages(own, np.array([[2]], np.int8), np.ones(1, bool))
    dosages.places["position"] = Places(place_hashes(wanted), np.array([0]))
    assert np.asarray(align(dosages, wanted, np.zeros(1, np.uint8), "position").dosage).tolist() == [[-1]]
    assert places_of(own).find(place_hashes(wanted)).tolist() == [-1]


def bim(folder: Path, lines: bytes, variants: int) -> PlinkSource:
    (folder / "x.bim").write_bytes(lines)
    (folder / "x.fam").write_text("f a 0 0 1 -9\nf b 0 0 2 -9\n")
    (folder / "x.bed").write_bytes(b"\x6c\x1b\x01" + b"\x0b" * variants)
    return PlinkSource(folder / "x.bed")


TABS = b"1\trs1\t0\t100\tG\tA\nX\trs2\t0.5\t200\tT\tAC\n1\t.\t0\t-7\tC\tA\n1\trs4\t0\t400\t0\tA\n"


@pytest.mark.parametrize(
    "lines",
    [TABS, TABS.replace(b"\t", b"  "), TABS.replace(b"\t0\t", b" 0\t"), TABS.replace(b"\n", b"\r\n"), TABS.rstrip(b"\n"),
     TABS.replace(b"rs4", "rsæ".encode())],
)  # fmt: skip
def test_a_bim_is_read_with_tabs_spaces_and_any_line_end(tmp_path: Path, lines: bytes) -> None:
    source = bim(tmp_path, lines, 4)
    blocks = list(source.blocks([0, 1], Selection(), 64))
    assert [key for block in blocks for key in block.keys] == [Variant("1", 100, "rs1", "A", "G"), Variant("X", 200, "rs2", "AC", "T")]
    assert list(source.contigs) == ["1", "X"]
    assert source.excluded == {"no position": 1, "allele unknown": 1}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (b"1\trs2\t0\t200\tG\n", "line 2 has 5 fields"),
        (b"1\t\t0\t200\tG\tA\n", "line 2 has 5 fields"),
        (b"1\trs2\t0\t2x0\tG\tA\n", 'line 2 has the invalid position "2x0"'),
        (b"\n", "line 2 has 0 fields"),
        (b"1\t\xff\t0\t2\tG\tA\n", "not UTF-8"),
        (b"1\trs2\t200\tG\tA\n", "line 2 has 5 fields where a .bim file has six"),
    ],
)
def test_an_invalid_bim_is_named_with_its_line(tmp_path: Path, more: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bim(tmp_path, b"1\trs1\t0\t100\tG\tA\n" + more, 2)
