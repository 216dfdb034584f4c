"""``flower-superlink`` with two doors: ``python -m fedml.flower.front --public HOST:PORT --public-certificate F --public-key F ARGUMENTS``.

The SuperLink of flwr 1.41 serves everything at one port, and only what nodes send is authenticated: whoever reaches that port may also
register nodes, submit a ServerApp (which then runs on the server) or take one's task. Here Flower's own port, ``--host`` and ``--port`` of
ARGUMENTS, is for this machine; the public one is served by the same process and knows the Fleet API and ``/health``, nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any

import uvicorn
from flwr.superlink.cli import flower_superlink
from flwr.superlink.routers.fleet.router import router

import fedml  # noqa: F401 - switches telemetry off

App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
# Whole paths, so that nothing hangs on how a prefix is read.
OPEN = frozenset({"/health", *(str(getattr(route, "path", "")) for route in router.routes)})
_TICK = 0.1  # seconds between two looks at whether Flower's own server ends


def only_fleet(app: App) -> App:
    """``app`` with the paths of ``OPEN``; any other is 404, as if there were no such thing. HTTP only."""

    async def guarded(
        scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http" and scope["path"] in OPEN:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return guarded


async def _both(inner: uvicorn.Server, outer: uvicorn.Server) -> None:
    """Serves at both until the inner one ends, which is the one that signals reach."""
    sockets = [outer.config.bind_socket()]  # before anything starts: a port that is taken ends the command here

    async def public() -> None:
        while not inner.started:
            if inner.should_exit:
                return
            await asyncio.sleep(_TICK)
        serving = asyncio.create_task(outer._serve(sockets))
        while not inner.should_exit:
            await asyncio.sleep(_TICK)
        outer.should_exit = True
        await serving

    await asyncio.gather(inner.serve(), public())


def main() -> None:
    """Runs Flower's command with its server and ours side by side."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--public", "--public-certificate", "--public-key"):
        parser.add_argument(name, required=True)
    ours, rest = parser.parse_known_args()
    host, _, port = ours.public.rpartition(":")

    def run(app: App, **options: Any) -> None:
        inner = uvicorn.Server(uvicorn.Config(app, **{**options, "proxy_headers": False}))
        outer = uvicorn.Config(
            only_fleet(app), host=host.strip("[]"), port=int(port), ssl_certfile=ours.public_certificate, ssl_keyfile=ours.public_key,
            lifespan="off", access_log=False, proxy_headers=False, server_header=False, log_config=None,
        )  # fmt: skip
        asyncio.run(_both(inner, uvicorn.Server(outer)))

    vars(importlib.import_module("flwr.superlink.cli.flower_superlink"))["uvicorn"] = SimpleNamespace(run=run)
    sys.argv = ["flower-superlink", *rest]
    flower_superlink()


if __name__ == "__main__":
    main()
