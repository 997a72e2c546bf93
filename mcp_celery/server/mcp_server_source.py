"""``MCPServer`` as a :class:`ComponentSource`. Provisional seams of the SDK: no other module uses its private names."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from copy import copy
from functools import lru_cache
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.context import HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.extension import Extension, RequestHandler, compose_tool_call_handler
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import InvalidSignature, ResourceError, ToolError, UnexpectedToolError
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.resolve import find_resolved_parameters, returns_input_required
from mcp.server.mcpserver.resources import ResourceTemplate
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata, func_metadata
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import ListenHandler
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_PROTOCOL_VERSION_HEADER
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    SubscriptionsListenRequestParams,
    TextContent,
    ToolAnnotations,
)
from pydantic import AnyUrl, BaseModel, PydanticUserError, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_celery.base_exceptions import log_raised, text_of_error
from mcp_celery.components.source import Component, JobChannel, JobRequest, RequestMeta, Running
from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject
from mcp_celery.keys import TaskType
from mcp_celery.protocol import Splice, SubjectNamingVerifier, around, revision_named
from mcp_celery.protocol.shared_wire import LISTEN

logger = logging.getLogger(__name__)

_NO_ARGUMENTS: Final[JSONObject] = {}
"""Schema of a resource: its URI says everything."""
_PACKAGES: Final = ("mcp.", "mcp_celery.")
"""Whose middleware does not read results."""
_METHOD_HEADER: Final = MCP_METHOD_HEADER.encode()
_VERSION_HEADER: Final = MCP_PROTOCOL_VERSION_HEADER.encode()


class MCPServerSource:
    """Fulfils :class:`mcp_celery.components.source.ComponentSource`.

    Args:
        server: The server. Its constructor may still have to run.
    """

    def __init__(self, server: MCPServer[Any]) -> None:
        self.server = server
        self._private: Any = server

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def lowlevel(self) -> Server[Any]:
        return self._private._lowlevel_server

    @property
    def log_level(self) -> str:
        return self.server.settings.log_level

    @property
    def authenticates(self) -> bool:
        return self.server.settings.auth is not None

    @property
    def is_resumable(self) -> bool:
        try:
            return self.server.session_manager.event_store is not None
        except RuntimeError:  # it does not serve HTTP
            return False

    @property
    def has_one_lifespan(self) -> bool:
        return False

    async def components(self) -> Sequence[Component]:
        resources = self._private._resource_manager
        return [
            *map(_Tool, self._private._tool_manager.list_tools()),
            *map(_Prompt, self._private._prompt_manager.list_prompts()),
            *(_Component("resource", str(one.uri), getattr(one, "fn", None)) for one in resources.list_resources()),
            *map(_template, resources.list_templates()),
        ]

    async def find(
        self,
        task_type: TaskType,
        identifier: str,
        meta: RequestMeta | None = None,  # noqa: ARG002 - its components have no versions
    ) -> Component | None:
        if task_type == "resource":
            return self._find_resource(identifier)
        if task_type == "prompt":
            prompt = self._private._prompt_manager.get_prompt(identifier)
            return None if prompt is None else _Prompt(prompt)
        tool = self._private._tool_manager.get_tool(identifier)
        return None if tool is None else _Tool(tool)

    def _find_resource(self, uri: str) -> Component | None:
        resources = self._private._resource_manager
        for resource in resources.list_resources():
            if str(resource.uri) == uri:
                return _Component("resource", uri, getattr(resource, "fn", None))
        for template in resources.list_templates():
            try:
                if template.matches(uri) is not None:
                    return _template(template)
            except ResourceError:
                return None
        return None

    def has_tool(self, name: str) -> bool:
        return self._private._tool_manager.get_tool(name) is not None

    def has_prompt(self, name: str) -> bool:
        """Whether there is a prompt of that name."""
        return self._private._prompt_manager.get_prompt(name) is not None

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
        parameters = None if arguments is None else arguments.model_json_schema(by_alias=True)
        self.server.add_tool(
            function, name, description=description, annotations=annotations, structured_output=structured_output
        )
        tool: Tool = self._private._tool_manager.get_tool(name)
        if arguments is not None and parameters is not None:
            tool.fn_metadata.arg_model, tool.parameters = arguments, parameters
        return tool.fn_metadata

    def fit(
        self, extension: Extension, middleware: Sequence[ServerMiddleware[Any]], running: Running, *, max_streams: int
    ) -> None:
        # The SDK takes extensions and a token verifier at construction only (2.3.0).
        self._private._apply_extension(extension)
        self._private._install_extension_interceptor()
        self.server.middleware.extend(middleware)
        self.lowlevel.lifespan = around(running, self.lowlevel.lifespan)
        # The SDK's handler refuses the 1,025th stream (2.3.0). A server without subscriptions keeps none.
        listening = self.lowlevel.get_request_handler(LISTEN)
        if listening is not None and isinstance(listening.handler, ListenHandler):
            handler = ListenHandler(self._private._subscriptions, max_subscriptions=max_streams)
            self.lowlevel.add_request_handler(LISTEN, SubscriptionsListenRequestParams, handler)
        if self._private._token_verifier is not None:
            self._private._token_verifier = SubjectNamingVerifier(self._private._token_verifier)

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        return self.lowlevel.lifespan(self.lowlevel)

    async def run(self, request: JobRequest) -> HandlerResult:
        handler = self._tool_handler(request) if request.context.method == "tools/call" else request.handler
        return await handler(request.context, request.params)

    def _tool_handler(self, request: JobRequest) -> RequestHandler:
        """The SDK's handler of ``tools/call``, except that its context, and what it makes a result of, are a job's."""

        async def call(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> HandlerResult:
            context = _JobContext(
                request.channel,
                request_context=ctx,
                mcp_server=self.server,
                input_params=params,
                subscriptions=self._private._subscriptions,
            )
            try:
                return await self.server.call_tool(params.name, params.arguments or {}, context)
            except MCPError:
                raise
            except Exception as error:  # noqa: BLE001 - as the SDK: whatever a tool raises is its result
                request.require_result(error)
                deliberate = isinstance(error, ToolError) and not isinstance(error, UnexpectedToolError)
                text = text_of_error(error)
                # What was wrong with which argument is for the caller: its value is in the text.
                shown = "its arguments were rejected" if isinstance(error.__cause__, ValidationError) else text
                if deliberate:
                    logger.info("Tool %r failed: %r", params.name, shown)
                else:
                    log_raised(logger, "Tool %r failed: %r", params.name, shown)
                return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)

        return compose_tool_call_handler(self._private._extensions, call)

    def http_app(
        self,
        *,
        path: str,
        max_body_bytes: int,
        max_sessions: int | None,
        session_idle_seconds: float | None,
        stateless: bool,
    ) -> Starlette:
        app = self.server.streamable_http_app(
            streamable_http_path=path,
            max_request_body_size=max_body_bytes,
            max_sessions=max_sessions,
            session_idle_timeout=session_idle_seconds,
            stateless_http=stateless,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        # Behind the SDK's own checks of the token and of the body's size.
        limited = self.server.session_manager.asgi_app
        limited.app = _ShortAnswers(limited.app, self.server.session_manager)
        return app

    def run_stdio(self) -> None:
        self.server.run("stdio")


class _ShortAnswers:
    """The SDK's ASGI app of the MCP endpoint, except that it answers short requests in JSON mode, and puts large stored
    results into these answers as they are.

    For an answer that may become a stream, the SDK (2.3.0) starts two coroutines a request, which is a quarter of what
    a request costs. It has one mode for all requests of an app.

    The headers decide, before the body is read. The SDK refuses a body that names another method or version.

    Args:
        app: The SDK's, which serves the other requests.
        manager: What the app belongs to.
    """

    def __init__(self, app: ASGIApp, manager: StreamableHTTPSessionManager) -> None:
        self._app = app
        self._manager: Any = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_short(scope):
            await self._app(scope, receive, send)
            return
        # Made for each request, because a manager has the state of its lifespan only while that lasts.
        manager = copy(self._manager)
        manager.json_response = True
        # Middleware of the host's may read a result, so it is not left as it was stored.
        reads = any(not str(getattr(one, "__module__", "")).startswith(_PACKAGES) for one in manager.app.middleware)
        await manager._handle_request(scope, receive, send if reads else Splice(scope, send).send)


def _is_short(scope: Scope) -> bool:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    # Of several, the SDK reads the first version, and refuses several methods.
    named = next((value for name, value in headers if name == _VERSION_HEADER), None)
    method = next((value for name, value in headers if name == _METHOD_HEADER), None)
    if named is None or method is None:
        return False
    return method.decode("latin-1") in revision_named(named.decode("latin-1")).short_methods


class _JobContext(Context[Any, Any]):
    """The SDK's, except that it stops a job whose task has ended also where it would not use its channel."""

    _channel: JobChannel

    def __init__(self, channel: JobChannel, **options: Any) -> None:
        super().__init__(**options)
        self._channel = channel

    async def read_resource(self, uri: str | AnyUrl) -> Iterable[ReadResourceContents]:
        self._channel.check()
        return await super().read_resource(uri)


class _Component:
    """A component whose arguments are not checked: a resource, or what the other kinds have in common.

    Args:
        task_type: Its kind.
        identifier: Its name, URI or URI template.
        function: The function that it calls, None for a resource without one.
        input_schema: JSON schema of its arguments, None where that is worked out when it is asked for.
    """

    version = None
    """Such a server's components have no versions."""

    def __init__(
        self,
        task_type: TaskType,
        identifier: str,
        function: Callable[..., Any] | None,
        input_schema: JSONObject | None = None,
    ) -> None:
        self.task_type: Final = task_type
        self.identifier: Final = identifier
        self.function: Final = function
        self._input_schema = _NO_ARGUMENTS if input_schema is None else input_schema

    @property
    def input_schema(self) -> JSONObject:
        return self._input_schema

    @property
    def config(self) -> TaskConfig | None:
        return None

    @property
    def meta(self) -> JSONObject:
        return {}

    @property
    def may_be_repeated(self) -> bool:
        return False

    @property
    def returns_questions(self) -> bool:
        return False

    @property
    def can_ask_first(self) -> bool:
        return False

    async def refusal(self, arguments: JSONObject) -> str | None:  # noqa: ARG002 - a resource takes none
        return None

    def declared_arguments(self, arguments: JSONObject) -> JSONObject:
        return arguments


class _Prompt(_Component):
    def __init__(self, prompt: Prompt) -> None:
        super().__init__("prompt", prompt.name, prompt.fn)
        self._prompt = prompt

    @property
    def input_schema(self) -> JSONObject:
        try:
            return _prompt_schema_once(self._prompt.fn, self._prompt.context_kwarg)
        except (TypeError, InvalidSignature, PydanticUserError, PydanticUndefinedAnnotation):
            # Its function has no such schema, or cannot be a key of the cache: what it declares has to do.
            return {one.name: {"required": one.required} for one in self._prompt.arguments or ()}

    async def refusal(self, arguments: JSONObject) -> str | None:
        declared = self._prompt.arguments or ()
        if missing := sorted({one.name for one in declared if one.required} - arguments.keys()):
            return f"Missing required arguments: {', '.join(missing)}"
        unknown = arguments.keys() - {one.name for one in declared}
        if unknown and not _takes_any(self._prompt.fn):  # its function would be called with them, and raise
            names = ", ".join(map(repr, sorted(unknown)))
            return f"Arguments that prompt {self.identifier!r} does not declare: {names}"[:300]
        return None


class _Tool(_Component):
    def __init__(self, tool: Tool) -> None:
        super().__init__("tool", tool.name, tool.fn, tool.parameters)
        self._tool = tool

    @property
    def meta(self) -> JSONObject:
        return self._tool.meta or {}

    @property
    def may_be_repeated(self) -> bool:
        hints = self._tool.annotations
        return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)

    @property
    def returns_questions(self) -> bool:
        # A function's annotations are evaluated once: that costs as much as a tenth of what a submission costs.
        try:
            return _returns_questions_once(self._tool.fn)
        except TypeError:  # an object that can be called, but not hashed
            return returns_input_required(self._tool.fn)

    @property
    def can_ask_first(self) -> bool:
        return returns_input_required(self._tool.fn) or bool(find_resolved_parameters(self._tool.fn))

    async def refusal(self, arguments: JSONObject) -> str | None:
        try:
            self._tool.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
            return f"Invalid arguments for tool {self.identifier!r}: {'; '.join(reasons)}"
        except MCPError:
            raise  # the validator's own answer, as in the foreground
        except Exception:  # noqa: BLE001 - a validator may raise anything
            return f"Invalid arguments for tool {self.identifier!r}"
        return None

    def declared_arguments(self, arguments: JSONObject) -> JSONObject:
        """The SDK ignores the others. A tool whose model takes any name, or looks at all of the input itself, declares
        all of them.
        """
        names = _declared_names(self._tool.fn_metadata.arg_model)
        return arguments if names is None else {name: value for name, value in arguments.items() if name in names}


_returns_questions_once: Final = lru_cache(maxsize=1024)(returns_input_required)


def _template(template: ResourceTemplate) -> _Component:
    return _Component("resource", template.uri_template, template.fn, template.parameters)


@lru_cache(maxsize=1024)
def _prompt_schema_once(fn: Callable[..., Any], context_parameter: str | None) -> JSONObject:
    """The schema of a prompt's arguments, which the SDK makes of the function as well, but keeps only the names of."""
    skipped = [] if context_parameter is None else [context_parameter]
    return func_metadata(fn, skip_names=skipped, structured_output=False).arg_model.model_json_schema()


def _takes_any(fn: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(fn).parameters.values())


@lru_cache(maxsize=1024)
def _declared_names(model: type[BaseModel]) -> frozenset[str] | None:
    """The names under which a model reads its fields, None for any."""
    if model.model_config.get("extra") in ("allow", "forbid") or model.__pydantic_decorators__.model_validators:
        return None
    names = set[str]()
    for name, info in model.model_fields.items():
        names.add(name)
        for alias in (info.alias, info.validation_alias):
            if isinstance(alias, str):
                names.add(alias)
            elif alias is not None:
                return None  # a path into the input, or a choice of several
    return frozenset(names)
