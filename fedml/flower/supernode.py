"""``flower-supernode`` with shorter waiting times: ``python -m fedml.flower.supernode ARGUMENTS``, with Flower's arguments.

With running sites most of a round's time would be waiting. The SuperNode of flwr 1.42 sleeps 3 s whenever the SuperLink has no message,
half a second between checks for its site's reply, and a second or more when it requests parts of a message that the sender has not uploaded
yet, which is usual for a fast node. Here these times are shorter, and the reply to an executor's request for a task is delayed until a
complete task is available, so that the executor need not poll often or request missing parts.
A site without messages asks less and less often, after a minute every 3 s as Flower's. Heartbeats are sent twice as often.

A reply is sent when it is there. Flower sends one only after the next message: where a run ended while its message was received, that
message's reply is left over, takes the place of the next one, and the next run's first reply waits until its time is over.
Nothing else is changed.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore import heartbeat
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.servicer.runtime import runtime_handlers

import fedml  # noqa: F401 - switches telemetry off
from fedml.flower.parent import end_with_parent

# Seconds: between requests to the SuperLink, at least and at most (each is signed and takes the centre about 20 ms, so that many sites
# that asked five times a second would fill its processor while nothing runs); between checks of the SuperNode's memory; before a missing
# part of a message is requested again, first (it doubles) and at most; how long the reply to an executor's request is delayed.
ASK_NAP, LONGEST_ASK_NAP, LOOK_NAP = 0.2, 3.0, 0.02
ASK_SHARE = 0.05  # a site that waits for the others of a round asks at intervals of this share of the time since its last message
PART_NAP, LONGEST_PART_NAP = 0.05, 2.0
HOLD = 1.0
# After two missed heartbeats a killed node counts as gone, and its key can come back: 30 s in place of Flower's 60.
HEARTBEAT = 15

_receive, _acquire = start_client_internal._pull_and_store_message, runtime_handlers.acquire_task
_receiving, _received = threading.Lock(), threading.Event()
_last = {"message": time.monotonic()}


def ask_nap(quiet: float) -> float:
    """Seconds until the next request to the SuperLink, ``quiet`` seconds after the last message."""
    return min(max(ASK_NAP, ASK_SHARE * quiet), LONGEST_ASK_NAP)


def nap(seconds: float) -> None:
    """Sleeps ``ask_nap`` in place of Flower's pause between requests (above 1 s), ``LOOK_NAP`` in place of its pause between memory
    checks."""
    time.sleep(min(seconds, ask_nap(time.monotonic() - _last["message"]) if seconds > 1 else LOOK_NAP))


def receive(**how: Any) -> int | None:
    """Flower's function under a lock that blocks ``acquire``, because Flower creates the task before the message is complete. Any number
    in place of None makes Flower send the replies that are there."""
    with _receiving:
        run = _receive(**how)
    if run is None:
        return 0 if replies_wait(how["state"]) else None
    _last["message"] = time.monotonic()
    _received.set()
    return run


def replies_wait(state: Any) -> bool:
    """Whether the SuperNode's memory (``InMemoryNodeState``) has a reply that was not sent."""
    with state.lock_msg_store:
        return any(entry.message.metadata.reply_to_message_id and not entry.is_retrieved for entry in state.msg_store.values())


def acquire(request: AcquireTaskRequest, state: Any) -> AcquireTaskResponse:
    """Flower's function, called after a message has been received or after ``HOLD`` seconds."""
    _received.wait(HOLD)
    _received.clear()
    if not _receiving.acquire(timeout=HOLD):  # the SuperLink does not answer
        return AcquireTaskResponse()
    try:
        return _acquire(request, state)
    finally:
        _receiving.release()


def main() -> None:
    """Runs Flower's command with these functions in place of Flower's; ends with the process that started it."""
    end_with_parent()
    parts = partial(pull_objects, initial_backoff=PART_NAP, backoff_cap=LONGEST_PART_NAP, max_tries_per_object=None)
    clock = SimpleNamespace(**{**vars(time), "sleep": nap})
    vars(start_client_internal).update(time=clock, pull_objects=parts, _pull_and_store_message=receive)
    vars(heartbeat)["HEARTBEAT_DEFAULT_INTERVAL"] = vars(fleet_http_connection)["HEARTBEAT_DEFAULT_INTERVAL"] = HEARTBEAT
    vars(runtime_handlers)["acquire_task"] = acquire
    flower_supernode()


if __name__ == "__main__":
    main()
