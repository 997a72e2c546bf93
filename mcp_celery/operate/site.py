"""Which tasks an operator asks about: the store, the Celery app and the servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from celery import Celery
from celery.app.utils import find_app

from mcp_celery.broker.naming import default_queue_name
from mcp_celery.broker.own_jobs import OwnJobs
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.common.redis_url import shown_redis_url
from mcp_celery.default_app import configured_queue, default_app
from mcp_celery.engine import BackendOptions
from mcp_celery.errors import ConfigurationError, StoreUnavailableError
from mcp_celery.host_app import hosts
from mcp_celery.server.celery_tasks import CeleryTasks, worker_command
from mcp_celery.server.connections import OBSERVERS, backend_of
from mcp_celery.server.keyring import snapshots_with
from mcp_celery.server.loading import load_tasks
from mcp_celery.settings import Settings
from mcp_celery.store import RedisBackend
from mcp_celery.store.failures import described
from mcp_celery.store.inspection import RedisInspection, namespaces_in
from mcp_celery.store.records import RedisTaskStore

IN_MEMORY = (
    "MCP_CELERY_REDIS_URL=memory:// keeps tasks in their server's process, where no other process can read them: "
    "operate servers that keep tasks in Redis"
)


class UnreachableStoreError(Exception):
    """The store does not answer; the text says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Open:
    """One server's tasks, opened.

    Attributes:
        namespace: The server's namespace.
        store: Its records.
        inspection: Reads the tasks of any caller.
    """

    namespace: str
    store: RedisTaskStore
    inspection: RedisInspection


@dataclass(frozen=True)
class Site:
    """Where tasks are kept, and who runs them.

    Attributes:
        settings: Of the servers, or of the environment.
        app: The Celery app whose workers run the jobs.
        namespace: The only namespace that is asked about; None: those of ``servers``, or else all in the store.
        servers: The servers that were imported, by namespace.
    """

    settings: Settings
    app: Celery
    namespace: str | None = None
    servers: Mapping[str, CeleryTasks] = field(default_factory=dict[str, CeleryTasks])

    @property
    def backend(self) -> RedisBackend:
        """The storage.

        Raises:
            ConfigurationError: Tasks are kept in their server's process.
        """
        backend = next((tasks.backend for tasks in self.servers.values()), None) or backend_of(self.settings)
        if not isinstance(backend, RedisBackend):
            raise ConfigurationError(IN_MEMORY)
        return backend

    @property
    def store_name(self) -> str:
        """Which store is read, in words, without user and password."""
        default: object = Settings.model_fields["redis_url"].default
        if self.settings.redis_url == default:
            return f"the store {default} (set MCP_CELERY_REDIS_URL to read another one)"
        return f"the store {shown_redis_url(self.settings.redis_url)} (MCP_CELERY_REDIS_URL)"

    def queue_name(self, namespace: str) -> str:
        """The queue of the jobs of a server that neither a component nor a route sends elsewhere."""
        if (tasks := self.servers.get(namespace)) is not None:
            return tasks.queue_name
        configured = configured_queue() if self.app is default_app else None
        return configured or self.settings.queue or default_queue_name(namespace)

    def worker_command(self, namespace: str, queue: str) -> str:
        """The command that starts a worker that consumes a queue of a server."""
        if (tasks := self.servers.get(namespace)) is not None:
            return tasks.worker_command(queue)
        return worker_command(self.app, queue, default_queue=self.queue_name(namespace), server=self.settings.server)

    def own_jobs(self, namespace: str) -> OwnJobs:
        """The jobs of a server's components, to look where they are routed."""
        return OwnJobs(
            self.app,
            namespace=namespace,
            default_queue=self.queue_name(namespace),
            timeout_seconds=self.settings.publish_timeout_ms / 1000,
            is_app_default=self.app is default_app,
        )

    @asynccontextmanager
    async def queue(self, namespace: str) -> AsyncGenerator[CeleryQueue]:
        """The broker, to look at queues and to revoke jobs."""
        queue = CeleryQueue(
            self.app,
            namespace=namespace,
            default_queue=self.queue_name(namespace),
            timeout_seconds=self.settings.publish_timeout_ms / 1000,
            is_app_default=self.app is default_app,
        )
        try:
            yield queue
        finally:
            await queue.aclose()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[list[Open]]:
        """Open the tasks of each server.

        Raises:
            ConfigurationError: Tasks are kept in their server's process.
            UnreachableStoreError: The store does not answer, on entry or later.
        """
        backend = self.backend
        snapshots = snapshots_with(self.settings.key_ring, accept_unsealed=self.settings.accept_unsealed)
        stores: list[RedisTaskStore] = []

        def store_of(namespace: str) -> RedisTaskStore:
            store = backend.open_store(BackendOptions(namespace=namespace, snapshots=snapshots, observers=OBSERVERS))
            stores.append(store)
            return store

        try:
            names = await self._namespaces(store_of("-"))
            yield [Open(name, store := store_of(name), RedisInspection(store)) for name in names]
        except StoreUnavailableError as error:
            raise UnreachableStoreError(_reason_of(error)) from error
        finally:
            for store in stores:
                await store.aclose()

    async def _namespaces(self, store: RedisTaskStore) -> list[str]:
        if self.namespace is not None:
            return [self.namespace]
        return [*self.servers] or await namespaces_in(store, self.backend)


def _reason_of(error: StoreUnavailableError) -> str:
    cause = error.__cause__
    reason = "it did not answer in time" if cause is None else described(cause)
    return f"the task store (MCP_CELERY_REDIS_URL) cannot be used: {reason}"


def find_site(app: Celery | str | None, server: str | None, namespace: str | None) -> Site:
    """Find out which tasks are meant.

    Args:
        app: The Celery app, or how ``celery -A`` names it; None: that of the server, or the one that ``MCP_CELERY_*``
            configure.
        server: The server as ``module:attribute``; None: ``MCP_CELERY_SERVER``, or those installed in the app.
        namespace: The only namespace; the server is not imported then, unless it is named.

    Raises:
        ConfigurationError: A setting is refused, or a server cannot be imported; the message names it.
    """
    settings = Settings.load()
    named = _app_named(app) if isinstance(app, str) else app
    specs = [server] if server else []
    if not specs and namespace is None:
        host = None if named is None else hosts.get(named)
        specs = host.servers if host is not None else [settings.server] if settings.server else []
    try:
        servers = {tasks.namespace: tasks for tasks in map(load_tasks, specs)}
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; to go without the server, name its namespace: --namespace NAME") from error
    if servers:
        first = next(iter(servers.values()))
        settings, named = first.settings, named or first.celery
    return Site(settings, named or default_app, namespace or (None if servers else settings.namespace), servers)


def _app_named(name: str) -> Celery:
    try:
        return find_app(name)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"cannot find the Celery app {name!r}: {type(error).__name__}: {reason}") from error
