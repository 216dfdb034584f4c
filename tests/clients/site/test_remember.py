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
