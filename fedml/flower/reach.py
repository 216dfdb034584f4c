"""One request to a SuperLink, as its nodes make them (httpx, the same certificates, the same proxy), and where it failed if it did.

answer = reach((host, port), certificates, proxy, 5.0)    # Answer, or Unreached with the place and the cause
time_of((host, port), proxy, 5.0)                         # the server's time, of a server that is not trusted
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from fedml.flower.address import Proxy, join

# Where a request ended: before a connection (to the proxy, if there is one); at the proxy's answer; in TLS; at the certificate; in HTTP.
Place = Literal["name", "connection", "proxy", "tls", "certificate", "http"]


@dataclass(frozen=True)
class Answer:
    """The TLS version, the server's certificate (DER), and the server's time if it told one."""

    version: str
    certificate: bytes
    time: datetime | None


class Unreached(Exception):
    """``place``: where the request ended; ``str()``: the cause in few words, without a password."""

    def __init__(self, place: Place, why: str) -> None:
        super().__init__(why)
        self.place = place


def reach(address: tuple[str, int], certificates: bytes, proxy: Proxy | None, seconds: float) -> Answer:
    """Asks the SuperLink at (host, port) whether it is healthy.

    Args:
        certificates: the authority that is trusted, PEM.
        seconds: for each step.

    Raises:
        Unreached: no SuperLink answered.
        ValueError: ``certificates`` has none.
    """
    import httpx

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.decode("ascii"))
    steps: list[str] = []
    note = {"trace": lambda name, info: steps.append(name)}
    try:
        with (
            httpx.Client(proxy=proxy.url if proxy else None, trust_env=False, verify=context, timeout=seconds) as client,
            client.stream("GET", f"https://{join(*address)}/health", extensions=note) as response,
        ):
            found = response.extensions["network_stream"].get_extra_info("ssl_object")
            answer = Answer(found.version() or "", found.getpeercert(True) or b"", _time(response.headers.get("date", "")))
            if response.status_code != 200 or next(response.iter_raw(1), b""):  # a SuperLink's has no body
                raise Unreached("http", f"HTTP status {response.status_code}")
            return answer
    except (httpx.HTTPError, OSError) as error:
        raise _unreached(error, steps, proxy) from error


def time_of(address: tuple[str, int], proxy: Proxy | None, seconds: float) -> datetime | None:
    """The time that the server tells, whether its certificate is trusted or not: a hint about this machine's clock, and nothing else."""
    import httpx

    try:
        with httpx.Client(proxy=proxy.url if proxy else None, trust_env=False, verify=False, timeout=seconds) as client:  # noqa: S501
            return _time(client.head(f"https://{join(*address)}/health").headers.get("date", ""))
    except (httpx.HTTPError, OSError):
        return None


def _time(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        return None


def _unreached(error: Exception, steps: list[str], proxy: Proxy | None) -> Unreached:
    import httpx

    causes = list(_causes(error))
    if isinstance(error, httpx.ProxyError):
        return Unreached("proxy", str(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unreached("certificate", cause.verify_message)
    if "connection.connect_tcp.complete" not in steps:
        name = next((c for c in causes if type(c).__name__ == "gaierror"), None)
        if name is not None:
            return Unreached("name", "no such name, or the name server does not answer")
        refused = any(isinstance(c, ConnectionRefusedError) for c in causes)
        return Unreached("connection", "connection refused" if refused else f"not reached ({type(error).__name__})")
    in_tls = [step for step in steps if "start_tls" in step]
    if not in_tls and proxy is not None:
        return Unreached("proxy", f"no answer to CONNECT ({type(error).__name__})")
    if not in_tls or not in_tls[-1].endswith("complete"):
        return Unreached("tls", type(error).__name__)
    return Unreached("http", type(error).__name__)


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
