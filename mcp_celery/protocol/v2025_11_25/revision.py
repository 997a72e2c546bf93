"""Revision 2025-11-25 as one object."""

from __future__ import annotations

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.handshake import HandshakeRevision
from mcp_celery.protocol.revision import RequestContext, TaskRevision
from mcp_celery.protocol.v2025_11_25.wire import encode_created, encode_result, encode_task, status_of


class Revision20251125(HandshakeRevision, TaskRevision):
    """A request asks for a task by ``task`` in its parameters; the server asks questions by requests of its own."""

    def asks_for_task(self, ctx: RequestContext) -> bool:
        """Whether its parameters have ``task``."""
        return (ctx.params or {}).get("task") is not None

    def encode_task(self, record: TaskRecord) -> JSONObject:
        """``Task``."""
        return encode_task(record)

    def encode_created(self, record: TaskRecord, immediate_response: str | None) -> JSONObject:
        """``CreateTaskResult``."""
        return encode_created(record, immediate_response)

    def encode_result(self, view: TaskView) -> JSONObject:
        """The answer to ``tasks/result``."""
        return encode_result(view)

    async def get_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        """Answer with the task; its client asks for the result in addition."""
        return encode_task(await engine.status(caller, task_id))

    async def cancel_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        """Answer with the cancelled task.

        Raises:
            MCPError: -32602 for a task that has ended.
            McpCeleryError: As ``TaskEngine.cancel``.
        """
        _require_open(await engine.status(caller, task_id))
        record = await engine.cancel(caller, task_id)
        if record.status != "cancelled":
            _require_open(record)
        return encode_task(record)


def _require_open(record: TaskRecord) -> None:
    if record.is_terminal:
        raise MCPError(INVALID_PARAMS, f"Cannot cancel the task: it has ended as {status_of(record)!r}")
