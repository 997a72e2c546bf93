"""Records of tasks, in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    RECORD_BYTES,
    UNOBSERVED,
    Caller,
    Change,
    Changed,
    Claim,
    EncodedResult,
    Extension,
    FailedLookups,
    Observers,
    Quota,
    StoredResult,
    StoredTask,
    TaskRecord,
    TaskRef,
    cause_of,
    decode_answer,
    leg_answers,
    next_round,
    now_ms,
    sources_of,
)
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.keys import task_redis_prefix
from mcp_celery.sealing import SnapshotCodec
from mcp_celery.testing.breakable import Breakable
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.questions import Kept, MemoryQuestions, MemoryQuestionStore
from mcp_celery.testing.results import MemoryTaskResults


class MemoryJobLedger(MemoryQuestions, Breakable):
    """Records of tasks with blocking calls, usable from any thread; each call is one step, as a Lua script is in Redis.

    Fulfils :class:`mcp_celery.engine.JobLedger`, and is the core of :class:`MemoryTaskStore`, whose arguments it has.
    """

    def __init__(
        self,
        bus: MemoryTaskBus,
        clock: Callable[[], int],
        results: MemoryTaskResults | None,
        snapshots: SnapshotCodec | None,
        observers: Observers,
    ) -> None:
        self._bus = bus
        self._observers = observers
        self._snapshots = snapshots or SnapshotCodec()
        self._clock = clock
        self._results = results
        self._kept: dict[TaskRef, Kept] = {}
        self._failed: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self.due = set[TaskRef]()

    @contextmanager
    def _found(self, ref: TaskRef) -> Generator[Kept | None]:
        with self._lock:
            if self._failing:
                raise StoreUnavailableError
            kept = self._kept.get(ref)
            if kept is not None and kept.record.expires_at_ms <= self._clock():
                del self._kept[ref]
                kept = None
            yield kept

    def create(self, record: TaskRecord, snapshot: TaskContextSnapshot, quota: Quota | None = None) -> None:
        """As ``TaskStore.create``."""
        with self._found(record.ref):
            written = self._snapshots.write(snapshot, _place(record.ref)).encode()
            if quota is not None:
                self._require_room(quota, RECORD_BYTES + len(written))
            self._kept[record.ref] = Kept(record, written, None if quota is None else quota.requestor)

    def _require_room(self, quota: Quota, size: int) -> None:
        now = self._clock()
        mine = [kept for kept in self._kept.values() if kept.requestor == quota.requestor]
        alive = [kept for kept in mine if kept.record.expires_at_ms > now]
        stored = sum(RECORD_BYTES + len(kept.snapshot) for kept in alive)
        if quota.bytes is not None and stored + size > quota.bytes:
            raise quota.refusal(min((kept.record.expires_at_ms - now for kept in alive), default=1))
        if quota.tasks is not None and sum(kept.record.is_open for kept in alive) >= quota.tasks:
            raise quota.refusal(None)

    def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        """As ``TaskStore.count_failed_lookups``."""
        with self._lock:
            if self._failing:
                raise StoreUnavailableError
            now = self._clock()
            counted, ends = self._failed.get(requestor, (0, 0))
            if ends <= now:
                counted, ends = 0, now + window_ms
            self._failed[requestor] = (counted + number, ends)
            return FailedLookups(counted + number, ends - now)

    def load(self, ref: TaskRef) -> StoredTask | None:
        """As ``TaskStore.load``."""
        with self._found(ref) as kept:
            if kept is None:
                return None
            told = kept.record.status in ("failed", "cancelled")
            questions = tuple(kept.questions.values()) if kept.record.status == "input_required" else ()
            return StoredTask(kept.record, None if told else self._result_of(kept), questions)

    def _result_of(self, kept: Kept) -> StoredResult | None:
        """A job's result: the one that :meth:`finish` stored, else that of the result backend, where there is one."""
        if kept.result is not None or self._results is None:
            return kept.result
        return self._results.stored.get(kept.record.job_id)

    def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        """As ``TaskStore.page``."""
        with self._lock:
            if self._failing:
                raise StoreUnavailableError
            alive = [kept.record for kept in self._kept.values() if kept.record.expires_at_ms > self._clock()]
            stored = {} if self._results is None else self._results.stored
        if owner.scope is None and owner.session is None:
            return []
        theirs = [record for record in alive if record.listed and record.owner == owner]
        listed = [record for record in theirs if before is None or record.position < before]
        listed.sort(key=lambda record: record.position, reverse=True)
        return [StoredTask(record, stored.get(record.job_id) if record.is_open else None) for record in listed[:limit]]

    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """As ``TaskStore.change``."""
        with self._found(ref) as kept:
            if kept is None:
                return None
            record = kept.record
            begun = change.unless_begun is not None and kept.started_retries >= change.unless_begun
            if begun or record.status not in sources_of(change.to) or change.attempt not in (None, record.attempt):
                return Changed(False, record)
            kept.record = _changed(record, change)
            kept.count_change(change.at_ms)
            kept.settle_questions()
            self._bus.tell(ref)
            self._report(kept, cause_of(change), record.status, change.at_ms)
            if kept.record.is_terminal:
                kept.snapshot = b""
            return Changed(True, kept.record)

    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """As ``TaskStore.finish``. The payload is JSON: Celery's state and the value."""
        with self._found(ref) as kept:
            if kept is None or kept.record.status not in sources_of(change.to) or change.attempt != kept.record.attempt:
                return False
            state, value = json.loads(result.payload)
            kept.result = StoredResult(state, value)
        changed = self.change(ref, change)
        return changed is not None and changed.accepted

    def start(
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
        """As ``TaskStore.start``."""
        with self._found(ref) as kept:
            if kept is None or not kept.may_start(attempt) or (key and key != kept.record.key):
                return None
            again = delivery and (retries, delivery) == (kept.started_retries, kept.started_by)
            if retries <= kept.started_retries and not again:
                return None
            kept.started_retries, kept.started_by = retries, delivery
            claim = kept.record.claim
            if worker and (claim is None or claim.worker != worker):
                claim = replace(claim, worker=worker) if claim else Claim(worker, at_ms)
            before = kept.record.status
            kept.record = replace(kept.record, started_at_ms=at_ms, claim=claim)
            if not again:
                kept.questions.clear()
                if kept.record.status == "input_required":
                    kept.record = replace(kept.record, status="working")
                    kept.count_change(at_ms)
                    self._bus.tell(ref)
            self._report(kept, "started", before, at_ms)
            snapshot = self._snapshots.read(kept.snapshot, _place(ref))
            if kept.record.leg == 1:
                return snapshot
            answers = {key: decode_answer(text) for key, text in kept.answers.items()}
            return next_round(snapshot, leg_answers(kept.record.leg - 1, answers), kept.request_state)

    def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        """As ``TaskStore.snapshot``."""
        with self._found(ref) as kept:
            return self._snapshots.read(kept.snapshot, _place(ref)) if kept is not None and kept.snapshot else None

    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int = 0) -> bool:
        """Note which worker received the job."""
        with self._found(ref) as kept:
            if kept is None or not kept.record.is_open or kept.record.attempt != attempt:
                return False
            if retries <= kept.started_retries:
                return False
            kept.record = replace(kept.record, claim=claim)
            self._report(kept, "claimed", kept.record.status, claim.at_ms)
            return True

    def find(self, job_id: str) -> TaskRecord | None:
        """The record whose current job has this Celery id."""
        ref = next((ref for ref, kept in tuple(self._kept.items()) if kept.record.job_id == job_id), TaskRef(None, ""))
        with self._found(ref) as kept:
            return None if kept is None else kept.record

    def delete(self, ref: TaskRef) -> bool:
        """As ``TaskStore.delete``."""
        with self._found(ref) as kept:
            if kept is not None and kept.started_retries >= 0:
                return False
            self._kept.pop(ref, None)
            return True

    def retire(self, ref: TaskRef, at_ms: int) -> None:
        """As ``TaskStore.retire``."""
        with self._found(ref) as kept:
            if kept is not None:
                ttl_ms = max(at_ms - kept.record.created_at_ms, 1)
                if ttl_ms < kept.record.ttl_ms:
                    kept.record = replace(kept.record, ttl_ms=ttl_ms)
                    self._report(kept, "retired", kept.record.status, self._clock())

    def keep(self, ref: TaskRef, extension: Extension) -> None:
        """As ``TaskStore.keep``."""
        with self._found(ref) as kept:
            if kept is not None and kept.record.is_open:
                kept.extend(extension)


def _place(ref: TaskRef) -> str:
    return f"{task_redis_prefix(ref.scope)}:{ref.task_id}"


def _changed(record: TaskRecord, change: Change) -> TaskRecord:
    return replace(
        record,
        status=change.to,
        # None keeps the old message, an empty text takes it away.
        status_message=record.status_message if change.status_message is None else change.status_message or None,
        is_error=change.is_error or record.is_error,
        error=change.error or record.error,
        progress=change.progress or record.progress,
        retries=record.retries if change.retries is None else change.retries,
        retry_at_ms=change.retry_at_ms or record.retry_at_ms,
        started_at_ms=change.started_at_ms or record.started_at_ms,
    )


class MemoryTaskStore(MemoryQuestionStore):
    """Records of tasks for event loops. Fulfils :class:`mcp_celery.engine.TaskStore`.

    Args:
        bus: Who is told of changes.
        clock: Milliseconds since the epoch; a test that lets tasks expire gives its own.
        results: The result backend, where ``load`` shall read a job's result in the same step; else None.
        snapshots: How snapshots are written; by default as they are, without access tokens.
        observers: To whom changes of tasks are reported.

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
    ) -> None:
        self.ledger = MemoryJobLedger(bus, clock, results, snapshots, observers)
        super().__init__(self.ledger)

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
        return [ref for ref in refs if self.ledger.load(ref) is not None]

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
