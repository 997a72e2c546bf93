"""``TasksExtension``: what an author of a FastMCP server adds to it, in the place of FastMCP's own."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from celery import Celery
from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.context import Context
from fastmcp.server.extensions import MethodBinding, ServerExtension, ToolCallContinuation, ToolCallOutcome
from fastmcp.utilities.tasks import TaskConfig as FastMCPTaskConfig
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.extension import MethodBinding as SDKMethodBinding
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    ClientCapabilities,
    MissingRequiredClientCapabilityErrorData,
    ToolAnnotations,
)

from mcp_celery.components.declarations import DeclaredComponent
from mcp_celery.config import TaskConfig
from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed import ExposedTool, Exposing, ToolDeclaration
from mcp_celery.fastmcp.component import ToolComponent
from mcp_celery.fastmcp.config import options_of
from mcp_celery.fastmcp.private import (
    has_generated_name,
    is_call_of_client,
    report_progress_dependencies,
    request_of,
)
from mcp_celery.fastmcp.results import as_tool_outcome
from mcp_celery.fastmcp.routing import TaskCreation, of_version, task_creation
from mcp_celery.fastmcp.source import FastMCPSource, Fitted
from mcp_celery.protocol import around
from mcp_celery.protocol.requirements import require_foreground, require_scopes
from mcp_celery.protocol.revisions import revision_of
from mcp_celery.protocol.shared_wire import EXTENSION
from mcp_celery.protocol.v2025_11_25.wire import CREATE, CreateParams
from mcp_celery.server.celery_tasks import CeleryTasks
from mcp_celery.server.schedules import Schedules, Scheduling
from mcp_celery.settings import Settings
from mcp_celery.testing import MemoryBackend

logger = logging.getLogger(__name__)

Handling = ServerRequestContext[Any, Any]

_INSTEAD: Final[Mapping[str, str]] = {
    "url": "set MCP_CELERY_REDIS_URL, and MCP_CELERY_BROKER_URL for another broker than Redis",
    "name": "set MCP_CELERY_NAMESPACE",
    "worker_name": "start the worker with `celery -A mcp_celery worker -n NAME`",
    "concurrency": "start the worker with `celery -A mcp_celery worker -c N`",
    "redelivery_timeout": "set MCP_CELERY_HEARTBEAT_MS: the job of a worker that died is published again after three",
    "reconnection_delay": "set Celery's broker_connection_retry options",
    "minimum_check_interval": "remove it: Celery's workers wait for messages and do not poll",
    "credential_provider": "name it in MCP_CELERY_REDIS_CREDENTIALS",
    "execution_ttl": "set MCP_CELERY_DEFAULT_TTL_MS, or TaskConfig(ttl=…) for one tool",
    "parent_task_spans": "remove it: a job's spans are always in the trace of the request that created its task",
}
_VARIABLES: Final = ("FASTMCP_DOCKET_", "FASTMCP_TASKS_")
"""What the names of the settings of FastMCP's own ``TasksExtension`` begin with."""


class TasksExtension(ServerExtension, Exposing, Scheduling):
    """Runs the tools of a FastMCP server as Celery jobs.

    ```python
    mcp = FastMCP("reports")
    mcp.add_extension(TasksExtension())
    ```

    Args:
        celery: The Celery app whose broker, result backend and routes are used; its settings are never changed. None:
            an app made from ``MCP_CELERY_*``, the one that ``celery -A mcp_celery worker`` runs.
        settings: None: read from ``MCP_CELERY_*``.
        in_process: Whether tasks are kept in the server's process, which runs their jobs itself. A restart loses them.
        **docket: Options of FastMCP's own ``TasksExtension``. They have no effect here; a warning names what to use
            instead.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
        TypeError: An option is unknown.
    """

    identifier = EXTENSION

    def __init__(
        self,
        *,
        celery: Celery | None = None,
        settings: Settings | None = None,
        in_process: bool = False,
        **docket: Any,
    ) -> None:
        if unknown := sorted(docket.keys() - _INSTEAD.keys()):
            raise TypeError(f"TasksExtension() got an unexpected keyword argument {unknown[0]!r}")
        for name in docket:
            logger.warning("TasksExtension(%s=…) is an option of Docket and has no effect: %s", name, _INSTEAD[name])
        self._options: dict[str, Any] = {"celery": celery, "settings": settings, "in_process": in_process}
        self.tasks: Final = CeleryTasks(
            celery=celery, settings=settings, backend=MemoryBackend() if in_process else None
        )
        self._source: FastMCPSource | None = None

    def clone(self) -> TasksExtension:
        """Return an instance with the same options that belongs to no server."""
        return TasksExtension(**self._options)

    @property
    def _fitted(self) -> Fitted:
        if self._source is None or self._source.fitted is None:
            raise ConfigurationError("these tasks belong to no server yet: call mcp.add_extension(TasksExtension())")
        return self._source.fitted

    def methods(self) -> Sequence[MethodBinding]:
        """The request methods that the extension adds. FastMCP asks when it adds the extension.

        Raises:
            ConfigurationError: The server's name gives no namespace.
        """
        if self._source is None:
            self._install()
        return [
            MethodBinding(one.method, one.params_type, self._handler_of(one), one.protocol_versions)
            for one in self._fitted.extension.methods()
        ]

    def _install(self) -> None:
        server = self.server
        runs_here = self.tasks.backend.in_process or self.tasks.celery.conf.task_always_eager
        if has_generated_name(server) and not (self.tasks.settings.namespace or runs_here):
            raise ConfigurationError(
                f"the FastMCP server has no name, so FastMCP calls it {server.name!r} in this process and something "
                'else in each worker, which would not find its tasks: write FastMCP("a name"), set '
                "MCP_CELERY_NAMESPACE, or pass TasksExtension(in_process=True)"
            )
        if ignored := sorted(name for name in os.environ if name.upper().startswith(_VARIABLES)):
            logger.warning(
                "%s: these are settings of Docket and have no effect; set their counterparts MCP_CELERY_… that "
                "docs/fastmcp.md names",
                ", ".join(ignored),
            )
        report_progress_dependencies()
        source = FastMCPSource(server)
        self.tasks.install(source)
        self._source = source

    def _handler_of(self, binding: SDKMethodBinding) -> Any:
        if binding.method != CREATE:
            return binding.handler

        async def create(ctx: Handling, params: CreateParams) -> HandlerResult:
            tools_call = self.tasks.source.lowlevel.get_request_handler("tools/call")
            if params.task_type != "tool" or tools_call is None:
                return await binding.handler(ctx, params)
            return await TaskCreation(binding.handler, ctx, params).call(tools_call.handler)

        return create

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Hold the connections to the store and the broker."""
        async with around(self._fitted.running, _no_lifespan)(self.server):
            yield

    async def intercept_tool_call(
        self, params: CallToolRequestParams, context: Context, call_next: ToolCallContinuation
    ) -> ToolCallOutcome:
        """Turn a client's call into a task, where tool and client both may. FastMCP calls this after its middleware.

        Raises:
            ToolError: Another tool calls a tool that runs only as a task.
            MCPError: The caller's token lacks scopes of the tool; else as for other kinds of servers.
        """
        ctx = request_of(context)
        found = await self._called(params, ctx)
        if not found.config.supports_tasks():
            if ctx is not None and is_call_of_client():
                require_foreground(ctx, params.name)
            return await call_next()
        if not is_call_of_client():
            if found.config.mode == "required":
                raise ToolError(
                    f"Tool {params.name!r} only runs as a background task, which the client has to request by "
                    "calling it directly."
                )
            return await call_next()
        if ctx is None:  # a call inside the process, without a client's connection
            if found.config.mode == "required":
                raise _requires_extension(params.name)
            return await call_next()
        component = found.component if isinstance(found.component, ToolComponent) else None
        version, is_transformed = (None, False) if component is None else (component.version, component.is_transformed)
        if (creation := task_creation()) is not None:
            return await creation.create(params, version)
        if is_transformed and revision_of(ctx).follows_tasks(ctx):
            # FastMCP would only say that a function got wrong arguments.
            await _require_valid(found, params)

        async def serve(_: Handling) -> HandlerResult:
            return await call_next()  # pyright: ignore[reportReturnType] - FastMCP's result passes through unchanged

        served = await self._fitted.extension.serve_call(found, params, of_version(ctx, version), serve)
        return as_tool_outcome(served)

    async def _called(self, params: CallToolRequestParams, ctx: Handling | None) -> DeclaredComponent:
        """The tool that is called. The request may name another: one that calls it, or that middleware replaced.

        Raises:
            MCPError: The caller's token lacks scopes of the tool.
        """
        found = await self.tasks.host.components.find("tool", params.name, params.meta)
        if ctx is not None:
            require_scopes("tool", params.name, found.config.required_scopes)
        return found

    def add_polling_tools(self, *, after: float = 5.0, prefix: str = "") -> None:
        """Give clients that know no tasks tools to follow one, as `mcp_celery.TaskServer.add_polling_tools`.

        Call it after ``mcp.add_extension``.

        Args:
            after: Seconds that a call waits for its result, 0…50; 0: it is answered with its task at once.
            prefix: What the names of the three tools begin with, where they would meet others.

        Raises:
            ConfigurationError: ``after`` is out of range, or there is a tool of such a name.
        """
        self.tasks.add_polling_tools(after=after, prefix=prefix)

    def _exposing_app(self) -> Celery:
        return self.tasks.celery

    def _declared(self, task: TaskConfig | ToolDeclaration | FastMCPTaskConfig) -> TaskConfig:
        return options_of(task) if isinstance(task, FastMCPTaskConfig) else super()._declared(task)

    def _schedules(self) -> Schedules:
        return self.tasks.schedules

    def add_exposed(self, exposed: ExposedTool, annotations: ToolAnnotations | None) -> None:
        self.tasks.add_exposed(exposed, annotations)


async def _require_valid(found: DeclaredComponent, params: CallToolRequestParams) -> None:
    """Refuse arguments that a tool would not take.

    Raises:
        ValidationError: It says why.
    """
    if (refusal := await found.refusal(params.arguments or {})) is not None:
        raise ValidationError(refusal, log_level=logging.WARNING)


def _requires_extension(tool: str) -> MCPError:
    """The answer to a call of a tool that runs only as a task, where the call cannot become one."""
    required = MissingRequiredClientCapabilityErrorData(
        required_capabilities=ClientCapabilities(extensions={EXTENSION: {}})
    )
    return MCPError(
        MISSING_REQUIRED_CLIENT_CAPABILITY,
        f"Tool {tool!r} runs only as a task, and the call does not declare the extension {EXTENSION}",
        required.model_dump(by_alias=True, mode="json", exclude_none=True),
    )


@asynccontextmanager
async def _no_lifespan(_: Any) -> AsyncGenerator[None]:
    yield
