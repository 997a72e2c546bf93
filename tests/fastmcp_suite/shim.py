"""A pytest plugin that runs FastMCP's own task tests over this package.

In FastMCP's package for tasks it puts this package's extension, and handlers of ``tasks/*`` that ask this package, in
the place of FastMCP's own. The tests call FastMCP in their process, without a connection, so jobs run there too.
"""

# Runs in a venv of its own; FastMCP's package for tasks is not a dependency of this project, so its types are unknown.
# pyright: basic, reportMissingImports=false, reportCallIssue=false

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import fastmcp_tasks
import fastmcp_tasks.extension
import fastmcp_tasks.handlers
from fastmcp.server.context import Context
from fastmcp.server.extensions import ToolCallContinuation, ToolCallOutcome
from fastmcp_tasks.models import CancelTaskResult, CreateTaskResult, GetTaskResult, UpdateTaskResult
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, ClientCapabilities

from mcp_celery import Settings
from mcp_celery.engine import TaskEngine
from mcp_celery.fastmcp import TasksExtension
from mcp_celery.fastmcp.results import CreatedTask
from mcp_celery.protocol.caller import as_rpc_errors, caller_of_request
from mcp_celery.protocol.shared_wire import EXTENSION
from mcp_celery.protocol.v2026_07_28.wire import encode_detailed

_FIELDS = {
    "task_id": "taskId",
    "status": "status",
    "created_at": "createdAt",
    "last_updated_at": "lastUpdatedAt",
    "ttl_ms": "ttlMs",
    "poll_interval_ms": "pollIntervalMs",
    "status_message": "statusMessage",
}


class OverCelery(TasksExtension):
    """This package's extension as FastMCP's tests make theirs."""

    def __init__(self, **docket: Any) -> None:
        settings = Settings(
            redis_url="memory://",
            namespace=f"suite-{secrets.token_hex(6)}",
            encryption_keys="0" * 40,
            # What FastMCP's tests look at in a job.
            snapshot_headers="authorization,x-tenant-id,x-custom,x-request-id",
            # FastMCP's defaults.
            default_ttl_ms=900_000,
            poll_interval_ms=5_000,
        )
        super().__init__(settings=settings, in_process=True, **docket)

    def clone(self) -> OverCelery:
        return OverCelery()

    async def _handle_get(self, ctx: Any, params: Any) -> Any:
        """What FastMCP's extension calls its handler of ``tasks/get``."""
        _fill(ctx.session, self.client_settings(ctx))
        (get,) = [one.handler for one in self.methods() if one.method == "tasks/get"]
        return await get(ctx, params)

    async def intercept_tool_call(
        self, params: CallToolRequestParams, context: Context, call_next: ToolCallContinuation
    ) -> ToolCallOutcome:
        """As the extension, for tests whose request has a session in name only."""
        request = context.request_context
        session: Any = None if request is None else request.session
        _fill(session, context.client_extension_settings(EXTENSION))
        result = await super().intercept_tool_call(params, context, call_next)
        if isinstance(result, CreatedTask) and isinstance(session, SimpleNamespace):
            return CreateTaskResult(**_fields(result.wire))
        return result


def _fill(session: Any, declared: dict[str, Any] | None) -> None:
    """Give a stand-in for a session what of a session is read."""
    if isinstance(session, SimpleNamespace) and not hasattr(session, "client_params"):
        capabilities = {"elicitation": {"form": {}}, "extensions": None if declared is None else {EXTENSION: declared}}
        session.client_params = None
        session.client_capabilities = ClientCapabilities.model_validate(capabilities)
        session._connection = SimpleNamespace(has_standalone_channel=False, session_id=None, state={})


def _fields(wire: dict[str, Any]) -> dict[str, Any]:
    return {name: wire.get(alias) for name, alias in _FIELDS.items()}


def _engine(server: Any) -> TaskEngine:
    found = server._extensions.get(EXTENSION)
    if found is None:
        raise MCPError(INVALID_PARAMS, "Task not found")
    return found.tasks.engine()


async def tasks_get(server: Any, task_id: str) -> GetTaskResult:
    with as_rpc_errors():
        wire = encode_detailed(await _engine(server).get(caller_of_request(None), task_id))
    return GetTaskResult(
        **_fields(wire), result=wire.get("result"), error=wire.get("error"), input_requests=wire.get("inputRequests")
    )


async def tasks_update(server: Any, task_id: str, responses: dict[str, Any]) -> UpdateTaskResult:
    with as_rpc_errors():
        await _engine(server).respond(caller_of_request(None), task_id, responses)
    return UpdateTaskResult()


async def tasks_cancel(server: Any, task_id: str) -> CancelTaskResult:
    with as_rpc_errors():
        await _engine(server).cancel(caller_of_request(None), task_id)
    return CancelTaskResult()


fastmcp_tasks.TasksExtension = fastmcp_tasks.extension.TasksExtension = OverCelery
fastmcp_tasks.handlers.tasks_get = tasks_get
fastmcp_tasks.handlers.tasks_update = tasks_update
fastmcp_tasks.handlers.tasks_cancel = tasks_cancel
