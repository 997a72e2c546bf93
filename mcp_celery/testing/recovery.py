"""Storage of recovery and of the watcher of exposed jobs, in memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from typing_extensions import override

from mcp_celery.engine import Cause, Change, DueTasks, HandBack, HandedBack, TaskRecord, TaskRef, TaskStatus
from mcp_celery.engine.handback import MAX_PAUSES_MS, WAITING
from mcp_celery.engine.ports import OpenTasks, RecoveryStore
from mcp_celery.engine.recovery.model import (
    BATCH,
    PUBLISHING_MS,
    TRYING_AGAIN,
    TRYING_AGAIN_LOST,
    UNCLAIMED_BATCH,
    Expiring,
    Loss,
    PublishedJob,
    RecoveryPolicy,
    StoreCounts,
    Sweep,
    Verdict,
)
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.kept import Kept, KeptTasks
from mcp_celery.testing.places import Places

logger = logging.getLogger(__name__)


class MemoryRecoveryCore:
    """The workers of the records' core; each call is one step."""

    _kept: KeptTasks
    _places: Places
    _bus: MemoryTaskBus

    def __init__(self) -> None:
        self._workers: dict[str, int] = {}
        self._unread: dict[str, int] = {}
        self._components: dict[str, frozenset[str]] = {}
        self._slots: dict[str, int] = {}
        self._reaper: tuple[str, int] = ("", 0)
        self._mark: StoreMark | None = None

    def _step(self) -> AbstractContextManager[int]:
        raise NotImplementedError

    def _found(self, ref: TaskRef) -> AbstractContextManager[Kept | None]:
        raise NotImplementedError

    def _tell(self, kept: Kept, at_ms: int, cause: Cause, before: TaskStatus) -> None:
        raise NotImplementedError

    def _waiting_webhooks(self) -> int:
        raise NotImplementedError

    def _report(self, kept: Kept, cause: Cause, before: TaskStatus, at_ms: int) -> None:
        raise NotImplementedError

    def beat(self, worker: str, lease_ms: int, components: Mapping[str, str], unread_ms: int, slots: int) -> None:
        """As ``RecoveryStore.beat``."""
        with self._step() as now:
            self._workers[worker] = now + lease_ms
            self._components[worker] = frozenset(components)
            self._unread.pop(worker, None)
            if unread_ms:
                self._unread[worker] = now - unread_ms
            if slots != self._slots.get(worker, 0):
                self._slots[worker] = slots
                self._count_slots(now)

    def _count_slots(self, now: int) -> None:
        """Let tasks go on, where the live workers can run more jobs than before."""
        live = (worker for worker, until in self._workers.items() if until > now)
        self._places.turns.resize(sum(self._slots.get(worker, 0) for worker in live))

    def mark(self, new: StoreMark | None = None) -> StoreMark | None:
        """As ``RecoveryStore.mark``."""
        with self._step():
            self._mark = self._mark or new
            return self._mark

    def bury(self, worker: str, *, died: bool) -> bool:
        """As ``RecoveryStore.bury``."""
        with self._step() as now:
            if died and self._workers.get(worker, 0) > now:
                return False
            if self._kept.claims.get(worker):
                self._workers[worker] = now
                return False
            self._workers.pop(worker, None)
            self._unread.pop(worker, None)
            self._components.pop(worker, None)
            self._slots.pop(worker, None)
            return True

    def sweep(self, reaper: str, policy: RecoveryPolicy, skipped: int) -> Sweep | None:
        """As ``RecoveryStore.sweep``."""
        with self._step() as now:
            elected, until = self._reaper
            if elected != reaper and until > now:
                return None
            self._reaper = (reaper, now + policy.lease_ms)
            self._count_slots(now)
            over = [replace(one, left_ms=at - now) for at, one in self._kept.expired.values()]
            soon = self._kept.expiring_until(now + policy.lease_ms, now)
            return Sweep(
                dead=[worker for worker, until in self._workers.items() if until <= now],
                expiring=[*over[:BATCH], *soon],
                due=self._overdue(now),
                unclaimed=self._unclaimed(now - policy.publishing_ms)[skipped : skipped + UNCLAIMED_BATCH],
                unread_since_ms=min(self._unread.values(), default=None),
                at_ms=now,
                abandoned=[
                    kept.record.key
                    for ref, until in self._kept.attended.items()
                    if until <= now and (kept := self._kept.get(ref)) is not None
                ],
            )

    def overdue(self) -> list[str]:
        """As ``RecoveryStore.overdue``."""
        with self._step() as now:
            return self._overdue(now)

    def is_due(self, key: str) -> bool:
        """As ``RecoveryStore.is_due``."""
        with self._step():
            return TaskRef.of_key(key) in self._kept.due

    def _overdue(self, now: int) -> list[str]:
        return [
            kept.record.key
            for ref, since in self._kept.due.items()
            if since <= now - PUBLISHING_MS and (kept := self._kept.get(ref)) is not None
        ]

    def _unclaimed(self, until: int) -> list[PublishedJob]:
        """The jobs that no worker has and the broker has had since a time before, the oldest first."""
        jobs = (
            _published(kept.record, since)
            for ref, since in self._kept.unclaimed.items()
            if since <= until and (kept := self._kept.get(ref)) is not None
        )
        return sorted(jobs, key=lambda job: (job.at_ms, job.key))

    def some_claimed(self) -> list[PublishedJob]:
        """As ``RecoveryStore.some_claimed``."""
        with self._step() as now:
            live = [worker for worker, until in self._workers.items() if until > now]
            keys = [key for worker in live for key in self._kept.claims.get(worker, ())]
            found = [self._kept.get(TaskRef.of_key(key)) for key in keys]
            return [_published(kept.record, kept.record.created_at_ms) for kept in found if kept is not None]

    def decide_on_lost(self, job: PublishedJob, policy: RecoveryPolicy) -> Verdict:
        """As ``RecoveryStore.lost``."""
        ref = TaskRef.of_key(job.key)
        with self._found(ref) as kept, self._step() as now:
            if kept is None or self._kept.unclaimed.get(ref) != job.at_ms:
                return "nothing"
            del self._kept.unclaimed[ref]
            record = kept.record
            if record.key != job.key or not kept.awaits_claim:
                return "nothing"
            fails = record.redeliveries >= policy.max_redeliveries
            if fails:
                kept.apply(policy.lost_too_often)
                kept.settle_questions()
            else:
                self._kept.let_go(kept)
                self._release(kept, now)
                redeliveries = record.redeliveries + 1
                kept.record = replace(kept.record, status_message=TRYING_AGAIN_LOST, redeliveries=redeliveries)
            self._tell(kept, now, "failed" if fails else "recovered", record.status)
            return "failed" if fails else "again"

    def counts(self) -> StoreCounts:
        """As ``RecoveryStore.counts``."""
        with self._step() as now:
            kept = self._kept
            claimed = sum(len(kept.claims.get(worker, ())) for worker in self._workers)
            live = sum(until > now for until in self._workers.values())
            return StoreCounts(
                queued=len(kept.unclaimed),
                claimed=claimed,
                due=len(kept.due),
                exposed=len(kept.looks),
                workers=live,
                webhooks=self._waiting_webhooks(),
                waiting=self._places.waiting,
            )

    def resign(self, reaper: str) -> None:
        """As ``RecoveryStore.resign``."""
        with self._step():
            if self._reaper[0] == reaper:
                self._reaper = ("", 0)

    def claimed(self, worker: str) -> list[str]:
        """As ``RecoveryStore.claimed``."""
        with self._step():
            return list(self._kept.claims.get(worker, ()))

    def decide(self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, before_ms: int) -> Verdict:
        """As ``RecoveryStore.recover``."""
        with self._found(TaskRef.of_key(key)) as kept, self._step() as now:
            if loss == "died" and self._workers.get(worker, 0) > now:
                return "alive"
            if kept is None or not self._was_lost(kept, key, worker, loss, before_ms):
                return "nothing"
            if loss != "died" and not kept.has_started(kept.claim_retries):
                self._release(kept, now)
                return "nothing"
            return self._decide(kept, policy, now)

    def _was_lost(self, kept: Kept, key: str, worker: str, loss: Loss, before_ms: int) -> bool:
        """Whether a worker had a task's job, and has lost it. It is then no longer among the worker's claims."""
        record, claim = kept.record, kept.record.claim
        if loss == "disconnected" and (
            kept.has_started(kept.claim_retries) or claim is None or claim.at_ms >= before_ms
        ):
            return False
        if kept.claimed_by == worker:
            self._kept.let_go(kept)
        had_it = record.is_open and record.key == key and claim is not None and claim.worker == worker
        # Of a retry that no worker has received the broker has the message.
        return had_it and record.retries <= kept.claim_retries

    def _release(self, kept: Kept, now: int) -> None:
        self._kept.due[kept.record.ref] = now
        kept.record, kept.claim_retries = replace(kept.record, claim=None), 0

    def _decide(self, kept: Kept, policy: RecoveryPolicy, now: int) -> Verdict:
        """Publish the job of a dead worker again, or fail its task."""
        record, started = kept.record, kept.has_started(kept.claim_retries)
        before = record.status
        failed: Change | None = None
        if started and not record.idempotent:
            failed = policy.died_in_work
        elif record.redeliveries >= policy.max_redeliveries:
            failed = policy.died_too_often
        kept.questions.clear()
        if failed is not None:
            kept.apply(failed)
        else:
            self._release(kept, now)
            kept.reset_attempt()
            kept.record = replace(
                kept.record,
                status="working",
                status_message=TRYING_AGAIN,
                attempt=record.attempt + 1,
                redeliveries=record.redeliveries + 1,
                started_at_ms=None,
                start_before_ms=None if started else record.start_before_ms,
            )
        kept.settle_questions()
        self._tell(kept, now, "recovered" if failed is None else "failed", before)
        return "again" if failed is None else "failed"

    def hand_back(self, ref: TaskRef, handback: HandBack) -> HandedBack:
        """As ``TaskStore.hand_back``."""
        with self._found(ref) as kept, self._step() as now:
            if kept is not None and (pause_ms := kept.calls.get(handback.call)) is not None:
                return HandedBack("handed back", pause_ms)
            if (
                kept is None
                or not kept.may_start(handback.attempt)
                or kept.has_started(handback.retries)
                or kept.record.key != handback.key
            ):
                return HandedBack("superseded")
            record = kept.record
            if record.is_too_late(now) or not self._is_elsewhere(record.fingerprint, handback.worker, now):
                return HandedBack("nowhere")
            number = kept.handbacks
            if number >= handback.most or kept.handback_pauses_ms >= MAX_PAUSES_MS:
                return HandedBack("too often")
            pause_ms = handback.pause_ms(number)
            kept.handbacks, kept.handback_pauses_ms = number + 1, kept.handback_pauses_ms + pause_ms
            kept.note_answer(handback.call, pause_ms)
            self._kept.let_go(kept)
            self._kept.unclaimed.pop(ref, None)
            kept.claim_retries = 0
            kept.record = replace(record, attempt=record.attempt + 1, claim=None)
            if record.status == "input_required" or not number:
                kept.questions.clear()
                kept.record = replace(kept.record, status="working", status_message=WAITING)
                kept.count_change(now)
                self._bus.tell(ref)
            self._kept.due[ref] = now + pause_ms
            self._report(kept, "handed_back", record.status, now)
            return HandedBack("handed back", pause_ms)

    def _is_elsewhere(self, fingerprint: str | None, worker: str, now: int) -> bool:
        """Whether another live worker advertises a fingerprint."""
        return fingerprint is not None and any(
            other != worker and until > now and fingerprint in self._components.get(other, ())
            for other, until in self._workers.items()
        )

    def forget_due(self, key: str) -> None:
        """As ``RecoveryStore.forget_due``."""
        with self._step():
            self._kept.due.pop(TaskRef.of_key(key), None)

    def attended_until_ms(self, key: str) -> int | None:
        """As ``RecoveryStore.attended_until_ms``."""
        with self._step():
            return self._kept.attended.get(TaskRef.of_key(key))

    def forget_attended(self, key: str) -> None:
        """As ``RecoveryStore.forget_attended``."""
        with self._step():
            self._kept.attended.pop(TaskRef.of_key(key), None)

    def forget(self, expired: Sequence[Expiring]) -> None:
        """As ``RecoveryStore.forget``."""
        with self._step():
            for one in expired:
                self._kept.expired.pop(one.key, None)

    def due_looks(self, interval_ms: int, limit: int) -> DueTasks:
        """As ``OpenTasks.due``."""
        with self._step() as now:
            looks = self._kept.looks
            due = sorted((ref for ref, at in looks.items() if at <= now), key=lambda ref: looks[ref])[:limit]
            looks.update(dict.fromkeys(due, now + interval_ms))
            return DueTasks(len(looks), [kept.record for ref in due if (kept := self._kept.get(ref)) is not None])

    def hurry(self, keys: Sequence[str]) -> None:
        """As ``OpenTasks.hurry``."""
        with self._step():
            for ref in map(TaskRef.of_key, keys):
                if ref in self._kept.looks:
                    self._kept.looks[ref] = 0


def _published(record: TaskRecord, at_ms: int) -> PublishedJob:
    options = None if record.fingerprint is None else tuple(sorted(record.options.items()))
    return PublishedJob(record.key, at_ms, record.job_name, record.declared_as, options)


class MemoryRecovery(RecoveryStore):
    """The same for event loops. Fulfils :class:`mcp_celery.engine.RecoveryStore`."""

    def __init__(self, core: MemoryRecoveryCore) -> None:
        self._core = core

    @override
    async def beat(
        self,
        worker: str,
        lease_ms: int,
        components: Mapping[str, str] | None = None,
        unread_ms: int = 0,
        slots: int = 0,
    ) -> None:
        self._core.beat(worker, lease_ms, components or {}, unread_ms, slots)

    @override
    async def mark(self, new: StoreMark | None = None) -> StoreMark | None:
        return self._core.mark(new)

    @override
    async def sweep(self, reaper: str, policy: RecoveryPolicy, skipped: int = 0) -> Sweep | None:
        return self._core.sweep(reaper, policy, skipped)

    @override
    async def overdue(self) -> Sequence[str]:
        return self._core.overdue()

    @override
    async def is_due(self, key: str) -> bool:
        return self._core.is_due(key)

    @override
    async def some_claimed(self) -> Sequence[PublishedJob]:
        return self._core.some_claimed()

    @override
    async def lost(self, job: PublishedJob, policy: RecoveryPolicy) -> Verdict:
        return self._core.decide_on_lost(job, policy)

    @override
    async def resign(self, reaper: str) -> None:
        self._core.resign(reaper)

    @override
    async def claimed(self, worker: str) -> Sequence[str]:
        return self._core.claimed(worker)

    @override
    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        return self._core.decide(key, worker, loss, policy, before_ms)

    @override
    async def bury(self, worker: str, *, died: bool = False) -> bool:
        return self._core.bury(worker, died=died)

    @override
    async def forget_due(self, key: str) -> None:
        self._core.forget_due(key)

    @override
    async def drop_due(self, key: str, reason: str) -> None:
        logger.error("task %s is not published again: %s", TaskRef.of_key(key).shown_id, reason)
        self._core.forget_due(key)

    @override
    async def attended_until_ms(self, key: str) -> int | None:
        return self._core.attended_until_ms(key)

    @override
    async def forget_attended(self, key: str) -> None:
        self._core.forget_attended(key)

    @override
    async def forget(self, expired: Sequence[Expiring]) -> None:
        self._core.forget(expired)

    @override
    async def counts(self) -> StoreCounts:
        return self._core.counts()


class MemoryOpenTasks(OpenTasks):
    """Which tasks of exposed jobs are open, for event loops. Fulfils :class:`mcp_celery.engine.OpenTasks`."""

    def __init__(self, core: MemoryRecoveryCore) -> None:
        self._core = core

    @override
    async def due(self, interval_ms: int, limit: int) -> DueTasks:
        return self._core.due_looks(interval_ms, limit)

    @override
    async def hurry(self, keys: Sequence[str]) -> None:
        self._core.hurry(keys)
