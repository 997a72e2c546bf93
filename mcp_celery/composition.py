"""One server's tasks: store, bus, queue, results, protocol and worker, put together around a Celery app."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import anyio
from celery import Celery
from mcp.server import MCPServer

from mcp_celery.config import TaskConfig
from mcp_celery.context import register_task_server
from mcp_celery.default_app import default_app
from mcp_celery.engine import JSONObject, TaskEngine, TaskLimits
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import RedisKeys, TaskType, default_queue_name, slug
from mcp_celery.protocol import TaskHost, TaskPush, TasksExtension
from mcp_celery.queue import CeleryQueue
from mcp_celery.results import CeleryResults
from mcp_celery.settings import Settings
from mcp_celery.store import RedisJobLedger, RedisTaskBus, RedisTaskStore, connect
from mcp_celery.worker import JobRunner, WorkerRuntime, register

logger = logging.getLogger(__name__)

_FORBIDDEN: Final = TaskConfig.from_bool(False)
_UNUSABLE_BACKENDS: Final = {
    "RPCBackend": "delivers each result once, to the process that sent the job",
    "DisabledBackend": "keeps no results",
}


@dataclass(slots=True)
class _Live:
    """What a server holds open on one event loop."""

    engine: TaskEngine
    store: RedisTaskStore
    bus: RedisTaskBus
    queue: CeleryQueue
    users: int = 0

    async def aclose(self) -> None:
        await self.queue.aclose()
        await self.bus.aclose()
        await self.store.aclose()


class CeleryTasks:
    """The tasks of one MCP server.

    Args:
        server_name: The server's name, from which the namespace follows.
        celery: Its Celery app, None for the one made from ``MCP_CELERY_*``.
        settings: None: read from the environment.
        tool_accepts: Whether a tool's arguments are valid.

    Attributes:
        namespace: In the names of keys, jobs and the queue.
        queue_name: The queue of jobs that neither a component nor a route sends elsewhere.
        extension: For ``MCPServer(extensions=[…])``.
        push: For ``MCPServer(middleware=[…])``.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """

    def __init__(
        self,
        server_name: str,
        *,
        celery: Celery | None,
        settings: Settings | None,
        tool_accepts: Callable[[str, JSONObject], bool],
    ) -> None:
        self.settings = settings or Settings.load()
        self.celery = celery or default_app
        try:
            self.namespace = self.settings.namespace or slug(server_name)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        self.queue_name = self.settings.queue or default_queue_name(self.namespace)
        self._components: dict[tuple[TaskType, str], TaskConfig] = {}
        self._live: dict[asyncio.AbstractEventLoop, _Live] = {}
        self._server: MCPServer[Any] | None = None
        host = TaskHost(
            engine=self.engine,
            tool_config=lambda name: self._components.get(("tool", name), _FORBIDDEN),
            accepts_arguments=tool_accepts,
            header_names=self.settings.header_names,
            max_listen_tasks=self.settings.max_listen_tasks,
        )
        self.extension = TasksExtension(host)
        self.push = TaskPush(host)

    def serve(self, server: MCPServer[Any]) -> None:
        """Say whose tasks these are."""
        self._server = server
        register_task_server(self.namespace, server)

    def declare(self, task_type: TaskType, component: str, config: TaskConfig) -> None:
        """Note what a component declares."""
        if config.supports_tasks():
            self._components[task_type, component] = config

    def withdraw(self, task_type: TaskType, component: str) -> None:
        """Forget a component."""
        self._components.pop((task_type, component), None)

    @property
    def queue_names(self) -> tuple[str, ...]:
        """Every queue that the components use, the server's own first."""
        named = {config.queue for config in self._components.values() if config.queue}
        return (self.queue_name, *sorted(named - {self.queue_name}))

    def engine(self) -> TaskEngine:
        """The engine of the running event loop.

        Raises:
            ConfigurationError: The server's lifespan has not been entered on this loop.
        """
        live = self._live.get(asyncio.get_running_loop())
        if live is None:
            raise ConfigurationError("the server's lifespan has not been entered, so its tasks have no connections")
        return live.engine

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Hold the connections of the running event loop; the last to leave closes them.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        loop = asyncio.get_running_loop()
        live = self._live.get(loop)
        if live is None:
            live = self._live[loop] = self._open()
        live.users += 1
        try:
            yield
        finally:
            live.users -= 1
            if not live.users:
                del self._live[loop]
                with anyio.CancelScope(shield=True):
                    await live.aclose()

    def _open(self) -> _Live:
        results = self._results()
        store = self._open_store()
        bus = RedisTaskBus(self._connect(), self._keys(), timeout_seconds=self._store_timeout)
        queue = CeleryQueue(
            self.celery,
            namespace=self.namespace,
            default_queue=self.queue_name,
            timeout_seconds=self.settings.publish_timeout_ms / 1000,
        )
        engine = TaskEngine(
            store=store,
            queue=queue,
            bus=bus,
            results=None if results.lives_in(self.settings.redis_url) else results,
            limits=TaskLimits(
                default_ttl_ms=self.settings.default_ttl_ms,
                max_ttl_ms=self._max_ttl_ms(),
                poll_interval_ms=self.settings.poll_interval_ms,
            ),
        )
        return _Live(engine, store, bus, queue)

    @property
    def _store_timeout(self) -> float:
        return self.settings.store_timeout_ms / 1000

    def _keys(self, namespace: str | None = None) -> RedisKeys:
        return RedisKeys(self.settings.key_prefix, namespace or self.namespace)

    def _connect(self) -> Any:
        return connect(
            self.settings.redis_url,
            max_connections=self.settings.redis_max_connections,
            timeout_seconds=self._store_timeout,
        )

    def _open_store(self) -> RedisTaskStore:
        results = self._results()
        here = results.lives_in(self.settings.redis_url)
        return RedisTaskStore(
            self._connect(),
            self._keys(),
            timeout_seconds=self._store_timeout,
            result_key=results.key if here else None,
            decode_result=results.decode if here else None,
        )

    def _results(self) -> CeleryResults:
        backend = type(self.celery.backend).__name__
        if backend in _UNUSABLE_BACKENDS:
            raise ConfigurationError(
                f"the Celery app's result_backend ({backend}) cannot hold tasks: it {_UNUSABLE_BACKENDS[backend]}; "
                "set MCP_CELERY_RESULT_BACKEND, or result_backend in your app"
            )
        return CeleryResults(self.celery, timeout_seconds=self._store_timeout)

    def _max_ttl_ms(self) -> int:
        """No task may outlive its stored result."""
        expires: timedelta | float | None = self.celery.conf.result_expires
        if not expires:
            return self.settings.max_ttl_ms
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
        return min(self.settings.max_ttl_ms, round(seconds * 1000))

    def register_jobs(self, app: Celery) -> list[str]:
        """Register one job for each component with a worker's app.

        Returns:
            The names of the jobs.
        """
        if self._server is not None:
            register_task_server(self.namespace, self._server)
        runtime = WorkerRuntime(namespace=self.namespace, ledger=self._ledger(), make_runner=self._make_runner)
        return register(app, runtime, self._components)

    def _ledger(self) -> Callable[[str], RedisJobLedger]:
        @functools.cache
        def ledger(namespace: str) -> RedisJobLedger:
            return RedisJobLedger(self.settings.redis_url, self._keys(namespace), timeout_seconds=self._store_timeout)

        return ledger

    def _make_runner(self) -> JobRunner:
        if self._server is None:
            raise ConfigurationError("these tasks belong to no server")
        return JobRunner(
            self._server,
            namespace=self.namespace,
            open_store=self._open_store,
            progress_interval_seconds=self.settings.progress_interval_ms / 1000,
        )
