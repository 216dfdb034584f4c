"""What a site tells of its progress: tenths, while it trains, where no privacy unit protects its persons, and its policy allows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.progress import PROGRESS, Teller, counting
from fedml.flower.supernode import told_progress
from tests.conftest import clinical_site, make_study

PRIVATE = {
    "privacy__unit": "site", "privacy__clipping_norm": 1.0, "privacy__noise_multiplier": 1.0,
    "privacy__ranges": {f"x{k}": [-3, 3] for k in (1, 2, 3)},
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    study: Any
    tell: Any = field(default=None)


def told(tmp_path: Path, steps: int) -> list[str]:
    teller, out = Teller(tmp_path), list[str]()
    count = counting(teller.tell, steps)
    for _ in range(steps):
        count({})
        out.append((tmp_path / PROGRESS).read_text())
    teller.end()
    assert (tmp_path / PROGRESS).read_text() == ""
    return out


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_tenths_and_nothing_between_them(tmp_path: Path, steps: int) -> None:
    found = told(tmp_path, steps)
    assert found[0] == "0"
    assert set(found) <= {str(10 * tenth) for tenth in range(10)}
    assert found == sorted(found, key=int)
    assert len(set(found)) == min(steps, 10)


def test_more_steps_than_were_planned_are_no_more_than_all(tmp_path: Path) -> None:
    teller = Teller(tmp_path)
    count = counting(teller.tell, 2)
    for _ in range(5):
        count({})
    assert (tmp_path / PROGRESS).read_text() == "100"


@pytest.mark.parametrize(
    ("policy", "changes", "tells"),
    [
        ("", {}, True),
        ("progress = false", {}, False),
        ("", PRIVATE, False),
        ("progress = true", PRIVATE, False),
    ],
)
def test_the_policy_and_a_privacy_unit_switch_it_off(tmp_path: Path, policy: str, changes: dict[str, Any], tells: bool) -> None:
    manifest = clinical_site(tmp_path / "a", "a", 30, 1)
    manifest.write_text(manifest.read_text() + f"\n[policy]\n{policy}\n")
    teller = Teller(tmp_path)
    assert (teller.of(Asked(make_study(**changes)), read_site(manifest)).tell is not None) is tells


@pytest.mark.parametrize(
    ("text", "sent"), [("40", 40), ("0", 0), ("100", 100), ("", None), ("45", None), ("40\n", None), ("oslo-001", None)]
)
def test_the_supernode_sends_tens_and_nothing_else(tmp_path: Path, text: str, sent: int | None) -> None:
    (tmp_path / "file").write_text(text)
    assert told_progress(str(tmp_path / "file")) == sent


def test_without_a_file_nothing_is_sent(tmp_path: Path) -> None:
    assert told_progress(str(tmp_path / "none")) is None
    assert told_progress("") is None


def test_a_full_disk_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).mkdir()
    Teller(tmp_path).tell(0.5)
