"""Revision 2026-07-28 as one object."""

from __future__ import annotations

from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import HEADER_MISMATCH, INTERNAL_ERROR, ErrorData
from typing_extensions import override

from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.revision import RequestContext, TaskRevision
from mcp_celery.protocol.shared_wire import EXTENSION
from mcp_celery.protocol.stored_results import Splice
from mcp_celery.protocol.v2026_07_28.wire import encode_created, encode_detailed, encode_result, encode_task


class Revision20260728(TaskRevision):
    """The server decides which requests become tasks, for clients that declare the extension; questions are answers to
    requests, which their clients send again.
    """

    has_sessions = False
    has_fixed_ttl = False
    has_object_results = False
    short_methods = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})

    @override
    def follows_tasks(self, ctx: RequestContext) -> bool:
        capabilities = ctx.session.client_capabilities
        return bool(capabilities and capabilities.extensions and EXTENSION in capabilities.extensions)

    @override
    def refuse_call(self, ctx: RequestContext, tool: str) -> None:
        require_client_extension(ctx, EXTENSION)

    @override
    def admit(self, ctx: RequestContext, task_id: str) -> None:
        """Refuse a request that does not declare the extension, or whose ``Mcp-Name`` header names another task.

        Raises:
            MCPError: -32021; -32020 for the header (SEP-2243). A missing header is tolerated.
        """
        require_client_extension(ctx, EXTENSION)
        headers = getattr(ctx.request, "headers", None)
        header: str | None = None if headers is None else headers.get(MCP_NAME_HEADER)
        if header is not None and decode_header_value(header) != task_id:
            raise MCPError(
                HEADER_MISMATCH, f"{MCP_NAME_HEADER} header does not match the request body's 'taskId' parameter"
            )

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
        return encode_detailed(await engine.get(caller, task_id, read_result=splice is None), splice)

    @override
    async def cancel_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        await engine.cancel(caller, task_id)  # a task that has ended stays as it is
        return {}

    @override
    def questions_to_return(self, view: TaskView) -> JSONObject:
        return dict(view.input_requests)

    @override
    def crash(self, text: str) -> MCPError:
        return MCPError(INTERNAL_ERROR, "Internal server error")  # the SDK keeps the text to its log

    @override
    def dump_error(self, error: ErrorData) -> JSONObject:
        return error.model_dump(mode="json", by_alias=True, exclude_none=True)
