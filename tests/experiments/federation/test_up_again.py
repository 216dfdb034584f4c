"""A trial federation that is started a second time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import command
from tests.experiments.federation.test_federation import make_site

pytestmark = pytest.mark.long


def test_a_site_that_calls_another_centre_is_not_said_to_be_up(tmp_path: Path) -> None:
    """The log of the first time says that it was let in; that is no sign of the second."""
    make_site(tmp_path / "sites" / "oslo", "oslo", 0)
    manifest = tmp_path / "sites" / "oslo" / "site.toml"
    try:
        assert "oslo is up" in command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path).stdout
        assert command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path).returncode == 0
        right = manifest.read_text()
        manifest.write_text(re.sub(r'superlink = ".*"', 'superlink = "127.0.0.1:9"', right))
        done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
        assert (done.returncode, "is up" in done.stdout) == (1, False)
        assert "oslo did not start" in done.stderr
        assert "site.toml: [connection] superlink is 127.0.0.1:9, this federation's is 127.0.0.1:" in done.stderr
        manifest.write_text(right)
        assert "oslo is up" in command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path).stdout
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)
