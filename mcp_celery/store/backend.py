"""Redis as a storage of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mcp_celery.engine.backend import BackendOptions, OpenBackend
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.settings import celery_url
from mcp_celery.store.bus import RedisTaskBus
from mcp_celery.store.connection import connect
from mcp_celery.store.exposed import RedisExposed
from mcp_celery.store.memory import StoreMemory
from mcp_celery.store.records import RedisJobLedger, RedisTaskStore
from mcp_celery.store.recovery import RedisRecovery


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisBackend:
    """Redis, or a server that speaks its protocol. Fulfils :class:`mcp_celery.engine.Backend`.

    Attributes:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        key_prefix: First part of every key.
        timeout_seconds: How long a call may take.
        max_connections: How many connections a process opens; calls wait when all are busy.
        max_memory_percent: How much of the server's ``maxmemory`` may be in use before new tasks are refused.
    """

    url: str
    key_prefix: str
    timeout_seconds: float
    max_connections: int
    max_memory_percent: int

    @property
    def in_process(self) -> bool:
        """Never: workers reach the same tasks."""
        return False

    def holds_results_at(self, url: str | None) -> bool:
        """Whether results are kept in the database of the records, where one script reads both.

        Args:
            url: As Celery spells it; None where the result backend has no URL.
        """
        return url is not None and _is_redis(url) and _place(url) == _place(celery_url(self.url))

    def open(self, options: BackendOptions) -> OpenBackend:
        """Open everything that a server needs on the running event loop."""
        store = self.open_store(options)
        return OpenBackend(store, self.open_bus(options), RedisRecovery(store), RedisExposed(store))

    def open_store(self, options: BackendOptions) -> RedisTaskStore:
        """Open a store for one event loop."""
        results = options.results
        return RedisTaskStore(
            self._connect(),
            self._keys(options),
            timeout_seconds=self.timeout_seconds,
            result_key=None if results is None else results.key,
            decode_result=None if results is None else results.decode,
            snapshots=options.snapshots,
            memory=StoreMemory(self.max_memory_percent),
            observers=options.observers,
        )

    def open_bus(self, options: BackendOptions) -> RedisTaskBus:
        """Open a bus for one event loop."""
        return RedisTaskBus(self._connect(), self._keys(options), timeout_seconds=self.timeout_seconds)

    def open_ledger(self, options: BackendOptions) -> RedisJobLedger:
        """Open the blocking store of a process."""
        return RedisJobLedger(
            self.url,
            self._keys(options),
            timeout_seconds=self.timeout_seconds,
            snapshots=options.snapshots,
            observers=options.observers,
        )

    def _keys(self, options: BackendOptions) -> RedisKeys:
        return RedisKeys(self.key_prefix, options.namespace)

    def _connect(self) -> Any:
        return connect(self.url, max_connections=self.max_connections, timeout_seconds=self.timeout_seconds)


def _is_redis(url: str) -> bool:
    return urlsplit(url).scheme in ("redis", "rediss", "redis+socket", "socket")


def _place(url: str) -> tuple[str, str | None, int | None, str, str]:
    """What tells two Redis databases apart in their URLs, however they are written."""
    parts = urlsplit(url)
    if parts.scheme in ("redis+socket", "socket"):
        database = dict(one.split("=", 1) for one in parts.query.split("&") if "=" in one).get("virtual_host", "0")
        return ("socket", None, None, parts.path, database.strip("/") or "0")
    return ("tcp", parts.hostname or "localhost", parts.port or 6379, "", parts.path.strip("/") or "0")
