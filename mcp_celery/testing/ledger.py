"""Records of tasks in memory, with blocking calls: the core of everything that is kept there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from typing_extensions import override

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    RECORD_BYTES,
    Caller,
    Cause,
    Change,
    Changed,
    Claim,
    EarlierTask,
    EncodedResult,
    Extension,
    FailedLookups,
    HeldBack,
    Idempotency,
    Observers,
    OtherVersionError,
    QueueMessage,
    Quota,
    Start,
    StoredResult,
    StoredTask,
    TaskRecord,
    TaskRef,
    TaskStatus,
    cause_of,
    decode_answer,
    leg_answers,
    next_round,
    sources_of,
)
from mcp_celery.engine.places import WAITING_FOR_PLACE, NoPlaceError
from mcp_celery.engine.ports import JobLedger
from mcp_celery.engine.recovery.model import CLAIM_HOLDS_MS, DUE, PUBLISHING_MS
from mcp_celery.errors import QueueFullError, StoreUnavailableError
from mcp_celery.keys import task_redis_prefix
from mcp_celery.sealing import SnapshotCodec
from mcp_celery.testing.breakable import Breakable
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.kept import Kept, KeptTasks
from mcp_celery.testing.places import Places
from mcp_celery.testing.questions import MemoryQuestions
from mcp_celery.testing.recovery import MemoryRecoveryCore
from mcp_celery.testing.results import MemoryTaskResults
from mcp_celery.testing.webhooks import MemoryWebhooksCore

MOST_REQUESTORS: Final = 10_000
"""Of so many requestors failed look-ups are counted, before those are forgotten whose time is over."""


class MemoryJobLedger(MemoryQuestions, MemoryWebhooksCore, MemoryRecoveryCore, Breakable, JobLedger):
    """Records of tasks with blocking calls, usable from any thread; each call is one step, as a Lua script is in Redis.

    Fulfils :class:`mcp_celery.engine.JobLedger`. Arguments as for :class:`MemoryTaskStore`.
    """

    def __init__(
        self,
        bus: MemoryTaskBus,
        clock: Callable[[], int],
        results: MemoryTaskResults | None,
        snapshots: SnapshotCodec | None,
        observers: Observers,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self._bus = bus
        self._observers = observers
        self._snapshots = snapshots or SnapshotCodec()
        self._clock = clock
        self._results = results
        self._places = Places(self._task)
        self._kept = KeptTasks(max_bytes, self._places.release)
        self.messages: dict[str, list[str | bytes]] = {}
        """The messages that creations have put into queues, by queue."""
        self._failed: dict[str, tuple[int, int]] = {}
        self._lock = threading.RLock()

    @property
    def bus(self) -> MemoryTaskBus:
        """Which bus announces changes."""
        return self._bus

    @property
    def due(self) -> dict[TaskRef, int]:
        """Tasks whose next leg is still to be published, by since when."""
        return self._kept.due

    def count(self) -> int:
        """How many tasks are kept, expired ones not counted."""
        with self._step():
            return len(self._kept)

    def _task(self, ref: TaskRef) -> Kept | None:
        return self._kept.get(ref)

    @contextmanager
    def _step(self) -> Generator[int]:
        """Let no other thread change anything meanwhile. Gives the time, at which expired tasks have been forgotten."""
        with self._lock:
            if self._failing:
                raise StoreUnavailableError
            now = self._clock()
            self._kept.expire(now)
            try:
                yield now
            finally:
                self._go_on(now)

    def _go_on(self, now: int) -> None:
        """Let the jobs of tasks be due that have got their places."""
        while self._places.granted:
            kept = self._places.granted.pop(0)
            if self._kept.get(kept.record.ref) is not kept:
                continue  # it has expired in the same step
            self._kept.due[kept.record.ref] = now - PUBLISHING_MS
            kept.record = replace(kept.record, status_message=None)
            self._tell(kept, now, "place_granted", kept.record.status)
            self._bus.tell(DUE)

    @contextmanager
    def _found(self, ref: TaskRef) -> Generator[Kept | None]:
        with self._step():
            kept = self._kept.get(ref)
            try:
                yield kept
            finally:
                if kept is not None:
                    self._kept.refresh(kept)

    @override
    def _report(self, kept: Kept, cause: Cause, before: TaskStatus, at_ms: int) -> None:
        self._keep_webhook(kept, before, self._clock())
        super()._report(kept, cause, before, at_ms)

    def create(
        self,
        record: TaskRecord,
        snapshot: TaskContextSnapshot,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> EarlierTask | HeldBack | None:
        """As ``TaskStore.create``."""
        written = self._snapshots.write(snapshot, _place(record.ref)).encode()
        with self._step() as now:
            if (before := self._kept.get(record.ref)) is not None:
                ahead = self._places.ahead(before)
                return None if ahead is None else HeldBack(ahead)
            if idempotency is not None and (earlier := self._kept.earlier(record, idempotency, now)) is not None:
                return earlier
            self._kept.require_room(quota, RECORD_BYTES + len(written), now)
            turns = self._places.turns
            must_wait = quota is not None and quota.line is not None and not turns.may_go
            if message is not None and not must_wait:
                self._put(message)
            kept = Kept(record, written, quota)
            self._kept.add(kept)
            self._kept.count_created(quota, now)
            if idempotency is not None:
                self._kept.keep_once(record, idempotency, now)
                if message is not None or must_wait:
                    self._kept.note_published(kept)
            if not record.work.is_foreign and not must_wait:
                self._kept.unclaimed[record.ref] = now
            self.attend(record.ref)
            return None if (ahead := self._take_turn(kept)) is None else HeldBack(ahead)

    @override
    def _take_turn(self, kept: Kept) -> int | None:
        if (ahead := self._places.turns.take(kept)) is not None:
            kept.record = replace(kept.record, status_message=WAITING_FOR_PLACE % ahead)
        return ahead

    def _put(self, message: QueueMessage) -> None:
        """Put a message into its queue.

        Raises:
            QueueFullError: As many wait there as may.
        """
        waiting = sum(len(self.messages.get(lane, ())) for lane in message.lanes)
        if message.most is not None and waiting >= message.most:
            raise QueueFullError(message.most, retry_after_ms=message.retry_after_ms)
        self.messages.setdefault(message.queue, []).append(message.payload)

    def earlier(self, record: TaskRecord, idempotency: Idempotency) -> EarlierTask | None:
        """As ``TaskStore.earlier``."""
        with self._step() as now:
            return self._kept.earlier(record, idempotency, now)

    def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        """As ``TaskStore.count_failed_lookups``."""
        with self._step() as now:
            counted, ends = self._failed.get(requestor, (0, 0))
            if ends <= now:
                counted, ends = 0, now + window_ms
            self._failed[requestor] = (counted + number, ends)
            if len(self._failed) > MOST_REQUESTORS:
                self._failed = {one: (many, until) for one, (many, until) in self._failed.items() if until > now}
            return FailedLookups(counted + number, ends - now)

    @override
    def is_kept(self, ref: TaskRef) -> bool:
        with self._found(ref) as kept:
            return kept is not None

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
        if kept.result is not None:
            state, value = json.loads(kept.result)
            return StoredResult(state, value)
        return None if self._results is None else self._results.stored.get(kept.record.job_id)

    def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        """As ``TaskStore.page``."""
        if owner.scope is None and owner.session is None:
            return []
        with self._step():
            return [
                StoredTask(kept.record, self._result_of(kept) if kept.record.is_open else None)
                for kept in self._kept.page(owner, before=before, limit=limit)
            ]

    @override
    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        with self._found(ref) as kept:
            if kept is None:
                return None
            record = kept.record
            if change.call in kept.calls:
                return Changed(True, record)
            begun = change.unless_begun is not None and kept.has_started(change.unless_begun)
            if change.delivery and change.delivery == kept.started_by:
                begun = False
            if begun or record.status not in sources_of(change.to) or change.attempt not in (None, record.attempt):
                return Changed(False, record)
            self._move_by(kept, change)
            return Changed(True, kept.record)

    @override
    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        with self._found(ref) as kept:
            if kept is not None and change.call in kept.calls:
                return True
            if kept is None or kept.record.status not in sources_of(change.to) or change.attempt != kept.record.attempt:
                return False
            kept.result = result.payload
            self._move_by(kept, change)
            return True

    def _move_by(self, kept: Kept, change: Change) -> None:
        before = kept.record.status
        kept.apply(change)
        kept.note_answer(change.call)
        kept.settle_questions()
        if change.retries is not None and not kept.has_started(change.retries):
            self._places.release(kept)
        if change.retries is not None and kept.awaits_claim:
            self._kept.unclaimed[kept.record.ref] = change.retry_at_ms or change.at_ms
        self._tell(kept, change.at_ms, cause_of(change), before)

    def start(self, ref: TaskRef, start: Start) -> TaskContextSnapshot | None:
        """As ``TaskStore.start``."""
        with self._found(ref) as kept:
            if kept is None or not kept.may_start(start.attempt) or (start.key and start.key != kept.record.key):
                return None
            again = start.delivery and (start.retries, start.delivery) == (kept.started_retries, kept.started_by)
            if start.retries <= kept.started_retries and not again:
                return None
            if start.fingerprint is not None and kept.record.fingerprint not in (None, start.fingerprint):
                raise OtherVersionError(kept.record.fingerprint)
            if (ahead := self._places.take(kept)) is not None:
                self._await_place(kept, ahead)
                raise NoPlaceError(ahead)
            self._places.turns.enter(kept)
            kept.started_retries, kept.started_by = start.retries, start.delivery
            claim = kept.record.claim
            if start.worker and (claim is None or claim.worker != start.worker or kept.claim_retries != start.retries):
                taken = replace(claim, worker=start.worker) if claim else Claim(start.worker, start.at_ms)
                self._take(kept, taken, start.retries)
                self._report(kept, "claimed", kept.record.status, start.at_ms)
            elif not start.worker:
                self._kept.unclaimed.pop(ref, None)
            before = kept.record.status
            kept.record = replace(kept.record, started_at_ms=start.at_ms)
            if not again:
                kept.questions.clear()
                if kept.record.status == "input_required":
                    kept.record = replace(kept.record, status="working")
                    kept.count_change(start.at_ms)
                    self._bus.tell(ref)
            self._report(kept, "started", before, start.at_ms)
            snapshot = self._snapshots.read(kept.snapshot, _place(ref))
            if kept.record.leg == 1:
                return snapshot
            answers = {key: decode_answer(text) for key, text in kept.answers.items()}
            return next_round(snapshot, leg_answers(kept.record.leg - 1, answers), kept.request_state)

    def _take(self, kept: Kept, claim: Claim, retries: int) -> None:
        """Give a task's job to a worker, which is known from then on."""
        self._kept.take(kept, claim, retries)
        self._workers.setdefault(claim.worker, self._clock() + CLAIM_HOLDS_MS)

    def _await_place(self, kept: Kept, ahead: int) -> None:
        before, ref = kept.record.status, kept.record.ref
        self._kept.let_go(kept)
        self._kept.unclaimed.pop(ref, None)
        self._kept.due.pop(ref, None)
        kept.claim_retries = 0
        kept.questions.clear()
        kept.record = replace(
            kept.record,
            status="working",
            status_message=WAITING_FOR_PLACE % ahead,
            attempt=kept.record.attempt + 1,
            claim=None,
        )
        self._tell(kept, self._clock(), "place_awaited", before)
        self._places.turns.leave(kept)

    def ahead(self, record: TaskRecord) -> int | None:
        """As ``TaskStore.ahead``."""
        with self._found(record.ref) as kept:
            return None if kept is None else self._places.ahead(kept)

    def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        """As ``TaskStore.snapshot``."""
        with self._found(ref) as kept:
            return self._snapshots.read(kept.snapshot, _place(ref)) if kept is not None and kept.snapshot else None

    @override
    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int = 0) -> bool:
        with self._found(ref) as kept:
            if kept is None or not kept.record.is_open or kept.record.attempt != attempt:
                return False
            if kept.has_started(retries):
                return False
            self._take(kept, claim, retries)
            self._report(kept, "claimed", kept.record.status, claim.at_ms)
            return True

    @override
    def find(self, job_id: str) -> TaskRecord | None:
        with self._step():
            return next((kept.record for kept in self._kept if kept.record.job_id == job_id), None)

    def delete(self, ref: TaskRef) -> bool:
        """As ``TaskStore.delete``."""
        with self._found(ref) as kept:
            if kept is not None and (kept.started_retries >= 0 or not self._kept.is_only_request(kept)):
                return False
            self._kept.remove(ref)
            return True

    def retire(self, ref: TaskRef, at_ms: int) -> None:
        """As ``TaskStore.retire``."""
        with self._found(ref) as kept:
            if kept is not None:
                ttl_ms = max(at_ms - kept.record.created_at_ms, 1)
                if ttl_ms < kept.record.ttl_ms:
                    kept.record = replace(kept.record, ttl_ms=ttl_ms)
                    self._report(kept, "retired", kept.record.status, self._clock())

    def attend(self, ref: TaskRef) -> None:
        """As ``TaskStore.attend``."""
        with self._found(ref) as kept, self._step() as now:
            if kept is not None and kept.record.is_open and kept.record.abandon_after_ms is not None:
                self._kept.attended[ref] = now + kept.record.abandon_after_ms

    def keep(self, ref: TaskRef, extension: Extension) -> None:
        """As ``TaskStore.keep``."""
        with self._found(ref) as kept:
            if kept is not None and kept.record.is_open:
                kept.extend(extension)


def _place(ref: TaskRef) -> list[str]:
    return [f"{task_redis_prefix(ref.scope)}:{ref.task_id}"]
