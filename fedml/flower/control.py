"""A SuperLink's list of nodes, through its Control API: registered keys, their names, and which nodes are online.

Uses Flower's non-public ``ControlHttpClient``, because its command line registers a node's name but does not list it; flwr 1.42.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedml.errors import RunError
from fedml.flower.superlink import CONNECTION

_MISSED_HEARTBEATS = 2  # heartbeats that a node may miss before it counts as offline: Flower's HEARTBEAT_PATIENCE


@dataclass(frozen=True)
class Node:
    """A registered key. ``state``: Flower's registered (never connected), online, offline or unregistered (removed). Times are UTC."""

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

    connection = tomllib.loads((home / "config.toml").read_text())["superlink"][CONNECTION]
    client = ControlHttpClient.from_server_address(
        server_address=connection["address"],
        insecure=False,
        root_certificates=connection["root-certificates"],
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        yield client
    except Exception as error:  # exceptions of httpx and Flower have no common base class
        answer = getattr(error, "response", None)
        if answer is not None:
            text = f"the SuperLink refused the request ({answer.status_code}: {answer.text[:200]})"
            raise RunError(f"{text}; see its log {home / 'superlink.log'}.") from error
        text = f"the SuperLink at {connection['address']} does not answer ({type(error).__name__})"
        raise RunError(f"{text}; start it first.") from error
    finally:
        client.close()


def nodes(home: Path) -> list[Node]:
    """All nodes that were ever registered at the SuperLink of ``home``, sorted by name.

    Raises:
        RunError: the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    with _client(home) as client:
        return sorted((_node(info) for info in client.ListNodes(ListNodesRequest()).nodes_info), key=lambda node: node.name)


def _node(info: Any) -> Node:
    seen = _time(info.last_deactivated_at)
    if info.status == "online":
        seen = datetime.fromtimestamp(info.online_until - _MISSED_HEARTBEATS * info.heartbeat_interval, UTC)
    return Node(info.node_id, info.name, info.public_key, info.status, datetime.fromisoformat(info.registered_at), seen)


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def register_node(home: Path, name: str, public_key: bytes) -> None:
    """Registers the key (PEM) with the name ``name``, so that its node may join.

    Raises:
        RunError: the SuperLink refuses the key or does not answer.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest

    with _client(home) as client:
        client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))


def unregister_node(home: Path, node_id: int) -> None:
    """Removes the node: its key may no longer join, and the SuperLink no longer answers its process.

    Raises:
        RunError: the node does not exist, or the SuperLink does not answer.
    """
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    with _client(home) as client:
        client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))


def stop_run(home: Path, number: int) -> None:
    """Ends a run at the SuperLink of ``home``, if that answers. Without it the SuperLink takes a server app that was killed for running for
    a minute more, in which its sites ask for the rest of a message, and answer nobody else."""
    from flwr.proto.control_pb2 import StopRunRequest

    with suppress(RunError, OSError, KeyError, ValueError), _client(home) as client:
        client.StopRun(StopRunRequest(run_id=number))


def run_failed(home: Path, number: int) -> str:
    """Why the SuperLink of ``home`` counts a run as over without success; empty if it does not, does not answer, or is not a centre's."""
    from flwr.proto.control_pb2 import ListRunsRequest

    try:
        with _client(home) as client:
            status = client.ListRuns(ListRunsRequest(run_id=number)).run_dict[number].status
    except (RunError, OSError, KeyError, ValueError):
        return ""
    over = status.status == "finished" and status.sub_status != "completed"
    return f"{status.sub_status}: {' '.join(status.details.split())[:200]}" if over else ""
