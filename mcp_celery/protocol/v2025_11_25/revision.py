"""Revision 2025-11-25 as one object."""

from __future__ import annotations

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from typing_extensions import override

from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.handshake import HandshakeRevision
from mcp_celery.protocol.revision import RequestContext, TaskRevision
from mcp_celery.protocol.stored_results import Splice
from mcp_celery.protocol.v2025_11_25.wire import encode_created, encode_result, encode_task, status_of


class Revision20251125(HandshakeRevision, TaskRevision):
    """A request asks for a task by ``task`` in its parameters; the server asks questions by requests of its own."""

    @override
    def asks_for_task(self, ctx: RequestContext) -> bool:
        return (ctx.params or {}).get("task") is not None

    @override
    def encode_task(self, record: TaskRecord) -> JSONObject:
        return encode_task(record)

    @override
    def encode_created(self, record: TaskRecord) -> JSONObject:
        return encode_created(record)

    @override
    def encode_result(self, view: TaskView) -> JSONObject:
        return encode_result(view)

    @override
    async def get_task(
        self, engine: TaskEngine, caller: Caller, task_id: str, splice: Splice | None = None
    ) -> JSONObject:
        return encode_task(await engine.status(caller, task_id))  # the client asks for the result in addition

    @override
    async def cancel_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        _require_open(await engine.status(caller, task_id))
        record = await engine.cancel(caller, task_id)
        if record.status != "cancelled":
            _require_open(record)
        return encode_task(record)


def _require_open(record: TaskRecord) -> None:
    if record.is_terminal:
        raise MCPError(INVALID_PARAMS, f"Cannot cancel the task: it has ended as {status_of(record)!r}")
