"""The SuperLink's answers to nodes and server apps, with less work around each.

A federation's round is some thirty small requests a site, and most of what one costs at the centre is not Flower's work: each of the
SuperLink's nine middlewares starts a task group and a stream of its own (Starlette's ``BaseHTTPMiddleware``), every route is tried in turn,
and each function is handed to another thread, which then competes with the others for the interpreter. Here the same middlewares run in the
same order and call each other directly, the path's own route is known, and the functions run where they are, one request after the other.
All that Flower checks is checked by the same code.

    app = swift(app, CENTRE)                # these paths this way; every other goes Flower's way

A site's SuperNode answers the site's process in the same way.

Only for paths whose answer is one message: the answer is put together in memory before it is sent, as Flower makes it. A request that
brings a large part of a message is stored by a thread, so that the others do not wait for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any

from fastapi.dependencies import utils
from flwr.supercore.protobuf import routing
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, _CachedRequest
from starlette.responses import Response
from starlette.routing import Match

from fedml.flower.strangers import App, Receive, Scope, Send

_FLEET = (
    "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
_RUNTIME = ("send-task-heartbeat", "push-messages", "pull-messages", "push-object", "pull-object", "confirm-message-received")
CENTRE = frozenset({*(f"/v1/fleet/{n}" for n in _FLEET), *(f"/v1/runtime/{n}" for n in (*_RUNTIME, "acquire-task", "get-nodes"))})
SITE = frozenset(f"/v1/runtime/{n}" for n in (*_RUNTIME, "pull-task-input", "push-task-output"))  # not the request for a task, which waits
LARGE = 256 * 1024  # bytes of a request from which on threads do its work
_here: ContextVar[bool] = ContextVar("here", default=False)


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


def swift(app: Any, paths: Collection[str]) -> App:
    """``app``, Flower's, with ``paths`` answered as described above."""
    ways = dict[str, App]()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path not in paths or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        if path not in ways:
            ways[path] = way(app, path)
        _here.set(is_small(scope))
        await ways[path](scope, receive, send)

    return answer


def is_small(scope: Scope) -> bool:
    """Whether a request says that its body is small."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return length.isdigit() and int(length) <= LARGE


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
    mixed: Any = type(kind.__name__, (Direct,) if kind is BaseHTTPMiddleware else (Direct, kind), {})
    return Middleware(mixed, *middleware.args, **middleware.kwargs)


async def run(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """``call``'s result; computed in this thread for a small request of ``swift``'s paths, in another one else."""
    return call(*args, **named) if _here.get() else await run_in_threadpool(call, *args, **named)


def hurry() -> None:
    """Lets Flower's application compute in this thread where ``swift`` says so."""
    for module in (utils, routing):
        vars(module)["run_in_threadpool"] = run
