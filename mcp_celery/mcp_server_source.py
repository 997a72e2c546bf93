"""``MCPServer`` as a :class:`ComponentSource`. Every private name of it is used in this module, and in no other."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.context import HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.extension import Extension, RequestHandler, compose_tool_call_handler
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ToolError, UnexpectedToolError
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.resolve import find_resolved_parameters, returns_input_required
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, TextContent, ToolAnnotations
from pydantic import AnyUrl, BaseModel, ValidationError
from starlette.applications import Starlette

from mcp_celery.component_source import Component, JobChannel, JobRequest, RequestMeta, Running
from mcp_celery.config import TaskConfig
from mcp_celery.containing import text_of_error
from mcp_celery.engine import JSONObject
from mcp_celery.keys import TaskType
from mcp_celery.protocol import SubjectNamingVerifier, around

logger = logging.getLogger(__name__)


class MCPServerSource:
    """Fulfils :class:`mcp_celery.component_source.ComponentSource`.

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

    async def components(self) -> Sequence[Component]:
        resources = self._private._resource_manager
        return [
            *map(_Tool, self._private._tool_manager.list_tools()),
            *map(_Prompt, self._private._prompt_manager.list_prompts()),
            *(_Component("resource", str(one.uri), getattr(one, "fn", None)) for one in resources.list_resources()),
            *(_Component("resource", one.uri_template, one.fn) for one in resources.list_templates()),
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
                    return _Component("resource", template.uri_template, template.fn)
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

    def fit(self, extension: Extension, middleware: Sequence[ServerMiddleware[Any]], running: Running) -> None:
        # The SDK takes extensions and a token verifier at construction only (2.3.0).
        self._private._apply_extension(extension)
        self._private._install_extension_interceptor()
        self.server.middleware.extend(middleware)
        self.lowlevel.lifespan = around(running, self.lowlevel.lifespan)
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
                log, text = logger.info if deliberate else logger.exception, text_of_error(error)
                # What was wrong with which argument is for the caller: its value is in the text.
                rejected = isinstance(error.__cause__, ValidationError)
                log("Tool %r failed: %r", params.name, "its arguments were rejected" if rejected else text)
                return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)

        return compose_tool_call_handler(self._private._extensions, call)

    def http_app(
        self, *, path: str, max_body_bytes: int, max_sessions: int | None, session_idle_seconds: float | None
    ) -> Starlette:
        return self.server.streamable_http_app(
            streamable_http_path=path,
            max_request_body_size=max_body_bytes,
            max_sessions=max_sessions,
            session_idle_timeout=session_idle_seconds,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )

    def run_stdio(self) -> None:
        self.server.run("stdio")


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
    """

    def __init__(self, task_type: TaskType, identifier: str, function: Callable[..., Any] | None) -> None:
        self.task_type: Final = task_type
        self.identifier: Final = identifier
        self.function: Final = function

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
        super().__init__("tool", tool.name, tool.fn)
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
