"""One storage of tasks, as servers and workers open it: Redis is one, the memory of a process another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mcp_celery.engine.ports import JobLedger, OpenTasks, QueuedJobs, RecoveryStore, TaskBus, TaskStore, WebhookOutbox
from mcp_celery.engine.record import StoredResult
from mcp_celery.engine.transitions import UNOBSERVED, Observers
from mcp_celery.sealing import UNSEALED, SnapshotCodec


class ResultCodec(Protocol):
    """How Celery's result backend keeps the results of jobs."""

    def key(self, job_id: str) -> str:
        """The key under which it keeps a job's result."""
        ...

    def decode(self, payload: bytes) -> StoredResult:
        """Read what it keeps there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """The options of a backend, from the server whose tasks it keeps.

    Attributes:
        namespace: The server's namespace. Tasks of other namespaces are not seen.
        snapshots: How snapshots are written.
        observers: They get each change of a task.
        results: How Celery keeps results, where :meth:`Backend.holds_results_at` says that the store can read them;
            else None.
    """

    namespace: str
    snapshots: SnapshotCodec = UNSEALED
    observers: Observers = UNOBSERVED
    results: ResultCodec | None = None


@dataclass(frozen=True, slots=True)
class OpenBackend:
    """The storage that a server uses on one event loop.

    Attributes:
        store: Records of tasks, and their questions.
        bus: Hints that tasks have changed.
        recovery: What recovery keeps of workers and tasks.
        open_tasks: Which tasks of exposed jobs are open.
        queued_jobs: Which jobs wait for a worker; None where the server runs them itself.
    """

    store: TaskStore
    bus: TaskBus
    recovery: RecoveryStore
    open_tasks: OpenTasks
    queued_jobs: QueuedJobs | None = None

    async def aclose(self) -> None:
        """Close the connections of all of them."""
        await self.bus.aclose()
        await self.store.aclose()


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a service cannot be used now.

    Attributes:
        service: The service, with the setting that names it.
        kind: Kind of the failure, for example the name of the exception's class.
        reason: What failed, without secrets.
        is_refusal: Whether the service answers and refuses our user or password, so that waiting does not help.
        is_misfit: Whether the service answers and needs another setting, so that waiting does not help.
    """

    service: str
    kind: str
    reason: str
    is_refusal: bool
    is_misfit: bool = False

    @property
    def is_final(self) -> bool:
        """Whether waiting does not help."""
        return self.is_refusal or self.is_misfit


class Backend(Protocol):
    """Opens one storage. Opening connects to nothing yet, and raises nothing."""

    @property
    def in_process(self) -> bool:
        """Whether the tasks are kept in the memory of this process.

        Then no worker can reach them: jobs run in this process, and the store keeps their results itself.
        """
        ...

    @property
    def name(self) -> str:
        """Which storage it is, for people; without secrets."""
        ...

    def holds_results_at(self, url: str | None, key: str, namespace: str) -> bool:
        """Whether a result backend of Celery is the same database, where the store reads results.

        Args:
            url: Where the result backend is; None where it does not say.
            key: The name of any result.
            namespace: Whose results they are.
        """
        ...

    def holds_queues_at(self, url: str, prefix: str, namespace: str) -> bool:
        """Whether a broker is the same database, for the same user: the store can fill its queues.

        Args:
            url: Where the broker is.
            prefix: What the names of its queues begin with.
            namespace: Whose jobs they are.
        """
        ...

    def unusable(self) -> Unusable | None:
        """Ask the storage whether it can be used, and wait for its answer. An outage is logged.

        Returns:
            Why it cannot be used; None where it can.
        """
        ...

    def open(self, options: BackendOptions) -> OpenBackend:
        """Open everything that a server needs on the running event loop; the caller closes it."""
        ...

    def open_store(self, options: BackendOptions) -> TaskStore:
        """Open a store for one event loop of a worker; the caller closes it."""
        ...

    def open_bus(self, options: BackendOptions) -> TaskBus:
        """Open a bus for one event loop of a worker; the caller closes it."""
        ...

    def open_outbox(self, options: BackendOptions) -> WebhookOutbox:
        """Open the webhooks that are not delivered yet, for one event loop; the caller closes it."""
        ...

    def open_ledger(self, options: BackendOptions) -> JobLedger:
        """Open the blocking store of a process, usable from any of its threads."""
        ...
