"""The site executor's loop: takes tasks from a SuperNode started with ``--isolation process`` and answers them itself.

The FAB that the SuperNode hands over is dropped unread: it is never unpacked, put on ``sys.path`` or imported. Only the message, which is
data, reaches ``handle``. Uses Flower's Runtime API as flwr 1.41 has it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

log = logging.getLogger("fedml.site")
Handle = Callable[[Message, Context], Message]
_NAP, _LONGEST_NAP = 0.05, 1.0  # seconds: between two questions for a task, each of which our SuperNode holds; after repeated failures
_FIRST_HEARTBEAT = 5.0  # seconds; a SuperNode gives a claimed task 30
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


def _client(address: str, tries: int, *interceptors: Any) -> RuntimeHttpClient:
    """``tries``: Flower's own retries wait longer and longer, up to minutes, in which a SuperNode that is back would not be noticed."""
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
        handle: must not raise; what it returns is sent.
    """
    runtime = _client(address, 1, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE))
    nap = _NAP
    try:
        while not stop.is_set():
            try:
                answer = runtime.AcquireTask(AcquireTaskRequest(supported_task_types={TaskType.CLIENT_APP}))
                if answer.HasField("task") and answer.token:
                    _one_task(address, answer.token, handle)
                    nap = _NAP
                    continue
                nap = _NAP
            except Exception as error:  # the SuperNode restarts, the network blinks: the site stays
                if stop.is_set():
                    return
                if nap == _NAP:  # once, not with every try
                    log.warning("no answer from the SuperNode, trying again until there is one: %s: %s", type(error).__name__, error)
                nap = min(max(2 * nap, 0.2), _LONGEST_NAP)
            stop.wait(nap)
    finally:
        runtime.close()


def _one_task(address: str, token: str, handle: Handle) -> None:
    task = _client(address, 5, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(task))
    later = threading.Timer(_FIRST_HEARTBEAT, heartbeat.start)  # most messages are answered before one is due
    later.start()
    try:
        message, context, _, _ = pull_task_input(task)  # the run and the FAB are not looked at
        push_message(task, handle(message, context), context)
        push_task_output(client=task, context=context, sub_status=SubStatus.COMPLETED, details="")
    finally:
        later.cancel()
        later.join()
        if heartbeat.is_running:
            heartbeat.stop()
        task.close()
