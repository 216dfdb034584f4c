"""Addresses of a SuperLink: ``host:port``, where an IPv6 literal stands in brackets, and the HTTP proxy on the way to one.

    split("[2001:db8::1]:443")                        # ("2001:db8::1", 443)
    found = proxy_for(host, given="")                 # [connection] proxy, or the environment's; None: straight to the centre
    node_environment(found)                           # the environment of a process that goes this way, whatever its own is

A site decides once which way it goes, so that its SuperNode and the doctor go the same way. Flower's client (httpx) reads the proxy from
the environment alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fedml.errors import InputError

PROGRESS = "fedml-progress"  # header of a node's heartbeat: percent of its training in this round (``fedml.flower.heard``)
WAIT = "fedml-wait"  # header of a node's request for messages: seconds for which an empty answer may be kept back (``fedml.flower.held``)
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def split(address: str) -> tuple[str, int]:
    """(host, port) of ``host:port``; an IPv6 host comes without its brackets.

    Raises:
        ValueError: the text says what to write.
    """
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f'must be "host:port" with a port from 1 to 65535, not "{address}"')
    if host.startswith("[") and host.endswith("]"):
        return bare(host), int(port)
    if ":" in host:
        raise ValueError(f'must have brackets around the IPv6 address: "[{host}]:{port}"')
    if not _HOST.fullmatch(host):
        raise ValueError(f'must be "host:port" with the name or the IP address of a host, not "{address}"')
    return host, int(port)


def bare(host: str) -> str:
    """``host`` without the brackets of an IPv6 literal.

    Raises:
        ValueError: what stands in brackets is not an IPv6 address.
    """
    if not host.startswith("["):
        return host
    try:
        return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]").replace("%", " ")))  # no zone: httpx knows none
    except ValueError:
        raise ValueError(f'"{host}" is not an IPv6 address, such as "[2001:db8::1]"') from None


def join(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 literal."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address without brackets, is this machine."""
    with suppress(ValueError):
        found = ipaddress.ip_address(host)
        return (getattr(found, "ipv4_mapped", None) or found).is_loopback
    return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. ``url`` may hold a name and a password: show ``shown`` in its place. ``source``: where it is set."""

    url: str = field(repr=False)
    source: str

    @property
    def shown(self) -> str:
        """The proxy's address and where it is set, without name and password."""
        about = urlsplit(self.url)
        return f"http://{join(about.hostname or '', about.port or 80)} ({self.source})"


def check_proxy(url: str) -> str:
    """``url``, if it is that of an HTTP proxy: ``http://host:port`` or ``http://name:password@host:port``.

    Raises:
        ValueError: it is not; the text does not repeat it, because it may hold a password.
    """
    text = 'must be "http://host:port", or "http://name:password@host:port" with special characters as %XX'
    try:
        about = urlsplit(url)
        good = about.scheme == "http" and bool(about.hostname) and about.port is not None and about.path in ("", "/")
        good = good and not about.query and not about.fragment and url.isprintable() and " " not in url
        host = about.hostname or ""
        good = good and (bool(_HOST.fullmatch(host)) or (":" in host and bool(ipaddress.IPv6Address(host))))
    except ValueError:
        raise ValueError(text) from None
    if not good:
        raise ValueError(text)
    return url


def proxy_for(host: str, port: int, given: str | None) -> Proxy | None:
    """The proxy on the way to ``host`` (without brackets): never one to this machine; else ``given`` ([connection] proxy; "": none), or if
    it is None the environment's (HTTPS_PROXY, https_proxy, ALL_PROXY), unless NO_PROXY names the host.

    Raises:
        InputError: the environment's proxy is not an HTTP proxy, or an IPv6 literal would have to pass one.
    """
    from requests.utils import get_environ_proxies, select_proxy

    if is_loopback(host) or given == "":
        return None
    if given is not None:
        found = Proxy(given, "[connection] proxy")
    else:
        address = f"https://{join(host, port)}"
        url = select_proxy(address, get_environ_proxies(address))
        if not url:
            return None
        url = url if "://" in url else f"http://{url}"
        source = next((n for n in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if os.environ.get(n)), "the environment")
        try:
            found = Proxy(check_proxy(url), source)
        except ValueError as error:
            raise InputError(f"{source} in the environment {error}; correct it, or set [connection] proxy in site.toml.") from None
    if ":" in host:
        raise InputError(
            f"the centre has the IPv6 address [{host}] and {found.shown} is on the way, which needs a name: write the centre's name in "
            '[connection] superlink, or proxy = "" if the centre is reached without the proxy.'
        )
    return found


def node_environment(proxy: Proxy | None) -> dict[str, str]:
    """This process's environment for a child that reaches the SuperLink through ``proxy``, or without one if it is None."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept if proxy is None else kept | {"https_proxy": proxy.url}
