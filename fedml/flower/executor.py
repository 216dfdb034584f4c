"""The site executor's loop: takes tasks from a SuperNode started with ``--isolation process`` and answers them in this process.

The app bundle (FAB) from the SuperNode is discarded: it is never unpacked, put on ``sys.path`` or imported. Only the message, which is
data, reaches ``handle``. Uses the Runtime API of flwr 1.42.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

log = logging.getLogger("fedml.site")
Handle = Callable[[Message, Context], Message]
# Seconds between requests for a task (``fedml.flower.supernode`` delays its reply until there is one), and the longest pause after
# failures.
_POLL_SECONDS, _MAX_POLL_SECONDS = 0.05, 1.0
_FIRST_HEARTBEAT_SECONDS = 5.0  # a SuperNode drops a claimed task after 30 without a heartbeat
# A task is handed out when its message is whole (``fedml.flower.supernode``), or when its run ended in between: then the rest never comes,
# and Flower would wait for it for an hour, with every later run behind it.
_PART_SECONDS = 5.0
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


def _client(address: str, tries: int, *interceptors: Any) -> RuntimeHttpClient:
    """A client of the SuperNode. ``tries`` limits Flower's retries, whose pauses grow to minutes and would delay a reconnection."""
    retries = make_simple_http_retry_invoker()
    retries.max_tries = tries
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # loopback, between two processes of one user
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), *interceptors],
        retry_invoker=retries,
    )


def serve(address: str, secret: bytes, handle: Handle, stop: threading.Event) -> None:
    """Answers tasks of the SuperNode at ``address`` (host:port, loopback) until ``stop`` is set.

    Args:
        secret: shared with the SuperNode, so that no other user of this machine can take a task.
        handle: returns the reply to a message; must not raise.
    """
    vars(run_clientapp)["pull_and_inflate_object_from_tree"] = partial(
        pull_and_inflate_object_from_tree, max_time=_PART_SECONDS, initial_backoff=0.05, backoff_cap=1.0
    )
    runtime = _client(address, 1, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE))
    pause = _POLL_SECONDS
    try:
        while not stop.is_set():
            try:
                answer = runtime.AcquireTask(AcquireTaskRequest(supported_task_types={TaskType.CLIENT_APP}))
                if answer.HasField("task") and answer.token:
                    _answer_task(address, answer.token, handle)
                    pause = _POLL_SECONDS
                    continue
                pause = _POLL_SECONDS
            except Exception as error:  # the SuperNode may restart or the network fail for a moment; the site keeps running
                if stop.is_set():
                    return
                if pause == _POLL_SECONDS:  # log once, not with every retry
                    log.warning("no answer from the SuperNode, retrying until it answers: %s: %s", type(error).__name__, error)
                pause = min(max(2 * pause, 0.2), _MAX_POLL_SECONDS)
            stop.wait(pause)
    finally:
        runtime.close()


def _answer_task(address: str, token: str, handle: Handle) -> None:
    task = _client(address, 5, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(task))
    later = threading.Timer(_FIRST_HEARTBEAT_SECONDS, heartbeat.start)  # most messages are answered earlier
    later.start()
    try:
        message, context, _, _ = pull_task_input(task)  # ignores the run and the FAB
        push_message(task, handle(message, context), context)
        push_task_output(client=task, context=context, sub_status=SubStatus.COMPLETED, details="")
    finally:
        later.cancel()
        later.join()
        if heartbeat.is_running:
            heartbeat.stop()
        task.close()
