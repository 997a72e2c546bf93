"""A tool of a FastMCP server as a `mcp_celery.components.source.Component`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastmcp import FastMCP
from fastmcp.server.context import Context
from fastmcp.tools.base import Tool
from fastmcp.tools.tool_transform import TransformedTool
from fastmcp.utilities.versions import VersionSpec
from mcp.server.mcpserver.resolve import returns_input_required

from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject
from mcp_celery.fastmcp.arguments import errors_of
from mcp_celery.fastmcp.config import options_of
from mcp_celery.fastmcp.plain_tool import PlainTool
from mcp_celery.fastmcp.private import behind_mount
from mcp_celery.keys import TaskType


def version_named(version: str | None) -> VersionSpec | None:
    """Exactly that version, None for the default one."""
    return VersionSpec(eq=version) if version else None


def is_of(tool: Tool | ToolComponent, wanted: str | None) -> bool:
    """Whether a tool is of a version; None: of any."""
    found = tool.version
    return wanted is None or wanted == found


class ToolComponent:
    """Fulfils `mcp_celery.components.source.Component`.

    Args:
        server: The server whose client names the tool.
        tool: The tool, by the name that the client uses.
    """

    task_type: TaskType = "tool"
    function: Callable[..., Any] | None = None
    """FastMCP has checked it when the tool was declared, and runs more kinds of functions."""
    returns_questions: bool = False
    """FastMCP asks within the task, unless ``ask`` says otherwise."""

    def __init__(self, server: FastMCP[Any], tool: Tool) -> None:
        self._server = server
        self._tool = tool

    @property
    def identifier(self) -> str:
        return self._tool.name

    @property
    def version(self) -> str | None:
        """The tool's version, None for one without versions."""
        return self._tool.version

    @property
    def input_schema(self) -> JSONObject:
        return self._tool.parameters

    @property
    def is_transformed(self) -> bool:
        """Whether it was made of another tool, whose arguments it may have renamed or hidden."""
        return isinstance(self._tool, TransformedTool)

    @property
    def config(self) -> TaskConfig:
        return options_of(self._tool.task_config)

    @property
    def meta(self) -> JSONObject:
        return self._tool.meta or {}

    @property
    def may_be_repeated(self) -> bool:
        hints = self._tool.annotations
        return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)

    @property
    def can_ask_first(self) -> bool:
        fn: Any = getattr(self._tool, "fn", None)
        return fn is not None and returns_input_required(fn)

    async def refusal(self, arguments: JSONObject) -> str | None:
        if isinstance(self._tool, PlainTool):
            errors = self._tool.errors_of(arguments)
        else:
            server, tool = await self._behind_mounts()
            errors = errors_of(tool, arguments, strict=server.strict_input_validation)
        if not errors:
            return None
        return f"Invalid arguments for tool {self.identifier!r}: {'; '.join(errors)}"

    def declared_arguments(self, arguments: JSONObject) -> JSONObject:
        return arguments  # FastMCP refuses those that it does not know

    async def _behind_mounts(self) -> tuple[FastMCP[Any], Tool]:
        """The tool itself, and its own server."""
        server, tool = self._server, self._tool
        while (mounted := behind_mount(tool)) is not None:
            server, name = mounted
            async with Context(fastmcp=server):
                found = await server.get_tool(name, version_named(tool.version))
            if found is None:  # it has gone this moment; FastMCP will say so
                return server, tool
            tool = found
        return server, tool
