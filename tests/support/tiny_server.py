"""A kind of server that is no ``MCPServer``, and its port: as much of one as shows that the port suffices.

Its registry is asynchronous, its tools declare themselves whether they run as tasks, a tool may have versions, servers
can be mounted in each other, and it has handlers, a lifespan and a check of arguments of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

import anyio
from mcp.server.context import HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding, RequestHandler, compose_tool_call_handler
from mcp.server.lowlevel.server import Server
from mcp.server.lowlevel.server import lifespan as no_lifespan
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata, func_metadata
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import ValidationError
from starlette.applications import Starlette

from mcp_celery.components.source import Component, JobRequest, RequestMeta, Running
from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject
from mcp_celery.keys import TaskType
from mcp_celery.protocol import around

logger = logging.getLogger(__name__)

VERSION = "tiny/version"
"""Key of ``_meta`` by which a client names a tool's version. Without it a call is of the newest."""
Handling = ServerRequestContext[Any, Any]
Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


@dataclass
class TinyTool:
    """A tool, by the name that it has in its own server."""

    name: str
    function: Callable[..., Any]
    metadata: FuncMetadata
    config: TaskConfig | None = None
    version: str = ""

    async def run(self, ctx: Handling, params: CallToolRequestParams) -> CallToolResult | InputRequiredResult:
        context = Context[Any, Any](request_context=ctx, input_params=params)
        takes = _context_parameters(self.function)
        arguments = {**self.metadata.validate_arguments(params.arguments or {}), **dict.fromkeys(takes, context)}
        return self.metadata.convert_result(await self.function(**arguments))


class TinyServer:
    """A server. It is found by its authors' name for it, as an ``MCPServer`` is."""

    def __init__(self, name: str, *, lifespan: Lifespan = no_lifespan) -> None:
        self.name = name
        self.tools: list[TinyTool] = []
        self.mounted: dict[str, TinyServer] = {}
        self.extensions: list[Extension] = []
        self.lowlevel: Server[Any] = Server(
            name,
            lifespan=lifespan,
            on_list_tools=self._list_tools,
            on_subscriptions_listen=ListenHandler(InMemorySubscriptionBus()),
        )
        self.lowlevel.add_request_handler("tools/call", CallToolRequestParams, self.call)

    def tool(self, name: str = "", *, task: TaskConfig | None = None, version: str = "") -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            metadata = func_metadata(function, skip_names=_context_parameters(function))
            self.tools.append(TinyTool(name or function.__name__, function, metadata, task, version=version))
            return function

        return decorate

    def mount(self, prefix: str, server: TinyServer) -> None:
        self.mounted[prefix] = server

    async def get_tool(self, name: str, version: str | None) -> TinyTool | None:
        await asyncio.sleep(0)  # as a registry that has somebody to ask
        prefix, dot, inner = name.partition(".")
        if dot and prefix in self.mounted:
            return await self.mounted[prefix].get_tool(inner, version)
        found = [one for one in self.tools if one.name == name and version in (None, one.version)]
        return max(found, key=lambda one: one.version, default=None)

    async def list_tools(self) -> list[tuple[str, TinyTool]]:
        await asyncio.sleep(0)
        found = [(one.name, one) for one in sorted(self.tools, key=lambda one: one.version, reverse=True)]
        for prefix, server in self.mounted.items():
            found += [(f"{prefix}.{name}", tool) for name, tool in await server.list_tools()]
        return found

    async def find(self, ctx: Handling, params: CallToolRequestParams) -> TinyTool:
        tool = await self.get_tool(params.name, _version(ctx.meta))
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"no tool {params.name}")
        return tool

    async def call(self, ctx: Handling, params: CallToolRequestParams) -> HandlerResult:
        try:
            return await (await self.find(ctx, params)).run(ctx, params)
        except (ToolError, ValidationError) as error:
            return CallToolResult(content=[TextContent(type="text", text=f"tiny: {error}")], is_error=True)

    async def _list_tools(self, _: Handling, __: PaginatedRequestParams | None) -> ListToolsResult:
        shown = {
            name: Tool(name=name, input_schema=tool.metadata.arg_model.model_json_schema())
            for name, tool in reversed(await self.list_tools())
        }
        return ListToolsResult(tools=list(shown.values()))


class TinySource:
    """Fulfils :class:`mcp_celery.components.source.ComponentSource` for a :class:`TinyServer`."""

    log_level = "INFO"
    authenticates = False
    is_resumable = False
    has_one_lifespan = False

    def __init__(self, server: TinyServer) -> None:
        self.server = server
        self.name = server.name
        self.lowlevel = server.lowlevel

    async def components(self) -> Sequence[Component]:
        return [TinyComponent(name, tool) for name, tool in await self.server.list_tools()]

    async def find(self, task_type: TaskType, identifier: str, meta: RequestMeta | None = None) -> Component | None:
        tool = await self.server.get_tool(identifier, _version(meta)) if task_type == "tool" else None
        return None if tool is None else TinyComponent(identifier, tool)

    def has_tool(self, name: str) -> bool:
        return any(tool.name == name for tool in self.server.tools)

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
        metadata = func_metadata(
            function, skip_names=_context_parameters(function), structured_output=structured_output
        )
        if arguments is not None:
            metadata.arg_model = arguments
        self.server.tools.append(TinyTool(name, function, metadata))
        return metadata

    def fit(
        self, extension: Extension, middleware: Sequence[ServerMiddleware[Any]], running: Running, *, max_streams: int
    ) -> None:
        self.server.extensions.append(extension)
        for binding in extension.methods():
            self.lowlevel.add_request_handler(binding.method, binding.params_type, _gated(binding))
        self.lowlevel.extensions[extension.identifier] = extension.settings()
        call = compose_tool_call_handler(self.server.extensions, self.server.call)
        self.lowlevel.add_request_handler("tools/call", CallToolRequestParams, call)
        self.lowlevel.middleware.extend(middleware)
        self.lowlevel.lifespan = around(running, self.lowlevel.lifespan)

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        return self.lowlevel.lifespan(self.lowlevel)

    async def run(self, request: JobRequest) -> HandlerResult:
        async def call(ctx: Handling, params: CallToolRequestParams) -> HandlerResult:
            try:
                return await self.server.call(ctx, params)
            except MCPError:
                raise
            except Exception as error:
                request.require_result(error)
                logger.exception("a tool broke")
                return CallToolResult(content=[TextContent(type="text", text="tiny: it broke")], is_error=True)

        return await compose_tool_call_handler(self.server.extensions, call)(
            request.context, cast("CallToolRequestParams", request.params)
        )

    def http_app(
        self,
        *,
        path: str,
        max_body_bytes: int,
        max_sessions: int | None,
        session_idle_seconds: float | None,
        stateless: bool,
    ) -> Starlette:
        return self.lowlevel.streamable_http_app(
            streamable_http_path=path,
            max_request_body_size=max_body_bytes,
            max_sessions=max_sessions,
            session_idle_timeout=session_idle_seconds,
            stateless_http=stateless,
        )

    def run_stdio(self) -> None:
        anyio.run(self._serve_stdio)

    async def _serve_stdio(self) -> None:
        async with stdio_server() as (read, write):
            await self.lowlevel.run(read, write, self.lowlevel.create_initialization_options())


@dataclass
class TinyComponent:
    """Fulfils :class:`mcp_celery.components.source.Component`: a tool, by the name that it has where it is mounted."""

    identifier: str
    tool: TinyTool
    task_type: TaskType = "tool"
    meta: JSONObject = field(default_factory=dict[str, Any])
    may_be_repeated: bool = False
    returns_questions: bool = False
    can_ask_first: bool = False

    @property
    def config(self) -> TaskConfig | None:
        return self.tool.config

    @property
    def version(self) -> str | None:
        return self.tool.version or None

    @property
    def input_schema(self) -> JSONObject:
        return self.tool.metadata.arg_model.model_json_schema()

    @property
    def function(self) -> Callable[..., Any]:
        return self.tool.function

    async def refusal(self, arguments: JSONObject) -> str | None:
        try:
            self.tool.metadata.validate_arguments(arguments)
        except ValidationError as error:
            return f"{self.identifier} does not take {', '.join(str(one['loc'][0]) for one in error.errors())}"
        return None

    def declared_arguments(self, arguments: JSONObject) -> JSONObject:
        return {name: value for name, value in arguments.items() if name in self.tool.metadata.arg_model.model_fields}


def _version(meta: RequestMeta | None) -> str | None:
    return (meta or {}).get(VERSION)


def _context_parameters(function: Callable[..., Any]) -> Sequence[str]:
    hints = get_type_hints(function).items()
    return [name for name, hint in hints if isinstance(hint, type) and issubclass(hint, Context)]


def _gated(binding: MethodBinding) -> RequestHandler:
    """A method that is served at some revisions only."""

    async def gated(ctx: Handling, params: Any) -> HandlerResult:
        if binding.protocol_versions is not None and ctx.protocol_version not in binding.protocol_versions:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", binding.method)
        return await binding.handler(ctx, params)

    return gated
