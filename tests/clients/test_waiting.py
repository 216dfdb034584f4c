"""A site that waits has imported nothing of what an answer needs, and refuses while its gate cannot be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedml.clients.gate.journal import Journal, entries
from fedml.clients.waiting import Porter
from fedml.errors import InputError, Reason

HEAVY = ("torch", "pandas", "scipy", "sklearn", "pyarrow", "mlflow", "monai", "nibabel", "pydicom", "PIL", "sqlalchemy", "ray")
IMPORTS = f"import sys, fedml.clients.waiting, fedml.flower.executor; print([name for name in {HEAVY!r} if name in sys.modules])"


def test_waiting_imports_no_library_of_an_answer() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Gate:
    """One that answers with the message that it gets."""

    def handle(self, message: Any, context: Any) -> Any:
        return message

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def test_without_a_gate_a_message_is_refused_and_the_next_one_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [InputError("site.toml: cannot be read")]

    def make() -> Gate:
        if broken:
            raise broken.pop()
        return Gate()

    monkeypatch.setattr("fedml.clients.work.client.refusal", lambda message, reason: reason)
    porter = Porter(make, Journal(tmp_path / "journal.jsonl"))
    porter.interrupt()  # before there is a gate: nothing to end
    message: Any = SimpleNamespace(metadata=SimpleNamespace(run_id=3))
    context: Any = None
    assert porter.handle(message, context) == Reason.BAD_DATA
    assert [(e.verdict, e.reason) for e in entries(tmp_path / "journal.jsonl")] == [("refused", str(Reason.BAD_DATA))]
    assert porter.handle(message, context) is message
    porter.close()
