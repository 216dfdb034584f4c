"""A SuperLink's list of nodes, through its Control API: which keys may join, under which name, and who is there.

Uses Flower's non-public ``ControlHttpClient``, for its command line registers a node's name but does not list it; flwr 1.41.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedml.errors import RunError
from fedml.flower.superlink import CONNECTION

_PATIENCE = 2  # heartbeats that a node may miss before it counts as offline: Flower's HEARTBEAT_PATIENCE


@dataclass(frozen=True)
class Node:
    """A registered key. ``state`` is Flower's: registered (never seen), online, offline or unregistered (removed). Times are UTC."""

    node_id: int
    name: str
    public_key: bytes  # PEM
    state: str
    registered: datetime
    seen: datetime | None


@contextmanager
def _client(home: Path) -> Iterator[Any]:
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    told = tomllib.loads((home / "config.toml").read_text())["superlink"][CONNECTION]
    client = ControlHttpClient.from_server_address(
        server_address=told["address"],
        insecure=False,
        root_certificates=told["root-certificates"],
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        yield client
    except Exception as error:  # httpx's and Flower's own share no base
        answer = getattr(error, "response", None)
        if answer is not None:
            raise RunError(f"the SuperLink refused ({answer.status_code}: {answer.text[:200]}); see its log.") from error
        raise RunError(f"the SuperLink at {told['address']} does not answer ({type(error).__name__}); is it started?") from error
    finally:
        client.close()


def nodes(home: Path) -> list[Node]:
    """All that were ever registered at the SuperLink of ``home``, by name. Raises ``RunError`` if it does not answer."""
    from flwr.proto.control_pb2 import ListNodesRequest

    with _client(home) as client:
        return sorted((_node(info) for info in client.ListNodes(ListNodesRequest()).nodes_info), key=lambda node: node.name)


def _node(info: Any) -> Node:
    seen = _time(info.last_deactivated_at)
    if info.status == "online":
        seen = datetime.fromtimestamp(info.online_until - _PATIENCE * info.heartbeat_interval, UTC)
    return Node(info.node_id, info.name, info.public_key, info.status, datetime.fromisoformat(info.registered_at), seen)


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def register_node(home: Path, name: str, public_key: bytes) -> None:
    """Lets the key (PEM) join under ``name``. Raises ``RunError`` if the SuperLink refuses it."""
    from flwr.proto.control_pb2 import RegisterNodeRequest

    with _client(home) as client:
        client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))


def unregister_node(home: Path, node_id: int) -> None:
    """Its key may not join any more, and its process is not answered any more. Raises ``RunError`` if there is no such node."""
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    with _client(home) as client:
        client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
