"""A cache that is bounded by the size of what it holds."""

from __future__ import annotations

from fedml.clients.site.remember import remembered


def test_results_are_kept_while_they_fit_and_the_oldest_go_first() -> None:
    made: list[str] = []

    @remembered(most=10, size=len)
    def upper(text: str) -> str:
        made.append(text)
        return text.upper()

    assert [upper(text) for text in ("aaaa", "bbbb", "aaaa")] == ["AAAA", "BBBB", "AAAA"]
    assert made == ["aaaa", "bbbb"]
    upper("cccc")  # 12 in all: "bbbb" was used longest ago
    upper("aaaa")
    assert made == ["aaaa", "bbbb", "cccc"]
    upper("bbbb")
    assert made[3:] == ["bbbb"]
    upper("d" * 50)  # larger than all that may be kept: kept alone
    upper("d" * 50)
    upper("aaaa")
    assert made[4:] == ["d" * 50, "aaaa"]
    upper.cache_clear()
    upper("aaaa")
    assert made[6:] == ["aaaa"]


def test_many_small_results_are_kept_and_few_large_ones_too() -> None:
    """A study of a thousand sites reads each of them once, and four sites with large tables are not read anew in each round."""
    calls: list[tuple[str, bool]] = []

    @remembered(1000, weigh=len, least=3)
    def doubled(text: str, *, loud: bool = False) -> str:
        calls.append((text, loud))
        return text * 2

    for _ in range(2):
        for k in range(100):
            doubled(f"{k:05}")
    assert len(calls) == 100
    for _ in range(2):
        for letter in "abc":
            doubled(letter * 5000, loud=True)
    assert len(calls) == 103
    doubled("00000")
    assert len(calls) == 104
