"""``flower-supernode`` with shorter waiting times: ``python -m fedml.flower.supernode ARGUMENTS``, with Flower's arguments.

With running sites most of a round's time would be waiting. The SuperNode of flwr 1.42 sleeps 3 s whenever the SuperLink has no message,
half a second between checks for its site's reply, and a second or more when it requests parts of a message that the sender has not uploaded
yet, which is usual for a fast node. Here these times are shorter, and the reply to an executor's request for a task is delayed until a
complete task is available, so that the executor need not poll often or request missing parts.
Heartbeats are sent twice as often.

A site without messages asks and waits for the answer (``fedml.flower.held``), which comes when there is a message. Of a centre that answers
at once, it asks less and less often, after a minute every 3 s as Flower's.

A reply is sent when it is there. Flower sends one only after the next message: where a run ended while its message was received, that
message's reply is left over, takes the place of the next one, and the next run's first reply waits until its time is over.
Nothing else is changed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore import heartbeat
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode import main as supernode
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.servicer.runtime import runtime_handlers

import fedml  # noqa: F401 - switches telemetry off
from fedml.flower.address import PROGRESS, WAIT
from fedml.flower.parent import end_with_parent
from fedml.flower.swift import SITE, hurry, swift

# Seconds: for which a centre may keep an empty answer back, while there is nothing else to do, and while a reply may have to be sent; from
# which on an answer was kept back.
WAIT_IDLE, WAIT_BUSY, KEPT_BACK = 20, 1, 0.9
# Seconds: between requests to a SuperLink that answers at once, at least and at most (each is signed and takes the centre about 20 ms, so
# that many sites that asked five times a second would fill its processor while nothing runs); between checks of the SuperNode's memory;
# before a missing part of a message is requested again, first (it doubles) and at most; how long the reply to an executor's request is
# delayed, and by a message that is being received.
ASK_NAP, LONGEST_ASK_NAP, LOOK_NAP = 0.2, 3.0, 0.01
ASK_SHARE = 0.05  # a site that waits for the others of a round asks at intervals of this share of the time since its last message
PART_NAP, LONGEST_PART_NAP = 0.05, 2.0
HOLD, RECEIVING = 20.0, 1.0
# After two missed heartbeats a killed node counts as gone, and its key can come back: 30 s in place of Flower's 60.
HEARTBEAT = 15
PROGRESS_FILE = "FEDML_PROGRESS"  # environment variable: the file with the progress
PERCENTS = frozenset(str(percent) for percent in range(0, 101, 10))
KEPT_SECONDS = 60  # a connection to the SuperLink stays open between two requests, or heartbeats; less than the centre's

_receive, _acquire = start_client_internal._pull_and_store_message, runtime_handlers.acquire_task
_receiving, _received, _ending = threading.Lock(), threading.Event(), threading.Event()
_last = {"message": time.monotonic(), "took": 0.0, "wait": float(WAIT_BUSY)}


def ask_nap(quiet: float, took: float = 0.0) -> float:
    """Seconds until the next request to the SuperLink.

    Args:
        quiet: seconds since the last message.
        took: seconds that the last answer, which was empty, took: one that was kept back until its time was over needs no pause.
    """
    return 0.0 if took >= KEPT_BACK else min(max(ASK_NAP, ASK_SHARE * quiet), LONGEST_ASK_NAP)


def nap(seconds: float) -> None:
    """Sleeps ``ask_nap`` in place of Flower's pause between requests (above 1 s), ``LOOK_NAP`` in place of its pause between memory
    checks."""
    time.sleep(min(seconds, ask_nap(time.monotonic() - _last["message"], _last["took"]) if seconds > 1 else LOOK_NAP))


class PatientClient(FleetHttpClient):
    """Flower's client of the SuperLink, which says how long it is ready to wait for a message, and keeps its connections open. Final."""

    def __init__(self, base_url: str, *, interceptors: Sequence[Any], verify: Any, **how: Any) -> None:
        super().__init__(base_url, interceptors=[*interceptors, self], verify=verify, **how)
        timeout, limits = self._client.timeout, httpx.Limits(keepalive_expiry=KEPT_SECONDS)
        self._client.close()
        self._client = httpx.Client(verify=verify, timeout=timeout, follow_redirects=True, limits=limits)

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Adds the headers to a request for messages, and to a heartbeat."""
        if context.rpc_method.endswith("/PullMessages"):
            context.request.headers[WAIT] = f"{_last['wait']:.0f}"
        percent = told_progress(os.environ.get(PROGRESS_FILE, "")) if context.rpc_method.endswith("/SendNodeHeartbeat") else None
        if percent is not None:
            context.request.headers[PROGRESS] = str(percent)
        try:
            answer = call_next(context)
        except httpx.TransportError as error:
            # Flower takes any error that names TLS for a wrong certificate and ends. One that comes after an answer, and is not about the
            # certificate, is of the way: a connection that was cut, or bytes that were changed.
            if _last.get("reached") and "certificate" not in str(error).lower():
                raise type(error)("the connection ended") from error
            raise
        _last["reached"] = 1.0
        return answer


def receive(*, state: Any, receive: Callable[[], Any], **how: Any) -> int | None:
    """Flower's function. From the message's announcement until it is complete a lock blocks ``acquire``, because Flower creates the task
    before the message is complete. Any number in place of None makes Flower send the replies that are there."""
    if not _last.get("known"):
        _last["known"] = 1.0
        add_exit_handler(end)  # after Flower's, which waits for the executor's request: it is called before that
    began, _last["wait"] = time.monotonic(), float(WAIT_IDLE if is_idle(state) else WAIT_BUSY)
    with ExitStack() as until_complete:

        def announced() -> Any:
            found = receive()
            _last["took"] = time.monotonic() - began
            if found is not None:
                until_complete.enter_context(_receiving)
            return found

        run = _receive(state=state, receive=announced, **how)
    if run is None:
        return 0 if replies_wait(state) else None
    _last["message"] = time.monotonic()
    _received.set()
    return run


def told_progress(file: str) -> int | None:
    """The percent that the site's gate wrote to ``file``, in tens; None where there is nothing, or anything else."""
    try:
        text = Path(file).read_text() if file else ""
    except (OSError, ValueError):
        return None
    return int(text) if text in PERCENTS else None


def is_idle(state: Any) -> bool:
    """Whether the SuperNode's memory (``InMemoryNodeState``) has no message: nothing that an executor works at, no reply to be sent."""
    with state.lock_msg_store:
        return not state.msg_store


def replies_wait(state: Any) -> bool:
    """Whether the SuperNode's memory has a reply that was not sent."""
    with state.lock_msg_store:
        return any(entry.message.metadata.reply_to_message_id and not entry.is_retrieved for entry in state.msg_store.values())


def acquire(request: AcquireTaskRequest, state: Any) -> AcquireTaskResponse:
    """Flower's function, called after a message has been received or after ``HOLD`` seconds."""
    _received.wait(HOLD)
    _received.clear()
    if _ending.is_set() or not _receiving.acquire(timeout=RECEIVING):
        return AcquireTaskResponse()
    try:
        return _acquire(request, state)
    finally:
        _receiving.release()


def end() -> None:
    """Ends the delay of the executor's request: the SuperNode ends."""
    _ending.set()
    _received.set()


def main() -> None:
    """Runs Flower's command with these functions in place of Flower's; ends with the process that started it."""
    end_with_parent()
    parts = partial(pull_objects, initial_backoff=PART_NAP, backoff_cap=LONGEST_PART_NAP, max_tries_per_object=None)
    clock = SimpleNamespace(**{**vars(time), "sleep": nap})
    vars(start_client_internal).update(time=clock, pull_objects=parts, _pull_and_store_message=receive)
    vars(fleet_http_connection)["FleetHttpClient"] = PatientClient
    vars(heartbeat)["HEARTBEAT_DEFAULT_INTERVAL"] = vars(fleet_http_connection)["HEARTBEAT_DEFAULT_INTERVAL"] = HEARTBEAT
    vars(runtime_handlers)["acquire_task"] = acquire
    create = supernode.create_app
    vars(supernode)["create_app"] = lambda **how: swift(create(**how), SITE)
    hurry()
    flower_supernode()


if __name__ == "__main__":
    main()
