"""The two guides in docs/, followed to the letter: every ```sh block is run, by two hospitals and a centre in turn, to a real run and on.

Run as they stand, but that /srv/fedml is a folder of this test (one for each machine of the guides), federation.example.org is 127.0.0.1,
9092 is a free port, and the hospital ``oslo`` is also ``porto``. What the guides say to put into a file (```toml) is put there; what a
unit's ``ExecStart`` names is started as the service, by itself.

Not run, for they want root and a machine of their own: ```text blocks (useradd, venv, systemctl), systemd and the firewall. The units are
read by configparser, and by ``systemd-analyze verify`` where there is one; the firewall's rules by ``nft --check`` where there is one; the
installation's ``pip install`` is done from a copy of this tree into a folder, without the dependencies, where pip and setuptools are here.
That the units' hardening lets the services work is shown only so far: a hospital's writes nowhere but where its unit lets it.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedml.clients.gate.journal import entries, verify
from fedml.errors import Reason, RunError
from fedml.experiments.federation.centre import registered
from fedml.flower.keys import write_authority
from fedml.runs.log import read_events
from tests.command import ROOT, STUDIES

JOIN, RUN = ROOT / "docs" / "join-a-federation.md", ROOT / "docs" / "run-a-federation.md"
ONCE = {JOIN: "Install", RUN: "What you need"}  # the block that opens a session: it goes before each other
HOSPITALS = ("oslo", "porto")


@dataclass(frozen=True)
class Block:
    """A fenced block: the guide, the heading that it stands under, its number there, its language and text."""

    guide: Path
    heading: str
    number: int
    language: str
    text: str


def blocks(guide: Path) -> list[Block]:
    """Every fenced block of a guide."""
    found: list[Block] = []
    heading, language, lines = "", None, list[str]()
    for line in guide.read_text(encoding="utf-8").splitlines():
        if language is None and line.startswith("#"):
            heading = line.lstrip("# ")
        elif language is None and line.startswith("```"):
            language, lines = line[3:], []
            assert language, f"{guide.name}, {heading}: a block without a language would never be checked"
        elif language is not None and line == "```":
            number = sum(b.heading == heading for b in found)
            found.append(Block(guide, heading, number, language, "\n".join(lines) + "\n"))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{guide.name}: a block is not closed"
    return found


BLOCKS = {guide: blocks(guide) for guide in (JOIN, RUN)}


def only(guide: Path, heading: str, language: str) -> Block:
    """The one block of a language under a heading."""
    (found,) = (b for b in BLOCKS[guide] if b.heading == heading and b.language == language)
    return found


@dataclass
class Machine:
    """One machine of the guides: its /srv/fedml, what of the guides' names stands for what, and the services that run."""

    root: Path
    port: int
    name: str = "oslo"
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ran: set[tuple[Path, str, int]] = field(default_factory=set)
    environment: dict[str, str] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """The guide's text on this machine."""
        text = text.replace("/srv/fedml", str(self.root)).replace("federation.example.org", "127.0.0.1").replace("9092", str(self.port))
        return re.sub(r"\boslo\b", self.name, text)

    def shell(self, block: Block, *, code: int = 0) -> str:
        """Runs a block as its reader would, who answers a question with yes; what it printed."""
        self.ran.add((block.guide, block.heading, block.number))
        script = "set -eu\n" + self.here(only(block.guide, ONCE[block.guide], "sh").text + block.text)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "FLWR_"))} | self.environment
        env["HOME"] = str(self.root / "home")
        done = subprocess.run(["sh", "-c", script], cwd="/", env=env, input="y\n", capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == code, f"{block.guide.name}, {block.heading}, block {block.number}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def follow(self, guide: Path, heading: str, *, code: int = 0) -> str:
        """All under a heading: commands are run, files are written, a unit is started; what was printed."""
        found = [b for b in BLOCKS[guide] if b.heading == heading]
        assert found, f"{guide.name} has no block under {heading}"
        reported = ""
        for block in found:
            if block.language == "sh":
                reported += self.shell(block, code=code)
            elif block.language == "toml":
                with (self.root / "site.toml").open("w" if block.text.startswith("[site]") else "a", encoding="utf-8") as file:
                    file.write("\n" + self.here(block.text))
            elif block.language == "ini":
                self.start(block)
        return reported

    def start(self, unit: Block) -> None:
        """Starts what the unit starts, in its folder and environment."""
        service = self.read(unit)["Service"]
        home = self.root / "service"
        home.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "FLWR_"))} | {"HOME": str(home)}
        env |= dict(pair.split("=", 1) for pair in service.get("Environment", "").split())
        with (home / "service.log").open("ab") as log:
            process = subprocess.Popen(
                service["ExecStart"].split(), cwd=service["WorkingDirectory"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.services[unit.heading] = process

    def read(self, unit: Block) -> configparser.ConfigParser:
        """The unit's sections; a key that is given twice is an error."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(self.here(unit.text))
        return parser

    def stop(self) -> list[int]:
        """Stops the services as systemd does (SIGTERM); their exit codes. What is left of a group is killed."""
        codes = []
        for process in self.services.values():
            process.send_signal(signal.SIGTERM)
        for process in self.services.values():
            try:
                codes.append(process.wait(60))
            except subprocess.TimeoutExpired:
                codes.append(-9)
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.services.clear()
        return codes

    def log(self) -> str:
        """What its services printed."""
        path = self.root / "service" / "service.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""


def machine(root: Path, port: int, name: str = "oslo") -> Machine:
    """A machine with the program installed: this test's own environment stands for /srv/fedml/env."""
    (root / "env").mkdir(parents=True)
    (root / "home").mkdir()
    (root / "env" / "bin").symlink_to(Path(sys.executable).parent, target_is_directory=True)
    return Machine(root, port, name)


def free_pair() -> int:
    """A port that is free, and so is the next: the centre takes both."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def test_a_guide_holds_no_block_that_nothing_checks() -> None:
    kinds = {(b.guide, b.language): b for guide in BLOCKS for b in BLOCKS[guide]}
    assert {language for guide, language in kinds if guide == JOIN} == {"sh", "toml", "ini", "text", "nft"}
    assert {language for guide, language in kinds if guide == RUN} == {"sh", "ini", "text"}
    text = [line.split()[0] for guide in BLOCKS for b in BLOCKS[guide] if b.language == "text" for line in b.text.splitlines()]
    outside = {"useradd", "python3.11", "/srv/fedml/env/bin/pip", "systemctl", "fedml"}
    assert set(text) == outside, "only what wants root, installs, or stays in the foreground is left to the reader"


@pytest.mark.long
def test_the_installation_installs_both_commands(tmp_path: Path) -> None:
    text = only(JOIN, "Install", "text").text
    line = next(line for line in text.splitlines() if "pip install" in line)
    assert line == "/srv/fedml/env/bin/pip install --constraint fedml-cohorts/constraints.txt ./fedml-cohorts"
    assert "python3.11 -m venv /srv/fedml/env" in text
    copy = tmp_path / "fedml-cohorts"
    copy.mkdir()
    for name in ("fedml", "strategies", "clients", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    if not (find_spec("pip") and find_spec("setuptools")):
        pytest.skip("pip and setuptools are not in this environment")
    here = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", str(tmp_path / "env")]
    words = [sys.executable, "-m", "pip", *line.split()[1:], *here]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {"fedml", "fedml-site"} <= {path.name for path in (tmp_path / "env" / "bin").iterdir()}
    assert (tmp_path / "env" / "fedml" / "experiments" / "federation" / "centre.py").exists()
    assert not (tmp_path / "env" / "experiments").exists(), "the wheel has one public door"


@pytest.mark.parametrize(("guide", "name"), [(JOIN, "fedml-site"), (RUN, "fedml-centre")])
def test_the_units_are_hardened_and_systemd_reads_them(tmp_path: Path, guide: Path, name: str) -> None:
    host = machine(tmp_path / "srv", 9092)
    unit = only(guide, "Start", "ini")
    parsed = host.read(unit)
    assert parsed.sections() == ["Unit", "Service", "Install"]
    service = parsed["Service"]
    wanted = {
        "User": "fedml",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "Restart": "on-failure",
        "ProtectHome": "yes",
    }
    assert {key: service[key] for key in wanted} == wanted
    assert service["KillSignal"] == "SIGTERM"
    text = guide.read_text(encoding="utf-8")
    assert f"`/etc/systemd/system/{name}.service`:" in text
    assert f"systemctl enable --now {name}.service" in only(guide, "Start", "text").text
    if shutil.which("systemd-analyze"):
        path = tmp_path / f"{name}.service"
        path.write_text(host.here(unit.text))
        done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60, check=False)
        about = [line for line in (done.stdout + done.stderr).splitlines() if name in line]
        assert about == [], about


def test_the_firewall_lets_one_port_out() -> None:
    text = only(JOIN, "Firewall", "nft").text
    assert re.findall(r"dport (\d+) accept", text) == ["9092"]
    assert text.count("{") == text.count("}")
    assert "hook output" in text
    assert "hook input" not in text
    assert text.split().index("reject") > text.split().index("dport"), "what is not let out before is rejected"
    if shutil.which("nft"):
        rules = text.replace('"fedml"', str(os.getuid()))
        done = subprocess.run(["nft", "--check", "--file", "-"], input=rules, capture_output=True, text=True, timeout=60, check=False)
        assert "syntax error" not in done.stderr, done.stderr


def test_every_code_is_explained() -> None:
    codes = re.findall(r"^\| `([a-z-]+)` \|", JOIN.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(codes) == sorted(str(reason) for reason in Reason)


def test_links_lead_somewhere() -> None:
    for guide in BLOCKS:
        for target, anchor in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", guide.read_text(encoding="utf-8")):
            text = (guide.parent / target).read_text(encoding="utf-8")
            headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
            assert not anchor or anchor in headings, f"{guide.name}: {target}#{anchor}"


STUDY_CHANGES = (
    ('sites = ["oslo", "porto", "utrecht"]', 'sites = ["oslo", "porto"]'),
    ("rounds = 20", "rounds = 2\ntimeout = 60"),
)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, list[Machine]]]:
    """The centre and two hospitals with synthetic data in the folder of the later site.toml, and the study that all received."""
    study = (STUDIES / "demo.toml").read_text()
    for old, new in STUDY_CHANGES:
        assert old in study
        study = study.replace(old, new)
    made = tmp_path / "made"
    subprocess.run([Path(sys.executable).parent / "fedml", "synth", made, "--sites", "2", "--persons", "120"], check=True, timeout=300)
    port = free_pair()
    centre = machine(tmp_path / "centre", port)
    hospitals = [machine(tmp_path / name, port, name) for name in HOSPITALS]
    for hospital in hospitals:
        for path in (made / hospital.name).iterdir():
            if path.name != "site.toml":
                (shutil.copytree if path.is_dir() else shutil.copy)(path, hospital.root / path.name)
        ids = [line.split(",")[0] for line in (hospital.root / "persons.csv").read_text().splitlines()[1:]]
        (hospital.root / "expression.csv").write_text("id,gene1\n" + "".join(f"{one},1.5\n" for one in ids))
    for host in (centre, *hospitals):
        (host.root / "study.toml").write_text(study)
    try:
        yield centre, hospitals
    finally:
        for host in (*hospitals, centre):
            host.stop()


def wait_online(centre: Machine, hospitals: list[Machine]) -> None:
    """Until the centre has every hospital online: a restarted one is turned away for up to a minute."""
    deadline, states = time.monotonic() + 180, {}
    while time.monotonic() < deadline:
        try:
            states = {node.name: node.state for node in registered(centre.root / "centre")}
        except RunError as error:
            states = {"centre": str(error)}
            continue
        if all(states.get(hospital.name) == "online" for hospital in hospitals):
            return
        time.sleep(0.5)
    pytest.fail(f"{states}\n{centre.log()}\n" + "\n".join(h.log() for h in hospitals))


def last_run(centre: Machine) -> list[dict[str, object]]:
    """The events of the newest run."""
    return read_events(max((centre.root / "runs").iterdir(), key=lambda path: path.stat().st_mtime))[0]


def files(root: Path) -> dict[str, int]:
    """Every file of a hospital's folder that its unit does not let the service write, and when it was changed (ns)."""
    found = (path for path in root.rglob("*") if path.is_file())  # home: of the shells; service: what it prints
    return {str(p): p.stat().st_mtime_ns for p in found if not {".fedml", "home", "service", "env"} & set(p.relative_to(root).parts)}


@pytest.mark.long
def test_two_hospitals_and_a_centre_follow_the_guides_to_a_run_and_on(machines: tuple[Machine, list[Machine]], tmp_path: Path) -> None:
    centre, hospitals = machines
    oslo, porto = hospitals

    for hospital in hospitals:
        reported = hospital.follow(JOIN, "Describe your data")
        assert f'{hospital.name}: study "demo" would use 120 persons' in reported
        assert "SHA256:" in hospital.follow(JOIN, "Make your key")

    made = centre.follow(RUN, "Make the centre")
    bought = machine(tmp_path / "bought", free_pair())
    write_authority(bought.root, ("127.0.0.1",))
    for old, new in (("server.pem", "chain.pem"), ("ca.pem", "authority.pem")):
        (bought.root / old).rename(bought.root / new)
    assert "sites connect to 127.0.0.1:" in bought.follow(RUN, "With your own certificate")
    centre.follow(RUN, "Start")
    wait_online(centre, [])

    for hospital in hospitals:
        key = (hospital.root / "node.key.pub").read_text()
        (centre.root / f"{hospital.name}.pub").write_text(key)
        centre.name = hospital.name
        reported = centre.follow(RUN, "Register a site")
        shown, accepted = re.findall(r"SHA256:\S+", reported)
        assert shown == accepted, "what ssh-keygen shows is what register says"
    centre.name = "oslo"

    before = {}
    for hospital in hospitals:
        shutil.copy(centre.root / "centre" / "ca.pem", hospital.root)
        reported = hospital.follow(JOIN, "Connect")
        (shown,) = re.findall(r"Fingerprint=(\S+)", reported)
        assert shown in made.split(), "what the hospital reads by phone is what init showed"
        assert "fail" not in reported
        reported = hospital.follow(JOIN, "Approve a study")
        assert "approved by Dr. A. Hansen" in reported
        assert "placeholder persons" in reported
        before[hospital.name] = files(hospital.root)
        hospital.follow(JOIN, "Start")
    wait_online(centre, hospitals)

    reported = centre.follow(RUN, "Send out the study")
    assert [line.split()[:2] for line in reported.splitlines() if line.startswith(HOSPITALS)] == [[name, "online"] for name in HOSPITALS]
    reported = centre.follow(RUN, "Run")
    assert "finished in" in reported
    events = last_run(centre)
    final = next(e for e in events if e["event"] == "final")
    assert [sorted(e["sites"]) for e in events if e["event"] == "round"] == [list(HOSPITALS)] * 2  # type: ignore[call-overload]
    assert final["metrics"]["test"]["all"]["persons"] > 0  # type: ignore[index]
    assert '"finished"' in centre.follow(RUN, "Read the outcome")
    assert (centre.root / "mlflow.db").exists()
    assert [p.name for p in (centre.root / "service").iterdir()] == ["service.log"], "the SuperLink wrote outside its folders"

    for hospital in hospitals:
        head, _ = final["sites"][hospital.name]["journal"]  # type: ignore[index]
        hospital.environment["HEAD"] = head
        reported = hospital.follow(JOIN, "Every day")
        assert "complete and unchanged" in reported
        assert files(hospital.root) == before[hospital.name], "the service wrote where its unit does not let it"
    centre.follow(RUN, "Back up")
    assert {"state.db", "server.key", "runs", "control"} <= {p.name for p in (centre.root / "backup").iterdir()}

    renew = [b for b in BLOCKS[RUN] if b.heading == "Renew the certificate"]
    centre.shell(renew[0])
    for hospital in hospitals:
        shutil.copy(centre.root / "next" / "ca.pem", hospital.root / "new-ca.pem")
        hospital.follow(JOIN, "Update, and new certificates")
        assert hospital.stop() == [0]
        hospital.start(only(JOIN, "Start", "ini"))
    centre.shell(renew[1])
    assert centre.stop() == [-signal.SIGTERM]
    centre.start(only(RUN, "Start", "ini"))
    wait_online(centre, hospitals)
    assert "finished in" in centre.follow(RUN, "Run"), "with the new certificate"

    oslo.follow(JOIN, "Withdraw")
    reported = centre.follow(RUN, "Run", code=1)
    assert "1 of 2 sites answered, the quorum is 2; missing: oslo (not-approved)" in reported
    assert list(entries(oslo.root / ".fedml" / "journal.jsonl"))[-1].reason == "not-approved"
    reported = centre.follow(RUN, "Remove a site")
    assert "oslo may not join any more" in reported
    assert [node.name for node in registered(centre.root / "centre")] == ["porto"]
    assert verify(porto.root / ".fedml" / "journal.jsonl") == []

    ran = set().union(*(host.ran for host in (centre, bought, *hospitals)))
    opening = {(guide, heading, only(guide, heading, "sh").number) for guide, heading in ONCE.items()}
    assert ran | opening == {(b.guide, b.heading, b.number) for guide in BLOCKS for b in BLOCKS[guide] if b.language == "sh"}
