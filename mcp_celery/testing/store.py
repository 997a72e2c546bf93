"""Records of tasks in memory, for event loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    UNOBSERVED,
    Caller,
    Change,
    Changed,
    EncodedResult,
    Extension,
    FailedLookups,
    Observers,
    Quota,
    StoredTask,
    TaskRecord,
    TaskRef,
    now_ms,
)
from mcp_celery.sealing import SnapshotCodec
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.ledger import MemoryJobLedger
from mcp_celery.testing.questions import MemoryQuestionStore
from mcp_celery.testing.results import MemoryTaskResults


class MemoryTaskStore(MemoryQuestionStore):
    """Records of tasks for event loops. Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        bus: Who is told of changes.
        clock: Milliseconds since the epoch; a test that lets tasks expire gives its own.
        results: The result backend, where ``load`` shall read a job's result in the same step; else None.
        snapshots: How snapshots are written; by default as they are, without access tokens.
        observers: To whom changes of tasks are reported.
        max_bytes: How much all tasks may take together; None for any number.

    Attributes:
        ledger: The blocking view of the same records; its ``fail()`` and ``recover()`` hold for both.
    """

    def __init__(
        self,
        bus: MemoryTaskBus,
        *,
        clock: Callable[[], int] = now_ms,
        results: MemoryTaskResults | None = None,
        snapshots: SnapshotCodec | None = None,
        observers: Observers = UNOBSERVED,
        max_bytes: int | None = None,
    ) -> None:
        self.ledger = MemoryJobLedger(bus, clock, results, snapshots, observers, max_bytes)
        super().__init__(self.ledger)

    @classmethod
    def over(cls, ledger: MemoryJobLedger) -> MemoryTaskStore:
        """Another store of the same records, for another event loop."""
        store = cls(ledger.bus)
        store.ledger = ledger
        MemoryQuestionStore.__init__(store, ledger)
        return store

    async def create(self, record: TaskRecord, snapshot: TaskContextSnapshot, quota: Quota | None = None) -> None:
        """Keep a new record and its snapshot until the record's ttl ends, unless the quota is used up."""
        self.ledger.create(record, snapshot, quota)

    async def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        """Count look-ups of a requestor that found nothing."""
        return self.ledger.count_failed_lookups(requestor, number, window_ms=window_ms)

    async def load(self, ref: TaskRef) -> StoredTask | None:
        """The record, with the job's stored result where ``results`` was given."""
        return self.ledger.load(ref)

    async def present(self, refs: Sequence[TaskRef]) -> list[TaskRef]:
        """Those of several tasks that there are."""
        return [ref for ref in refs if self.ledger.has(ref)]

    async def load_many(self, refs: Sequence[TaskRef]) -> list[StoredTask | None]:
        """As :meth:`load`, of several tasks."""
        return [self.ledger.load(ref) for ref in refs]

    async def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        """An owner's tasks that are alive, the newest first."""
        return self.ledger.page(owner, before=before, limit=limit)

    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change in one step, and tell it on the bus."""
        return self.ledger.change(ref, change)

    async def start(
        self,
        ref: TaskRef,
        *,
        attempt: int,
        retries: int,
        at_ms: int,
        delivery: str = "",
        worker: str = "",
        key: str = "",
    ) -> TaskContextSnapshot | None:
        """Let the body of a job begin, once for each (attempt, retries)."""
        return self.ledger.start(
            ref, attempt=attempt, retries=retries, at_ms=at_ms, delivery=delivery, worker=worker, key=key
        )

    async def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        """The creating request's context, to publish a task's job anew."""
        return self.ledger.snapshot(ref)

    async def delete(self, ref: TaskRef) -> bool:
        """Forget a record and its snapshot, unless its job has begun."""
        return self.ledger.delete(ref)

    async def retire(self, ref: TaskRef, at_ms: int) -> None:
        """Let a task go at ``at_ms``, if that is before its time."""
        self.ledger.retire(ref, at_ms)

    async def keep(self, ref: TaskRef, extension: Extension) -> None:
        """Let an open task live longer."""
        self.ledger.keep(ref, extension)

    async def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result and move its task, in one step."""
        return self.ledger.finish(ref, change, result)

    async def aclose(self) -> None:
        """Close nothing: the records are the process's."""
