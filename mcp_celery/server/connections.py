"""The connections of a server: store, bus, publisher and the engine over them, for each event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Protocol

import anyio
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from mcp_celery.broker.job_message import require_serializer
from mcp_celery.broker.own_results import OwnResults
from mcp_celery.broker.publisher import unusable_broker
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.broker.results import CeleryResults, NoResults, refusing_results
from mcp_celery.broker.webhook_jobs import WebhookJobs
from mcp_celery.common.background import ended
from mcp_celery.common.encryption_keys import HOW_TO_MAKE_A_KEY
from mcp_celery.common.outage import Outage
from mcp_celery.default_app import broker_of, default_app, require_broker
from mcp_celery.engine import (
    Backend,
    BackendOptions,
    Declared,
    ExposedTasks,
    JobLedger,
    Observers,
    OpenBackend,
    ResultSeals,
    TaskBus,
    TaskEngine,
    TaskLimits,
    TaskQueue,
    TaskStore,
    Unusable,
    WebhookOutbox,
    write_audit_log,
)
from mcp_celery.engine.foreign.poller import Watcher
from mcp_celery.engine.foreign.started import Beginnings
from mcp_celery.engine.queue_notes import QueueNotes
from mcp_celery.engine.recovery.due_jobs import DueJobs
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.recovery.store_identity import StoreIdentity
from mcp_celery.engine.recovery.worker_lease import WorkerLife
from mcp_celery.engine.webhook_dispatcher import WebhookDispatcher
from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed import ExposedCatalog, JobEvents
from mcp_celery.protocol import REQUESTING_REVISION
from mcp_celery.redis_credentials import credentials_of
from mcp_celery.server.first_job import FirstJobCheck
from mcp_celery.server.keyring import signer_with, snapshots_with
from mcp_celery.server.only_process import require_only_process
from mcp_celery.server.webhooks import Webhooks
from mcp_celery.settings import Settings
from mcp_celery.store import RedisBackend
from mcp_celery.telemetry.instruments import is_measured
from mcp_celery.telemetry.loops import count_in_store, measure_lag
from mcp_celery.telemetry.tasks import measure_transition
from mcp_celery.telemetry.traces import trace_creation
from mcp_celery.testing import MemoryBackend
from mcp_celery.worker import ResultPlace

logger = logging.getLogger(__name__)

OBSERVERS: Final = Observers(write_audit_log, measure_transition, trace_creation)
"""The observers of changes of tasks in this process."""

DELIVERED_HERE: Final = 10
"""How many webhooks a process delivers at a time that runs the jobs itself."""
LAST_SECONDS: Final = 1.0
"""How long the end of a server waits for what its engine still does in the background."""

_UNUSABLE_BACKENDS: Final = {
    "RPCBackend": "delivers each result once, to the process that sent the job",
    "DisabledBackend": "keeps no results",
}


class ClosableTaskQueue(TaskQueue, Protocol):
    """A queue that belongs to one event loop."""

    async def aclose(self) -> None:
        """Close its connection, and end what it has begun."""
        ...


@dataclass(slots=True)
class _Live:
    """The connections of one event loop."""

    engine: TaskEngine
    kept: OpenBackend
    queue: ClosableTaskQueue
    results: CeleryResults | NoResults
    reaper: Reaper
    identity: StoreIdentity
    background: list[asyncio.Task[None]]
    users: int = 0

    async def aclose(self) -> None:
        for task in self.background:
            await ended(task)
        await self.reaper.resign()
        await self.engine.aclose(patience_seconds=LAST_SECONDS)
        await self.queue.aclose()
        await self.kept.aclose()
        self.results.close()


class Connections:
    """Opens and closes the connections of one namespace.

    Args:
        settings: How long to wait, how much to grant.
        backend: Where the tasks are kept.
        celery: Whose broker and result backend are used.
        namespace: The server's namespace.
        queue_name: Gives the queue of jobs that neither a component nor a route sends elsewhere.
        declared: What the components declare.
        exposed: The exposed jobs.
        eager: Makes the queue whose jobs run in this process, under ``task_always_eager`` and where tasks are kept in
            memory.
        worker_command: Gives the command that starts a worker of a queue.
    """

    def __init__(  # noqa: PLR0913 - whose connections they are, and what is asked of their owner
        self,
        settings: Settings,
        backend: Backend,
        celery: Celery,
        *,
        namespace: str,
        queue_name: Callable[[], str],
        declared: Declared,
        exposed: ExposedCatalog,
        eager: Callable[[], ClosableTaskQueue],
        worker_command: Callable[[str], str],
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._celery = celery
        self._namespace = namespace
        self._queue_name = queue_name
        self._declared = declared
        self._exposed = exposed
        self._eager = eager
        self._worker_command = worker_command
        self._policy = RecoveryPolicy(
            settings.heartbeat_ms,
            settings.max_redeliveries,
            publish_timeout_ms=settings.publish_timeout_ms,
            lost_after_ms=settings.lost_after_ms,
        )
        keys = settings.key_ring
        self._snapshots = snapshots_with(keys, accept_unsealed=settings.accept_unsealed)
        self.signer = signer_with(keys, accept_unsealed=settings.accept_unsealed)
        """Signs the messages of jobs, and checks them."""
        self.result_seals = ResultSeals(namespace, self._snapshots.of_workers.sealing)
        """Seals the results of jobs."""
        self.webhooks = Webhooks(settings, namespace, declared, self.open_outbox)
        """Delivers webhooks."""
        self._said = bool(keys)
        self._live: dict[asyncio.AbstractEventLoop, _Live] = {}
        self.ledger: Callable[[str], JobLedger] = functools.cache(self._open_ledger)
        """The blocking store of a namespace's records."""

    def engine(self) -> TaskEngine:
        """The engine of the running event loop.

        Raises:
            ConfigurationError: Nothing is open on this loop: the server's lifespan has not been entered.
        """
        return self._open_here().engine

    def _open_here(self) -> _Live:
        live = self._live.get(asyncio.get_running_loop())
        if live is None:
            raise ConfigurationError("the server's lifespan has not been entered, so its tasks have no connections")
        return live

    async def ask_store(self) -> None:
        """Ask the store of the running event loop for a sign of life, as any request does.

        Raises:
            StoreUnavailableError: It does not answer. That the server is busy is no reason.
            ConfigurationError: Nothing is open on this loop.
        """
        await self._open_here().kept.recovery.mark()

    def is_broker_lost(self) -> bool:
        """Whether the broker did not answer last; False where none is used. It is not asked now."""
        return self.publishes and self._broker_outage.is_on

    @asynccontextmanager
    async def running(self, *, as_worker: bool = False) -> AsyncGenerator[None]:
        """Hold the connections of the running event loop; the last to leave closes them.

        Args:
            as_worker: Whether this process takes jobs, and creates no tasks over these connections.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        loop = asyncio.get_running_loop()
        live = self._live.get(loop)
        if live is None:
            live = self._live[loop] = self._open(as_worker=as_worker)
        live.users += 1
        try:
            yield
        finally:
            live.users -= 1
            if not live.users:
                del self._live[loop]
                with anyio.CancelScope(shield=True):
                    await live.aclose()

    @asynccontextmanager
    async def living(self, worker: str, components: Callable[[], Mapping[str, str]]) -> AsyncGenerator[WorkerLife]:
        """Say that a worker lives, and take part in recovery, until the context ends.

        Args:
            worker: Its name in claims.
            components: Gives the components that it advertises, by fingerprint.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        async with self.running(as_worker=True):
            live = self._live[asyncio.get_running_loop()]
            kept, reaper = live.kept, live.reaper
            life = WorkerLife(
                worker,
                store=kept.recovery,
                tasks=kept.store,
                reaper=reaper,
                policy=self._policy,
                components=components,
                store_mark=lambda: live.identity.mark,
            )
            await life.beat()
            beating = asyncio.create_task(life.run(), name="mcp-celery-heartbeat")
            try:
                yield life
            finally:
                await ended(beating)
                await life.end()

    def say_what_is_kept(self, **_: Any) -> None:
        """Say once, where there are no encryption keys, what jobs do not get and how they would."""
        if not self._said:
            self._said = True
            logger.info(
                "callers' access tokens are not stored, so jobs get an empty one; to store them sealed, set "
                "MCP_CELERY_ENCRYPTION_KEYS for servers and workers (%s)",
                HOW_TO_MAKE_A_KEY,
            )

    def open_store(self) -> TaskStore:
        """Open a worker's store for one event loop; the caller closes it.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        return self._backend.open_store(replace(self._options(), snapshots=self._snapshots.of_workers))

    def open_bus(self) -> TaskBus:
        """Open a bus for one event loop; the caller closes it."""
        return self._backend.open_bus(self._without_results())

    def open_outbox(self) -> WebhookOutbox:
        """Open the webhooks that are not delivered yet, for one event loop; the caller closes it."""
        return self._backend.open_outbox(self._without_results())

    def check(self) -> None:
        """See that tasks can be served.

        Raises:
            ConfigurationError: The result backend cannot hold tasks; or the app cannot write messages; or tasks are
                kept in this process, and something is configured that needs workers.
        """
        if self._backend.in_process:
            self._require_no_workers()
        elif not self._celery.conf.task_always_eager:
            require_serializer(self._celery)
        self._results()

    def unusable(self) -> Unusable | None:
        """Ask the store and the broker whether they can be used, and wait for their answers. An outage is logged.
        Of a Redis that only Celery's results are kept in, ask whether it refuses our password.

        Returns:
            Why one of them cannot be used; where one refuses our password, why that one. None where both can.
        """
        store = self._backend.unusable()
        if (store is not None and store.is_final) or not self.publishes:
            return store
        outage = self._broker_outage
        timeout_seconds = self._settings.publish_timeout_ms / 1000
        broker = unusable_broker(self._celery, outage.service, timeout_seconds=timeout_seconds)
        if broker is not None and broker.is_final:
            return broker
        service = f"the result backend ({self.results_setting})"
        if refused := refusing_results(self._celery, service, timeout_seconds=self._store_timeout):
            return refused
        if broker is None:
            outage.ended()
            return store
        outage.began(broker.kind, broker.reason)
        return store or broker

    @property
    def results_setting(self) -> str:
        """The setting that names the app's result backend."""
        if self._celery is not default_app:
            return "result_backend of the Celery app"
        return "MCP_CELERY_REDIS_URL" if self._settings.result_backend is None else "MCP_CELERY_RESULT_BACKEND"

    @property
    def broker_service(self) -> str:
        """The broker, with the setting that names it."""
        return self._broker_outage.service

    @functools.cached_property
    def _broker_outage(self) -> Outage:
        # Not before it is needed: which setting names the broker is known once Celery has read its configuration.
        return Outage(f"the broker ({_broker_setting(self._celery, self._settings)})", logger)

    @property
    def publishes(self) -> bool:
        """Whether jobs go to a broker: they run in this process otherwise."""
        return not (self._backend.in_process or self._celery.conf.task_always_eager)

    def require_workers(self) -> None:
        """Refuse to serve as a worker where no worker reaches the tasks.

        Raises:
            ConfigurationError: They are kept in the process of their server.
        """
        if self._backend.in_process:
            raise ConfigurationError(
                f"the tasks of {self._namespace!r} are kept in their server's process (memory://), "
                "which runs their jobs itself: no worker can have them. Start none, or keep tasks in Redis"
            )

    def _require_no_workers(self) -> None:
        if self._celery.conf.task_always_eager:
            return
        if broker_of(self._celery):
            raise ConfigurationError(
                "tasks are kept in this process (memory://), which runs their jobs itself, but the Celery app has a "
                "broker: unset broker_url, or keep tasks in Redis; in tests of the app, set task_always_eager"
            )
        if self._exposed:
            raise ConfigurationError(
                "Celery jobs are exposed as tools, which run in workers of their own, but tasks are kept in this "
                "process (memory://), which no worker reaches: keep tasks in Redis, or set task_always_eager"
            )

    def result_place(self) -> ResultPlace:
        """Where results of jobs are kept.

        Raises:
            ConfigurationError: The result backend cannot hold tasks.
        """
        if self._backend.in_process:
            return "in store"
        return "with records" if self._results_with_records() is not None else "elsewhere"

    def _results_with_records(self) -> CeleryResults | None:
        """The result backend, where it is the database of the records; else None."""
        results = self._results()
        if not isinstance(results, CeleryResults):
            return None
        is_there = self._backend.holds_results_at(results.url, results.any_key, self._namespace)
        return results if is_there else None

    def _options(self) -> BackendOptions:
        return replace(self._without_results(), results=self._results_with_records())

    def _without_results(self) -> BackendOptions:
        return BackendOptions(namespace=self._namespace, snapshots=self._snapshots, observers=OBSERVERS)

    def _open(self, *, as_worker: bool) -> _Live:
        self.say_what_is_kept()
        self.check()
        if self._backend.in_process:
            require_only_process(self._namespace)
        results = self._results()
        place = self.result_place()
        kept = self._backend.open(self._options())
        store = kept.store
        identity = StoreIdentity(kept.recovery, makes=not as_worker, pause_seconds=self._settings.heartbeat_ms / 1000)
        queue = self._open_queue(store, identity)
        abandon_after = self._settings.abandon_after_seconds
        limits = TaskLimits(
            default_ttl_ms=self._settings.default_ttl_ms,
            max_ttl_ms=self.max_ttl_ms(),
            poll_interval_ms=self._settings.poll_interval_ms,
            min_poll_interval_ms=self._settings.min_poll_interval_ms,
            max_input_bytes=self._settings.max_input_bytes,
            max_argument_bytes=self._settings.max_argument_bytes,
            max_open_tasks=self._settings.max_tasks_per_scope,
            create_rate=self._settings.create_rate,
            max_running=self._settings.max_running_per_scope,
            # Where jobs run in this process, no worker says how many it can run.
            takes_turns=self._settings.fair is not None and self.publishes,
            max_stored_bytes=self._settings.max_stored_bytes_per_scope,
            max_failed_lookups=self._settings.max_failed_lookups_per_minute,
            max_open_streams=self._settings.max_streams_per_scope,
            max_streams=self._settings.max_streams,
            max_pending_requests=self._settings.max_pending_requests,
            hide_anonymous_ids=self._settings.hide_anonymous_ids,
            abandon_after_ms=None if abandon_after is None else max(1, round(1000 * abandon_after)),
        )
        # What the store keeps itself, it reads itself; but not the results of exposed jobs, which their own app keeps.
        separate = results if place == "elsewhere" or (place == "in store" and self._exposed) else None
        exposed = ExposedTasks(self._exposed, results, max_result_bytes=self._settings.max_result_bytes)
        notes = self._queue_notes(kept, queue)
        engine = TaskEngine(
            store=store,
            queue=queue,
            bus=kept.bus,
            results=separate,
            limits=limits,
            answer_version=REQUESTING_REVISION.version,
            declared=self._declared,
            exposed=exposed,
            observers=OBSERVERS,
            seals=ResultSeals(self._namespace, self._snapshots.sealing),
            noted=None if notes is None else notes.noted,
            webhook_of=self.webhooks.kind_of,
        )
        reaper = Reaper(
            store=kept.recovery,
            tasks=store,
            queue=queue,
            results=results,
            declared=self._declared,
            policy=self._policy,
            observers=OBSERVERS,
        )
        background = [
            asyncio.create_task(identity.run(), name="mcp-celery-store-mark"),
            asyncio.create_task(reaper.run(), name="mcp-celery-reaper"),
            asyncio.create_task(DueJobs(reaper, kept.bus).run(), name="mcp-celery-due-jobs"),
        ]
        if self.webhooks.is_on:
            background.append(asyncio.create_task(self._dispatch_webhooks(), name="mcp-celery-webhooks"))
        if is_measured.look() and not as_worker:
            background += [
                asyncio.create_task(measure_lag("server"), name="mcp-celery-lag"),
                asyncio.create_task(count_in_store(kept.recovery, self._namespace), name="mcp-celery-counts"),
            ]
        if self._exposed:
            watcher = Watcher(kept.open_tasks, exposed, engine.settling, self._settings.exposed_interval_ms)
            exposed.began = watcher.hint
            background.append(asyncio.create_task(watcher.run(), name="mcp-celery-watcher"))
            if self._settings.exposed_events:
                events = JobEvents(self._celery, watcher, Beginnings(store, self._exposed))
                background.append(asyncio.create_task(events.run(), name="mcp-celery-events"))
        return _Live(engine, kept, queue, results, reaper, identity, background)

    async def _dispatch_webhooks(self) -> None:
        """Deliver webhooks until cancelled: by workers, or here where this process runs the jobs."""
        async with self.webhooks.outbox() as outbox:
            if not self.publishes:
                await WebhookDispatcher(
                    outbox, lambda webhook_id: self.webhooks.deliver(outbox, webhook_id), at_a_time=DELIVERED_HERE
                ).run()
            jobs = WebhookJobs(
                self._celery,
                namespace=self._namespace,
                default_queue=self._queue_name(),
                queue=self._settings.webhook_queue,
                timeout_seconds=self._settings.publish_timeout_ms / 1000,
                idle_seconds=self._settings.idle_connection_ms / 1000,
                is_app_default=self._celery is default_app,
            )
            try:
                await WebhookDispatcher(outbox, jobs.publish).run()
            finally:
                with anyio.CancelScope(shield=True):
                    await jobs.aclose()

    def _queue_notes(self, kept: OpenBackend, queue: TaskQueue) -> QueueNotes | None:
        """Tells clients that jobs wait; None where this process runs them."""
        if kept.queued_jobs is None or not self.publishes:
            return None
        return QueueNotes(kept.queued_jobs, queue, self._declared)

    def _open_queue(self, store: TaskStore, identity: StoreIdentity) -> ClosableTaskQueue:
        if not self.publishes:
            return self._eager()
        queue = CeleryQueue(
            self._celery,
            namespace=self._namespace,
            default_queue=self._queue_name(),
            timeout_seconds=self._settings.publish_timeout_ms / 1000,
            max_length=self._settings.max_queue_length,
            signer=self.signer,
            store_mark=identity.for_message,
            idle_seconds=self._settings.idle_connection_ms / 1000,
            is_app_default=self._celery is default_app,
            outage=self._broker_outage,
            holds_queues_at=functools.partial(self._backend.holds_queues_at, namespace=self._namespace),
        )
        queue.watch_for_return()
        return FirstJobCheck(queue, self._celery, store, self._worker_command)

    @property
    def _store_timeout(self) -> float:
        return self._settings.store_timeout_ms / 1000

    def _open_ledger(self, namespace: str) -> JobLedger:
        options = replace(self._without_results(), namespace=namespace, snapshots=self._snapshots.of_workers)
        return self._backend.open_ledger(options)

    def _results(self) -> CeleryResults | NoResults:
        if self._backend.in_process and not self._exposed:
            return NoResults()
        if self._celery is default_app:
            require_broker(self._settings)
        try:
            backend = type(self._celery.backend).__name__
        except Exception as error:
            # An unknown name, a package that is not installed, a database that is asked for its tables and does not
            # answer. The texts of drivers may show more than one wants to see in a log.
            known = isinstance(error, ImproperlyConfigured | ImportError | ConfigurationError)
            reason = str(error) if known else type(error).__name__
            raise ConfigurationError(f"the Celery app's result_backend cannot be used: {reason}") from error
        if backend in _UNUSABLE_BACKENDS:
            raise ConfigurationError(
                f"the Celery app's result_backend ({backend}) cannot hold tasks: it {_UNUSABLE_BACKENDS[backend]}; set "
                + ("MCP_CELERY_RESULT_BACKEND" if self._celery is default_app else "result_backend in your app")
            )
        if self._exposed and isinstance(self._celery.backend, OwnResults):
            raise ConfigurationError(
                "Celery jobs are exposed as tools, and their workers do not keep results in the store of the tasks: "
                "set MCP_CELERY_RESULT_BACKEND to the result backend of these workers"
            )
        return CeleryResults(
            self._celery,
            namespace=self._namespace,
            timeout_seconds=self._store_timeout,
            idle_seconds=self._settings.idle_connection_ms / 1000,
        )

    def max_ttl_ms(self) -> int:
        """The longest time to live that is granted: no task may outlive its stored result."""
        expires: timedelta | float | None = self._celery.conf.result_expires
        if not expires:
            return self._settings.max_ttl_ms
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
        return min(self._settings.max_ttl_ms, round(seconds * 1000))


def _broker_setting(app: Celery, settings: Settings) -> str:
    """The setting that names an app's broker."""
    if app is not default_app or app.conf.broker_url != settings.celery_broker_url:
        return "broker_url of the Celery app"
    return "MCP_CELERY_REDIS_URL" if settings.broker_url is None else "MCP_CELERY_BROKER_URL"


def backend_of(settings: Settings) -> Backend:
    """The backend that ``MCP_CELERY_REDIS_URL`` names."""
    if settings.is_in_memory:
        return MemoryBackend()
    return RedisBackend(
        url=settings.redis_url,
        key_prefix=settings.key_prefix,
        timeout_seconds=settings.store_timeout_ms / 1000,
        max_connections=settings.redis_max_connections,
        max_memory_percent=settings.max_store_memory_percent,
        credentials=credentials_of(settings),
        idle_seconds=settings.idle_connection_ms / 1000,
        hash_tags=settings.hash_tags,
    )
