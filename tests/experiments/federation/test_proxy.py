"""A proxy in the environment gets no request of a machine to itself, and still gets the others: those of a site to its centre too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedml.clients.site.manifest import read_site
from fedml.errors import InputError
from fedml.experiments.federation.centre import read_centre
from fedml.flower.address import node_environment, proxy_for
from tests.command import ROOT
from tests.conftest import clinical_site
from tests.federated import PROXIES, centre_up, doctor, forward_proxy, join_centre, service_up

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


# The way to the centre, with a real centre, a real site and a forward proxy that resolves the centre's name, which nothing else can.
HOST, SECRET = "centre.federation.example", "site-a:s3cret-w0rd"


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A centre with a certificate for a name that this machine cannot resolve."""
    with centre_up(tmp_path_factory.mktemp("centre") / "home", HOST, "127.0.0.1") as home:
        yield home


def written(folder: Path) -> str:
    """All that the site has written."""
    return "".join(path.read_text(errors="replace") for path in (*(folder / ".fedml").rglob("*"), folder / "start.out") if path.is_file())


@pytest.mark.long
@pytest.mark.parametrize("place", ["site.toml", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_site_joins_through_a_proxy_that_wants_a_password(centre: Path, tmp_path: Path, place: str) -> None:
    name = {"site.toml": "a", "HTTPS_PROXY": "b", "https_proxy": "c", "ALL_PROXY": "d"}[place]
    clinical_site(tmp_path, name, 30, 1)
    with forward_proxy(secret=SECRET) as proxy:
        line, environment = (f'proxy = "{proxy.url}"\n', {}) if place == "site.toml" else ("", {place: proxy.url})
        join_centre(tmp_path, centre, HOST, line, name=name)
        with service_up(tmp_path, **environment):
            assert f"CONNECT {HOST}:{read_centre(centre).port} HTTP/1.1" in proxy.asked
            before = len(proxy.asked)
            done = doctor(tmp_path, **environment)
        assert len(proxy.asked) > before
    assert done.returncode == 0, done.stdout
    assert "TLS chain" in done.stdout
    assert f"proxy: http://127.0.0.1:{proxy.port} (" in done.stdout
    assert "fail" not in {line.split()[0] for line in done.stdout.splitlines()}, done.stdout
    assert "s3cret" not in done.stdout + done.stderr + written(tmp_path)
    assert {line.split()[0] for line in proxy.asked} == {"CONNECT"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("refusal", "secret", "text", "action"),
    [
        ("", SECRET, "asks for a name and a password", "name:password@host:port"),
        ("403 Forbidden", "", "does not let this connection through (403 Forbidden)", "allow CONNECT to centre.federation.example"),
        ("502 Bad Gateway", "", "does not let this connection through (502", "whether centre.federation.example answers the proxy"),
    ],
    ids=["407", "403", "502"],
)
def test_a_proxy_that_refuses_is_named(centre: Path, tmp_path: Path, refusal: str, secret: str, text: str, action: str) -> None:
    clinical_site(tmp_path, "a", 30, 1)
    with forward_proxy(refusal, secret) as proxy:
        join_centre(tmp_path, centre, HOST, f'proxy = "http://127.0.0.1:{proxy.port}"\n')
        with service_up(tmp_path, wait="Exit Code: 305"):
            done = doctor(tmp_path)
    assert done.returncode == 1
    (chain,) = (line for line in done.stdout.splitlines() if line.startswith("fail  TLS chain"))
    assert text in chain
    assert action in chain
    (known,) = (line for line in done.stdout.splitlines() if " registered: " in line)
    assert "was not reached at the last start" in known, "it is not the key that was refused"


@pytest.mark.long
def test_the_hosts_without_a_proxy_and_this_machine_are_reached_directly(centre: Path, tmp_path: Path) -> None:
    with forward_proxy() as proxy:
        environment = {"HTTPS_PROXY": proxy.url}
        clinical_site(tmp_path / "a", "a", 30, 1)
        join_centre(tmp_path / "a", centre, HOST)
        done = doctor(tmp_path / "a", NO_PROXY=".federation.example", **environment)
        assert f"the name {HOST} was not found" in done.stdout
        assert proxy.asked == []
        clinical_site(tmp_path / "b", "b", 30, 1)
        join_centre(tmp_path / "b", centre, "127.0.0.1", f'proxy = "{proxy.url}"\n')
        done = doctor(tmp_path / "b", **environment)
        assert "not valid for '127.0.0.1'" in done.stdout, "it was reached, and its certificate is for another name"
        assert proxy.asked == []
        assert f"CONNECT {HOST}" in (doctor(tmp_path / "a", **environment), " ".join(proxy.asked))[1]


@pytest.mark.long
def test_a_service_and_a_doctor_that_go_different_ways_say_so(centre: Path, tmp_path: Path) -> None:
    clinical_site(tmp_path, "ways", 30, 1)
    with forward_proxy() as proxy:
        join_centre(tmp_path, centre, HOST, name="ways")
        with service_up(tmp_path, HTTPS_PROXY=proxy.url):
            apart, alike = doctor(tmp_path), doctor(tmp_path, HTTPS_PROXY=proxy.url)
    assert f"the service was started with http://127.0.0.1:{proxy.port} (HTTPS_PROXY), this check goes with no proxy" in apart.stdout
    assert alike.returncode == 0, alike.stdout
    assert "this check goes with" not in alike.stdout


@pytest.mark.parametrize(
    ("environment", "host", "given", "expected"),
    [
        ({"HTTPS_PROXY": "http://p:1"}, "c.example", None, "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, "c.example", None, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "c.example", "", None),
        ({"HTTPS_PROXY": "http://p:1"}, "c.example", "http://q:2", "http://q:2"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "c.example"}, "c.example", None, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "c.example"}, "c.example", "http://q:2", "http://q:2"),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "10.0.0.0/8"}, "10.9.8.7", None, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "c.example", None, None),
        ({"HTTP_PROXY": "http://p:1"}, "c.example", None, None),
        *(({"HTTPS_PROXY": "p:1"}, host, "http://q:2", None) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "a.localhost.")),
    ],
)
def test_which_proxy(
    environment: dict[str, str], host: str, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(host, 9092, given)
    assert (found and found.url) == expected
    for name in PROXIES:
        assert node_environment(found).get(name) is None
    assert node_environment(found).get("https_proxy") == expected


@pytest.mark.parametrize("url", ["socks5://u:geheim@p:1", "http://u:geheim@p", "http://u:geheim@p:99999", "https://p:1", "http://u:geheim@:1",
                                 "http://u:ge heim@p:1", "http://u:geheim@p:1/x", "http://u:geheim@p_.:1?q", "u:geheim@p"])  # fmt: skip
def test_a_proxy_that_is_none_is_refused_without_its_password(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1)
    plain = manifest.read_text()
    section = '[connection]\nsuperlink = "c.example:1"\nroot_certificates = "ca.pem"\nkey = "node.key"\n'
    manifest.write_text(f'{plain}{section}proxy = "{url}"\n')
    with pytest.raises(InputError, match=r'\[connection\] proxy: must be "http://host:port"') as refused:
        read_site(tmp_path)
    assert "geheim" not in str(refused.value)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", url if "://" in url else f"x://{url}")
    manifest.write_text(f"{plain}{section}")
    given = read_site(tmp_path).manifest.connection
    assert given is not None
    with pytest.raises(InputError, match="HTTPS_PROXY in the environment must be") as refused:
        given.way()
    assert "geheim" not in str(refused.value)
