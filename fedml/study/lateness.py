"""The rule between the keys of [federation] that say when a site is late."""

from __future__ import annotations


def late_problem(late: float, seconds: int, timeout: int, stated: bool) -> str:
    """Why the keys do not go together; "" if they do. ``stated``: the study has ``late_seconds``; ``timeout``: seconds."""
    if 0 < late < 1:
        return f"late is {late:g}, so a site would be late before its usual time; set 1 or more, or 0 for none"
    if not late and stated:
        return "late_seconds is for a study with late; set late too, or remove it"
    if late and seconds > timeout:
        return f"late_seconds is {seconds}, longer than timeout ({timeout}); make it shorter"
    return ""
