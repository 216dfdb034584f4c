"""``flower-supernode`` that waits less: ``python -m fedml.flower.supernode ARGUMENTS``; its arguments are Flower's.

With warm sites most of a round's time would be waiting. The SuperNode of flwr 1.41 sleeps 3 s whenever the SuperLink has nothing for it,
half a second between two looks for its own site's reply, and a second or more when it asks for a message's parts before the sender has
brought them all, which a quick node always does. Here these are shorter, and an executor that asks for a task is answered when there is
one, whole, so that it need not ask many times a second nor for parts that are not there. Nothing else is changed.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.servicer.runtime import runtime_handlers

import fedml  # noqa: F401 - switches telemetry off

# Seconds: between two questions to the SuperLink, each a signed request on an open connection; between two looks into the SuperNode's own
# memory; before a part of a message is asked for again, at first (it doubles) and at most; how long an executor's question is held.
ASK_NAP, LOOK_NAP = 0.2, 0.02
PART_NAP, LONGEST_PART_NAP = 0.05, 2.0
HOLD = 1.0

_receive, _acquire = start_client_internal._pull_and_store_message, runtime_handlers.acquire_task
_receiving, _received = threading.Lock(), threading.Event()


def nap(seconds: float) -> None:
    """Sleeps ``seconds`` at most, and no longer than what is waited for deserves: Flower looks into memory every half second."""
    time.sleep(min(seconds, ASK_NAP if seconds > 1 else LOOK_NAP))


def receive(**how: Any) -> int | None:
    """Flower's own, during which no task is given away: it makes the task before the message is whole."""
    with _receiving:
        run = _receive(**how)
    if run is not None:
        _received.set()
    return run


def acquire(request: AcquireTaskRequest, state: Any) -> AcquireTaskResponse:
    """Flower's own, once a message has been received or after ``HOLD``."""
    _received.wait(HOLD)
    _received.clear()
    if not _receiving.acquire(timeout=HOLD):  # the SuperLink does not answer
        return AcquireTaskResponse()
    try:
        return _acquire(request, state)
    finally:
        _receiving.release()


def main() -> None:
    """Runs Flower's command with these functions in the place of its own."""
    parts = partial(pull_objects, initial_backoff=PART_NAP, backoff_cap=LONGEST_PART_NAP, max_tries_per_object=None)
    clock = SimpleNamespace(**{**vars(time), "sleep": nap})
    vars(start_client_internal).update(time=clock, pull_objects=parts, _pull_and_store_message=receive)
    vars(runtime_handlers)["acquire_task"] = acquire
    flower_supernode()


if __name__ == "__main__":
    main()
