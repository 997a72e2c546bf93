"""The engine's ports in memory, so that a server with tasks can be tested without Redis, a broker and workers.

They keep the same promises as Redis and Celery do: the status table, attempts, one start for each delivery, expiry by
time, one hint for several changes. Outages are switched on and off (``fail()``, ``recover()``). One contract suite runs
over these and the real ones. :class:`MemoryBackend` puts all of them together::

    backend = MemoryBackend()
    engine = backend.engine()
    record = await engine.submit(submission)
    backend.results.put(record.job_id, "SUCCESS", JobOutcome(result))
    view = await engine.get(caller, record.task_id)
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    Change,
    Changed,
    Claim,
    JobOutcome,
    StoredResult,
    StoredTask,
    Submission,
    TaskEngine,
    TaskHints,
    TaskLimits,
    TaskRecord,
    TaskRef,
    now_ms,
    sources_of,
)
from mcp_celery.errors import QueueUnavailableError, StoreUnavailableError

DEFAULT_LIMITS: Final = TaskLimits(default_ttl_ms=3_600_000, max_ttl_ms=86_400_000, poll_interval_ms=1_000)
"""What :meth:`MemoryBackend.engine` grants."""


class _Breakable:
    """What can be told to fail."""

    _failing = False

    def fail(self) -> None:
        """Fail from now on, as if the server behind it were gone."""
        self._failing = True

    def recover(self) -> None:
        """Answer again; nothing was lost."""
        self._failing = False


class MemoryTaskResults:
    """Celery's result backend. Fulfils :class:`mcp_celery.engine.TaskResults`.

    Attributes:
        stored: Results by Celery id; take one out to let it expire.
    """

    def __init__(self) -> None:
        self.stored: dict[str, StoredResult] = {}

    def put(self, job_id: str, state: str, value: object) -> None:
        """Store what a job returned or raised, as Celery would: through JSON.

        Args:
            job_id: The job's Celery id.
            state: Celery's state, for example ``SUCCESS``.
            value: A ``JobOutcome`` or another JSON value; of an exception ``{"exc_type": …, "exc_message": […]}``.
        """
        self.stored[job_id] = StoredResult(state, json.loads(json.dumps(value, default=JobOutcome.__json__)))

    async def read(self, job_id: str) -> StoredResult | None:
        """The job's stored result, None when there is none."""
        return self.stored.get(job_id)


class _Follower:
    """The hints of one subscriber; many hints of one task between two looks are one."""

    def __init__(self, refs: Sequence[TaskRef]) -> None:
        self._refs = set(refs)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[TaskRef, None] = {}
        self._some = asyncio.Event()

    def hint(self, *refs: TaskRef) -> None:
        """Callable from any thread: signal handlers change tasks in threads of their own."""
        for ref in refs or tuple(self._refs):
            self._loop.call_soon_threadsafe(self._add, ref)

    def _add(self, ref: TaskRef) -> None:
        if ref in self._refs:
            self._waiting[ref] = None
            self._some.set()

    async def __anext__(self) -> TaskRef:
        await self._some.wait()
        ref = next(iter(self._waiting))
        self._discard(ref)
        return ref

    async def drop(self, ref: TaskRef) -> None:
        self._refs.discard(ref)
        self._discard(ref)

    def _discard(self, ref: TaskRef) -> None:
        self._waiting.pop(ref, None)
        if not self._waiting:
            self._some.clear()


class MemoryTaskBus(_Breakable):
    """Hints of changes. Fulfils :class:`mcp_celery.engine.TaskBus`. Failing, it loses hints.

    Attributes:
        told: The task of every change so far, in order, whether or not somebody followed it.
    """

    def __init__(self) -> None:
        self.told: list[TaskRef] = []
        self._followers: list[_Follower] = []

    def tell(self, ref: TaskRef) -> None:
        """Say that a task has changed."""
        self.told.append(ref)
        for follower in () if self._failing else tuple(self._followers):
            follower.hint(ref)

    @asynccontextmanager
    async def subscribe(self, refs: Sequence[TaskRef]) -> AsyncGenerator[TaskHints]:
        """Listen to tasks until the context ends; ``StoreUnavailableError`` while the bus fails."""
        if self._failing:
            raise StoreUnavailableError
        follower = _Follower(refs)
        self._followers.append(follower)
        try:
            yield follower
        finally:
            self._followers.remove(follower)

    def recover(self) -> None:
        """Answer again, and hint every follower to look at its tasks, as after a lost connection."""
        super().recover()
        for follower in tuple(self._followers):
            follower.hint()


@dataclass(slots=True)
class _Kept:
    record: TaskRecord
    snapshot: str
    started_retries: int = -1
    started_by: str = ""


class MemoryJobLedger(_Breakable):
    """Records of tasks with blocking calls, usable from any thread; each call is one step, as a Lua script is in Redis.

    Fulfils :class:`mcp_celery.engine.JobLedger`, and is the core of :class:`MemoryTaskStore`, whose arguments it has.
    """

    def __init__(self, bus: MemoryTaskBus, clock: Callable[[], int], results: MemoryTaskResults | None) -> None:
        self._bus = bus
        self._clock = clock
        self._results = results
        self._kept: dict[TaskRef, _Kept] = {}
        self._lock = threading.Lock()

    @contextmanager
    def _found(self, ref: TaskRef) -> Generator[_Kept | None]:
        with self._lock:
            if self._failing:
                raise StoreUnavailableError
            kept = self._kept.get(ref)
            if kept is not None and kept.record.expires_at_ms <= self._clock():
                del self._kept[ref]
                kept = None
            yield kept

    def create(self, record: TaskRecord, snapshot: TaskContextSnapshot) -> None:
        """As ``TaskStore.create``."""
        with self._found(record.ref):
            self._kept[record.ref] = _Kept(record, snapshot.to_json())

    def load(self, ref: TaskRef) -> StoredTask | None:
        """As ``TaskStore.load``."""
        with self._found(ref) as kept:
            if kept is None:
                return None
            told = kept.record.status in ("failed", "cancelled")
            stored = {} if told or self._results is None else self._results.stored
            return StoredTask(kept.record, stored.get(kept.record.job_id))

    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """As ``TaskStore.change``."""
        with self._found(ref) as kept:
            if kept is None:
                return None
            record = kept.record
            begun = change.if_unstarted and record.started_at_ms is not None
            if begun or record.status not in sources_of(change.to) or change.attempt not in (None, record.attempt):
                return Changed(False, record)
            kept.record = _changed(record, change)
            self._bus.tell(ref)
            return Changed(True, kept.record)

    def start(
        self, ref: TaskRef, *, attempt: int, retries: int, at_ms: int, delivery: str = ""
    ) -> TaskContextSnapshot | None:
        """As ``TaskStore.start``."""
        with self._found(ref) as kept:
            if kept is None or kept.record.status != "working" or kept.record.attempt != attempt:
                return None
            again = delivery and (retries, delivery) == (kept.started_retries, kept.started_by)
            if retries <= kept.started_retries and not again:
                return None
            kept.started_retries, kept.started_by = retries, delivery
            kept.record = replace(kept.record, started_at_ms=at_ms)
            return TaskContextSnapshot.from_json(kept.snapshot)

    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int = 0) -> bool:
        """Note which worker received the job."""
        with self._found(ref) as kept:
            if kept is None or not kept.record.is_open or kept.record.attempt != attempt:
                return False
            if retries <= kept.started_retries:
                return False
            kept.record = replace(kept.record, claim=claim)
            return True

    def delete(self, ref: TaskRef) -> None:
        """As ``TaskStore.delete``."""
        with self._found(ref):
            self._kept.pop(ref, None)


def _changed(record: TaskRecord, change: Change) -> TaskRecord:
    return replace(
        record,
        status=change.to,
        updated_at_ms=change.at_ms,
        # None keeps the old message, an empty text takes it away.
        status_message=record.status_message if change.status_message is None else change.status_message or None,
        is_error=change.is_error or record.is_error,
        error=change.error or record.error,
        progress=change.progress or record.progress,
        revision=record.revision + 1,
    )


class MemoryTaskStore:
    """Records of tasks for event loops. Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        bus: Who is told of changes.
        clock: Milliseconds since the epoch; a test that lets tasks expire gives its own.
        results: The result backend, where ``load`` shall read a job's result in the same step; else None.

    Attributes:
        ledger: The blocking view of the same records; its ``fail()`` and ``recover()`` hold for both.
    """

    def __init__(
        self, bus: MemoryTaskBus, *, clock: Callable[[], int] = now_ms, results: MemoryTaskResults | None = None
    ) -> None:
        self.ledger = MemoryJobLedger(bus, clock, results)

    async def create(self, record: TaskRecord, snapshot: TaskContextSnapshot) -> None:
        """Keep a new record and its snapshot until the record's ttl ends."""
        self.ledger.create(record, snapshot)

    async def load(self, ref: TaskRef) -> StoredTask | None:
        """The record, with the job's stored result where ``results`` was given."""
        return self.ledger.load(ref)

    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change in one step, and tell it on the bus."""
        return self.ledger.change(ref, change)

    async def start(
        self, ref: TaskRef, *, attempt: int, retries: int, at_ms: int, delivery: str = ""
    ) -> TaskContextSnapshot | None:
        """Let the body of a job begin, once for each (attempt, retries)."""
        return self.ledger.start(ref, attempt=attempt, retries=retries, at_ms=at_ms, delivery=delivery)

    async def delete(self, ref: TaskRef) -> None:
        """Forget a record and its snapshot."""
        self.ledger.delete(ref)


class MemoryTaskQueue(_Breakable):
    """The broker. Fulfils :class:`mcp_celery.engine.TaskQueue`.

    Attributes:
        published: Every published job, as the record and the request it was made of.
        revoked: Every revoke, as the job's id and whether it was to be terminated.
    """

    def __init__(self) -> None:
        self.published: list[tuple[TaskRecord, Submission]] = []
        self.revoked: list[tuple[str, bool]] = []
        self._open = asyncio.Event()
        self._open.set()

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Take a job, once nothing holds it back; ``QueueUnavailableError`` while the queue fails."""
        await self._open.wait()
        if self._failing:
            raise QueueUnavailableError
        self.published.append((record, submission))

    async def revoke(self, job_id: str, *, terminate: bool) -> None:
        """Note a revoke; while the queue fails it is lost, since revoking is best effort."""
        if not self._failing:
            self.revoked.append((job_id, terminate))

    def hold(self) -> None:
        """Let every publish wait until :meth:`release`."""
        self._open.clear()

    def release(self) -> None:
        """Let the waiting publishes go on."""
        self._open.set()


@dataclass
class MemoryBackend:
    """Everything an engine needs, in memory; ``clock`` gives milliseconds since the epoch."""

    clock: Callable[[], int] = now_ms
    bus: MemoryTaskBus = field(default_factory=MemoryTaskBus)
    results: MemoryTaskResults = field(default_factory=MemoryTaskResults)
    queue: MemoryTaskQueue = field(default_factory=MemoryTaskQueue)
    store: MemoryTaskStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryTaskStore(self.bus, clock=self.clock, results=self.results)

    def engine(self, limits: TaskLimits = DEFAULT_LIMITS) -> TaskEngine:
        """An engine over this backend."""
        return TaskEngine(store=self.store, queue=self.queue, bus=self.bus, results=None, limits=limits)
