"""Faults at a site, the same on each engine: a file names the fault that the work of site b meets in round 2.

    client.execute = faults.execute      in the process of the local engine; ``tests.faulty_app`` does so in those of a simulation
    python -m tests.faults SITE          a real site (``fedml-site start``)

FEDML_FAULT: the file. A site at which nothing is to fail is not touched.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict

from fedml.clients.work import client, known
from fedml.wire.records import ARRAYS, Phase, array_record, pack, unpack_tensors

SITE, ROUND, FILE = "b", 2, "FEDML_FAULT"


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def without_memory() -> Any:
    """An allocation that the operating system refuses: the real error of torch under a real limit."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, before[1]))
    try:
        return torch.empty(2_000_000_000).sum()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass(frozen=True)
class Fault:
    """``work``: fails in place of the site's work. ``factor``: of its update otherwise. ``code``: in the record, of that round."""

    code: str
    work: Callable[[], Any] | None = None
    factor: float = 1.0


AT_A_SITE: dict[str, Fault] = {
    "out of memory": Fault("out-of-memory", without_memory),
    "out of memory of an accelerator": Fault("out-of-memory", raising(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))),
    "accelerator lost": Fault("internal", raising(RuntimeError("CUDA error: device-side assert triggered"))),
    "disk full": Fault("disk-full", raising(OSError(errno.ENOSPC, "No space left on device", "/srv/oslo-017.nii"))),
    "loss is not a number": Fault("non-finite", raising(FloatingPointError("the training loss or a weight is not finite"))),
    "NaN update": Fault("non-finite", factor=float("nan")),
    "update 1,000 times too large": Fault("implausible", factor=1000.0),
}
_execute = client.execute


def struck(name: str, real: Callable[..., RecordDict], request: Any, content: RecordDict, memory: Any) -> RecordDict:
    """A site's work in a round with the fault of that name; "": without."""
    fault = AT_A_SITE[name] if name else Fault("")
    if fault.work is not None:
        fault.work()
    arrived = {key: value.clone() for key, value in unpack_tensors(array_record(content, ARRAYS)).items()}
    reply = real(request, content, memory)
    if fault.factor != 1:
        trained = unpack_tensors(array_record(reply, ARRAYS))
        reply[ARRAYS] = pack({key: arrived[key] + fault.factor * (value - arrived[key]) for key, value in trained.items()})
    return reply


def execute(request: Any, content: RecordDict, memory: Any) -> RecordDict:
    """The work of a site, with the fault that the file names."""
    name = Path(os.environ[FILE]).read_text().strip()
    if (request.name, request.phase, request.round) != (SITE, Phase.ROUND, ROUND):
        return _execute(request, content, memory)
    return struck(name, _execute, request, content, memory)


if __name__ == "__main__":
    from fedml.clients.service import run_site
    from fedml.clients.site.manifest import read_site

    known.execute = execute  # type: ignore[attr-defined]
    run_site(read_site(Path(sys.argv[1])))
