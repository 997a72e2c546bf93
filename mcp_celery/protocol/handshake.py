"""Revisions that begin with ``initialize`` and have no tasks: 2025-06-18 and earlier."""

from __future__ import annotations

from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND, ErrorData

from mcp_celery.engine import JSONObject
from mcp_celery.protocol.revision import RequestContext, Revision


class HandshakeRevision(Revision):
    """A revision whose connections begin with ``initialize``."""

    has_sessions = True
    has_fixed_ttl = True

    def refuse_call(self, ctx: RequestContext, tool: str) -> None:  # noqa: ARG002
        """Refuse the call: these revisions have no extensions.

        Raises:
            MCPError: -32601.
        """
        raise MCPError(METHOD_NOT_FOUND, f"Tool {tool!r} runs only as a task")

    def crash(self, text: str) -> MCPError:
        """The SDK answers with the exception's text and the code 0."""
        return MCPError(0, text)

    def dump_error(self, error: ErrorData) -> JSONObject:
        """The SDK leaves out the fields that were not set."""
        return error.model_dump(mode="json", by_alias=True, exclude_unset=True)
