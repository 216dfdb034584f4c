"""The SuperLink's answers to nodes and server apps, with less work around each.

A federation's round is some fifty small requests a site, and most of what one costs at the centre is not Flower's work: each of the
SuperLink's nine middlewares starts a task group and a stream of its own (Starlette's ``BaseHTTPMiddleware``), every route is tried in turn,
and functions that look up one attribute run in another thread. Here the same middlewares run in the same order and call each other
directly, the path's own route is known, and such functions run where they are. All that Flower checks is checked by the same code.

    app = swift(app)                        # the paths of ``PATHS`` this way; every other goes Flower's way

Only for paths whose answer is one message: the answer is put together in memory before it is sent, as Flower makes it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from fastapi.dependencies import utils
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.protobuf.translation import get_protobuf_request
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.routers.fleet.router import get_enable_supernode_auth
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, _CachedRequest
from starlette.responses import Response
from starlette.routing import Match

from fedml.flower.strangers import App, Receive, Scope, Send

_FLEET = (
    "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
_RUNTIME = ("acquire-task", "send-task-heartbeat", "push-messages", "pull-messages", "push-object", "pull-object", "get-nodes")
PATHS = frozenset({*(f"/v1/fleet/{n}" for n in _FLEET), *(f"/v1/runtime/{n}" for n in (*_RUNTIME, "confirm-message-received"))})
_FUNCTIONS = (get_protobuf_request, get_linkstate, get_enable_supernode_auth)
# Seconds after which a thread that computes lets another one: a request passes through several threads, and Python's 5 ms are longer than
# what each does.
SWITCH = 0.0005


class Direct(BaseHTTPMiddleware):
    """A middleware's ``dispatch`` as Starlette calls it, without a task group; for answers that are not streams."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _CachedRequest(scope, receive)

        async def call_next(_: Any) -> Response:
            begun, body = dict[str, Any](), list[bytes]()

            async def collect(message: Any) -> None:
                if message["type"] == "http.response.start":
                    begun.update(message)
                else:
                    body.append(message.get("body", b""))

            await self.app(scope, request.wrapped_receive, collect)
            answer = Response(body[0] if len(body) == 1 else b"".join(body), begun["status"])
            answer.raw_headers = list(begun["headers"])
            return answer

        answer = await self.dispatch_func(request, call_next)
        await answer(scope, request.wrapped_receive, send)


def swift(app: Any) -> App:
    """``app``, a SuperLink's, with ``PATHS`` answered as described above."""
    ways = dict[str, App]()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path not in PATHS or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        if path not in ways:
            ways[path] = way(app, path)
        await ways[path](scope, receive, send)

    return answer


def way(app: Any, path: str) -> App:
    """A copy of ``app`` with its state and its middlewares, and of its routes the one of ``path``."""
    about = {"type": "http", "path": path, "method": "POST", "root_path": "", "path_params": {}, "headers": []}
    mine = copy.copy(app)
    mine.router = copy.copy(app.router)
    mine.router.routes = [route for route in app.router.routes if route.matches(dict(about))[0] is Match.FULL][:1]
    mine.user_middleware = [_direct(each) for each in app.user_middleware]
    mine.middleware_stack = None
    found: App = mine
    return found


def _direct(middleware: Middleware) -> Middleware:
    kind: Any = middleware.cls
    if not (isinstance(kind, type) and issubclass(kind, BaseHTTPMiddleware)):
        return middleware
    if kind.__call__ is not BaseHTTPMiddleware.__call__:  # it does more than ``dispatch``
        return middleware
    mixed = type(kind.__name__, (Direct,) if kind is BaseHTTPMiddleware else (Direct, kind), {})
    return Middleware(mixed, *middleware.args, **middleware.kwargs)


def hurry() -> None:
    """Switches on, for this process, what is not part of an application."""
    sys.setswitchinterval(SWITCH)
    in_thread = vars(utils)["run_in_threadpool"]

    async def solved(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if call in _FUNCTIONS or isinstance(call, VersionDependency):  # they look at the request's headers or at an attribute
            return call(*args, **named)
        return await in_thread(call, *args, **named)

    vars(utils)["run_in_threadpool"] = solved
