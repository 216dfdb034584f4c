"""Mistakes that privacy code has been shipped with, made on purpose in a copy of the source: for each a named test must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT

pytestmark = pytest.mark.long
Patch = tuple[str, str, str]  # file, what stands there, what the mistake writes

SITE_NOISE = "add_gaussian(value, self.z * self.norm)"
PATIENT_NOISE = "add_gaussian(value, std, entropy=entropy)"
CHARGE = 'self._charge(asked, told["run"])'
WORK = 'content = execute(asked, message.content, Memory(context.state, told["run"]))'
MUTANTS: dict[str, tuple[list[Patch], str]] = {
    "noise left out (patient)": (
        [("fedml/privacy/dpsgd.py", PATIENT_NOISE, "value.clone()")],
        "fedml/privacy/test_dpsgd.py::test_noise_at_the_release_has_the_promised_standard_deviation",
    ),
    "noise left out (site)": (
        [("strategies/algorithms/private.py", SITE_NOISE, "value.float()")],
        "fedml/privacy/test_private.py::test_the_noise_on_the_released_mean_is_z_c_over_n",
    ),
    "noise divided by 10 (patient)": (
        [("fedml/privacy/dpsgd.py", PATIENT_NOISE, "add_gaussian(value, std / 10, entropy=entropy)")],
        "fedml/privacy/test_dpsgd.py::test_noise_at_the_release_has_the_promised_standard_deviation",
    ),
    "noise divided by 10 (site)": (
        [("strategies/algorithms/private.py", SITE_NOISE, "add_gaussian(value, self.z * self.norm / 10)")],
        "fedml/privacy/test_private.py::test_the_noise_on_the_released_mean_is_z_c_over_n",
    ),
    "each image clipped instead of each person": (
        [
            (
                "fedml/privacy/dpsgd.py",
                "part = clipped_gradient_sum(model, losses, clipping_norm=clipping_norm, rows_of=rows_of)",
                "part = clipped_gradient_sum(model, losses, clipping_norm=clipping_norm * "
                "max(1, len(batch.get('image', [])) // max(1, len(chosen))), rows_of=rows_of)",
            )
        ],
        "fedml/privacy/test_dpsgd.py::test_one_person_more_changes_the_sum_by_at_most_the_clipping_norm",
    ),
    "divided by the drawn batch": (
        [
            ("fedml/privacy/dpsgd.py", "import math\n", "import math\nfrom dataclasses import replace\n"),
            (
                "fedml/privacy/dpsgd.py",
                "noisy_mean(total, privacy, entropy=entropy)",
                "noisy_mean(total, replace(privacy, expected_batch=max(len(drawn), 1)), entropy=entropy)",
            ),
        ],
        "fedml/privacy/test_dpsgd.py::test_the_divisor_is_the_expected_batch_whoever_was_drawn",
    ),
    "weighted mean": (
        [
            ("strategies/algorithms/averaging.py", 'weight = 1.0 if self.weighting == "equal" else float(', "weight = float("),
            ("strategies/algorithms/private.py", "alpha=factor)", "alpha=factor * weight)"),
        ],
        "fedml/privacy/test_private.py::test_the_mean_is_over_the_roster_and_the_sizes_do_not_count",
    ),
    "buffers not clipped (site)": (
        [
            (
                "strategies/algorithms/private.py",
                "sum(float((u * u).sum()) for u in update.values())",
                "sum(float((u * u).sum()) for k, u in update.items() if 'running' not in k)",
            )
        ],
        "fedml/privacy/test_private.py::test_a_buffer_is_clipped_like_any_array",
    ),
    "buffers released as they are (patient)": (
        [("fedml/privacy/dpsgd.py", "    refuse_shared_statistics(model)\n", "")],
        "fedml/privacy/test_dpsgd.py::test_batch_norm_is_refused_with_the_mend",
    ),
    "batches of a fixed size, counted as Poisson's": (
        [
            (
                "fedml/privacy/dpsgd.py",
                "return rows if threshold >= 2**64 else rows[uniform_words(len(rows), entropy) < np.uint64(threshold)]",
                "return rows[np.argsort(uniform_words(len(rows), entropy))[: max(1, round(rate * len(rows)))]] if threshold else rows",
            )
        ],
        "fedml/privacy/test_dpsgd.py::test_batch_sizes_are_binomial_and_persons_independent",
    ),
    "noise with a constant seed (patient)": (
        [("fedml/privacy/noise.py", "entropy: Entropy = os.urandom", "entropy: Entropy = lambda n: np.random.default_rng(7).bytes(n)"),
         ("fedml/privacy/dpsgd.py", "entropy: Entropy = os.urandom", "entropy: Entropy = lambda n: np.random.default_rng(7).bytes(n)")],
        "fedml/privacy/test_dpsgd.py::test_two_runs_differ_whatever_the_study_s_seed_and_torchs",
    ),
    "noise with a constant seed (site)": (
        [("fedml/privacy/noise.py", "entropy: Entropy = os.urandom", "entropy: Entropy = lambda n: np.random.default_rng(7).bytes(n)")],
        "fedml/privacy/test_private.py::test_the_noise_in_a_whole_run_is_that_of_its_rounds",
    ),
    "the ledger written after the reply": (
        [("clients/gate/gate.py", f"            {CHARGE}\n            {WORK}\n", f"            {WORK}\n            {CHARGE}\n")],
        "fedml/privacy/test_budget.py::test_the_charge_is_on_the_disk_before_the_work_begins",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_named_test_finds_it(name: str, tmp_path: Path) -> None:
    patches, test = MUTANTS[name]
    for part in ("fedml", "strategies", "clients", "experiments", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert run(tmp_path, test) == 0, "the test must pass before the mistake is made"
    for file, old, new in patches:
        text = (tmp_path / file).read_text()
        assert old in text, f"{file} no longer has: {old}"
        (tmp_path / file).write_text(text.replace(old, new))
    assert run(tmp_path, test) == 1, f"{test} does not find: {name}"


def run(copy: Path, test: str) -> int:
    """pytest's exit code for one test in the copy, whose packages come before the installed ones."""
    line = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(line, cwd=copy, env=env, capture_output=True, timeout=300, check=False).returncode
