"""A study with a network, a loss, a measure and a transform of its own: bitwise the same model in one process, in Flower's simulation and
in a real federation, where each site approves the files and runs them confined. The code is that of docs/own-code.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.work.confine import missing
from tests.command import command, run_json
from tests.conftest import write_csv, write_picture

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(missing()), reason=f"this machine cannot confine a process: {missing()}"),
]

PAGE = Path(__file__).parents[3] / "docs" / "own-code.md"
SITES = ("oslo", "porto")
STUDY = """
[study]
name = "spots"
[code]
files = ["my_net.py", "my_loss.py", "my_metric.py", "my_tf.py"]
[cohort]
inputs = ["image"]
target = "sick"
image = { size = [16, 16], window = [0, 255], transforms = [{ name = "my_tf:Gamma", power = 0.7 }] }
[model]
image = { net = "my_net:Net", width = 8 }
[training]
loss = "my_loss:focal"
loss_options = { gamma = 2.0 }
lr = 3e-3
batch_size = 16
[evaluation]
metrics = ["my_metric:f2"]
[federation]
sites = ["oslo", "porto"]
rounds = 3
timeout = 300
"""


def make_site(folder: Path, name: str, seed: int) -> None:
    """A hospital with pictures of 90 persons, of whom the sick have a bright spot. They are real persons as far as the site knows."""
    generator = np.random.default_rng(seed)
    ids, sick = [f"{name}{number:03}" for number in range(90)], generator.integers(0, 2, 90)
    for person, label in zip(ids, sick, strict=True):
        picture = generator.normal(90, 25, (16, 16))
        picture[4:9, 4:9] += 60 * label
        write_picture(folder / "images" / f"{person}.png", picture.clip(0, 255).astype(np.uint8))
    write_csv(folder / "persons.csv", ids, {"sick": sick})
    data = 'persons = "persons.csv"\nimage = { path = "images", format = "png" }\n'
    policy = '[policy]\ncentre = "curious"\nmin_count = 2\nmax_evaluations = 20\n'
    (folder / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}{policy}')


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for seed, name in enumerate(SITES):
        make_site(tmp_path / "sites" / name, name, seed)
    (tmp_path / "spots.toml").write_text(STUDY)
    for name, text in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        assert len(text.splitlines()) <= 20
        (tmp_path / name).write_text(text)
    return tmp_path


def model_of(result: dict[str, Any]) -> str:
    return str(result["weights_sha256"])


def test_three_engines_give_the_same_bits(work: Path) -> None:
    local = run_json("spots.toml", "--sites", "sites", "--no-track", cwd=work)
    assert local["metrics"]["test"]["f2"] > 0.5
    simulated = run_json("spots.toml", "--sites", "sites", "--engine", "simulation", "--no-track", cwd=work)
    assert model_of(simulated) == model_of(local)
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=work)
    try:
        assert done.returncode == 0, done.stderr
        for name in SITES:
            site = ["--site", f"sites/{name}", "--yes", "--by", "Dr. Test"]
            refused = command("fedml-site", "approve", "spots.toml", *site, cwd=work)
            assert refused.returncode == 2
            assert "give its folder with --code DIR" in refused.stderr
            trust = ["--code", ".", "--trust-centre", "we are the centre"]
            approved = command("fedml-site", "approve", "spots.toml", *trust, *site, cwd=work)
            assert approved.returncode == 0, approved.stderr
            assert "def focal(output, label, gamma=2.0)" in approved.stdout
        deployed = run_json("spots.toml", "--engine", "deployment", "--superlink", "sites", "--no-track", cwd=work)
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=work)
    assert model_of(deployed) == model_of(local)
    journal = (work / "sites" / "oslo" / ".fedml" / "journal.jsonl").read_text()
    assert "refused" not in journal
