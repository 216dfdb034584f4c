"""The commands as processes, in a folder of their own: what a user has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "experiments" / "studies"


def command(name: str, *words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``fedml`` or ``fedml-site`` installed beside this Python, with MLflow's store in ``cwd``."""
    path = Path(sys.executable).parent / name
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | environment
    line = [str(path), *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=400, check=False)


def run_json(*words: object, cwd: Path, **environment: str) -> dict[str, Any]:
    """``fedml run ... --json``: its object, after a check that it ended well."""
    done = command("fedml", "run", *words, "--json", cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    last: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return last
