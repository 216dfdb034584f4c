"""What flwr must have: every name of it that is not public and that the product touches, found in the source, listed here, and looked up.

A new version of flwr that lacks one of these fails here and names it, before a federation does.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from flwr.app import Message, RecordDict

from fedml.flower.grid import InProcessGrid
from tests.command import ROOT

PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation"}
HOME = "fedml/flower/"  # the one folder that may touch what is not public
# "module:name", as imported, read as an attribute, or replaced in a module.
TOUCHED = {
    "flwr.common.constant:ErrorCode",
    "flwr.common.constant:ErrorCode.MESSAGE_UNAVAILABLE",
    "flwr.common.constant:ErrorCode.NODE_UNAVAILABLE",
    "flwr.common.constant:SubStatus",
    "flwr.common.constant:SubStatus.COMPLETED",
    "flwr.common.constant:SYSTEM_TIME_TOLERANCE",
    "flwr.common.constant:TIMESTAMP_HEADER",
    "flwr.common.constant:TIMESTAMP_TOLERANCE",
    "flwr.common.serde:recorddict_from_proto",
    "flwr.common.serde:recorddict_to_proto",
    "flwr.proto.control_pb2:ListNodesRequest",
    "flwr.proto.control_pb2:ListRunsRequest",
    "flwr.proto.control_pb2:RegisterNodeRequest",
    "flwr.proto.control_pb2:StopRunRequest",
    "flwr.proto.control_pb2:UnregisterNodeRequest",
    "flwr.proto.fleet_pb2:PullMessagesRequest",
    "flwr.proto.fleet_pb2:PullMessagesRequest.FromString",
    "flwr.proto.heartbeat_pb2:SendNodeHeartbeatRequest",
    "flwr.proto.heartbeat_pb2:SendNodeHeartbeatRequest.FromString",
    "flwr.proto.node_pb2:NodeInfo",
    "flwr.proto.recorddict_pb2:RecordDict",
    "flwr.proto.runtime_pb2:AcquireTaskRequest",
    "flwr.proto.runtime_pb2:AcquireTaskResponse",
    "flwr.proto.runtime_pb2:PullAppMessagesRequest",
    "flwr.proto.runtime_pb2:PullAppMessagesRequest.FromString",
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState",
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.store_message_and_object_tree",
    "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.store_object",
    "flwr.supercore.constant:FLEET_HTTP_PUBLIC_KEY_HEADER",
    "flwr.supercore.constant:FLEET_HTTP_SIGNATURE_HEADER",
    "flwr.supercore.constant:TaskType",
    "flwr.supercore.constant:TaskType.CLIENT_APP",
    "flwr.supercore.control:ControlHttpClient",
    "flwr.supercore.control:ControlHttpClient.from_server_address",
    "flwr.supercore.date:now",
    "flwr.supercore.exit:add_exit_handler",
    "flwr.supercore.heartbeat:HEARTBEAT_DEFAULT_INTERVAL",
    "flwr.supercore.heartbeat:HeartbeatSender",
    "flwr.supercore.heartbeat:make_task_heartbeat_fn_http",
    "flwr.supercore.inflatable.inflatable_utils:pull_and_inflate_object_from_tree",
    "flwr.supercore.inflatable.inflatable_utils:pull_objects",
    "flwr.supercore.interceptors:RuntimeTokenHttpInterceptor",
    "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor",
    "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor",
    "flwr.supercore.primitives.asymmetric:bytes_to_public_key",
    "flwr.supercore.primitives.asymmetric:verify_signature",
    "flwr.supercore.protobuf:routing",
    "flwr.supercore.retry:make_simple_http_retry_invoker",
    "flwr.supercore.run:Run",
    "flwr.supercore.run:Run.create_empty",
    "flwr.supercore.runtime:RuntimeHttpClient",
    "flwr.supercore.runtime:RuntimeHttpClient.from_server_address",
    "flwr.supercore.task_identity:TaskIdentity",
    "flwr.supercore.task_identity:TaskIdentity.node_id",
    "flwr.supercore.task_identity:TaskIdentity.run_id",
    "flwr.supercore.task_identity:TaskIdentity.task_id",
    "flwr.supercore:heartbeat",
    "flwr.superlink.cli.flower_superlink:SuperLinkLifespan",
    "flwr.superlink.cli.flower_superlink:uvicorn",
    "flwr.superlink.cli:flower_superlink",
    "flwr.superlink.grid.http_grid:pull_objects",
    "flwr.superlink.grid:http_grid",
    "flwr.superlink.routers.fleet.node_auth:bytes_to_public_key",
    "flwr.superlink.routers.fleet.node_auth:run_in_threadpool",
    "flwr.superlink.routers.fleet.node_auth:verify_signature",
    "flwr.superlink.routers.fleet.router:router",
    "flwr.superlink.routers.fleet.router:router.routes",
    "flwr.superlink.routers.fleet:node_auth",
    "flwr.supernode.cli.flower_supernode:flower_supernode",
    "flwr.supernode.fleet_http_client:FleetHttpClient",
    "flwr.supernode.fleet_http_connection:FleetHttpClient",
    "flwr.supernode.fleet_http_connection:HEARTBEAT_DEFAULT_INTERVAL",
    "flwr.supernode.main:create_app",
    "flwr.supernode.runtime.run_clientapp:pull_and_inflate_object_from_tree",
    "flwr.supernode.runtime.run_clientapp:pull_task_input",
    "flwr.supernode.runtime.run_clientapp:push_message",
    "flwr.supernode.runtime.run_clientapp:push_task_output",
    "flwr.supernode.runtime:run_clientapp",
    "flwr.supernode.servicer.runtime.runtime_handlers:acquire_task",
    "flwr.supernode.servicer.runtime:runtime_handlers",
    "flwr.supernode.start_client_internal:_pull_and_store_message",
    "flwr.supernode.start_client_internal:pull_objects",
    "flwr.supernode.start_client_internal:time",
    "flwr.supernode:fleet_http_connection",
    "flwr.supernode:main",
    "flwr.supernode:start_client_internal",
}
# What is called on objects of flwr, which no import shows: attributes, arguments by name, fields of messages.
METHODS = {
    "flwr.supercore.runtime:RuntimeHttpClient": {"AcquireTask", "close"},
    "flwr.supercore.control:ControlHttpClient": {"ListNodes", "ListRuns", "RegisterNode", "UnregisterNode", "close"},
    "flwr.superlink.cli.flower_superlink:SuperLinkLifespan": {"_start_superexec_if_needed", "shutdown"},
    "flwr.supercore.heartbeat:HeartbeatSender": {"start", "stop", "is_running"},
}
_ADDRESS = {"server_address", "insecure", "root_certificates", "interceptors"}
ARGUMENTS = {
    "flwr.supercore.runtime:RuntimeHttpClient.from_server_address": _ADDRESS | {"retry_invoker"},
    "flwr.supercore.control:ControlHttpClient.from_server_address": _ADDRESS,
    "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor": {"component_name"},
    "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor": {"master_secret", "protected_methods"},
    "flwr.supernode.runtime.run_clientapp:push_task_output": {"client", "context", "sub_status", "details"},
    "flwr.supercore.inflatable.inflatable_utils:pull_objects": {"initial_backoff", "backoff_cap", "max_tries_per_object"},
    "flwr.supercore.inflatable.inflatable_utils:pull_and_inflate_object_from_tree": {"max_time", "initial_backoff", "backoff_cap"},
    "flwr.supercore.run:Run.create_empty": {"run_id"},
}
FIELDS = {
    "flwr.proto.runtime_pb2:AcquireTaskRequest": {"supported_task_types"},
    "flwr.proto.runtime_pb2:AcquireTaskResponse": {"task", "token"},
    "flwr.proto.control_pb2:ListRunsRequest": {"run_id"},
    "flwr.proto.control_pb2:ListRunsResponse": {"run_dict"},
    "flwr.proto.control_pb2:ListNodesResponse": {"nodes_info"},
    "flwr.proto.control_pb2:RegisterNodeRequest": {"public_key", "name"},
    "flwr.proto.control_pb2:UnregisterNodeRequest": {"node_id"},
    "flwr.proto.node_pb2:NodeInfo": {
        "node_id", "name", "public_key", "status", "registered_at", "last_deactivated_at", "online_until", "heartbeat_interval",
    },
}  # fmt: skip
PLACED = {"_message_id", "_run_id"}  # written into the metadata of a message


def product() -> Iterator[tuple[str, ast.Module]]:
    """(path below the root, tree) of every file that is installed, benchmarks excepted."""
    for folder in ("fedml", "strategies", "clients", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("experiments/bench/"):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def replaced(node: ast.AST) -> tuple[ast.expr, list[str]] | None:
    """(the module's expression, names) of ``vars(module)["name"] = ...`` or ``vars(module).update(name=...)``."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        call, names = node.value, [str(node.slice.value)]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
        call, names = node.func.value, [str(k.arg) for k in node.keywords]
    else:
        return None
    known = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "vars" and len(call.args) == 1
    return (call.args[0], names) if known else None


def touched(tree: ast.Module) -> set[str]:
    """Every name of flwr in a file that is not public: imported, read from what was imported, or replaced in a module."""
    bound, out = {}, set[str]()  # name in the file -> where it is from
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {f"{alias.name}:" for alias in node.names if alias.name.split(".")[0] == "flwr"}  # not used, and not listed
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr" and node.module not in PUBLIC:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                bound[alias.asname or alias.name] = f"{module}:" if is_module(module) else f"{node.module}:{alias.name}."
                out.add(f"{node.module}:{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            out.add(f"{bound[node.value.id]}{node.attr}")
        elif (found := replaced(node)) is not None:
            where, names = found
            if isinstance(where, ast.Name) and where.id in bound:
                out |= {f"{bound[where.id]}{name}" for name in names}
            elif isinstance(where, ast.Call) and where.args and isinstance(where.args[0], ast.Constant):  # importlib.import_module("...")
                out |= {f"{where.args[0].value}:{name}" for name in names}
    return out


def looked_up(place: str) -> Any:
    module, _, name = place.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def test_flwr_has_every_private_name_that_is_touched_and_one_folder_touches_them() -> None:
    by_file = {name: found for name, tree in product() if (found := touched(tree))}
    assert not [name for name in by_file if not name.startswith(HOME)]
    assert set().union(*by_file.values()) == TOUCHED
    InProcessGrid(lambda message, _: message, [{}])  # flwr's TaskIdentity has no numbers to read before
    for place in sorted(TOUCHED):
        looked_up(place)
    for place, names in METHODS.items():
        assert not {name for name in names if not hasattr(looked_up(place), name)}, place
    for place, names in ARGUMENTS.items():
        assert not names - inspect.signature(looked_up(place)).parameters.keys(), place
    for place, names in FIELDS.items():
        assert not names - set(looked_up(place).DESCRIPTOR.fields_by_name), place
    assert hasattr(looked_up("flwr.supercore.retry:make_simple_http_retry_invoker")(), "max_tries")
    assert len(inspect.signature(looked_up("flwr.supernode.servicer.runtime.runtime_handlers:acquire_task")).parameters) == 2
    assert "/v1/fleet/pull-messages" in [route.path for route in looked_up("flwr.superlink.routers.fleet.router:router").routes]


def test_a_messages_metadata_take_their_numbers_from_the_fields_that_are_written() -> None:
    grid = InProcessGrid(lambda message, _: message, [{}])
    message = Message(RecordDict(), 1, "train")
    (sent,) = grid.push_messages([message])
    assert vars(message.metadata).keys() >= PLACED
    assert (message.metadata.message_id, message.metadata.run_id) == (sent, 1)
    placed = set[str]()
    for _, tree in product():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__":
                placed.add(str(getattr(node.slice, "value", "")))
    assert placed == PLACED
