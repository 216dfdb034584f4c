"""The commands in a folder of their own: as processes of the installed scripts, which a user has, or forked from a warm process."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "experiments" / "studies"
_MAIN = {"fedml": "fedml.experiments.cli", "fedml-site": "fedml.clients.cli"}
# What commands import, which takes them seconds each: the fork server imports it once.
_WARM = (
    "torch", "pandas", "pysam", "scipy.stats", "flwr.app", "flwr.serverapp", "mlflow", "monai.transforms", "monai.data", "dp_accounting",
    *_MAIN.values(), "fedml.experiments.runs.run", "fedml.experiments.runs.launch", "fedml.tracking.deliver",
)  # fmt: skip
_SECONDS = 400


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | dict(changes)


def command(name: str, *words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``fedml`` or ``fedml-site`` installed with this Python, with MLflow's store in ``cwd``."""
    path = Path(sys.executable).parent / name
    line = [str(path), *map(str, words)]
    env = _environment(environment)
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=_SECONDS, check=False)


def quick(name: str, *words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``command`` without the seconds of imports: a process of its own too, with the same ``main()``, but forked from one that is warm.

    Not for tests of what a command imports, or of variables that libraries read when they are imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_WARM))
    line = [name, *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder) / "out", Path(folder) / "err"]
        process = context.Process(target=_forked, args=(line, str(cwd), _environment(environment), [str(text) for text in texts]))
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(line, _SECONDS)
        return subprocess.CompletedProcess(line, process.exitcode, *(text.read_text(encoding="utf-8") for text in texts))


def _forked(line: Sequence[str], cwd: str, environment: Mapping[str, str], texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, 1):
        os.dup2(os.open(text, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(line)
    import_module(_MAIN[line[0]]).main()


def quick_json(*words: object, cwd: Path, **environment: str) -> dict[str, Any]:
    """``run_json`` in a process that is forked from a warm one."""
    return run_json(*words, cwd=cwd, by=quick, **environment)


def run_json(
    *words: object, cwd: Path, by: Callable[..., subprocess.CompletedProcess[str]] = command, **environment: str
) -> dict[str, Any]:
    """``fedml run ... --json``: its object, after a check that it ended well."""
    done = by("fedml", "run", *words, "--json", cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    last: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return last
