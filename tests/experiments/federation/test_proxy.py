"""A proxy in the environment gets no request of a machine to itself, and still gets the others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.command import ROOT

ASK = {
    "httpx": "import httpx; print(httpx.get(url, timeout=5).text)",
    "requests": "import requests; print(requests.get(url, timeout=5).text)",
    "urllib": "import urllib.request; print(urllib.request.urlopen(url, timeout=5).read().decode())",
}


@contextmanager
def server(text: str) -> Iterator[int]:
    """A server on loopback that answers ``text``; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield served.server_port
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


def ask(library: str, url: str, start: str, **environment: str) -> str:
    """What a process of this library gets from ``url``."""
    code = f"{start}\nurl = {url!r}\n{ASK[library]}"
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip()


@pytest.mark.parametrize("library", ASK)
@pytest.mark.parametrize("given", [{}, {"no_proxy": "example.org"}, {"NO_PROXY": "example.org"}], ids=["none", "lower case", "upper case"])
def test_a_request_to_this_machine_does_not_go_to_the_proxy(library: str, given: dict[str, str]) -> None:
    with server("site") as own, server("proxy") as proxy:
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), f"http://127.0.0.1:{proxy}")
        for host in ("127.0.0.1", "localhost"):
            assert ask(library, f"http://{host}:{own}/", "import fedml", **proxies, **given) == "site"
        assert ask(library, "http://elsewhere.invalid/", "import fedml", **proxies, **given) == "proxy", "others still do"


@pytest.mark.parametrize("library", ASK)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_the_hosts_that_a_user_excludes_stay_excluded(library: str, name: str) -> None:
    with server("proxy") as proxy:
        environment = {"http_proxy": f"http://127.0.0.1:{proxy}", name: "own.invalid"}
        assert ask(library, "http://other.invalid/", "import fedml", **environment) == "proxy"
        assert ask(library, "http://own.invalid/", "import fedml", **environment) == "", "asked directly, and there is no such host"


@pytest.mark.parametrize("library", ASK)
def test_without_it_the_proxy_gets_them(library: str) -> None:
    with server("site") as own, server("proxy") as proxy:
        assert ask(library, f"http://127.0.0.1:{own}/", "", http_proxy=f"http://127.0.0.1:{proxy}") == "proxy"
