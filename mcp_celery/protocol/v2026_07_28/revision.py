"""Revision 2026-07-28 as one object."""

from __future__ import annotations

from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import HEADER_MISMATCH, INTERNAL_ERROR, ErrorData

from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord, TaskView
from mcp_celery.protocol.revision import RequestContext, TaskRevision
from mcp_celery.protocol.v2026_07_28.wire import EXTENSION, encode_created, encode_detailed, encode_result, encode_task


class Revision20260728(TaskRevision):
    """The server decides which requests become tasks, for clients that declare the extension; questions are answers to
    requests, which their clients send again.
    """

    has_sessions = False
    has_fixed_ttl = False

    def follows_tasks(self, ctx: RequestContext) -> bool:
        """Whether the request declares the extension."""
        capabilities = ctx.session.client_capabilities
        return bool(capabilities and capabilities.extensions and EXTENSION in capabilities.extensions)

    def refuse_call(self, ctx: RequestContext, tool: str) -> None:  # noqa: ARG002
        """Name the extension that the request lacks.

        Raises:
            MCPError: -32021.
        """
        require_client_extension(ctx, EXTENSION)

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

    def encode_task(self, record: TaskRecord) -> JSONObject:
        """The fields that every task object has."""
        return encode_task(record)

    def encode_created(self, record: TaskRecord, immediate_response: str | None) -> JSONObject:  # noqa: ARG002
        """``CreateTaskResult``, which has no place for an immediate response."""
        return encode_created(record)

    def encode_result(self, view: TaskView) -> JSONObject:
        """The result with its ``resultType``."""
        return encode_result(view)

    async def get_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        """Answer with the task, its result, its error or its open questions."""
        return encode_detailed(await engine.get(caller, task_id))

    async def cancel_task(self, engine: TaskEngine, caller: Caller, task_id: str) -> JSONObject:
        """Acknowledge; a task that has ended stays as it is."""
        await engine.cancel(caller, task_id)
        return {}

    def questions_to_return(self, view: TaskView) -> JSONObject:
        """All open questions."""
        return dict(view.input_requests)

    def crash(self, text: str) -> MCPError:  # noqa: ARG002
        """The SDK keeps the exception's text to its log."""
        return MCPError(INTERNAL_ERROR, "Internal server error")

    def dump_error(self, error: ErrorData) -> JSONObject:
        """The SDK leaves out the fields that are None."""
        return error.model_dump(mode="json", by_alias=True, exclude_none=True)
