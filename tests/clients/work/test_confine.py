"""A confined process gets out by no attempt of ``confine_attacks.py``, each of which succeeds in a process that is not confined."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.work import landlock, seccomp
from fedml.clients.work.confine import confine, missing
from fedml.errors import InputError
from tests.clients.work.confine_attacks import ATTACKS, NETWORK, SIGNALS, Attack

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"cannot confine: {missing()}")

NOBODY = 65534
SECRET = "SECRET-8d1f"  # noqa: S105
CHILD = """
import ctypes, errno, json, os, platform, signal, sys
from pathlib import Path
from fedml.clients.work import landlock
from fedml.clients.work.confine import confine

given = json.loads(sys.argv[1])
readable, writable, outside = (Path(given["place"], name) for name in ("readable", "writable", "outside"))
secret, port, victim = outside / "secret.txt", given["port"], given["victim"]
libc, address, arm = ctypes.CDLL(None, use_errno=True), ctypes.addressof, platform.machine() == "aarch64"

def fail():
    raise OSError(ctypes.get_errno(), "")

def raw(x86, arm64, *words):
    result = libc.syscall(*(ctypes.c_long(word) for word in (arm64 if arm else x86, *words)))
    return result if result >= 0 else fail()

if given["user"] != os.getuid():  # an ordinary user, with CAP_DAC_READ_SEARCH alone, because this Python may lie in root's home
    libc.prctl(8, 1, 0, 0, 0)
    os.setgroups([]); os.setresgid(*[given["user"]] * 3); os.setresuid(*[given["user"]] * 3)
    head, sets = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)(4, 4)
    raw(126, 91, address(head), address(sets))
BEFORE
if given["abi"]:
    landlock.abi = lambda: given["abi"]
if given["confined"]:
    confine([readable], [writable])
try:
CODE
except OSError as error:
    print("refused", type(error).__name__, errno.errorcode.get(error.errno, error.errno))
else:
    print("done")
"""
REFUSED = re.compile(r"refused (PermissionError (EACCES|EPERM)|OSError (EXDEV|ENOSYS)|gaierror -\d+|FileNotFoundError ENOENT)\n")


@dataclass
class Place:
    """Folders, and what listens and sleeps next to them: ``readable``, ``writable``, ``outside``; ``user`` owns them."""

    folder: Path
    user: int
    listeners: list[socket.socket] = field(default_factory=list)
    victim: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.listeners[0].getsockname()[1]) if self.listeners else 0

    def python(self, code: str, before: str = "", confined: bool = True, abi: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs ``code`` in a process of its own; ``abi``: Landlock's, if not the kernel's."""
        script = CHILD.replace("BEFORE", before).replace("CODE", textwrap.indent(code, "    "))
        victim = self.victim.pid if self.victim else 0
        given = {"place": str(self.folder), "port": self.port, "victim": victim, "confined": confined, "abi": abi, "user": self.user}
        return run(["-c", script, json.dumps(given)], self.folder / "writable")

    def untouched(self) -> dict[str, Any]:
        """All that confined code must leave: content, mode, owner and time of what lies outside ``writable``."""
        found = {}
        for path in sorted([*self.folder.glob("readable/**/*"), *self.folder.glob("outside/**/*"), self.folder / "outside"]):
            state = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[path.name] = (content, state.st_mode, state.st_uid, state.st_mtime_ns, state.st_nlink)
        return found

    def heard(self) -> bool:
        """Whether a listener got a connection or a datagram."""
        for listener in self.listeners:
            listener.setblocking(False)
            with suppress(BlockingIOError):
                if listener.type == socket.SOCK_DGRAM:
                    listener.recv(1)
                else:
                    listener.accept()[0].close()
                return True
        return False


def run(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """This Python, isolated, with its home in ``folder``."""
    line, env = [sys.executable, "-P", "-I", *words], {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
    return subprocess.run(line, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)


def make_place(stack: ExitStack, user: int, listen: bool, victim: bool) -> Place:
    # Not tmp_path, which other users may not enter and whose name is too long for a UNIX socket.
    folder = Path(tempfile.mkdtemp(prefix="confine-"))
    stack.callback(shutil.rmtree, folder)
    for name in ("readable", "writable", "outside"):
        (folder / name).mkdir()
    (folder / "readable" / "data.txt").write_text("data")
    (folder / "writable" / "own.txt").write_text("own")
    (folder / "outside" / "secret.txt").write_text(SECRET)
    (folder / "writable" / "link").symlink_to(folder / "outside" / "secret.txt")
    (folder / "writable" / "links").symlink_to(folder / "outside")
    place = Place(folder, user)
    if listen:
        place.listeners += _listeners(stack, folder)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, -1, follow_symlinks=False)
    if victim:
        change: dict[str, Any] = {} if user == os.getuid() else {"user": user, "group": user, "extra_groups": []}
        place.victim = subprocess.Popen(["sleep", "100"], env={"PATH": os.defpath, "SECRET": SECRET}, **change)
        stack.callback(place.victim.wait)
        stack.callback(place.victim.kill)
    return place


def _listeners(stack: ExitStack, folder: Path) -> list[socket.socket]:
    tcp, udp = stack.enter_context(socket.socket()), stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    tcp.bind(("127.0.0.1", 0))
    udp.bind(tcp.getsockname())
    named, abstract = stack.enter_context(socket.socket(socket.AF_UNIX)), stack.enter_context(socket.socket(socket.AF_UNIX))
    named.bind(str(folder / "outside" / "socket"))
    abstract.bind("\0" + str(folder / "outside"))
    for listener in (tcp, named, abstract):
        listener.listen()
    return [tcp, udp, named, abstract]


def refused(attack: Attack, user: int, abi: int) -> None:
    """Runs ``attack`` confined and then unconfined, in the same place, and compares."""
    with ExitStack() as stack:
        place = make_place(stack, user, attack in NETWORK, attack.uses_victim)
        before = place.untouched()
        done = place.python(attack.code, attack.before, abi=abi)
        assert REFUSED.fullmatch(done.stdout), done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert place.untouched() == before
        assert not place.heard()
        if place.victim:
            assert place.victim.poll() is None
        own = [path.name for path in (place.folder / "writable").iterdir() if path.is_symlink() or path.is_file()]
        assert set(own) <= {"own.txt", "link", "links", "tool"}

        free = place.python(attack.code, attack.before, confined=False)
        if attack.needs and "done" not in free.stdout:
            pytest.skip(f"{attack.needs}: {free.stdout.strip()}")
        assert free.stdout.endswith("done\n"), free.stdout + free.stderr
        assert ("print" not in attack.code) or free.stdout != "done\n"
        if attack in SIGNALS and place.victim:
            assert place.victim.wait(10) != 0
        if "connect" in attack.name or "send" in attack.name:
            assert place.heard()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_attempt_gets_out(attack: Attack) -> None:
    refused(attack, os.getuid(), 0)


@pytest.mark.long
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("abi", [1, 3])
def test_no_attempt_gets_out_with_an_older_landlock(attack: Attack, abi: int) -> None:
    refused(attack, os.getuid(), abi)


@pytest.fixture(scope="module")
def ordinary() -> int:
    """An ordinary user's id."""
    if os.getuid() != 0:
        pytest.skip("not root: the other tests have run as an ordinary user")
    return NOBODY


@pytest.mark.long
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_attempt_of_an_ordinary_user_gets_out(attack: Attack, ordinary: int) -> None:
    refused(attack, ordinary, 0)


WORK = """
import hashlib, locale, ssl, tempfile, threading, time, zoneinfo
assert (readable / "data.txt").read_text() == "data" and os.listdir(readable) == ["data.txt"]
a, b = writable / "a", writable / "b"
a.mkdir(); b.mkdir()
(a / "one").write_text("1"); (a / "one").write_text("2")
os.truncate(os.open(a / "one", os.O_RDWR), 0)
os.rename(a / "one", a / "two"); os.link(a / "two", a / "three"); (a / "three").unlink()
if ABI > 1: os.rename(a / "two", b / "two"); (b / "two").unlink(); b.rmdir()
with tempfile.NamedTemporaryFile() as file: file.write(b"x")
found = []
threads = [threading.Thread(target=found.append, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sorted(found) == [0, 1, 2, 3]
r, w = os.pipe(); os.write(w, b"x"); assert os.read(r, 1) == b"x"
open(os.devnull, "w").write("x"); assert len(os.urandom(4) + open("/dev/urandom", "rb").read(4)) == 8
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442") and hashlib.new("sha3_256", b"")
assert os.cpu_count() and zoneinfo.ZoneInfo("UTC") and time.localtime() and locale.setlocale(locale.LC_ALL, "C.UTF-8")
import fedml.text, fedml.strategies, fedml.clients.site, fedml.experiments
"""


@pytest.mark.parametrize("abi", [1, 2, landlock.abi() if not missing() else 0])
def test_what_is_given_can_be_used(abi: int) -> None:
    with ExitStack() as stack:
        place = make_place(stack, os.getuid(), False, False)
        done = place.python(WORK.replace("ABI", str(abi)), abi=abi)
        assert done.stdout == "done\n", done.stdout + done.stderr


def test_it_may_end_itself() -> None:
    with ExitStack() as stack:
        place = make_place(stack, os.getuid(), False, False)
        assert place.python("os.abort()").returncode == -6
        assert place.python("os.kill(os.getpid(), 9)").returncode == -9


def test_code_of_another_architecture_ends_the_process() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the 32-bit calls of x86")
    # mov eax, 20 (getpid of i386); int 0x80; ret
    code = (
        "import mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(address(ctypes.c_char.from_buffer(m)))\nprint(f() == os.getpid(), flush=True)"
    )
    with ExitStack() as stack:
        place = make_place(stack, os.getuid(), False, False)
        free = place.python(code, confined=False)
        if free.stdout != "True\ndone\n":
            pytest.skip("the kernel of this machine has no 32-bit calls")
        done = place.python(code)
        assert (done.returncode, done.stdout) == (-31, "")  # SIGSYS


def test_capabilities_and_limits_are_gone() -> None:
    """As another process reads them of the confined one: root keeps the capabilities that read and write files of other owners."""
    with ExitStack() as stack:
        place = make_place(stack, os.getuid(), False, False)
        script = CHILD.replace("BEFORE", "").replace("CODE", "    print('ready', flush=True); sys.stdin.read()")
        given = json.dumps({"place": str(place.folder), "port": 0, "victim": 0, "confined": True, "abi": 0, "user": os.getuid()})
        words = [sys.executable, "-P", "-I", "-c", script, given]
        process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        status = dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE))
        for name in ("CapEff", "CapPrm"):
            assert int(status[name], 16) == (0b110 if os.getuid() == 0 else 0)
        assert (status["CapInh"], status["CapAmb"]) == ("0" * 16, "0" * 16)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        if os.getuid() == 0:
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits)
        else:
            with pytest.raises(PermissionError):  # not dumpable: its owner cannot read it either
                Path(f"/proc/{process.pid}/environ").read_bytes()


def confined_with(readable: str, writable: str, before: str = "") -> str:
    """What ``confine`` raises in a process of its own: type, and text."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom fedml.clients.work.confine import confine, missing\n"
        f"{before}\ntry:\n    confine({readable}, {writable})\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "else:\n    print('confined', missing())\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = run(["-c", script, folder], Path(folder))
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_second_thread_is_refused() -> None:
    second = "import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    assert "OSError [Errno 16] the process has 2 threads" in confined_with("[]", "[]", second)
    assert confined_with("[]", "[]").startswith("confined ")


def test_a_process_in_which_landlock_does_not_answer_says_so() -> None:
    """A confined process is one."""
    assert "confined Landlock does not answer ([Errno 1] landlock_create_ruleset" in confined_with("[]", "[]")
    again = "confine([], [])"
    assert "InputError this machine cannot confine a process: Landlock does not answer" in confined_with("[]", "[]", again)


@pytest.mark.parametrize(
    ("readable", "writable", "text"),
    [
        ("[Path('/nowhere/at/all')]", "[]", "/nowhere/at/all cannot be made available to confined code: No such file or directory"),
        ("[Path('/')]", "[]", "/ cannot be made available to confined code, because /proc would be too"),
        ("[Path('/proc/self')]", "[]", "because /proc would be too"),
        ("[]", "[Path('/dev/shm')]", "because /dev would be too"),
        ("[Path('/dev/null')]", "[]", "because /dev would be too"),
        ("[]", "[Path(sys.prefix)]", "would be too; name another folder"),
        ("[]", "[Path(sys.modules['fedml'].__file__).parents[1]]", "would be too; name another folder"),
        ("[]", "[Path(sys.modules['fedml'].__file__)]", "would be too; name another folder"),
    ],
)
def test_what_gives_away_too_much_is_refused(readable: str, writable: str, text: str) -> None:
    answer = confined_with(readable, writable)
    assert answer.startswith("InputError ")
    assert text in answer


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("landlock.restrict = lambda *given: None", "OSError [Errno 131] the process is not confined: a folder could be opened"),
        (
            "seccomp.restrict = lambda: None",
            "OSError [Errno 131] the process is not confined: no_new_privs, dumpable, seccomp are [1, 0, 0]",
        ),
        ("syscalls._ALLOWED['network'] = 'socket 41 198'", "OSError [Errno 131] the process is not confined: a socket could be opened"),
        # Another filter, of another thread's making, is in the way; the kernel refuses; Landlock is asked for what it does not know.
        ("seccomp.call = lambda *given: 4711", "OSError [Errno 16] thread 4711 has a seccomp filter of its own"),
        ("seccomp.program = lambda *given: [(0, 0, 0, 0)]", "OSError [Errno 22] seccomp: Invalid argument"),
        ("landlock._HANDLED[7] = 2**60", "OSError [Errno 22] landlock_create_ruleset: Invalid argument"),
    ],
)
def test_a_part_that_does_not_take_effect_is_an_error(change: str, text: str) -> None:
    changes = "from fedml.clients.work import landlock, seccomp, syscalls\nlandlock.abi = lambda: 7\n"
    if landlock.abi() < 7:
        changes = changes.replace("7", str(landlock.abi()))
        change = change.replace("[7]", f"[{landlock.abi()}]")
    answer = confined_with("[]", "[]", changes + change)
    assert answer.startswith(text), answer


def test_a_file_is_given_without_its_folder() -> None:
    code = """
read, write, other = (Path(sys.argv[1], name) for name in ("read", "write", "other"))
for path in (read, write, other): path.write_text("x")
confine([read], [write])
assert read.read_text() == write.read_text() == "x"
write.write_text("y"); write.open("a").close()
for attempt in (other.read_text, lambda: read.write_text("y"), write.unlink, lambda: list(Path(sys.argv[1]).iterdir())):
    try: attempt()
    except PermissionError: print("refused")
"""
    assert confined_with("[]", "[]", code).startswith("refused\n" * 4 + "InputError")


def test_another_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert missing() == "the processor is riscv64, not x86_64 or aarch64 with a Python of 64 bits"
    with pytest.raises(InputError, match="cannot confine a process: the processor is riscv64"):
        confine([], [])
    monkeypatch.undo()
    for number, text in ((errno.ENOSYS, "the kernel has no Landlock"), (errno.EOPNOTSUPP, "Landlock is off")):
        with monkeypatch.context() as patch:
            patch.setattr(landlock, "call", lambda *given, number=number: (_ for _ in ()).throw(OSError(number, "")))
            assert missing().startswith(text)
    with monkeypatch.context() as patch:
        patch.setattr(seccomp, "call", lambda *given: (_ for _ in ()).throw(OSError(errno.EINVAL, "")))
        assert missing().startswith("the kernel has no seccomp filters")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert missing() == "the system is Darwin, not Linux"


TRAIN = """
torch.manual_seed(0); torch.set_num_threads(2); torch.use_deterministic_algorithms(True)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 2))
optimizer = torch.optim.Adam(net.parameters(), fused=True)
images, labels = torch.randn(64, 1, 32, 32), torch.randint(0, 2, (64,))
for _ in range(3):
    optimizer.zero_grad(); nn.functional.cross_entropy(net(images), labels).backward(); optimizer.step()
torch.save(net.state_dict(), writable / "net.pt")
weights = torch.cat([p.detach().flatten() for p in net.parameters()])
assert torch.equal(torch.cat([p.flatten() for p in torch.load(writable / "net.pt").values()][:4])[:8], weights[:8])
print(hashlib.sha256(weights.numpy().tobytes()).hexdigest(), torch.get_num_threads())
"""
LIBRARIES = """
import monai.networks.nets, monai.transforms, nibabel, pysam, scipy.stats, pandas, pyarrow, safetensors.torch, PIL.Image
import numpy as np
monai.networks.nets.UNet(2, 1, 1, (4, 8), (2,))(torch.zeros(1, 1, 8, 8))
nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), "f4"), np.eye(4)), writable / "a.nii.gz")
assert nibabel.load(writable / "a.nii.gz").get_fdata().shape == (4, 4, 4)
rows = ["##fileformat=VCFv4.2", "##contig=<ID=1>", "#CHROM POS ID REF ALT QUAL FILTER INFO", "1 5 . A C . . ."]
(writable / "a.vcf").write_text("".join(row.replace(" ", chr(9)) + chr(10) for row in rows))
assert [record.pos for record in pysam.VariantFile(str(writable / "a.vcf"))] == [5]
assert scipy.stats.ttest_ind([1, 2, 3], [2, 3, 4]).pvalue > 0
pandas.DataFrame({"a": [1]}).to_parquet(writable / "a.parquet"); assert pandas.read_parquet(writable / "a.parquet").a[0] == 1
import fedml.clients.work.client, fedml.learning, fedml.models.fusion
"""


def trained(after: str = "") -> tuple[str, str]:
    """What the same training prints unconfined and confined."""
    code = "import hashlib, torch\nfrom torch import nn" + TRAIN + after
    with ExitStack() as stack:
        place = make_place(stack, os.getuid(), False, False)
        free, done = place.python(code, confined=False), place.python(code)
    assert free.stdout.endswith("done\n"), free.stdout + free.stderr
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    return free.stdout, done.stdout


def test_training_gives_the_same_weights() -> None:
    free, done = trained()
    assert free == done
    assert free.split()[1] == "2"


@pytest.mark.long
def test_libraries_are_imported_and_used_after_it() -> None:
    free, done = trained(LIBRARIES)
    assert free == done
