"""Attempts of confined code to get out, as text for ``test_confine.py``: each succeeds in a process that is not confined.

In the code: ``readable``, ``writable``, ``outside`` (folders), ``secret`` (a file in ``outside``), ``port`` (TCP and UDP, on which the test
listens), ``victim`` (id of a process), ``raw(x86-64 number, ARM number, *arguments)``, ``address(buffer)``.
"""

from __future__ import annotations

from dataclasses import dataclass

SAME_USER = "the user may not do it unconfined either"
KERNEL = "the kernel of this machine does not do it"


@dataclass(frozen=True)
class Attack:
    """``before`` runs unconfined; ``code`` tries one thing. ``needs``: why it may fail unconfined too, "" if it must not."""

    name: str
    code: str
    before: str = ""
    needs: str = ""

    @property
    def uses_victim(self) -> bool:
        return "victim" in self.before + self.code


_TCP = "import socket; s = socket.socket()"
_UDP = "import socket; s = socket.socket(type=socket.SOCK_DGRAM)"
_UNIX = "import socket; s = socket.socket(socket.AF_UNIX)"
_BUFFER = "b = ctypes.create_string_buffer(4096)"
_NAME = "n = ctypes.create_string_buffer(os.fsencode(secret))"

NETWORK = (
    Attack("TCP socket", "import socket; socket.socket()"),
    Attack("UDP socket", "import socket; socket.socket(type=socket.SOCK_DGRAM)"),
    Attack("UNIX socket", "import socket; socket.socket(socket.AF_UNIX)"),
    Attack("netlink socket", "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    Attack("packet socket", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", needs=SAME_USER),
    Attack("socket for a virtual machine's host", "import socket; socket.socket(socket.AF_VSOCK)", needs=KERNEL),
    Attack("socket, raw call", "raw(41, 198, 2, 1, 0)"),
    Attack("socketpair", "import socket; socket.socketpair()"),
    Attack("resolve a name", 'import socket; socket.getaddrinfo("localhost", 80)'),
    Attack("connect", 'import socket; s = socket.create_connection(("127.0.0.1", port)); s.sendall(b"data")'),
    Attack("connect, inherited socket", 's.connect(("127.0.0.1", port)); s.sendall(b"data")', _TCP),
    Attack("connect to a UNIX socket, inherited", 's.connect(str(outside / "socket"))', _UNIX),
    Attack("connect to an abstract UNIX socket, inherited", r's.connect("\0" + str(outside))', _UNIX),
    Attack("send a datagram, inherited socket", 's.sendto(b"data", ("127.0.0.1", port))', _UDP),
    Attack("sendmsg, inherited socket", 's.sendmsg([b"data"], [], 0, ("127.0.0.1", port))', _UDP),
    Attack("bind, inherited socket", 's.bind(("127.0.0.1", 0))', _TCP),
    Attack("bind a UNIX socket, inherited", 's.bind(str(writable / "door"))', _UNIX),
    Attack("listen, inherited socket", "s.listen()", _TCP),
    Attack(
        "accept, inherited socket",
        "s.accept()",
        _TCP + '; s.bind(("127.0.0.1", 0)); s.listen(); c = socket.create_connection(s.getsockname())',
    ),
    Attack("receive, inherited socket", "a.recv(1)", 'import socket; a, b = socket.socketpair(); b.send(b"x")'),
    Attack("pass a file through an inherited socket", "socket.send_fds(a, [b'x'], [0])", "import socket; a, b = socket.socketpair()"),
)

PROCESSES = (
    Attack("fork", "child = os.fork()\nif not child: os._exit(0)\nos.waitpid(child, 0)"),
    Attack("clone, raw call", "child = raw(56, 220, signal.SIGCHLD, 0, 0, 0, 0)\nif child == 0: os._exit(0)\nos.waitpid(child, 0)"),
    Attack(
        "clone3, raw call",
        "a = (ctypes.c_uint64 * 8)(0, 0, 0, 0, signal.SIGCHLD)\nif raw(435, 435, address(a), 64) == 0: os._exit(0)",
    ),
    Attack("os.system", 'os.system(f"echo > {writable}/made"); os.stat(writable / "made")'),
    Attack("subprocess", 'import subprocess; subprocess.run(["true"], check=True)'),
    Attack("posix_spawn", 'os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)'),
    Attack("multiprocessing", "import multiprocessing as m; p = m.get_context('fork').Process(target=int); p.start(); p.join()"),
    Attack("execve", 'os.execv("/bin/echo", ["echo", "done"])'),
    Attack(
        "execve of the C library",
        "a = (ctypes.c_char_p * 3)(b'echo', b'done', None); libc.execv(b'/bin/echo', a); fail()",
    ),
    Attack(
        "execve, raw call",
        "p, a = ctypes.create_string_buffer(b'/bin/echo'), (ctypes.c_char_p * 3)(b'echo', b'done', None)\n"
        "raw(59, 221, address(p), address(a), 0)",
    ),
    Attack("execve of an open file", "os.execve(f, ['echo', 'done'], {})", "f = os.open('/bin/echo', os.O_RDONLY)"),
    Attack(
        "execve of a file in writable",
        "os.execv(writable / 'tool', ['tool'])",
        "p = writable / 'tool'; p.write_text('#!/bin/sh\\necho done\\n'); p.chmod(0o755)",
    ),
    Attack("new namespace", "raw(272, 97, 0x10000000)", needs=KERNEL),
    Attack("session of its own", "raw(112, 157)"),
    Attack("process group of its own", "os.setpgid(0, 0)"),
)

SIGNALS = (
    Attack("kill", "os.kill(victim, signal.SIGTERM)"),
    Attack("tgkill, raw call", "raw(234, 131, victim, victim, signal.SIGTERM)"),
    Attack("tkill, raw call", "raw(200, 130, victim, signal.SIGTERM)"),
    Attack("sigqueue", "if libc.sigqueue(victim, signal.SIGTERM, None): fail()"),
    Attack("signal by a pidfd", "signal.pidfd_send_signal(os.pidfd_open(victim), signal.SIGTERM)", needs=KERNEL),
    Attack("signal by an inherited pidfd", "signal.pidfd_send_signal(f, signal.SIGTERM)", "f = os.pidfd_open(victim)", needs=KERNEL),
    Attack(
        "signal as owner of a pipe",
        "fcntl.fcntl(r, fcntl.F_SETOWN, victim); fcntl.fcntl(r, 10, signal.SIGTERM)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x')",
        "import fcntl; r, w = os.pipe()",
    ),
)

OTHERS = (
    Attack("environment of another process", "print(open(f'/proc/{victim}/environ').read())"),
    Attack("command line of another process", "print(open(f'/proc/{victim}/cmdline').read())"),
    Attack("status of another process", "print(open(f'/proc/{victim}/status').read())"),
    Attack("files of another process", "os.listdir(f'/proc/{victim}/fd')"),
    Attack("program of another process", "os.readlink(f'/proc/{victim}/exe')"),
    Attack("memory map of another process", "open(f'/proc/{victim}/maps').read()"),
    Attack("memory of another process", "open(f'/proc/{victim}/mem', 'rb').close()", needs=SAME_USER),
    Attack("root of another process", "print(open(f'/proc/{victim}/root{secret}').read())", needs=SAME_USER),
    Attack("environment of the parent", "open(f'/proc/{os.getppid()}/environ').read()", needs=SAME_USER),
    Attack("memory of the parent", "open(f'/proc/{os.getppid()}/mem', 'rb').close()", needs=SAME_USER),
    Attack("all processes", "os.listdir('/proc')"),
    Attack("ptrace, raw call", "raw(101, 117, 16, victim, 0, 0)", needs=SAME_USER),
    Attack(
        "process_vm_readv, raw call",
        "raw(310, 270, victim, address(here), 1, address(there), 1, 0)",
        "line = next(l for l in open(f'/proc/{victim}/maps') if '[stack]' in l)\n" + _BUFFER + "\n"
        "here, there = (ctypes.c_size_t * 2)(address(b), 64), (ctypes.c_size_t * 2)(int(line.split('-')[0], 16), 64)",
        needs=SAME_USER,
    ),
    Attack("priority of another process", "os.setpriority(os.PRIO_PROCESS, victim, 19)"),
    Attack("processors of another process", "os.sched_setaffinity(victim, os.sched_getaffinity(0))"),
    Attack("limits of another process", "import resource; resource.prlimit(victim, resource.RLIMIT_CORE)"),
    Attack("limits of its own", "a = (ctypes.c_uint64 * 2)(64, 64)\nif libc.setrlimit(7, a): fail()"),
    Attack("dumpable again", "if libc.prctl(4, 1, 0, 0, 0): fail()"),
    Attack("outlive the parent", "if libc.prctl(1, 0, 0, 0, 0): fail()"),
)

FILES = (
    Attack("read", "print(secret.read_text())"),
    Attack("list", "print(os.listdir(outside))"),
    Attack("list the root", "os.listdir('/')"),
    Attack("read /etc/passwd", "open('/etc/passwd').close()"),
    Attack("openat, raw call", _NAME + "; raw(257, 56, -100, address(n), 0)"),
    Attack("openat2, raw call", _NAME + "; h = (ctypes.c_uint64 * 3)(); raw(437, 437, -100, address(n), address(h), 24)"),
    Attack("open under an inherited folder", "print(os.open('secret.txt', os.O_RDONLY, dir_fd=f))", "f = os.open(outside, os.O_RDONLY)"),
    Attack("list an inherited path", "os.listdir(f'/proc/self/fd/{f}')", "f = os.open(outside, os.O_PATH)"),
    Attack("open an inherited path", "open(f'/proc/self/fd/{f}').close()", "f = os.open(secret, os.O_PATH)"),
    Attack("open a path of its own", "open(f'/proc/self/fd/{os.open(secret, os.O_PATH)}').close()"),
    Attack("through /proc/self/root", "print(open(f'/proc/self/root{secret}').read())"),
    Attack("through the current folder", "os.chdir(outside); print(open('secret.txt').read())"),
    Attack("through ..", "print((writable / '..' / 'outside' / 'secret.txt').read_text())"),
    Attack("symbolic link in writable", "print((writable / 'link').read_text())"),
    Attack("symbolic link to a folder", "print((writable / 'links' / 'secret.txt').read_text())"),
    Attack("make a symbolic link", "(writable / 'new').symlink_to(secret)"),
    Attack("hard link of a file outside", "os.link(secret, writable / 'hard'); print((writable / 'hard').read_text())"),
    Attack("hard link of a readable file", "os.link(readable / 'data.txt', writable / 'hard')"),
    Attack("hard link to the outside", "os.link(writable / 'own.txt', outside / 'hard')"),
    Attack("rename from outside", "os.rename(secret, writable / 'taken')"),
    Attack("rename to outside", "os.rename(writable / 'own.txt', outside / 'given')"),
    Attack("rename onto a readable file", "os.rename(writable / 'own.txt', readable / 'data.txt')"),
    Attack("exchange with a file outside", "raw(316, 276, -100, address(n), -100, address(o), 2)",
           _NAME + "; o = ctypes.create_string_buffer(os.fsencode(writable / 'own.txt'))"),
    Attack("write outside", "(outside / 'new').write_text('x')"),
    Attack("append to a readable file", "open(readable / 'data.txt', 'a').write('x')"),
    Attack("new file in a readable folder", "(readable / 'new').write_text('x')"),
    Attack("nameless file outside", "os.open(outside, os.O_TMPFILE | os.O_RDWR)", needs=KERNEL),
    Attack("truncate a readable file", "os.truncate(readable / 'data.txt', 0)"),
    Attack("open and truncate a readable file", "open(readable / 'data.txt', 'w').close()"),
    Attack("truncate by opening for reading", "os.open(readable / 'data.txt', os.O_RDONLY | os.O_TRUNC)"),
    Attack("truncate by opening for nothing", "os.open(secret, 3 | os.O_TRUNC)"),
    Attack("write to a readable file's memory", "mmap.mmap(os.open(readable / 'data.txt', os.O_RDWR), 4)[0:1] = b'x'", "import mmap"),
    Attack("open a readable file again for writing", "f = os.open(readable / 'data.txt', os.O_RDONLY)\n"
           "open(f'/proc/self/fd/{f}', 'r+').close()"),
    Attack("remove outside", "secret.unlink()"),
    Attack("remove a readable file", "(readable / 'data.txt').unlink()"),
    Attack("make a folder outside", "(outside / 'folder').mkdir()"),
    Attack("mode of a file outside", "secret.chmod(0o600)"),
    Attack("owner of a file outside", "os.chown(secret, os.getuid(), os.getgid())"),
    Attack("times of a file outside", "os.utime(secret, (0, 0))"),
    Attack("extended attribute outside", "os.setxattr(secret, 'user.a', b'x')", needs=KERNEL),
    Attack("watch a folder outside", "b = os.fsencode(outside); f = libc.inotify_init1(0)\n"
           "if f < 0 or libc.inotify_add_watch(f, b, 2) < 0: fail()"),
    Attack("handle of a file outside", _NAME + "; h = (ctypes.c_uint32 * 40)(128); i = ctypes.c_int()\n"
           "raw(303, 264, -100, address(n), address(h), address(i), 0)", needs=KERNEL),
    Attack("file that runs as its owner", "os.close(os.open(writable / 'tool', os.O_CREAT | os.O_WRONLY, 0o4755))"),
    Attack("mode of its own file", "(writable / 'own.txt').chmod(0o4755)"),
    Attack("FIFO", "os.mkfifo(writable / 'fifo')"),
    Attack("device", "os.mknod(writable / 'disk', 0o060600, os.makedev(8, 0))", needs=SAME_USER),
    Attack("file in this Python", "p = Path(sys.prefix, 'lib', 'probe'); p.write_text(''); p.unlink()", needs=SAME_USER),
    Attack("sitecustomize", "p = Path(sysconfig.get_paths()['purelib'], 'probe.pth'); p.write_text(''); p.unlink()", "import sysconfig",
           needs=SAME_USER),
    Attack("change this Python", "open(os.__file__, 'r+').close()", needs=SAME_USER),
    Attack("change fedml", "open(fedml.clients.work.confine.__file__, 'r+').close()", "import fedml.clients.work.confine", needs=SAME_USER),
    Attack("file in fedml", "p = Path(fedml.__file__).with_name('probe.py'); p.write_text(''); p.unlink()", "import fedml",
           needs=SAME_USER),
    Attack("bytecode of fedml", "p = Path(importlib.util.cache_from_source(fedml.__file__)).with_name('probe.pyc')\n"
           "p.write_text(''); p.unlink()",
           "import fedml, importlib.util", needs=SAME_USER),
    Attack("repository of fedml", "os.listdir(Path(fedml.__file__).resolve().parent.parent)", "import fedml"),
    Attack("/dev/shm", "p = Path('/dev/shm', f'probe-{os.getpid()}'); p.write_text('x'); p.unlink()"),  # noqa: S108
    Attack("/dev", "os.listdir('/dev')"),
    Attack("/tmp", "Path('/tmp', f'probe-{os.getpid()}').touch(); Path('/tmp', f'probe-{os.getpid()}').unlink()"),  # noqa: S108
)  # fmt: skip

KERNELS = (
    Attack("memfd", "os.memfd_create('a')"),
    Attack("System V memory", "i = raw(29, 194, 0, 4096, 0o1600); raw(31, 195, i, 0, 0)"),
    Attack("System V semaphore", "i = raw(64, 190, 0, 1, 0o1600); raw(66, 191, i, 0, 0)"),
    Attack("System V queue", "i = raw(68, 186, 0, 0o1600); raw(71, 187, i, 0, 0)"),
    Attack(
        "POSIX queue",
        "n = ctypes.create_string_buffer(f'probe-{os.getpid()}'.encode())\nraw(240, 180, address(n), 0o102, 0o600, 0)\n"
        "raw(241, 181, address(n))",
        needs=KERNEL,
    ),
    Attack("io_uring", _BUFFER + "; raw(425, 425, 4, address(b))", needs=KERNEL),
    Attack("userfaultfd", "raw(323, 282, 1)", needs=KERNEL),
    Attack("bpf", "a = (ctypes.c_uint32 * 18)(2, 4, 4, 1); raw(321, 280, 0, address(a), 72)", needs=SAME_USER),
    Attack("performance counter", "a = (ctypes.c_uint64 * 16)(1 | 128 << 32, 0); raw(298, 241, address(a), 0, -1, -1, 0)", needs=KERNEL),
    Attack("key", "raw(250, 219, 0, -3, 1)", needs=KERNEL),
    Attack(
        "mount",
        "n = ctypes.create_string_buffer(b'tmpfs'); p = ctypes.create_string_buffer(os.fsencode(writable))\n"
        "raw(165, 40, address(n), address(p), address(n), 0, 0); raw(166, 39, address(p), 2)",
        needs=SAME_USER,
    ),
    Attack("chroot", "os.chroot(writable)", needs=SAME_USER),
    Attack("another user", "os.setuid(os.getuid())"),
    Attack("host name", "import socket; socket.sethostname(os.uname().nodename)", needs=SAME_USER),
    Attack("personality", "raw(135, 92, 0xFFFFFFFF)"),
    Attack("another filter", "a = ctypes.c_uint32(0x50000); raw(317, 277, 2, 0, address(a))"),
    Attack("type into the terminal", "fcntl.ioctl(s, termios.TIOCSTI, b'x')", "import fcntl, termios; m, s = os.openpty()", needs=KERNEL),
)

ATTACKS = (*NETWORK, *PROCESSES, *SIGNALS, *OTHERS, *FILES, *KERNELS)
