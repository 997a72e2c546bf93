"""Revisions that begin with ``initialize`` and have no tasks: 2025-06-18 and earlier."""

from __future__ import annotations

from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND, ErrorData
from typing_extensions import override

from mcp_celery.engine import JSONObject
from mcp_celery.protocol.revision import RequestContext, Revision


class HandshakeRevision(Revision):
    """A revision whose connections begin with ``initialize``."""

    has_sessions = True
    has_fixed_ttl = True

    @override
    def refuse_call(self, ctx: RequestContext, tool: str) -> None:
        raise MCPError(METHOD_NOT_FOUND, f"Tool {tool!r} runs only as a task")

    @override
    def crash(self, text: str) -> MCPError:
        return MCPError(0, text)

    @override
    def dump_error(self, error: ErrorData) -> JSONObject:
        return error.model_dump(mode="json", by_alias=True, exclude_unset=True)
