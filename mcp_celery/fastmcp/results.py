"""Results and exceptions of tools in jobs, converted as FastMCP does in the foreground."""

from __future__ import annotations

import logging
from typing import Any, Final

from fastmcp.exceptions import FastMCPError
from fastmcp.tools.base import InputRequiredToolResult, ToolResult
from fastmcp.utilities.exceptions import get_http_status_code, is_timeout_error
from mcp.server.context import HandlerResult
from mcp_types import CallToolResult, InputRequiredResult, TextContent
from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from mcp_celery.engine import JSONObject
from mcp_celery.protocol import revision_named

logger = logging.getLogger(__name__)

_TOO_MANY_REQUESTS: Final = 429


class CreatedTask(BaseModel):
    """The answer to a call that became a task, on its way through FastMCP's middleware, which expects a model.

    Attributes:
        wire: The ``CreateTaskResult``.
    """

    wire: JSONObject

    @model_serializer(mode="wrap")
    def _as_wire(self, _: SerializerFunctionWrapHandler) -> JSONObject:
        return self.wire


def as_tool_outcome(result: HandlerResult) -> ToolResult | BaseModel:
    """The answer of the SDK's extension as FastMCP's middleware expects it.

    Args:
        result: A task, a job's result in wire form, a job's questions, or what FastMCP itself answered.
    """
    if isinstance(result, ToolResult | CreatedTask):
        return result
    if isinstance(result, dict):
        kind = result.get("resultType")
        if kind == "task":
            return CreatedTask(wire=result)
        if kind == "input_required":
            return InputRequiredToolResult(InputRequiredResult.model_validate(result, by_name=False))
        result = CallToolResult.model_validate(result, by_name=False)
    if not isinstance(result, CallToolResult):
        raise TypeError(f"a call was answered with a {type(result).__name__}")
    if isinstance(result.structured_content, dict | None):
        return ToolResult.from_mcp_result(result)
    return result  # FastMCP's own results are objects only


def as_wire_result(result: ToolResult, version: str) -> HandlerResult:
    """A tool's result as FastMCP's handler of ``tools/call`` returns it.

    Args:
        result: The result.
        version: The protocol version of the task's client. Before 2026-07-28 structured content has to be an object.
    """
    if isinstance(result, InputRequiredToolResult):
        return result.input_required
    structured: Any = result.structured_content
    if structured is not None and not isinstance(structured, dict) and revision_named(version).has_object_results:
        meta = result.meta or {}
        fastmcp: JSONObject = {**(meta.get("fastmcp") or {}), "wrap_result": True}
        result = ToolResult(
            content=result.content,
            structured_content={"result": structured},
            meta={**meta, "fastmcp": fastmcp},
            is_error=result.is_error,
        )
    made = result.to_mcp_result()
    if isinstance(made, CallToolResult):
        return made
    content, structured = made if isinstance(made, tuple) else (made, None)
    return CallToolResult(content=content, structured_content=structured)


def as_error_result(tool: str, error: Exception, *, hidden: bool) -> CallToolResult:
    """An exception of a tool as FastMCP reports it.

    Args:
        tool: Its name in its own server.
        error: What it raised.
        hidden: Whether the server masks the details of errors.
    """
    return CallToolResult(content=[TextContent(type="text", text=_text_of(tool, error, hidden=hidden))], is_error=True)


def _text_of(tool: str, error: Exception, *, hidden: bool) -> str:
    if isinstance(error, FastMCPError):
        logger.log(error.log_level, "tool %r failed: %s", tool, type(error).__name__)
        return str(error)
    status = get_http_status_code(error)
    logger.error("tool %r raised %s", tool, type(error).__name__, exc_info=error if status is None else None)
    if status == _TOO_MANY_REQUESTS:
        return "Rate limited by upstream API, please retry later"
    if is_timeout_error(error):
        return "Upstream request timed out, please retry"
    return f"Error calling tool {tool!r}" if hidden else f"Error calling tool {tool!r}: {error}"
