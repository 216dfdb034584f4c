"""Several processes for the local engine: sites train side by side, with the bits of one process.

A site belongs to one process for the whole run, because some algorithms keep state at it; the sites of the first process are answered in
it. Replies are taken in the roster's order, so sums do not depend on which process was faster. With ``count`` 0 further processes are
started only when the first messages show that the run lasts longer than starting them.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, final

from flwr.app import Context, Error, Message

from fedml.clients.work.client import ERROR_CODE
from fedml.clients.work.frames import read_frame, write_frame
from fedml.errors import Reason
from fedml.flower.content import from_bytes, to_bytes

log = logging.getLogger("fedml")
WORTH_SECONDS = 12.0  # of work that is left: starting a process takes about 3 s of a core
_MOST = 2**40  # bytes of a reply
_AHEAD = 2  # replies of one process that wait to be taken
_TRIES = 2  # processes that may end over one message, or in a row before they are ready


def share_out(persons: Sequence[int], processes: int) -> list[int]:
    """For each site the number of its process: the largest site first, to the process with the fewest persons so far (Graham 1969)."""
    load, place = [0] * processes, [0] * len(persons)
    for site in sorted(range(len(persons)), key=lambda at: (-persons[at], at)):
        place[site] = min(range(processes), key=lambda at: (load[at], at))
        load[place[site]] += max(persons[site], 1)
    return place


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Asked:
    """A message that another process answers, and its reply once it is there."""

    message: Message
    done: threading.Event = field(default_factory=threading.Event)
    reply: Message | None = None


_Item = tuple[_Asked, dict[str, Any], list[bytes]]  # what is asked: header and payloads


@final
class _Process:
    """One further process, and the thread that writes to it and reads from it. One that is killed is replaced, and asked again."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.asked: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self.room = threading.Semaphore(_AHEAD)
        self.ready = threading.Event()
        self._config, self._lock, self._closed, self._most = dict(config), threading.Lock(), False, 0.0
        self.process = self._begun()
        self._thread = threading.Thread(target=self._serve, name="fedml-worker", daemon=True)
        self._thread.start()

    @staticmethod
    def _begun() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "fedml.clients.gate.engine_worker"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _serve(self) -> None:
        item, tries, failed = None, 0, 0
        while True:
            try:
                self._configure()
                while item is not None or (item := self.asked.get()) is not None:
                    if not tries:
                        self.room.acquire()  # replies that nobody has taken yet must not fill the memory
                    tries += 1
                    self._exchange(item)
                    item, tries = None, 0
                return
            except (OSError, ValueError) as error:
                if self._closed:
                    self._give_up(item if item is not None else self.asked.get())
                    return
                log.error("a process of the local engine ended (%s, code %s)", error, self.process.poll())
            failed = 0 if self.ready.is_set() else failed + 1
            if failed == _TRIES:  # they cannot start, and neither would another
                self._give_up(item if item is not None else self.asked.get())
                return
            if item is not None and tries == _TRIES:  # it may be the message of which processes end, such as one that takes all memory
                self._refuse(item[0])
                item, tries = None, 0
            self._replace()

    def _configure(self) -> None:
        into, out = self._pipes()
        write_frame(into, {"config": self._config})
        if read_frame(out, _MOST) is None:
            raise ValueError("it did not start")
        self.ready.set()

    def _exchange(self, item: _Item) -> None:
        (into, out), (asked, header, payloads) = self._pipes(), item
        write_frame(into, header, payloads)
        frame = read_frame(out, _MOST)
        if frame is None:
            raise ValueError("the process ended")
        self._answer(asked, *frame)

    def _pipes(self) -> tuple[int, int]:
        assert self.process.stdin is not None  # noqa: S101 - they are pipes
        assert self.process.stdout is not None  # noqa: S101
        return self.process.stdin.fileno(), self.process.stdout.fileno()

    def _replace(self) -> None:
        """Another process in the place of one that ended; what sites keep between rounds it reads from the run's folder."""
        with self._lock:
            if not self._closed:
                self.ready.clear()
                self._end()
                self.process = self._begun()

    def _answer(self, asked: _Asked, head: dict[str, Any], parts: list[bytes]) -> None:
        if "reason" in head:
            asked.reply = Message(Error(int(head["code"]), str(head["reason"])), reply_to=asked.message)
        else:
            asked.reply = Message(from_bytes(parts[0]), reply_to=asked.message)
        asked.done.set()

    @staticmethod
    def _refuse(asked: _Asked) -> None:
        asked.reply = Message(Error(ERROR_CODE, str(Reason.INTERNAL)), reply_to=asked.message)
        asked.done.set()

    def _give_up(self, item: _Item | None) -> None:
        """Answers what is asked of the process, now and later, with ``internal``."""
        while item is not None:
            self._refuse(item[0])
            item = self.asked.get()

    def _end(self) -> None:
        """Ends the process, and notes the most memory that it had, in MB."""
        if self.process.poll() is None:
            self.process.kill()
            _, status, used = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            # of Linux in kB, of macOS in bytes
            self._most = max(self._most, used.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2))
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not written to a process that ended
                    pipe.close()

    def close(self) -> float:
        """Ends the process; the most memory that it had, in MB."""
        with self._lock:
            self._closed = True
            self.asked.put(None)
            self._end()
        return self._most


@final
class Workers:
    """The further processes of a run, for ``fedml.flower.grid.InProcessGrid``. Use as a context.

    Args:
        count: processes in all, the first one included; 0: as many as cores allow, if the run turns out to be long.
        threads: of a site's training. persons: of each node, in the order of the nodes. rounds: messages to each node, about.
    """

    def __init__(self, count: int, threads: int, persons: Sequence[int], rounds: int) -> None:
        most = min(count or max(usable_cores() // threads, 1), len(persons))
        self._eager, self._processes = count > 0, list[_Process]()
        self._most, self._left, self._place = most, rounds * len(persons), share_out(persons, most)
        self._asked: dict[str, tuple[_Asked, _Process]] = {}
        self._known, self._noted = set[int](), list[float]()
        self._config: dict[str, Any] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if most := [process.close() for process in self._processes]:
            log.info("sites trained in %d processes; each further one had at most %.0f MB of memory", len(most) + 1, max(most))

    def begin(self, config: Mapping[str, Any]) -> None:
        """``config``: the run's configuration."""
        self._config = dict(config)
        if self._eager:
            self._start()

    def _start(self) -> None:
        self._processes = [_Process(self._config) for _ in range(self._most - 1)]

    def note(self, seconds: float) -> None:
        """A site's training was answered in the first process in so many seconds. The first one is not counted: it loads code, too."""
        self._left -= 1
        self._noted.append(seconds)
        if self._processes or self._eager or self._most == 1 or len(self._noted) < 2:
            return
        if fmean(self._noted[1:]) * self._left > WORTH_SECONDS:
            self._start()

    def send(self, message: Message, context: Context) -> bool:
        """Whether another process answers the message, to which it then goes."""
        node = message.metadata.dst_node_id
        at = self._place[node - 1]
        if not (at and self._processes) or not (self._eager or self._processes[at - 1].ready.is_set()):
            return False
        process, asked = self._processes[at - 1], _Asked(message)
        header = {
            "node": node, "kind": message.metadata.message_type, "ttl": message.metadata.ttl, "node_config": dict(context.node_config),
        }  # fmt: skip
        state = b"" if node in self._known else to_bytes(context.state)
        self._known.add(node)
        self._asked[message.metadata.message_id] = asked, process
        process.asked.put((asked, header, [to_bytes(message.content), state]))
        self._left -= 1
        return True

    def is_done(self, message_id: str) -> bool:
        """Whether the reply is there."""
        return self._asked[message_id][0].done.is_set()

    def reply(self, message_id: str) -> Message:
        """The reply, once it is there."""
        asked, process = self._asked.pop(message_id)
        asked.done.wait()
        process.room.release()
        assert asked.reply is not None  # noqa: S101 - it is set before ``done``
        return asked.reply
