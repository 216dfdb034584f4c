"""A confined process for each study with own code, and what the gate asks of it.

Own code never runs in the process that holds the gate, the journal, the ledger and the node's connection. It runs in a process that cannot
open a connection, start another process, or read or write files beyond the study's data (``fedml.clients.work.confine``). Of two
processes, one gets no data at all: it builds the network, from which the gate knows names and shapes of the weights.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from flwr.app import MetricRecord, RecordDict

from fedml.clients.site import logs
from fedml.clients.site.manifest import Site
from fedml.clients.work.confine import missing
from fedml.clients.work.frames import read_frame, write_frame
from fedml.clients.work.half import Memory, site_algorithm
from fedml.clients.work.known import Work
from fedml.clients.work.request import Request
from fedml.cohort.variants.companions import companions
from fedml.contract.replies import read_arrays
from fedml.errors import InputError, Reason, SiteError
from fedml.flower.content import from_bytes, to_bytes
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, ARRAYS, array_record, pack, unpack

FOLDER, LOG, LOG_BYTES = "apart", "own-code.log", 2_000_000
_START_SECONDS = 120.0
_MEGABYTE = 1_000_000
_PATHS = ("path", "masks", "reference")  # keys of an input's section that name files
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_LIBRARY_PATH", "SYSTEMROOT")


@final
class Apart:
    """The confined processes of one study at one site. ``close`` ends them."""

    def __init__(self, site: Site, state: Path, study: Study, code: Sequence[bytes], packages: Sequence[Mapping[str, bytes]] = ()) -> None:
        """``code``: the approved bytes of each file; ``packages``: of each distribution, by path."""
        if why := missing():
            raise SiteError(Reason.CODE, f"this machine cannot confine own code: {why}")
        self._site, self._study, self._code, self._packages = site, study, code, packages
        self._state = state.resolve()
        self._folder = self._state / FOLDER / secrets.token_hex(8)
        _remove(self._state / FOLDER)  # from a site that was killed: one study at a time has a folder
        self._log = logs.rotated(state / LOG, LOG_BYTES, "%(message)s")
        self._processes: dict[bool, subprocess.Popen[bytes]] = {}
        self._weights: dict[bytes, dict[str, Any]] = {}
        self._work = Work(self.execute, self.first_weights, self.first_update, self.own_sums)

    @property
    def work(self) -> Work:
        """The functions of this class as the gate takes them."""
        return self._work

    def close(self) -> None:
        """Ends the processes and removes what they have written."""
        for data in (True, False):
            self._end(data)

    def kill(self) -> None:
        """Ends the processes at once, also where another function waits for one."""
        for process in list(self._processes.values()):
            process.kill()

    def _end(self, data: bool) -> None:
        process = self._processes.pop(data, None)
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if data:
            _remove(self._folder)

    def first_weights(self, request: Request, content: RecordDict) -> dict[str, Any]:
        """``known.first_weights``, from the process without data: names and shapes cannot hold anything of a person."""
        agreed = RecordDict({name: record for name, record in content.items() if name != ARRAYS})
        key = to_bytes(RecordDict({AGREEMENT: array_record(content, AGREEMENT)}))
        if key not in self._weights:
            self._weights.clear()
            self._end(True)  # two processes at once could tell each other something, by locks or the load of the machine
            try:
                self._weights[key] = self._arrays(self._ask("first-weights", request, agreed, data=False)[1])
            finally:
                self._end(False)
        return self._weights[key]

    def own_sums(self, request: Request, content: RecordDict) -> dict[str, Any]:
        """``known.own_sums``."""
        return self._arrays(self._ask("own-sums", request, content)[1])

    def first_update(self, request: Request, content: RecordDict) -> float:
        """``known.first_update``."""
        number = self._ask("first-update", request, content)[0].get("number")
        if not isinstance(number, float) or not math.isfinite(number) or number < 0:
            raise SiteError(Reason.CODE, "the confined process gave no length")
        return number

    def execute(self, request: Request, content: RecordDict, memory: Memory) -> RecordDict:
        """``fedml.clients.work.client.execute``."""
        _, reply, state = self._ask("execute", request, content, memory)
        if site_algorithm(request.study).keeps:
            for name in list(memory.state):
                del memory.state[name]
            memory.state.update(state)
        return _plain(reply)

    def _arrays(self, content: RecordDict) -> dict[str, Any]:
        arrays = read_arrays(content, ARRAYS)
        if not all(np.isfinite(value).all() for value in arrays.values()):
            raise SiteError(Reason.NON_FINITE, "own code gave a number that is not finite")
        return arrays

    def _ask(
        self, what: str, request: Request, content: RecordDict, memory: Memory | None = None, *, data: bool = True
    ) -> tuple[dict[str, Any], RecordDict, RecordDict]:
        """Header, content and state of the answer; ``SiteError`` with its reason if there is none."""
        process = self._running(data)
        into, out = _pipes(process)
        header = {
            "ask": what, "name": request.name, "trust": request.trust, "run": memory.run if memory else "",
            "manifests": [str(self._folder / "site.toml")] if data else [""],
        }  # fmt: skip
        state = memory.state if memory else RecordDict()
        limit = 2 * self._site.manifest.policy.max_reply_mb * _MEGABYTE
        try:
            write_frame(into, header, [to_bytes(content), to_bytes(state)], self._study.federation.timeout)
            answered = read_frame(out, limit, self._study.federation.timeout)
            if answered is None:
                raise ValueError("it ended")
            head, parts = answered
            if "reason" in head:  # one code for all that goes wrong in it: a choice of codes would be a channel
                raise SiteError(Reason.CODE, f"{head['reason']}: {head.get('text', '')}"[:2000])
            return head, from_bytes(parts[0]), from_bytes(parts[1])
        except (OSError, ValueError, IndexError) as error:
            self.close()
            raise SiteError(Reason.CODE, f"the confined process of own code failed: {error}; see {LOG}") from error

    def _running(self, data: bool) -> subprocess.Popen[bytes]:
        found = self._processes.get(data)
        if found is None or found.poll() is not None:
            found = self._processes[data] = self._started(data)
        return found

    def _started(self, data: bool) -> subprocess.Popen[bytes]:
        readable, writable = self._prepared() if data else ([], [])
        home = str(self._folder / ".fedml") if data else "/"
        environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-P", "-I", "-m", "fedml.clients.work.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**environment, "HOME": home, "TMPDIR": home}, cwd="/", start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=logs.copy_lines, args=(process.stderr, self._log), daemon=True).start()
        into, out = _pipes(process)
        plan = {
            "readable": [str(path) for path in readable], "writable": [str(path) for path in writable],
            "code": [len(source) for source in self._code],
            "packages": [[[path, len(data)] for path, data in files.items()] for files in self._packages],
        }  # fmt: skip
        sources = b"".join([*self._code, *(data for files in self._packages for data in files.values())])
        try:
            os.set_blocking(into, False)
            write_frame(into, plan, [sources], seconds=_START_SECONDS)
            if read_frame(out, 0, _START_SECONDS) is None:
                raise ValueError("it ended")
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            raise SiteError(Reason.CODE, f"the confined process of own code did not start: {error}; see {LOG}") from error
        return process

    def _prepared(self) -> tuple[list[Path], list[Path]]:
        """What the process may read, and write: the data files of the study's inputs; a folder of its own with a copy of the manifest."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text, files = manifest_of(self._site, self._study)
        path = self._folder / f"site.toml.{secrets.token_hex(4)}"
        path.write_text(text, encoding="utf-8")
        path.replace(self._folder / "site.toml")
        (self._folder / ".fedml").mkdir(mode=0o700)
        return [self._folder, *files], [self._folder / ".fedml"]


def _pipes(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The descriptors of a process's standard input and output."""
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    return process.stdin.fileno(), process.stdout.fileno()


def manifest_of(site: Site, study: Study) -> tuple[str, list[Path]]:
    """A manifest with the study's inputs only, without connection, and the files that it names; paths are absolute."""
    data = site.manifest.data
    lines = ["[site]", f"name = {json.dumps(site.name)}", "[data]"]
    files = [_absolute(site, data.persons)]
    lines += [f"persons = {json.dumps(str(files[0]))}", f"id = {json.dumps(data.id)}", f"public = {json.dumps(data.public)}"]
    lines += [f"extremes = {json.dumps(list(data.extremes))}"]
    if data.split is not None:
        files.append(_absolute(site, data.split))
        lines.append(f"split = {json.dumps(str(files[-1]))}")
    for name, section in data.inputs.items():
        # Clinical columns may hold the groups of [evaluation], also where clinical values are no input.
        if name in study.cohort.inputs or (name == "clinical" and study.evaluation.labels()):
            values = section.model_dump(exclude_none=True)
            for key in _PATHS:
                if key in values:
                    files.append(_absolute(site, values[key]))
                    values[key] = str(files[-1])
            lines.append(f"{name} = {{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in values.items())} }}")
    policy = site.manifest.policy.model_dump(mode="json", exclude_none=True)
    lines += ["[policy]", *(f"{key} = {json.dumps(value)}" for key, value in policy.items()), "[compute]", 'device = "cpu"']
    return "\n".join(lines) + "\n", [near for file in files for near in _with_indexes(file)]


def _plain(reply: RecordDict) -> RecordDict:
    """``reply`` written anew from its names and numbers: nothing else of what a process with own code packed leaves the site."""
    if reply.config_records:
        raise SiteError(Reason.UNDECLARED, "own code answers with texts")
    out = RecordDict({name: pack(dict(sorted(unpack(record).items()))) for name, record in sorted(reply.array_records.items())})
    for name, values in sorted(reply.metric_records.items()):
        out[name] = MetricRecord(dict(sorted(values.items())))
    return out


def _remove(folder: Path) -> None:
    """Removes a folder of a confined process, whatever the process made of it: closed or very deep folders."""
    if folder.exists():
        for words in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*words, "--", str(folder)], check=False, stdin=subprocess.DEVNULL, capture_output=True)


def _absolute(site: Site, path: str) -> Path:
    found = (site.folder / path).resolve()
    connection = site.manifest.connection
    own = [site.state, site.file, *([site.folder / connection.key, site.folder / connection.root_certificates] if connection else [])]
    if any(place.resolve() in (found, *found.parents) or found in place.resolve().parents for place in own):
        raise InputError(
            f"{site.file}: {path} is, or holds, the site's state, key or manifest, which own code may not read; move the data."
        )
    return found


def _with_indexes(file: Path) -> list[Path]:
    """A file with its indexes and, of a PLINK set, its other files."""
    names = [file.name + end for end in (".tbi", ".csi", ".fai", ".gzi")]
    names += [other.name for other in companions(file)]
    return [file, *(path for name in names if (path := file.parent / name).is_file())]
