"""``flower-superlink`` with two ports: ``python -m fedml.flower.front --public HOST:PORT --public-certificate F --public-key F ARGUMENTS``.

The SuperLink of flwr 1.42 serves all its APIs at one port and authenticates only nodes: every client that reaches the port could register
nodes, submit a ServerApp (which then runs on the server) or take a ServerApp's task. Here Flower's own port (``--host`` and ``--port`` of
ARGUMENTS) is for this machine only; the same process serves a public port with the Fleet API and ``/health`` only. It also starts Flower's
SuperExec, the parent of every ServerApp, again if that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import asyncio.constants
import asyncio.sslproto
import importlib
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from flwr.superlink.cli import flower_superlink
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.routers.fleet import node_auth
from flwr.superlink.routers.fleet.router import router

import fedml  # noqa: F401 - switches telemetry off
from fedml.flower.heard import Heard, hearing
from fedml.flower.held import FLEET, NODE, RUNTIME, SERVER, Arrivals, held, watch
from fedml.flower.strangers import (
    ACCEPTED,
    BACKLOG,
    CLOSING_SECONDS,
    HANDSHAKE_SECONDS,
    App,
    FrugalTLS,
    Hurried,
    checked_key,
    limited,
    proven,
)
from fedml.flower.swift import CENTRE, hurry, run, swift

# Complete paths, so that access does not depend on how prefixes are matched.
OPEN = frozenset({"/health", *(str(getattr(route, "path", "")) for route in router.routes)})
_POLL_SECONDS = 0.1  # between checks whether Flower's server has ended
# A node's connection stays open between its requests, so that not each is preceded by a TLS handshake; longer than the pause between two
# heartbeats. A stranger's is closed after its answer.
KEPT_SECONDS = 75
_RESTART_SECONDS = 1.0  # before SuperExec is started again, so that one that cannot start does not use a processor


def only_fleet(app: App) -> App:
    """``app`` restricted to the paths in ``OPEN``; other paths answer 404. HTTP only."""

    async def guarded(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] == "http" and scope["path"] in OPEN:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return guarded


class KeptLifespan(SuperLinkLifespan):
    """Flower's, with a thread that starts SuperExec again: without it the SuperLink accepts runs and starts none. Final."""

    ending = False

    def _start_superexec_if_needed(self) -> None:
        super()._start_superexec_if_needed()
        if self.superexec_process is not None:
            threading.Thread(target=self._keep_superexec, name="keep-superexec", daemon=True).start()

    def _keep_superexec(self) -> None:
        while not self.ending:
            time.sleep(_RESTART_SECONDS)
            process = self.superexec_process
            if not self.ending and process is not None and process.poll() is not None:
                logging.getLogger("uvicorn.error").warning("SuperExec ended (exit code %s) and is started again", process.returncode)
                super()._start_superexec_if_needed()

    def shutdown(self) -> None:
        """Flower's end."""
        self.ending = True
        super().shutdown()


async def _both(inner: uvicorn.Server, outer: uvicorn.Server, ending: Callable[[], None]) -> None:
    """Runs both servers until the inner server ends, and calls ``ending`` then; signals go to the inner server."""
    sockets = [outer.config.bind_socket()]  # before anything starts, so that an occupied port ends the command here

    async def public() -> None:
        while not inner.started:
            if inner.should_exit:
                return
            await asyncio.sleep(_POLL_SECONDS)
        serving = asyncio.create_task(outer._serve(sockets))
        while not outer.started and not serving.done():
            await asyncio.sleep(_POLL_SECONDS)
        sockets[0].listen(BACKLOG)  # asyncio has one number for the queue and for how many it accepts together
        while not inner.should_exit:
            await asyncio.sleep(_POLL_SECONDS)
        ending()
        outer.should_exit = True
        await serving

    await asyncio.gather(inner.serve(), public())


def main() -> None:
    """Runs Flower's command with its server and the public server in one process."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--public", "--public-certificate", "--public-key"):
        parser.add_argument(name, required=True)
    options, rest = parser.parse_known_args()
    host, _, port = options.public.rpartition(":")
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT, asyncio.constants.SSL_SHUTDOWN_TIMEOUT = HANDSHAKE_SECONDS, CLOSING_SECONDS
    vars(asyncio.sslproto)["SSLProtocol"] = FrugalTLS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard) if hard != resource.RLIM_INFINITY else max(soft, 65_536), hard))

    def serve_both(app: Any, **settings: Any) -> None:
        def node_of(key: bytes) -> Any:
            return app.state.linkstate_factory.state().get_node_id_by_public_key(key)

        async def serve() -> None:
            heard = Heard(Path(os.environ["FLWR_HOME"]))
            heard.keep()
            arrivals = Arrivals(asyncio.get_running_loop(), heard)
            watch(arrivals)
            quick = swift(app, CENTRE)
            alone = held(quick, {RUNTIME: SERVER}, arrivals)
            inner = uvicorn.Server(uvicorn.Config(alone, **{**settings, "proxy_headers": False}))
            nodes = hearing(held(quick, {FLEET: NODE}, arrivals), heard)
            outer = uvicorn.Config(
                only_fleet(limited(nodes, node_of)), http=Hurried, loop="asyncio", host=host.strip("[]"),
                port=int(port), ssl_certfile=options.public_certificate, ssl_keyfile=options.public_key,
                backlog=ACCEPTED, lifespan="off", access_log=False, proxy_headers=False, server_header=False, log_config=None,
                timeout_keep_alive=KEPT_SECONDS,
            )  # fmt: skip
            await _both(inner, uvicorn.Server(outer), arrivals.end)

        asyncio.run(serve())

    # By its name: the package has a function that is called like the module.
    vars(importlib.import_module("flwr.superlink.cli.flower_superlink")).update(
        uvicorn=SimpleNamespace(run=serve_both), SuperLinkLifespan=KeptLifespan
    )
    hurry()
    vars(node_auth).update(run_in_threadpool=run, bytes_to_public_key=checked_key, verify_signature=proven)
    sys.argv = ["flower-superlink", *rest]
    flower_superlink()


if __name__ == "__main__":
    main()
