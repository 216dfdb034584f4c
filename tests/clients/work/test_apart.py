"""Own code that attacks the site in which it runs: refused, contained, or shown not to be contained (docs/own-code.md)."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedml.clients.gate import code_store
from fedml.clients.gate.approvals import approve
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import read_site
from fedml.clients.work.apart import _plain, manifest_of
from fedml.clients.work.confine import missing
from fedml.errors import InputError, RunError, SiteError
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from fedml.wire.records import pack_array
from tests.clients.gate.centre import Arrays, Centre, real_site
from tests.conftest import make_plan, write_csv
from tests.experiments.studies.test_own_code import own_study

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine cannot confine a process: {missing()}")

LOSS = """
import torch
from torch.nn import functional

{more}

def loss(output, label):
    {attack}
    return functional.cross_entropy(output, label.long())
"""
# Each is tried by a loss while it trains at the site. SITE, STATE, PORT, PARENT and PREFIX are values of the test's.
ATTEMPTS = {
    "read the journal": "open(STATE + '/journal.jsonl').read()",
    "write to the journal": "open(STATE + '/journal.jsonl', 'a').write('x')",
    "remove the journal": "os.remove(STATE + '/journal.jsonl')",
    "read the ledger": "open(STATE + '/ledger.db', 'rb').read()",
    "approve a study": "open(STATE + '/approvals.json', 'w').write('[]')",
    "read another approved study": "os.listdir(STATE + '/studies')",
    "change the approved code": "open(STATE + '/code/' + os.listdir(STATE + '/code')[0], 'a').write('x')",
    "change approved code by its name": "open(STATE + '/code/x.py', 'w').write('x')",
    "read the node's key": "open(SITE + '/node.key').read()",
    "read the manifest with the proxy's password": "open(SITE + '/site.toml').read()",
    "read data that the study does not use": "open(SITE + '/omics.csv').read()",
    "list the site's folder": "os.listdir(SITE)",
    "read a file of the machine": "open('/etc/passwd').read()",
    "leave a sitecustomize": "open(PREFIX + '/sitecustomize.py', 'w').write('x')",
    "leave a .pth": "open(PREFIX + '/own.pth', 'w').write('import os')",
    "poison a __pycache__": "open(os.path.join(os.path.dirname(fedml.__file__), '__pycache__', 'x.pyc'), 'wb').write(b'x')",
    "change this software": "open(fedml.__file__, 'a').write('x')",
    "change its own manifest": "open(os.path.dirname(os.environ['HOME']) + '/site.toml', 'a').write('x')",
    "open a connection": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "send a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "resolve a name": "socket.getaddrinfo('example.org', 80)",
    "fork": "os.fork()",
    "start a program": "subprocess.run(['true'])",
    "start a shell": "os.system('true') and (_ for _ in ()).throw(OSError())",
    "signal the gate": "os.kill(PARENT, 0)",
    "read the gate's memory": "open(f'/proc/{PARENT}/mem', 'rb').read(1)",
    "read the gate's environment": "open(f'/proc/{PARENT}/environ', 'rb').read()",
    "link out of its folder": "os.symlink('/etc/passwd', os.environ['HOME'] + '/x') or open(os.environ['HOME'] + '/x').read()",
    "import a neighbour": "__import__('neighbour')",
    "import a neighbour by its path": "importlib.util.spec_from_file_location('n', SITE + '/neighbour.py').loader.get_code('n')",
}


HARMLESS = [
    *(name for name in ATTEMPTS if name.startswith(("read", "list")) and "gate" not in name),
    "open a connection", "send a datagram", "start a program", "signal the gate", "import a neighbour by its path",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site with data that the study does not use, a key, and a Python file."""
    place = real_site(tmp_path / "a")
    write_csv(place / "omics.csv", ["a0000"], {"g": [1.0]})
    (place / "node.key").write_text("secret")
    (place / "neighbour.py").write_text("x = 1\n")
    (place / "sitecustomize.py").write_text("raise SystemExit('sitecustomize was run')\n")
    return place


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def with_loss(tmp_path: Path, attack: str, more: str = "", **changes: Any) -> Study:
    plan = make_plan(sites=("a",), training__loss="my_loss:loss", federation__timeout=60, **changes)
    return own_study(tmp_path / "study", plan, my_loss=LOSS.format(attack=attack, more=more))


def centre_of(study: Study, folder: Path) -> Centre:
    assert study.code is not None
    code_store.keep(prepare_state(read_site(folder)), study.code)
    return Centre(study, folder, trust="this test's own centre")


def begun(centre: Centre, run: int = 1) -> tuple[Any, Arrays]:
    agreed = centre.agree(run)
    return agreed, centre.first(agreed)


def test_what_own_code_tries_at_a_site_fails(
    tmp_path: Path, folder: Path, listener: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example:3128")
    monkeypatch.setenv("SITE_TOKEN", "secret")
    state, prefix = folder / ".fedml", next(p for p in sys.path if p.endswith("site-packages"))
    values = f"SITE, STATE, PORT, PARENT, PREFIX = {str(folder)!r}, {str(state)!r}, {listener.getsockname()[1]}, {os.getpid()}, {prefix!r}"
    more = f"""
import importlib.util, os, socket, subprocess
import fedml
{values}
ATTEMPTS = {ATTEMPTS!r}

def tried():
    found = {{}}
    for name, text in ATTEMPTS.items():
        try:
            found[name] = f"succeeded: {{eval(text)!r}}"[:200]
        except BaseException as error:
            found[name] = type(error).__name__
    found["environment"] = sorted(os.environ)
    found["modules"] = "neighbour" in __import__("sys").modules
    raise RuntimeError("FOUND" + repr(found) + "END")
"""
    centre = centre_of(with_loss(tmp_path, "tried()", more), folder)
    agreed, weights = begun(centre)
    journal = (state / "journal.jsonl").read_bytes()
    caplog.set_level(logging.ERROR, "fedml.site")
    assert centre.ask("round", 1, 1, agreed, weights) == "own-code"
    centre.gate.close()
    text = caplog.text
    found = eval(text[text.index("FOUND") + 5 : text.index("END")])  # noqa: S307 - of the test's own code
    succeeded = {name: result for name, result in found.items() if str(result).startswith("succeeded")}
    assert not succeeded
    assert found.keys() >= ATTEMPTS.keys()
    assert not {"HTTPS_PROXY", "SITE_TOKEN"} & set(found["environment"])
    assert found["modules"] is False
    with pytest.raises(TimeoutError):
        listener.accept()
    assert harmless(values) == dict.fromkeys(HARMLESS, "")  # without the confinement they succeed, so this test can fail
    assert (state / "journal.jsonl").read_bytes().startswith(journal)
    assert not list(Path(prefix).glob("own.pth"))
    assert not list(folder.rglob("*.pyc"))


def harmless(values: str) -> dict[str, str]:
    """What comes of the harmless attempts in a process that is not confined: "" if they succeed."""
    command = f"""
import importlib.util, json, os, socket, subprocess
{values}
found = {{}}
for name, text in { ({name: ATTEMPTS[name] for name in HARMLESS})!r}.items():
    try:
        eval(text)
        found[name] = ""
    except BaseException as error:
        found[name] = str(error)
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


@pytest.mark.long
def test_honest_own_code_is_answered_and_gives_the_bits_of_a_run_on_one_machine(tmp_path: Path, folder: Path) -> None:
    study = with_loss(tmp_path, "pass", federation__rounds=2)
    centre = centre_of(study, folder)
    agreed, weights = begun(centre)
    plain = Centre(parse_study(json.dumps(_without_loss(study))), real_site(tmp_path / "plain"), trust="the same")
    agreed_too, _ = begun(plain)
    for number in (1, 2):
        assert centre.ask("round", number, 1, agreed, weights) == ""
        assert plain.ask("round", number, 1, agreed_too, weights) == ""
        ours, theirs = centre.answered[-1][1], plain.answered[-1][1]
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)  # the built-in loss, in the gate's own process
        weights = {k.removeprefix("arrays/"): v for k, v in ours.items() if k.startswith("arrays/")}
    assert centre.ask("evaluate", 2, 1, agreed, weights) == ""
    centre.gate.close()


def _without_loss(study: Study) -> dict[str, Any]:
    plan = study.model_dump(mode="json")
    plan.pop("code")
    plan["training"].pop("loss")
    return plan


NET = """
import os, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, columns, outputs):
        super().__init__()
        {build}
        self.last = nn.Linear(columns, outputs)

    def forward(self, x):
        {attack}
        return self.last(x)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "attack", "code"),
    [
        (
            "",
            "if self.training and not self._parameters: self.register_parameter(f'age_{abs(int(x[0, 0] * 9))}', nn.Parameter(x[:1, 0]))",
            "own-code",
        ),
        ("", "if self.training: self.last.weight.data = torch.zeros(2, 7)", "own-code"),
        ("self.width = nn.Parameter(torch.zeros(3 + os.path.exists(SITE)))", "", "own-code"),
        ("self.width = nn.Parameter(torch.zeros(len(open(SITE + '/persons.csv').read())))", "", "own-code"),
    ],
    ids=["a name that holds a value", "a shape that holds a value", "whether a path exists", "a file's length as a shape"],
)
def test_names_and_shapes_of_arrays_hold_nothing_of_a_person(tmp_path: Path, folder: Path, build: str, attack: str, code: str) -> None:
    text = NET.format(build=build or "pass", attack=attack or "pass")
    site = f"SITE = {str(folder)!r}\n"
    study = own_study(tmp_path / "study", make_plan(sites=("a",), model__clinical={"net": "my_net:Net"}), my_net=site + text)
    centre = centre_of(study, folder)
    agreed = centre.agree(1)
    torch_shapes = {"encoder.clinical.last.weight": (2, 3), "encoder.clinical.last.bias": (2,)}
    weights = {name: np.zeros(shape, np.float32) for name, shape in torch_shapes.items()}
    got = centre.ask("round", 1, 1, agreed, weights)
    centre.gate.close()
    assert got == code
    assert not any(name.startswith("arrays/") for _, arrays in centre.answered for name in arrays)


@pytest.mark.long
def test_code_that_patches_the_checks_patches_its_own_process_only(tmp_path: Path, folder: Path) -> None:
    more = """
import fedml.contract.replies, fedml.clients.gate.checks, fedml.clients.work.worker
from fedml.clients.work import client
fedml.contract.replies.check_form = fedml.clients.gate.checks.check_reply = lambda *a, **k: None
real = client._round

def more(request, content, memory):
    from fedml.wire.records import pack
    import numpy as np
    reply = real(request, content, memory)
    reply["rows"] = pack({"all": np.ones(100)})
    return reply

client._round = more
"""
    centre = centre_of(with_loss(tmp_path, "pass", more, federation__rounds=3), folder)
    agreed, weights = begun(centre)
    for number in (1, 2):  # the process of the first round ends before the network's shapes are asked for; the patch comes while it trains
        assert centre.ask("round", number, 1, agreed, weights) == ""
        weights = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
    assert centre.ask("round", 3, 1, agreed, weights) == "undeclared-record"
    assert [e["verdict"] for e in centre.journal() if e.get("phase") == "round"] == [*["accepted"] * 5, "refused"]
    centre.gate.close()


@pytest.mark.long
@pytest.mark.parametrize(
    "lie",
    ['"num-examples": 12345', '"steps": 98765'],
)
def test_numbers_that_the_site_knows_cannot_carry_others(tmp_path: Path, folder: Path, lie: str) -> None:
    more = f"""
from fedml.clients.work import client
real = client.MetricRecord
client.MetricRecord = lambda values: real({{**values, {lie}}})
"""
    centre = centre_of(with_loss(tmp_path, "pass", more), folder)
    agreed, weights = begun(centre)
    assert centre.ask("round", 1, 1, agreed, weights) == "own-code"
    centre.gate.close()


def test_a_file_that_was_changed_after_its_approval_is_not_run(tmp_path: Path, folder: Path) -> None:
    study = with_loss(tmp_path, "pass")
    centre = centre_of(study, folder)
    assert study.code is not None
    stored = centre.state / "code" / f"{study.code.modules[0].sha256}.py"
    agreed, weights = begun(centre)
    centre.gate.close()
    approved = stored.read_bytes()
    stored.write_bytes(approved + b"\n# changed\n")
    assert centre.ask("round", 1, 1, agreed, weights) == "own-code"
    stored.unlink()
    assert centre.ask("round", 1, 2, agreed, weights) == "own-code"
    stored.write_bytes(approved)
    centre.run = 3
    agreed, weights = centre.agree(3), weights
    assert centre.ask("round", 1, 3, agreed, weights) == ""
    centre.gate.close()


@pytest.mark.long
def test_compiled_files_beside_the_approved_one_are_not_used(tmp_path: Path, folder: Path) -> None:
    import py_compile

    study = with_loss(tmp_path, "pass")
    centre = centre_of(study, folder)
    assert study.code is not None
    for place in (centre.state / "code", tmp_path / "study", folder):
        evil = place / "my_loss.py" if place != tmp_path / "study" else place / "evil.py"
        evil.write_text("raise SystemExit('poisoned')\n")
        py_compile.compile(str(evil), cfile=str(place / "__pycache__" / "my_loss.cpython-311.pyc"))
        py_compile.compile(str(evil), cfile=str(place / "__pycache__" / f"{study.code.modules[0].sha256}.cpython-311.pyc"))
    agreed, weights = begun(centre)
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    centre.gate.close()


@pytest.mark.long
def test_code_that_never_ends_or_ends_the_process_is_refused_and_the_site_goes_on(tmp_path: Path, folder: Path) -> None:
    attack = "import os, time; os._exit(3) if output.shape[0] else None"
    centre = centre_of(with_loss(tmp_path, attack), folder)
    agreed, weights = begun(centre)
    assert centre.ask("round", 1, 1, agreed, weights) == "own-code"
    centre.gate.close()
    study = with_loss(tmp_path / "endless", "import time; time.sleep(3600)")
    study = parse_study(json.dumps(study.model_dump(mode="json") | {"federation": {"sites": ["a"], "rounds": 2, "timeout": 20}}))
    centre = centre_of(study, folder)
    agreed, weights = begun(centre, 2)
    assert centre.ask("round", 1, 2, agreed, weights) == "own-code"
    centre.gate.close()


@pytest.mark.long
def test_what_is_not_contained_is_known_weights_can_carry_values(tmp_path: Path, folder: Path) -> None:
    """This is why a person reads the code: what it makes of the weights is its purpose."""
    net = NET.format(build="self.last2 = nn.Linear(1, 64, bias=False)", attack="self.kept = x").replace("return self.last(x)", (
        "y = self.last(x)\n"
        "        if self.training:\n"
        "            self.last2.weight.data[:len(x), 0] = x[:, 0]\n"
        "        return y"
    ))  # fmt: skip
    study = own_study(
        tmp_path / "study", make_plan(sites=("a",), model__clinical={"net": "my_net:Net"}, training__batch_size=64), my_net=net
    )
    centre = centre_of(study, folder)
    agreed, weights = begun(centre)
    assert centre.ask("round", 1, 1, agreed, weights) == ""
    carried = centre.answered[-1][1]["arrays/encoder.clinical.last2.weight"]
    assert len(np.unique(carried)) > 10  # values of persons
    centre.gate.close()


@pytest.mark.long
def test_a_study_with_own_code_is_approved_only_with_its_files(tmp_path: Path, folder: Path) -> None:
    study = with_loss(tmp_path, "pass")
    state = prepare_state(read_site(folder))
    approve(state, study, "Dr. Test")  # of the plan alone, as if the files had not been read
    with pytest.raises(RunError, match=r"a .own-code"):
        Centre(study, folder, trust="a reason").agree(1)
    (tmp_path / "study" / "my_loss.py").write_text("import helper\n")
    changed = read_study(tmp_path / "study" / "study.toml").code
    assert changed is not None
    with pytest.raises(InputError, match="imports helper"):
        code_store.keep(state, changed)


def test_without_a_statement_of_trust_a_study_with_own_code_is_refused(tmp_path: Path, folder: Path) -> None:
    study = with_loss(tmp_path, "pass")
    assert study.code is not None
    code_store.keep(prepare_state(read_site(folder)), study.code)
    with pytest.raises(RunError, match="centre-distrusted"):
        Centre(study, folder).agree(1)


def test_only_names_and_numbers_of_an_answer_are_written_anew() -> None:
    values = np.arange(3, dtype=np.float32)
    honest = pack_array(values)
    told = Array("a person", (7, 9), honest.stype, honest.data)
    reply = RecordDict({"arrays": ArrayRecord({"b": told, "a": honest}), "metrics": MetricRecord({"steps": 1, "loss-sum": 0.5})})
    plain = _plain(reply)
    array = plain.array_records["arrays"]["b"]
    assert (array.dtype, tuple(array.shape), bytes(array.data)) == ("float32", (3,), bytes(honest.data))
    assert list(plain.array_records["arrays"]) == ["a", "b"]
    with pytest.raises(SiteError):
        _plain(RecordDict({"site": ConfigRecord({"name": "a person"})}))


def test_own_code_reads_the_data_and_their_indexes_and_not_what_lies_beside(tmp_path: Path, folder: Path) -> None:
    text = (folder / "site.toml").read_text()
    for name in ("persons.old.csv", "clinical.key", "clinical.toml", "persons.csv.tbi"):
        (folder / name).write_text("secret")
    study = with_loss(tmp_path, "pass")
    assert {path.name for path in manifest_of(read_site(folder), study)[1]} == {"persons.csv", "clinical.csv", "persons.csv.tbi"}
    (folder / "site.toml").write_text(text.replace('"clinical.csv"', '"."'))
    with pytest.raises(InputError, match="own code may not read; move the data"):
        manifest_of(read_site(folder), study)
