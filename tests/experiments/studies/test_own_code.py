"""A study's own code on one machine: the same results as built-in parts that do the same, one identity with its bytes, and plain errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedml.clients.gate.code_store import show
from fedml.code.imports import findings
from fedml.code.load import check, check_text, resolve
from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model
from fedml.runs.log import load_counts
from fedml.study.code_section import CodeFile
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study, validate
from fedml.tasks.registry import make_task
from tests.command import quick
from tests.conftest import Run, clinical_site, federate, image_site, make_plan, make_study, to_toml

NET = """
from torch import nn

class Wide(nn.Module):
    def __init__(self, columns, outputs, hidden=(4,)):
        super().__init__()
        widths = [columns, *hidden]
        self.layers = nn.Sequential()
        for a, b in zip(widths, widths[1:]):
            self.layers.append(nn.Linear(a, b))
            self.layers.append(nn.ReLU())
        self.last = nn.Linear(widths[-1], outputs)

    def forward(self, x):
        return self.last(self.layers(x))

def linear(columns, outputs):
    return nn.Linear(columns, outputs)
"""
LOSS = """
import torch
from torch.nn import functional

def focal(output, label, gamma=2.0):
    log_p = functional.log_softmax(output, 1).gather(1, label.long()[:, None])[:, 0]
    wrong = (-torch.expm1(log_p)).clamp_min(torch.finfo(output.dtype).tiny)
    return (-(wrong ** gamma) * log_p).mean()

class Entropy(torch.nn.Module):
    def forward(self, output, label):
        return functional.cross_entropy(output, label.long())
"""
METRIC = """
def f2(counts):
    (tn, fp), (fn, tp) = counts["confusion"]
    return 5 * tp / (5 * tp + 4 * fn + fp)
"""
TRANSFORM = """
import numpy as np

class Power:
    def __init__(self, power):
        self.power = power

    def __call__(self, image):
        return image ** self.power

def inverted(image):
    return 1 - image
"""
PRIVATE: dict[str, Any] = {
    "privacy__unit": "patient", "privacy__epsilon": 8.0, "privacy__persons": {"a": 50, "b": 50},
    "privacy__ranges": {f"x{k}": [-10, 300] for k in (1, 2, 3)},
}  # fmt: skip
FILES = {"my_net": NET, "my_loss": LOSS, "my_metric": METRIC, "my_tf": TRANSFORM}


def own_study(folder: Path, plan: dict[str, Any], **files: str) -> Study:
    """The study of ``plan`` in a file, with the named files of ``FILES`` or these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(to_toml({**plan, "code": {"files": [f"{name}.py" for name in files]}}))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text or FILES[name])
    return read_study(folder / "study.toml")


def two_sites(folder: Path) -> list[Path]:
    return [clinical_site(folder / name, name, 60, seed) for seed, name in enumerate("ab")]


def run_of(study: Study, sites: list[Path], folder: Path) -> Run:
    return federate(study, sites, folder)


def test_own_code_that_does_what_a_built_in_part_does_gives_the_same_bits(tmp_path: Path) -> None:
    sites = two_sites(tmp_path)
    built_in = run_of(make_study(training__focal=1.5), sites, tmp_path / "built-in")
    plan = make_plan(model__clinical={"net": "my_net:linear"}, training__loss="my_loss:focal", training__loss_options={"gamma": 1.5})
    own = run_of(own_study(tmp_path / "s", plan, my_net="", my_loss=""), sites, tmp_path / "own")
    assert own.sha256 == built_in.sha256
    entropy = make_plan(training__loss="my_loss:Entropy")
    assert run_of(own_study(tmp_path / "e", entropy, my_loss=""), sites, tmp_path / "entropy").sha256 == (
        run_of(make_study(), sites, tmp_path / "plain").sha256
    )
    assert own.sha256 != run_of(make_study(), sites, tmp_path / "plain again").sha256  # the loss matters


def test_options_of_own_code_are_keys_beside_its_name(tmp_path: Path) -> None:
    plan = make_plan(model__clinical={"net": "my_net:Wide", "hidden": [5, 3]})
    study = own_study(tmp_path / "s", plan, my_net="")
    assert study.model.clinical.options == {"hidden": (5, 3)}
    assert parse_study(study.canonical) == study  # as a site receives it
    run = run_of(study, two_sites(tmp_path), tmp_path / "run")
    assert run.arrays["encoder.clinical.layers.2.weight"].shape == (3, 5)


def test_an_own_measure_is_that_of_scikit_learn_on_the_pooled_persons(tmp_path: Path) -> None:
    from sklearn.metrics import fbeta_score

    study = own_study(tmp_path / "s", make_plan(evaluation__metrics=["my_metric:f2"]), my_metric="")
    run = run_of(study, two_sites(tmp_path), tmp_path / "run")
    counts = load_counts(tmp_path / "run")["test"]
    confusion = sum(c["confusion"] for c in counts.values())
    truth, predicted = np.repeat([0, 0, 1, 1], confusion.ravel()), np.repeat([0, 1, 0, 1], confusion.ravel())
    assert run.final["metrics"]["test"]["all"]["f2"] == pytest.approx(fbeta_score(truth, predicted, beta=2), abs=1e-12)
    assert set(run.final["metrics"]["test"]["sites"]["a"]) >= {"f2", "auroc"}
    assert make_task(study).described("f2").interval.reason  # none, and it says so


def test_own_transforms_are_applied_in_order_before_the_image_is_cropped(tmp_path: Path) -> None:
    from fedml.cohort.images.transforms import prepared

    image = {"size": [4, 4], "window": [0, 200], "transforms": [{"name": "my_tf:Power", "power": 2.0}, {"name": "my_tf:inverted"}]}
    text = "\n".join([*to_toml(make_plan(("image",))).splitlines(), "[cohort.image]", "size = [4, 4]", "window = [0, 200]"])
    for transform in image["transforms"]:
        text += "\n[[cohort.image.transforms]]\n" + "\n".join(f"{k} = {v!r}".replace("'", '"') for k, v in transform.items())
    (tmp_path / "study.toml").write_text(text + '\n[code]\nfiles = ["my_tf.py"]\n')
    (tmp_path / "my_tf.py").write_text(TRANSFORM)
    study = read_study(tmp_path / "study.toml")
    assert study.cohort.image is not None
    spec = study.cohort.image.preprocess
    assert spec is not None
    pixels = np.arange(36.0).reshape(1, 6, 6)
    found, _ = prepared(spec, pixels)
    assert np.allclose(found, (1 - (pixels / 200) ** 2)[:, 1:5, 1:5], atol=1e-6)
    site = image_site(tmp_path / "a", "a", 60, 0, (6, 6))
    run = run_of(study, [site, image_site(tmp_path / "b", "b", 60, 1, (6, 6))], tmp_path / "run")
    assert run.rounds


def test_the_identity_covers_the_bytes_of_every_file(tmp_path: Path) -> None:
    plan = make_plan(model__clinical={"net": "my_net:linear"})
    first = own_study(tmp_path / "s", plan, my_net=NET)
    again = own_study(tmp_path / "t", plan, my_net=NET)
    other = own_study(tmp_path / "u", plan, my_net=NET + "\n")
    assert first.sha256 == again.sha256 != other.sha256
    assert first.code is not None
    absent = first.code.model_copy(update={"modules": (CodeFile(module="my_net", sha256="0" * 64),)})
    with pytest.raises(InputError, match=r"is not here; put the file beside the study"):
        resolve(absent, "my_net:linear")


def test_files_of_one_study_see_each_other_and_those_of_another_do_not(tmp_path: Path) -> None:
    helped = "from my_help import width\n" + NET.replace("hidden=(4,)", "hidden=width()")
    plan = make_plan(model__clinical={"net": "my_net:Wide"})
    sites = two_sites(tmp_path)
    three = own_study(tmp_path / "s", plan, my_net=helped, my_help="def width():\n    return (3,)\n")
    five = own_study(tmp_path / "t", plan, my_net=helped, my_help="def width():\n    return (5,)\n")
    widths = [run_of(s, sites, tmp_path / f"run{i}").arrays["encoder.clinical.last.weight"].shape[1] for i, s in enumerate([three, five])]
    assert widths == [3, 5]


@pytest.mark.parametrize(
    ("plan", "files", "said"),
    [
        (
            {"model__clinical": {"net": "my_net:Wide"}},
            {"my_loss": ""},
            r'clinical net names "my_net:Wide", but .* has no my_net.py',
        ),
        ({"model__clinical": {"net": "my_net"}}, {"my_net": ""}, r"must be 'linear' or 'mlp', not 'my_net'"),
        ({"model__clinical": {"net": "my_net:"}}, {"my_net": ""}, r'names no own code; write "module:name"'),
        ({"training__loss": "my_loss:focal", "training__focal": 2.0}, {"my_loss": ""}, "loss and focal exclude each other"),
        ({"training__loss_options": {"gamma": 1}}, {}, "loss_options are for a loss by name"),
        ({}, {"my_loss": ""}, r"\[code\] is given, but no key names its code"),
        ({"model__clinical": {"net": "linear", "options": {"width": 3}}}, {}, "options are for own code"),
        ({"training__loss": "my_loss:focal", **PRIVATE}, {"my_loss": ""}, "unproved code"),
        ({"evaluation__metrics": ["a:f2", "b:f2"]}, {"a": METRIC, "b": METRIC}, "two measures of the same name"),
    ],
)
def test_a_study_that_cannot_work_is_told_by_its_key(tmp_path: Path, plan: dict[str, Any], files: dict[str, str], said: str) -> None:
    made = make_plan(**plan)
    with pytest.raises(InputError, match=said):
        own_study(tmp_path, made, **files) if files else validate(Study, made, "study.toml")


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("def linear(columns, outputs):\n    return 3", "gives a int; it must give a torch.nn.Module"),
        ("import helper\ndef linear(columns, outputs): ...", r"line 1: imports helper, which is neither a file of \[code\] nor installed"),
        ("from . import helper\ndef linear(columns, outputs): ...", "relative to a package"),
        ("def linear(columns, outputs)\n    return 3", "line 1: is not valid Python"),
        ("x = 1 / 0\ndef linear(columns, outputs): ...", "cannot be loaded .ZeroDivisionError: division by zero., line 1"),
        ("def lineal(columns, outputs): ...", r'has no "linear" \(did you mean "lineal"'),
        ("linear = 3", "is a int; name a class or a function"),
        ("def linear(columns):\n    return 3", "takes 1 positional argument but 2 were given"),
        (
            "from torch import nn\ndef linear(c, o):\n    return nn.Linear(c, o).double()",
            "all weights must be torch.float32",
        ),
        (
            "from torch import nn\ndef linear(c, o):\n    return nn.Linear(c, o + 1)",
            r"gives \(4, 3\) for 4 persons; it must give \(4, 2\)",
        ),
        ("from torch import nn\ndef linear(c, o):\n    return nn.ReLU()", "has no weights that could be trained"),
    ],
)
def test_a_network_that_cannot_work_is_told_with_its_line(tmp_path: Path, net: str, said: str) -> None:
    study = own_study(tmp_path / "s", make_plan(model__clinical={"net": "my_net:linear"}), my_net=net)
    with pytest.raises(InputError, match=said):
        tried(study)
    assert not list(tmp_path.rglob("*.pyc"))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("print('ran')\ndef linear(columns, outputs)\n    return 3", r"\[code\] my_net.py, line 2: is not valid Python"),
        ("raise SystemExit\nimport helper", "line 2: imports helper, which is neither"),
        (
            "raise SystemExit\ndef lineal(columns, outputs): ...",
            r'my_net.py has no "linear" \(did you mean "lineal"\?\); correct the name "my_net:lin',
        ),
        ("class A:\n    def linear(self): ...", 'has no "linear"'),
        ("def f():\n    linear = 3", 'has no "linear"'),
        ("raise SystemExit\ndef linear(columns, outputs): ...", None),
        ("if True:\n    from torch.nn import Linear as linear", None),
        ("try:\n    linear, b = 1, 2\nexcept ValueError:\n    pass", None),
        ("from torch.nn import *", None),
        ("globals()['lin' + 'ear'] = print", None),
    ],
)
def test_the_text_of_own_code_is_checked_and_not_run(tmp_path: Path, net: str, said: str | None) -> None:
    study = own_study(tmp_path, make_plan(model__clinical={"net": "my_net:linear"}), my_net=net)
    if said is None:
        return check_text(study)
    with pytest.raises(InputError, match=said):
        check_text(study)


def test_the_command_checks_own_code(tmp_path: Path) -> None:
    own_study(tmp_path, make_plan(model__clinical={"net": "my_net:linear"}), my_net="def lineal(columns, outputs): ...")
    done = quick("fedml", "check", "study.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'my_net.py has no "linear" (did you mean "lineal"?)' in done.stderr


def test_a_measure_that_reads_another_count_is_told_which_there_are(tmp_path: Path) -> None:
    text = "def f2(counts):\n    return counts['fp'] / counts['persons']\n"
    study = own_study(tmp_path, make_plan(evaluation__metrics=["my_metric:f2"]), my_metric=text)
    measure = next(m for m in make_task(study).measures if m.name == "f2")
    with pytest.raises(InputError, match=r"KeyError: 'fp'.*line 2; correct my_metric.py; counts has: confusion, persons\."):
        measure.value({"confusion": np.eye(2), "persons": np.array(2.0)}, None)


def tried(study: Study) -> None:
    """What ``fedml run`` does with a network before and in training."""
    check(study)
    build_model(study, Layout())({"clinical": torch.zeros(4, 3), "clinical_present": torch.ones(4)})


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (b"# -*- coding: latin-1 -*-\n# \xe9\n", "is not UTF-8 text"),
        ("# keep it small:\u2028    x = 1\n".encode(), r"line 1: has the character U\+2028"),
        ("# \u202e reversed\n".encode(), r"U\+202E"),
        (b"x = 1\x0c\n", r"U\+000C"),
        (b"x = 1\rx = 2\n", r"U\+000D"),
    ],
)
def test_what_a_reader_would_not_see_is_refused(tmp_path: Path, net: bytes, said: str) -> None:
    study = own_study(tmp_path, make_plan(model__clinical={"net": "my_net:linear"}), my_net=NET)
    (tmp_path / "my_net.py").write_bytes(net + NET.encode())
    study = read_study(tmp_path / "study.toml")
    with pytest.raises(InputError, match=said):
        check(study)


def test_a_declared_encoding_changes_nothing_of_what_runs(tmp_path: Path) -> None:
    text = "# -*- coding: raw_unicode_escape -*-\n# a comment \\u000araise SystemExit('hidden')\n" + NET
    study = own_study(tmp_path, make_plan(model__clinical={"net": "my_net:linear"}), my_net=text)
    check(study)
    assert show(tmp_path, study.code).count("SystemExit") == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "plan",
    [
        {"model__clinical": {"net": "my_net:Wide", "hiden": [3]}},
        {"training__loss": "my_loss:focal", "training__loss_options": {"gama": 1.0}},
    ],
)
def test_a_misspelt_option_of_own_code_is_told_before_the_run(tmp_path: Path, plan: dict[str, Any]) -> None:
    study = own_study(tmp_path, make_plan(**plan), **({"my_net": ""} if "model__clinical" in plan else {"my_loss": ""}))
    with pytest.raises(InputError, match="does not take its options: got an unexpected keyword argument"):
        check(study)


def test_a_loss_that_gives_no_number_is_told(tmp_path: Path) -> None:
    text = "def focal(output, label):\n    return output.mean(1)\n"
    study = own_study(tmp_path, make_plan(training__loss="my_loss:focal"), my_loss=text)
    with pytest.raises(InputError, match=r"gives a tensor of shape \(4,\); it must give the mean over persons"):
        make_task(study).loss(torch.zeros(4, 2), torch.zeros(4))


def test_a_person_who_approves_is_shown_what_a_file_opens_or_hides() -> None:
    source = b"""
import os, torch
from urllib import request
def f(x):
    open("/etc/passwd")
    torch.save(x, "y")
    x.__class__.__bases__
    torch.mean = f
    eval("1")
    exec("import sock" + "et")
"""
    found = {(what, kind) for _, what, kind in findings("my.py", source)}
    assert found >= {
        ("import os", "files"),
        ("import urllib", "network"),
        ("open()", "files"),
        (".save()", "files"),
        (".__bases__", "hidden code"),
        ("torch.mean = ...", "changes other objects"),
        ("eval()", "hidden code"),
        ("exec()", "hidden code"),
    }
    assert findings("my_net.py", NET.encode()) == []
