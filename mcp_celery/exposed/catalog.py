"""The exposed tools of one server: what a call publishes, and what a job's end is as a tool's result."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Final, cast

from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from mcp_types.methods import serialize_server_result
from pydantic import ValidationError

from mcp_celery.common.jsonable import json_text, text_of
from mcp_celery.components.source import ComponentSource
from mcp_celery.engine import MAX_MESSAGE_CHARS, ForeignPlan, JSONObject, Submission
from mcp_celery.errors import InvalidRequestError
from mcp_celery.exposed.adding import add_tool
from mcp_celery.exposed.arguments import given
from mcp_celery.exposed.tools import ExposedTool
from mcp_celery.keys import TaskType

logger = logging.getLogger(__name__)

_DELIBERATE: Final = "ToolError"
"""The SDK's exception for texts to the model; a job that raises one of that name means the same."""
_UNDECLARED: Final = FuncMetadata(arg_model=ArgModelBase)
"""Converts the results of a tool that is no longer declared."""


class ExposedCatalog:
    """Fulfils :class:`mcp_celery.engine.Exposure`.

    Args:
        timeout_seconds: How long publishing may take.
        result_version: The protocol version in whose form results are stored.
    """

    def __init__(self, *, timeout_seconds: float, result_version: str) -> None:
        self._timeout_seconds = timeout_seconds
        self._result_version = result_version
        self._offered: dict[str, tuple[ExposedTool, FuncMetadata]] = {}

    def __bool__(self) -> bool:
        return bool(self._offered)

    def __contains__(self, component: tuple[TaskType, str]) -> bool:
        task_type, name = component
        return task_type == "tool" and name in self._offered

    def add(self, source: ComponentSource, exposed: ExposedTool, annotations: ToolAnnotations | None) -> None:
        """Let an exposed tool be one of a server's.

        Raises:
            ConfigurationError: The server has a tool of that name, or the SDK refuses the signature.
        """
        self._offered[exposed.offer.tool_name] = (exposed, add_tool(source, exposed, annotations))

    def remove(self, component: str) -> None:
        """Stop exposing a tool. Its open tasks still get their results."""
        self._offered.pop(component, None)

    async def plan(self, submission: Submission) -> ForeignPlan | None:
        """How a call's work is begun. None: it is no exposed tool's."""
        found = self._offered.get(submission.component) if submission.task_type == "tool" else None
        if found is None:
            return None
        exposed, metadata = found
        raw: JSONObject = submission.snapshot.params.get("arguments") or {}
        try:
            arguments = metadata.arg_model.model_validate(metadata.pre_parse_json(raw))
        except ValidationError as error:
            raise InvalidRequestError(f"Invalid arguments for tool {submission.component!r}") from error
        declared = given(arguments, defaults=exposed.offer.model is not None)
        return await exposed.plan(declared, self._timeout_seconds)

    def returned(self, component: str, value: Any) -> JSONObject:
        """The wire result of a tool whose job returned a value."""
        found = self._offered.get(component)
        try:
            metadata = _UNDECLARED if found is None else found[1]
            return self._on_wire(cast(CallToolResult, metadata.convert_result(value)))
        except Exception as error:  # noqa: BLE001 - a validator may raise anything
            # As a tool whose return value does not fit its declaration. The texts of such errors quote the value.
            reason = type(error).__name__
            logger.error("the result of a job of tool %r does not fit what it declares: %s", component, reason)
            return self._error(f"Error executing tool {component}")

    def raised(self, component: str, exception_name: str, arguments: Sequence[Any]) -> JSONObject:
        """The wire result of a tool whose job raised an exception: its text only where the caller may see it,
        and at most as much of it as a message has.
        """
        found = self._offered.get(component)
        shown = (_DELIBERATE, *(() if found is None else found[0].offer.show_errors))
        text = ", ".join(text_of(one) for one in arguments)
        if exception_name not in shown or not text:
            return self._error(f"Error executing tool {component}")
        return self._error(f"Error executing tool {component}: {text[:MAX_MESSAGE_CHARS]}")

    def _error(self, text: str) -> JSONObject:
        return self._on_wire(CallToolResult(content=[TextContent(type="text", text=text)], is_error=True))

    def _on_wire(self, result: CallToolResult) -> JSONObject:
        dumped = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return json.loads(json_text(serialize_server_result("tools/call", self._result_version, dumped)))
