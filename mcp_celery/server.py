"""``TaskServer``: an ``MCPServer`` whose tools can run as Celery jobs. Here the layers are put together."""

from __future__ import annotations

import functools
import importlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from celery import Celery
from mcp.server import MCPServer
from mcp.server.context import ServerMiddleware
from mcp.server.extension import Extension
from mcp.server.lowlevel.server import lifespan as default_lifespan
from mcp_types import Icon, ToolAnnotations

from mcp_celery.composition import CeleryTasks
from mcp_celery.config import TaskConfig
from mcp_celery.errors import ConfigurationError
from mcp_celery.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])
Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]

_tasks: WeakKeyDictionary[MCPServer[Any], CeleryTasks] = WeakKeyDictionary()


class TaskServer(MCPServer[Any]):
    """An ``MCPServer`` that runs tools as Celery jobs.

    ```python
    server = TaskServer("reports")

    @server.tool(task=True)
    async def build_report(year: int, ctx: Context) -> Report: ...
    ```

    Args:
        name: The server's name. As a slug it is the namespace of its jobs, unless ``MCP_CELERY_NAMESPACE`` is set.
        task: What tools declare that say nothing themselves; False: they never run as tasks.
        celery: The Celery app whose broker, result backend and routes are used; its settings are never changed. None:
            an app made from ``MCP_CELERY_*``, the one that ``celery -A mcp_celery worker`` runs.
        settings: None: read from ``MCP_CELERY_*``.
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
        lifespan: Lifespan | None = None,
        extensions: Sequence[Extension] = (),
        middleware: Sequence[ServerMiddleware[Any]] = (),
        **options: Any,
    ) -> None:
        tasks = CeleryTasks(name, celery=celery, settings=settings, tool_accepts=self._accepts_arguments)
        # Before the SDK's part, which adds the extensions' tools.
        self._celery_tasks = tasks
        self._task_default = _as_config(task)
        super().__init__(
            name,
            lifespan=_composed(tasks, lifespan),
            extensions=[*extensions, tasks.extension],
            middleware=[*middleware, tasks.push],
            **options,
        )
        tasks.serve(self)
        _tasks[self] = tasks

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
        config = self._task_default if task is None else _as_config(task)
        tool_name = name or getattr(fn, "__name__", "")
        config.validate_function(fn, tool_name)
        super().add_tool(fn, name, title, description, annotations, icons, meta, structured_output)
        tool = self._tool_manager.get_tool(tool_name)
        if tool is not None and tool.fn is fn:  # the SDK ignores a second tool of one name
            self._celery_tasks.declare("tool", tool_name, config)

    def remove_tool(self, name: str) -> None:
        """Remove a tool, as ``MCPServer.remove_tool``. Jobs of it that still wait end as ``failed``."""
        super().remove_tool(name)
        self._celery_tasks.withdraw("tool", name)

    def _accepts_arguments(self, name: str, arguments: dict[str, Any]) -> bool:
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            return False
        try:
            tool.fn_metadata.validate_arguments(arguments)
        except Exception:  # noqa: BLE001 - a validator may raise anything; the foreground call repeats and reports it
            return False
        return True


def _as_config(task: bool | TaskConfig) -> TaskConfig:
    return TaskConfig.from_bool(task) if isinstance(task, bool) else task


def _composed(tasks: CeleryTasks, lifespan: Lifespan | None) -> Lifespan:
    """The user's lifespan within ours, which holds the connections to the store and the broker."""

    @asynccontextmanager
    async def composed(server: MCPServer[Any]) -> AsyncGenerator[Any]:
        async with tasks.running():
            inner: AbstractAsyncContextManager[Any] = (lifespan or _no_lifespan)(server)
            async with inner as state:
                yield state

    return composed


def _no_lifespan(server: MCPServer[Any]) -> AbstractAsyncContextManager[Any]:
    return default_lifespan(server)  # pyright: ignore[reportArgumentType] - it ignores its argument


def tasks_of(server: MCPServer[Any]) -> CeleryTasks:
    """The task side of a server.

    Raises:
        ConfigurationError: The server has none.
    """
    found = _tasks.get(server)
    if found is None:
        raise ConfigurationError(
            f"the MCP server {server.name!r} runs no tasks; make it a mcp_celery.TaskServer instead of an MCPServer"
        )
    return found


@functools.cache
def load_server(spec: str) -> MCPServer[Any]:
    """Import a server.

    Args:
        spec: ``module:attribute``, for example ``workers.demo:server``.

    Raises:
        ConfigurationError: In one line: the form, the module or the attribute is wrong, or it is no MCP server.
    """
    module_name, _colon, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"{spec!r} is not of the form module:attribute, for example workers.demo:server")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"cannot import {module_name!r}: {reason}") from error
    found: object = getattr(module, attribute, None)
    if found is None:
        raise ConfigurationError(f"module {module_name!r} has no attribute {attribute!r}")
    if not isinstance(found, MCPServer):
        raise ConfigurationError(f"{spec!r} is a {type(found).__name__}, not an MCP server")
    return cast("MCPServer[Any]", found)
