"""What recovery and the watcher of exposed jobs keep, in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from mcp_celery.engine import Cause, Change, DueTasks, TaskRef, TaskStatus
from mcp_celery.engine.recovery import (
    BATCH,
    PUBLISHING_MS,
    TRYING_AGAIN,
    Expiring,
    Loss,
    RecoveryPolicy,
    Sweep,
    Verdict,
)
from mcp_celery.testing.kept import Kept, KeptTasks

logger = logging.getLogger(__name__)


class MemoryRecoveryCore:
    """What the records' core knows of workers; each call is one step."""

    _kept: KeptTasks

    def __init__(self) -> None:
        self._workers: dict[str, int] = {}
        self._reaper: tuple[str, int] = ("", 0)

    def _step(self) -> AbstractContextManager[int]:
        raise NotImplementedError

    def _found(self, ref: TaskRef) -> AbstractContextManager[Kept | None]:
        raise NotImplementedError

    def _tell(self, kept: Kept, at_ms: int, cause: Cause, before: TaskStatus) -> None:
        raise NotImplementedError

    def beat(self, worker: str, lease_ms: int) -> None:
        """As ``RecoveryStore.beat``."""
        with self._step() as now:
            self._workers[worker] = now + lease_ms

    def bury(self, worker: str) -> None:
        """As ``RecoveryStore.bury``."""
        with self._step():
            self._workers.pop(worker, None)

    def sweep(self, reaper: str, policy: RecoveryPolicy) -> Sweep | None:
        """As ``RecoveryStore.sweep``."""
        with self._step() as now:
            elected, until = self._reaper
            if elected != reaper and until > now:
                return None
            self._reaper = (reaper, now + policy.lease_ms)
            over = [replace(one, left_ms=at - now) for at, one in self._kept.expired.values()]
            soon = self._kept.expiring_until(now + policy.lease_ms, now)
            return Sweep(
                dead=[worker for worker, until in self._workers.items() if until <= now],
                expiring=[*over[:BATCH], *soon],
                due=[
                    kept.record.key
                    for ref, since in self._kept.due.items()
                    if since <= now - PUBLISHING_MS and (kept := self._kept.get(ref)) is not None
                ],
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
            kept.started_retries, kept.started_by = -1, ""
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

    def forget_due(self, key: str) -> None:
        """As ``RecoveryStore.forget_due``."""
        with self._step():
            self._kept.due.pop(TaskRef.of_key(key), None)

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


class MemoryRecovery:
    """The same for event loops. Fulfils :class:`mcp_celery.engine.RecoveryStore`."""

    def __init__(self, core: MemoryRecoveryCore) -> None:
        self._core = core

    async def beat(self, worker: str, lease_ms: int) -> None:
        """Say that a worker lives."""
        self._core.beat(worker, lease_ms)

    async def sweep(self, reaper: str, policy: RecoveryPolicy) -> Sweep | None:
        """What there is to do. None: another process reaps."""
        return self._core.sweep(reaper, policy)

    async def resign(self, reaper: str) -> None:
        """Let another reaper be elected at once."""
        self._core.resign(reaper)

    async def claimed(self, worker: str) -> Sequence[str]:
        """Compound keys of the tasks whose job a worker has."""
        return self._core.claimed(worker)

    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        """Decide on a task whose job a worker had."""
        return self._core.decide(key, worker, loss, policy, before_ms)

    async def bury(self, worker: str) -> None:
        """Forget a worker."""
        self._core.bury(worker)

    async def forget_due(self, key: str) -> None:
        """A job that was due is published."""
        self._core.forget_due(key)

    async def drop_due(self, key: str, reason: str) -> None:
        """A job that is due cannot be published."""
        logger.error("task %s is not published again: %s", TaskRef.of_key(key).shown_id, reason)
        self._core.forget_due(key)

    async def forget(self, expired: Sequence[Expiring]) -> None:
        """Forget that tasks were to expire."""
        self._core.forget(expired)


class MemoryOpenTasks:
    """Which tasks of exposed jobs are open, for event loops. Fulfils :class:`mcp_celery.engine.OpenTasks`."""

    def __init__(self, core: MemoryRecoveryCore) -> None:
        self._core = core

    async def due(self, interval_ms: int, limit: int) -> DueTasks:
        """The tasks at which it is time to look; they are the caller's for an interval."""
        return self._core.due_looks(interval_ms, limit)

    async def hurry(self, keys: Sequence[str]) -> None:
        """Let tasks be due at once."""
        self._core.hurry(keys)
