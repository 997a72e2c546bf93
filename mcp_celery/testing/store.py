"""Records of tasks in memory, for event loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import override

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    UNOBSERVED,
    Caller,
    Change,
    Changed,
    EarlierTask,
    EncodedResult,
    Extension,
    FailedLookups,
    HandBack,
    HandedBack,
    HeldBack,
    Idempotency,
    Observers,
    QueueMessage,
    Quota,
    Start,
    StoredTask,
    TaskRecord,
    TaskRef,
    now_ms,
)
from mcp_celery.engine.ports import TaskStore
from mcp_celery.sealing import SnapshotCodec
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.ledger import MemoryJobLedger
from mcp_celery.testing.questions import MemoryQuestionStore
from mcp_celery.testing.results import MemoryTaskResults


class MemoryTaskStore(MemoryQuestionStore, TaskStore):
    """Records of tasks for event loops. Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        bus: Announces changes.
        clock: Milliseconds since the epoch; a test that lets tasks expire gives its own.
        results: The result backend, where ``load`` reads a job's result in the same step; else None.
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

    @override
    async def create(
        self,
        record: TaskRecord,
        snapshot: TaskContextSnapshot,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> EarlierTask | HeldBack | None:
        return self.ledger.create(record, snapshot, quota, idempotency, message)

    @override
    async def earlier(self, record: TaskRecord, idempotency: Idempotency) -> EarlierTask | None:
        return self.ledger.earlier(record, idempotency)

    @override
    async def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        return self.ledger.count_failed_lookups(requestor, number, window_ms=window_ms)

    @override
    async def load(self, ref: TaskRef) -> StoredTask | None:
        return self.ledger.load(ref)

    @override
    async def present(self, refs: Sequence[TaskRef]) -> list[TaskRef]:
        return [ref for ref in refs if self.ledger.is_kept(ref)]

    @override
    async def load_many(self, refs: Sequence[TaskRef]) -> list[StoredTask | None]:
        return [self.ledger.load(ref) for ref in refs]

    @override
    async def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        return self.ledger.page(owner, before=before, limit=limit)

    @override
    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        return self.ledger.change(ref, change)

    @override
    async def start(self, ref: TaskRef, start: Start) -> TaskContextSnapshot | None:
        return self.ledger.start(ref, start)

    @override
    async def hand_back(self, ref: TaskRef, handback: HandBack) -> HandedBack:
        return self.ledger.hand_back(ref, handback)

    @override
    async def ahead(self, record: TaskRecord) -> int | None:
        return self.ledger.ahead(record)

    @override
    async def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        return self.ledger.snapshot(ref)

    @override
    async def attend(self, ref: TaskRef) -> None:
        self.ledger.attend(ref)

    @override
    async def delete(self, ref: TaskRef) -> bool:
        return self.ledger.delete(ref)

    @override
    async def retire(self, ref: TaskRef, at_ms: int) -> None:
        self.ledger.retire(ref, at_ms)

    @override
    async def keep(self, ref: TaskRef, extension: Extension) -> None:
        self.ledger.keep(ref, extension)

    @override
    async def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        return self.ledger.finish(ref, change, result)

    @override
    async def aclose(self) -> None:
        """Close nothing: the records are the process's."""
