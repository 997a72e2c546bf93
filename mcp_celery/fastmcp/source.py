"""A FastMCP server as a `mcp_celery.components.source.ComponentSource`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import fastmcp
import fastmcp.utilities.versions
from fastmcp import FastMCP
from fastmcp.server.context import Context
from fastmcp.server.dependencies import extract_version_spec, fastmcp_request_ctx
from fastmcp.server.http import StarletteWithLifespan
from fastmcp.tools.base import Tool
from mcp.server.context import HandlerResult, ServerMiddleware
from mcp.server.extension import Extension
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata, func_metadata
from mcp_types import ToolAnnotations

from mcp_celery.components.source import Component, JobRequest, RequestMeta, Running
from mcp_celery.errors import ConfigurationError
from mcp_celery.fastmcp.component import ToolComponent, is_of, version_named
from mcp_celery.fastmcp.plain_tool import PlainTool, context_parameters
from mcp_celery.fastmcp.private import lowlevel_of, name_subjects, own_tools
from mcp_celery.fastmcp.routing import AroundInitialize, InsideFastMCP
from mcp_celery.fastmcp.running import run_tool
from mcp_celery.keys import TaskType
from mcp_celery.protocol.extension import TasksExtension


@dataclass(frozen=True, slots=True)
class Fitted:
    """The methods and middleware that tasks add to a FastMCP server, through its extension.

    Attributes:
        extension: Its methods, and what it makes of ``tools/call``.
        running: Holds the connections to the store and the broker.
    """

    extension: TasksExtension
    running: Running


class FastMCPSource:
    """Fulfils `mcp_celery.components.source.ComponentSource`. Only its tools can run as tasks.

    Args:
        server: The server.
    """

    def __init__(self, server: FastMCP[Any]) -> None:
        self.server = server
        self.fitted: Fitted | None = None
        self._plain_tools: dict[str, PlainTool] = {}

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def lowlevel(self) -> Server[Any]:
        return lowlevel_of(self.server)

    @property
    def log_level(self) -> str:
        return fastmcp.settings.log_level

    @property
    def authenticates(self) -> bool:
        return self.server.auth is not None

    @property
    def is_resumable(self) -> bool:
        return False  # the app that is made here has no event store

    @property
    def has_one_lifespan(self) -> bool:
        return True

    async def components(self) -> Sequence[Component]:
        """As the port says.

        Raises:
            ConfigurationError: A tool took the place of one that this package added.
        """
        for name in self._plain_tools:
            if any(not isinstance(one, PlainTool) for one in own_tools(self.server, name)):
                raise ConfigurationError(
                    f"the FastMCP server {self.name!r} has a tool {name!r} beside the exposed job or polling tool of "
                    "that name: give one of them another name"
                )
        found = [one for one in await self.server.get_tasks() if isinstance(one, Tool)]
        # The default version comes first: FastMCP takes the highest.
        found.sort(key=fastmcp.utilities.versions.version_sort_key, reverse=True)
        names = {one.name for one in found}
        plain = [one for name, one in self._plain_tools.items() if name not in names]
        return [ToolComponent(self.server, one) for one in (*found, *plain)]

    async def find(self, task_type: TaskType, identifier: str, meta: RequestMeta | None = None) -> Component | None:
        if task_type != "tool":
            return None
        version = extract_version_spec(dict(meta or {}))
        if fastmcp_request_ctx.get() is None:
            return await self._find_for_server(identifier, version)
        async with Context(fastmcp=self.server):
            tool = await self.server.get_tool(identifier, version_named(version))
        return None if tool is None else ToolComponent(self.server, tool)

    async def _find_for_server(self, name: str, version: str | None) -> Component | None:
        """Of what no client asks for nothing is hidden: the server itself looks at a task."""
        for one in await self.components():
            if one.identifier == name and isinstance(one, ToolComponent) and is_of(one, version):
                return one
        return None

    def has_tool(self, name: str) -> bool:
        return name in self._plain_tools or bool(own_tools(self.server, name))

    def add_tool(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        description: str,
        annotations: ToolAnnotations | None = None,
        structured_output: bool | None = None,
        arguments: type[ArgModelBase] | None = None,
    ) -> FuncMetadata:
        metadata = func_metadata(function, skip_names=context_parameters(function), structured_output=structured_output)
        if arguments is not None:
            metadata.arg_model = arguments
        tool = PlainTool.of(function, metadata, name=name, description=description, annotations=annotations)
        self.server.add_tool(tool)
        self._plain_tools[name] = tool
        return metadata

    def fit(
        self, extension: Extension, middleware: Sequence[ServerMiddleware[Any]], running: Running, *, max_streams: int
    ) -> None:
        if not isinstance(extension, TasksExtension):
            raise TypeError(f"{type(extension).__name__} cannot serve the calls of a FastMCP server")
        self.fitted = Fitted(extension, running)
        name_subjects(self.server)
        lowlevel = self.lowlevel
        lowlevel.middleware.insert(0, AroundInitialize(middleware))
        lowlevel.middleware.append(InsideFastMCP(middleware, lowlevel, max_streams))

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        return self.lowlevel.lifespan(self.lowlevel)

    async def run(self, request: JobRequest) -> HandlerResult:
        return await run_tool(self.server, request)

    def http_app(
        self,
        *,
        path: str,
        max_body_bytes: int,  # noqa: ARG002 - the app in front of this one keeps to it
        max_sessions: int | None,  # noqa: ARG002 - FastMCP has no way to say it
        session_idle_seconds: float | None,
        stateless: bool,
    ) -> StarletteWithLifespan:
        return self.server.http_app(
            path=path,
            host_origin_protection=False,
            stateless_http=stateless or None,  # None: as FASTMCP_STATELESS_HTTP says
            session_idle_timeout=math.inf if session_idle_seconds is None else session_idle_seconds,
        )

    def run_stdio(self) -> None:
        self.server.run("stdio", show_banner=False)
