"""The Beacon's HTTP server: Starlette on uvicorn, on loopback unless it is told otherwise.

It reads the table and nothing else, and calls no other machine. Bounds: the length of a query and of a body, the range of a query, the
results of a page, requests a minute, connections at once. Its log has a line for each request, with neither what was asked for nor who
asked.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.errors import InputError
from fedml.experiments.frequencies import beacon
from fedml.experiments.frequencies.beacon import About
from fedml.experiments.frequencies.query import GRANULARITIES, Asked, BadRequestError, matches, read_asked, read_query, span
from fedml.experiments.frequencies.table import Table, open_table
from fedml.experiments.options import Listening

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    Handler = Callable[[Request], Awaitable[dict[str, Any]]]

log = logging.getLogger("fedml.beacon")
LONGEST_QUERY, LONGEST_BODY = 8_192, 65_536  # bytes
_CONNECTIONS = 64
_OWN = ("requestedGranularity", "includeResultsetResponses", "skip", "limit", "testMode", "filters")
_IGNORED = ("apiVersion", "requestedSchemas", "requestedSchema")
_ID = re.compile(r"([A-Za-z0-9_.]{1,40})-(\d{1,10})-([ACGTN]{1,1000})-([ACGTN]{1,1000})")


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Rate:
    """At most ``per_minute`` requests in a minute, of all clients together. Final."""

    def __init__(self, per_minute: int) -> None:
        self.most = self.left = float(per_minute)
        self.at = time.monotonic()

    def allows(self) -> bool:
        """Counts one request."""
        now = time.monotonic()
        self.left = min(self.most, self.left + (now - self.at) * self.most / 60)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


def check_listening(where: Listening) -> None:
    """Raises ``InputError`` for a host that other machines reach, without ``--public``, and for a granularity that is not known."""
    if where.granularity not in GRANULARITIES:
        raise InputError(f'--granularity "{where.granularity}" is not known; it is boolean, count or record.')
    if not is_loopback(where.host) and not where.public:
        raise InputError(
            f"--host {where.host}: other machines would reach the table; add --public if its frequencies may be published to all of them, "
            "or put a proxy with TLS and log-in before 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_app(about: About, where: Listening) -> Starlette:
    """The web application over an open table."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    rate = _Rate(where.per_minute)
    documents = {
        "/": beacon.info, "/info": beacon.info, "/service-info": beacon.service_info, "/configuration": beacon.configuration,
        "/map": beacon.beacon_map, "/entry_types": beacon.entry_types, "/filtering_terms": beacon.filtering_terms,
    }  # fmt: skip

    def document(make: Callable[[About], dict[str, Any]]) -> Handler:
        async def given(_: Request) -> dict[str, Any]:
            return make(about)

        return given

    async def variants(request: Request) -> dict[str, Any]:
        values, schemas = await _received(request)
        return look_up(about, values, schemas)

    async def variant(request: Request) -> dict[str, Any]:
        values, schemas = await _received(request)
        return one_variant(about, request.path_params["id"], values, schemas)

    async def absent(request: Request, _: Exception) -> Response:
        return await guarded("(no endpoint)", _nothing)(request)

    def guarded(path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        return _guarded(path, handler, about, where, rate)

    routes = [Route(path, guarded(path, document(make)), methods=["GET"]) for path, make in documents.items()]
    for path, handler in (("/g_variants", variants), ("/g_variants/{id}", variant)):
        routes.append(Route(path, guarded(path, handler), methods=["GET", "POST"]))
    return Starlette(routes=routes, exception_handlers={404: absent, 405: absent})


async def _nothing(request: Request) -> dict[str, Any]:
    known = ("/", "/info", "/service-info", "/configuration", "/map", "/entry_types", "/filtering_terms", "/g_variants")
    if request.url.path in known:
        raise _Refusal(405, "this endpoint is asked by GET, /g_variants also by POST")
    raise _Refusal(404, f"there is no such endpoint; there are {', '.join(known)}")


def _guarded(path: str, handler: Handler, about: About, where: Listening, rate: _Rate) -> Callable[[Request], Awaitable[Response]]:
    """``handler`` with the bounds of every request, errors as documents of the Beacon, and a line in the log."""

    async def answered(request: Request) -> Response:
        from starlette.responses import JSONResponse

        began, status, headers = time.monotonic(), 200, {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        try:
            # A page in a browser could ask loopback under a name of its own (DNS rebinding).
            if is_loopback(where.host) and not is_loopback(_named(request.headers.get("host", ""))):
                raise _Refusal(421, "this server answers under the address at which it listens")
            if not rate.allows():
                headers["Retry-After"] = "60"
                raise _Refusal(429, f"more than {where.per_minute} requests in a minute")
            if len(request.scope.get("query_string", b"")) > LONGEST_QUERY:
                raise _Refusal(414, f"the query is longer than {LONGEST_QUERY} bytes")
            content = await handler(request)
        except BadRequestError as error:
            status, content = 400, beacon.error(about, 400, f"{error}.")
        except _Refusal as refusal:
            status, content = refusal.status, beacon.error(about, refusal.status, f"{refusal}.")
        except Exception:
            log.exception("the request could not be answered")
            status, content = 500, beacon.error(about, 500, "the request could not be answered.")
        method = request.method if request.method in ("GET", "POST", "HEAD") else "(other)"
        log.info("%s %s %d %.1f ms", method, path, status, 1000 * (time.monotonic() - began))
        return JSONResponse(content, status, headers)

    return answered


def _named(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host


async def _received(request: Request) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The parameters of a request, flat, and the schemas that it asks for."""
    if request.method == "POST":
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > LONGEST_BODY:
                raise _Refusal(413, f"the body is longer than {LONGEST_BODY} bytes")
        return _of_body(bytes(data))
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in values:
            raise BadRequestError(f"parameter {name[:40]} is given twice")
        if name not in _IGNORED:
            values[name] = value
    return values, []


def _of_body(data: bytes) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The parameters of a ``beaconRequestBody``, flat."""
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequestError("the body is not JSON") from error
    meta, query = (body.get(name, {}) if isinstance(body, dict) else None for name in ("meta", "query"))
    if not isinstance(meta, dict) or not isinstance(query, dict):
        raise BadRequestError("the body must be an object with meta and query")
    parameters, pagination = query.get("requestParameters", {}), query.get("pagination", {})
    if isinstance(parameters, dict) and isinstance(inner := parameters.get("g_variant", parameters), dict):
        parameters = inner
    if not isinstance(parameters, dict) or not isinstance(pagination, dict):
        raise BadRequestError("requestParameters and pagination must be objects")
    values = {name: value for name, value in parameters.items() if name not in _OWN}
    values |= {name: query[name] for name in _OWN if name in query} | {k: v for k, v in pagination.items() if k in ("skip", "limit")}
    schemas = meta.get("requestedSchemas", [])
    return values, [s for s in schemas if isinstance(s, dict)][:10] if isinstance(schemas, list) else []


def look_up(about: About, values: Mapping[str, Any], schemas: list[dict[str, str]]) -> dict[str, Any]:
    """The answer of ``/g_variants``.

    Raises:
        BadRequestError: the parameters cannot be answered.
    """
    asked = read_asked(values, about.granularity)
    asked = Asked(asked.granularity, asked.include, asked.skip, asked.limit, asked.test, _plain(schemas))
    query = read_query({name: value for name, value in values.items() if name not in _OWN}, about.table)
    found = [row for row in about.table.rows(query.chromosome, *span(query)) if matches(query, row)]
    return beacon.answer(about, asked, query, len(found), list(islice(found, asked.skip * asked.limit, (asked.skip + 1) * asked.limit)))


def one_variant(about: About, name: str, values: Mapping[str, Any], schemas: list[dict[str, str]]) -> dict[str, Any]:
    """The answer of ``/g_variants/{id}``."""
    asked = read_asked({"requestedGranularity": "record", **values}, about.granularity)
    asked = Asked(asked.granularity, asked.include, 0, asked.limit, asked.test, _plain(schemas))
    found = _ID.fullmatch(name)
    position = int(found[2]) - 1 if found else -1
    rows = list(about.table.rows(found[1], position, position + 1)) if found and position >= 0 else []
    rows = [row for row in rows if beacon.variant_id(row) == name]
    return beacon.answer(about, asked, None, len(rows), rows)


def _plain(schemas: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: str(s[key])[:200] for key in ("entityType", "schema") if key in s} for s in schemas]


def about_table(table: Table, where: Listening, url: str) -> About:
    """What the Beacon says of itself."""
    from fedml.runs.software import software

    return About(table, url, where.organization or str(table.about["study"]), where.page or url, where.granularity, software()["version"])


def listen(path: Path, where: Listening) -> None:
    """Serves the table until stopped.

    Raises:
        InputError: the table cannot be used, the host is not loopback without ``--public``, or the port is taken.
    """
    import socket

    import uvicorn

    check_listening(where)
    table = open_table(path)
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((where.host, where.port))
        bound.listen(_CONNECTIONS)
    except OSError as error:
        raise InputError(f"--host {where.host} --port {where.port}: cannot listen there ({error.strerror}); take another port.") from error
    shown = f"[{where.host}]" if ":" in where.host else where.host
    url = f"http://{shown}:{bound.getsockname()[1]}"
    app = make_app(about_table(table, where, url), where)
    logging.getLogger("fedml.beacon").setLevel(logging.INFO)
    print(f"Beacon v2 of {table.about['study']} ({table.build}) at {url}/info; stop with Ctrl-C", flush=True)
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, proxy_headers=False, limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5, ws="none", lifespan="off",
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[bound])
