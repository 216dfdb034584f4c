"""The local engine charges by the policy as the site's file has it now."""

from __future__ import annotations

from pathlib import Path

from fedml.clients.gate.local import _site_now
from tests.conftest import clinical_site


def test_a_policy_that_is_changed_between_two_runs_of_a_process_counts(tmp_path: Path) -> None:
    file = clinical_site(tmp_path / "a", "a", 30, 0)
    assert _site_now(str(file)).manifest.policy.max_epsilon == 0
    file.write_text(file.read_text() + "\n[policy]\nmax_epsilon = 3\n")
    assert _site_now(str(file)).manifest.policy.max_epsilon == 3
