"""``TaskServer``: an ``MCPServer`` whose components can run as Celery jobs; and how a server is found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, overload

from celery import Celery
from mcp.server import MCPServer
from mcp.server.context import ServerMiddleware
from mcp.server.extension import Extension
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, GetPromptResult, Icon, InputRequiredResult, ToolAnnotations
from pydantic import AnyUrl

from mcp_celery.config import TaskConfig, TaskMeta, as_config
from mcp_celery.engine import Backend
from mcp_celery.exposed import ExposedTool, Exposing
from mcp_celery.keys import TaskType
from mcp_celery.protocol import SubmittedTask
from mcp_celery.server.celery_tasks import CeleryTasks, tasks_of
from mcp_celery.server.mcp_server_source import MCPServerSource
from mcp_celery.server.schedules import Schedules, Scheduling
from mcp_celery.settings import Settings

__all__ = ["TaskServer", "tasks_of"]

Function = TypeVar("Function", bound=Callable[..., Any])
Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]


class TaskServer(MCPServer[Any], Exposing, Scheduling):
    """An ``MCPServer`` that runs tools, prompts and resources as Celery jobs.

    ```python
    server = TaskServer("reports")

    @server.tool(task=True)
    async def build_report(year: int, ctx: Context) -> Report: ...
    ```

    Args:
        name: The server's name. As a slug it is the namespace of its jobs, unless ``MCP_CELERY_NAMESPACE`` is set.
        task: The default for tools without ``task=``; False: they never run as tasks.
        celery: The Celery app whose broker, result backend and routes are used; its settings are never changed. None:
            an app made from ``MCP_CELERY_*``, the one that ``celery -A mcp_celery worker`` runs.
        settings: None: read from ``MCP_CELERY_*``.
        backend: Where the tasks are kept, for example a `mcp_celery.testing.MemoryBackend`. None: where
            ``MCP_CELERY_REDIS_URL`` says.
        lifespan: As for ``MCPServer``. It is entered by the server, and by each worker process before its first job.
        extensions: Further extensions.
        middleware: Further middleware.
        **options: Everything else that ``MCPServer`` takes.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """

    def __init__(
        self,
        name: str,
        *,
        task: bool | TaskConfig = False,
        celery: Celery | None = None,
        settings: Settings | None = None,
        backend: Backend | None = None,
        lifespan: Lifespan | None = None,
        extensions: Sequence[Extension] = (),
        middleware: Sequence[ServerMiddleware[Any]] = (),
        **options: Any,
    ) -> None:
        # Before the SDK's part, which adds the extensions' tools.
        self._celery_tasks = CeleryTasks(celery=celery, settings=settings, backend=backend, task=task)
        self._source = MCPServerSource(self)
        super().__init__(name, lifespan=lifespan, extensions=extensions, middleware=middleware, **options)
        self._celery_tasks.install(self._source)

    def tool(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: ToolAnnotations | None = None,
        icons: list[Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
        *,
        task: bool | TaskConfig | None = None,
    ) -> Callable[[Function], Function]:
        """Decorator to register a tool, as ``MCPServer.tool``.

        Args:
            task: Whether, and how, the tool runs as a task. None: as the server's own ``task`` says.

        Raises:
            ConfigurationError: No worker could run the function (when the decorator is applied).
        """
        if callable(name):
            raise TypeError("the @tool decorator was used without calling it: write @server.tool()")

        def decorate(fn: Function) -> Function:
            self.add_tool(fn, name, title, description, annotations, icons, meta, structured_output, task=task)
            return fn

        return decorate

    def add_tool(  # noqa: PLR0913 - the signature of the SDK
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: ToolAnnotations | None = None,
        icons: list[Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
        *,
        task: bool | TaskConfig | None = None,
    ) -> None:
        """Register a tool, as ``MCPServer.add_tool``.

        Args:
            task: Whether, and how, the tool runs as a task. None: as the server's own ``task`` says.

        Raises:
            ConfigurationError: No worker could run the function.
        """
        tool_name = name or getattr(fn, "__name__", "")
        (self._celery_tasks.default if task is None else as_config(task, tool_name)).validate_function(fn, tool_name)
        known = self._source.has_tool(tool_name)
        super().add_tool(fn, name, title, description, annotations, icons, meta, structured_output)
        if not known:  # the SDK ignores a second tool of one name
            self._declare("tool", tool_name, task)

    def add_polling_tools(self, *, after: float = 5.0, prefix: str = "") -> None:
        """Give clients that know no tasks three tools to follow one: ``task_status``, ``task_result``, ``task_cancel``.

        Their calls of tools that may or must run as tasks then run on a worker, unless the tool declares
        ``foreground="server"``. A call is answered with the result, if there is one within ``after`` seconds, else with
        the task's id and how to go on. Call it in the module of the server, which the workers import as well.

        Args:
            after: Seconds that a call waits for its result, 0…50; 0: it is answered with its task at once.
            prefix: Prefix of the three tools' names, if other tools have these names.

        Raises:
            ConfigurationError: ``after`` is out of range, or there is a tool of such a name.
        """
        self._celery_tasks.add_polling_tools(after=after, prefix=prefix)

    def remove_tool(self, name: str) -> None:
        """Remove a tool, as ``MCPServer.remove_tool``. Its jobs that still wait end as ``failed``."""
        super().remove_tool(name)
        self._celery_tasks.withdraw("tool", name)

    def prompt(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        icons: list[Icon] | None = None,
        *,
        task: bool | TaskConfig | None = None,
    ) -> Callable[[Function], Function]:
        """Decorator to register a prompt, as ``MCPServer.prompt``.

        Args:
            task: Whether, and how, the prompt runs as a task. None: it does not.

        Raises:
            ConfigurationError: No worker could run the function (when the decorator is applied).
        """
        register = super().prompt(name, title, description, icons)

        def decorate(fn: Function) -> Function:
            prompt_name = name or getattr(fn, "__name__", "")
            as_config(task or False, prompt_name).validate_function(fn, prompt_name)
            known = self._source.has_prompt(prompt_name)
            register(fn)
            if not known:
                self._declare("prompt", prompt_name, task)
            return fn

        return decorate

    def resource(
        self, uri: str, *, task: bool | TaskConfig | None = None, **options: Any
    ) -> Callable[[Function], Function]:
        """Decorator to register a resource or a resource template, as ``MCPServer.resource``.

        Args:
            uri: URI or URI template.
            task: Whether, and how, the resource is read as a task. None: it is not.
            **options: Everything else that ``MCPServer.resource`` takes.

        Raises:
            ConfigurationError: No worker could run the function (when the decorator is applied).
        """
        register = super().resource(uri, **options)

        def decorate(fn: Function) -> Function:
            as_config(task or False).validate_function(fn, uri)
            register(fn)
            self._declare("resource", uri, task)
            return fn

        return decorate

    @overload
    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any] | None = None, *, task_meta: None = None
    ) -> CallToolResult | InputRequiredResult: ...
    @overload
    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any] | None = None, *, task_meta: TaskMeta
    ) -> SubmittedTask: ...
    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        context: Context[Any] | None = None,
        *,
        task_meta: TaskMeta | None = None,
    ) -> CallToolResult | InputRequiredResult | SubmittedTask:
        """Call a tool, as ``MCPServer.call_tool``; with ``task_meta`` as a task of the current caller.

        Args:
            task_meta: Options of the task; None: the tool runs in the foreground.

        Raises:
            McpCeleryError: As `CeleryTasks.submit`; nothing was created.
        """
        if task_meta is None:
            return await super().call_tool(name, arguments, context)
        return await self._celery_tasks.submit("tool", {"name": name, "arguments": arguments}, context, task_meta)

    @overload
    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any] | None = None,
        *,
        task_meta: None = None,
    ) -> GetPromptResult | InputRequiredResult: ...
    @overload
    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any] | None = None,
        *,
        task_meta: TaskMeta,
    ) -> SubmittedTask: ...
    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any] | None = None,
        *,
        task_meta: TaskMeta | None = None,
    ) -> GetPromptResult | InputRequiredResult | SubmittedTask:
        """Get a prompt, as ``MCPServer.get_prompt``; with ``task_meta`` as `call_tool`."""
        if task_meta is None:
            return await super().get_prompt(name, arguments, context)
        params = {"name": name, "arguments": arguments or {}}
        return await self._celery_tasks.submit("prompt", params, context, task_meta)

    @overload
    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Any] | None = None, *, task_meta: None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult: ...
    @overload
    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Any] | None = None, *, task_meta: TaskMeta
    ) -> SubmittedTask: ...
    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Any] | None = None, *, task_meta: TaskMeta | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult | SubmittedTask:
        """Read a resource, as ``MCPServer.read_resource``; with ``task_meta`` as `call_tool`."""
        if task_meta is None:
            return await super().read_resource(uri, context)
        return await self._celery_tasks.submit("resource", {"uri": str(uri)}, context, task_meta)

    def _exposing_app(self) -> Celery:
        return self._celery_tasks.celery

    def _schedules(self) -> Schedules:
        return self._celery_tasks.schedules

    def add_exposed(self, exposed: ExposedTool, annotations: ToolAnnotations | None) -> None:
        self._celery_tasks.add_exposed(exposed, annotations)

    def _declare(self, task_type: TaskType, component: str, task: bool | TaskConfig | None) -> None:
        if task is not None:
            self._celery_tasks.declare(task_type, component, as_config(task))
