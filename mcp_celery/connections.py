"""What a server holds open: the store, the bus, the publisher and the engine over them, for each event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import anyio
from celery import Celery

from mcp_celery.engine import TaskEngine, TaskLimits
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import RedisKeys
from mcp_celery.queue import CeleryQueue
from mcp_celery.results import CeleryResults
from mcp_celery.settings import Settings
from mcp_celery.store import RedisJobLedger, RedisTaskBus, RedisTaskStore, connect

_UNUSABLE_BACKENDS: Final = {
    "RPCBackend": "delivers each result once, to the process that sent the job",
    "DisabledBackend": "keeps no results",
}


@dataclass(slots=True)
class _Live:
    """What is open on one event loop."""

    engine: TaskEngine
    store: RedisTaskStore
    bus: RedisTaskBus
    queue: CeleryQueue
    users: int = 0

    async def aclose(self) -> None:
        await self.queue.aclose()
        await self.bus.aclose()
        await self.store.aclose()


class Connections:
    """Opens and closes the connections of one namespace.

    Args:
        settings: Where Redis is, and how long to wait for it.
        celery: Whose broker and result backend are used.
        namespace: The server's namespace.
        queue_name: Queue of jobs that neither a component nor a route sends elsewhere.
    """

    def __init__(self, settings: Settings, celery: Celery, *, namespace: str, queue_name: str) -> None:
        self._settings = settings
        self._celery = celery
        self._namespace = namespace
        self._queue_name = queue_name
        self._live: dict[asyncio.AbstractEventLoop, _Live] = {}
        self.ledger: Callable[[str], RedisJobLedger] = functools.cache(self._open_ledger)
        """The blocking store of a namespace's records."""

    def engine(self) -> TaskEngine:
        """The engine of the running event loop.

        Raises:
            ConfigurationError: Nothing is open on this loop: the server's lifespan has not been entered.
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

    def open_store(self) -> RedisTaskStore:
        """A store for one event loop; whoever opens it closes it.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        results = self._results()
        here = results.lives_in(self._settings.redis_url)
        return RedisTaskStore(
            self._connect(),
            self._keys(self._namespace),
            timeout_seconds=self._store_timeout,
            result_key=results.key if here else None,
            decode_result=results.decode if here else None,
        )

    def results_are_here(self) -> bool:
        """Whether the result backend is in the Redis of the records.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        return self._results().lives_in(self._settings.redis_url)

    def _open(self) -> _Live:
        results = self._results()
        store = self.open_store()
        bus = RedisTaskBus(self._connect(), self._keys(self._namespace), timeout_seconds=self._store_timeout)
        queue = CeleryQueue(
            self._celery,
            namespace=self._namespace,
            default_queue=self._queue_name,
            timeout_seconds=self._settings.publish_timeout_ms / 1000,
        )
        limits = TaskLimits(
            default_ttl_ms=self._settings.default_ttl_ms,
            max_ttl_ms=self._max_ttl_ms(),
            poll_interval_ms=self._settings.poll_interval_ms,
        )
        separate = None if results.lives_in(self._settings.redis_url) else results
        return _Live(TaskEngine(store=store, queue=queue, bus=bus, results=separate, limits=limits), store, bus, queue)

    @property
    def _store_timeout(self) -> float:
        return self._settings.store_timeout_ms / 1000

    def _keys(self, namespace: str) -> RedisKeys:
        return RedisKeys(self._settings.key_prefix, namespace)

    def _connect(self) -> Any:
        return connect(
            self._settings.redis_url,
            max_connections=self._settings.redis_max_connections,
            timeout_seconds=self._store_timeout,
        )

    def _open_ledger(self, namespace: str) -> RedisJobLedger:
        return RedisJobLedger(self._settings.redis_url, self._keys(namespace), timeout_seconds=self._store_timeout)

    def _results(self) -> CeleryResults:
        backend = type(self._celery.backend).__name__
        if backend in _UNUSABLE_BACKENDS:
            raise ConfigurationError(
                f"the Celery app's result_backend ({backend}) cannot hold tasks: it {_UNUSABLE_BACKENDS[backend]}; "
                "set MCP_CELERY_RESULT_BACKEND, or result_backend in your app"
            )
        return CeleryResults(self._celery, timeout_seconds=self._store_timeout)

    def _max_ttl_ms(self) -> int:
        """No task may outlive its stored result."""
        expires: timedelta | float | None = self._celery.conf.result_expires
        if not expires:
            return self._settings.max_ttl_ms
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
        return min(self._settings.max_ttl_ms, round(seconds * 1000))
