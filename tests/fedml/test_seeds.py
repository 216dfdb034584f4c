"""Seeds: known values, so that a study gives the same model in every version."""

from __future__ import annotations

import hashlib

import pytest

from fedml.seeds import derive_seed


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        ((), 6510301506637419378),
        (("initial weights", 0), 4404281091343277962),
        (("initial weights", 1), 2359069448360852468),
        ((0, "a", 1), 183713897281080894),
        ((0, "a", "1"), 4260901076997519269),
        (("interval", 7, "auroc"), 6856629365657850695),
    ],
)
def test_seeds_of_known_parts_never_change(parts: tuple[int | str, ...], seed: int) -> None:
    assert derive_seed(*parts) == seed


@pytest.mark.parametrize("parts", [(1,), ("1",), (1, "a"), ("a", 1), ("1", "a"), ("a\x1fstr:b",)])
def test_a_seed_is_63_bits_of_blake2b_of_typed_parts(parts: tuple[int | str, ...]) -> None:
    text = "\x1f".join(("int:" if isinstance(part, int) else "str:") + str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert derive_seed(*parts) == sum(byte << 8 * at for at, byte in enumerate(digest)) // 2 < 2**63


def test_order_and_type_of_the_parts_matter() -> None:
    assert len({derive_seed(*parts) for parts in ((1, 2), (2, 1), ("1", 2), (1, "2"), (12,), ("12",))}) == 6
