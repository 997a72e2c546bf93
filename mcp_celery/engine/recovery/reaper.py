"""The reaper: finds what recovery has to do, and does it."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mcp_celery.engine.followup_jobs import Declared, Republisher
from mcp_celery.engine.outcome import expired
from mcp_celery.engine.ports import RecoveryStore, TaskQueue, TaskResultsBin, TaskStore
from mcp_celery.engine.record import Change, TaskRef, now_ms
from mcp_celery.engine.recovery.lost_jobs import LostJobs
from mcp_celery.engine.recovery.model import (
    ABANDONED,
    BATCH,
    UNCLAIMED_BATCH,
    Expiring,
    Loss,
    RecoveryPolicy,
    Sweep,
    Verdict,
)
from mcp_celery.engine.transitions import UNOBSERVED, Observers, Transition
from mcp_celery.errors import McpCeleryError, QueueUnavailableError, StoredDataError, StoreUnavailableError
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

LATE_LEASES: Final = 2
"""After how many leases the results of revoked jobs are forgotten a second time."""
PUBLISHED_TOGETHER: Final = 10
"""How many jobs that have become due at a time are published together."""
MAX_LATE: Final = 10_000
"""How many batches of them wait for that."""


class Reaper:
    """Finds what recovery has to do, and does it, while this process is the elected one.

    Args:
        store: What recovery keeps.
        tasks: The records.
        queue: Where jobs are published again.
        results: Where stored results are forgotten.
        declared: What the components declare, for their jobs' queues and options.
        policy: How soon, how often.
        observers: They are notified of open tasks that expired.

    Attributes:
        elected: Is set while this process is the elected one.
    """

    def __init__(
        self,
        *,
        store: RecoveryStore,
        tasks: TaskStore,
        queue: TaskQueue,
        results: TaskResultsBin,
        declared: Declared,
        policy: RecoveryPolicy,
        observers: Observers = UNOBSERVED,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._queue = queue
        self._results = results
        self._jobs = Republisher(tasks, queue, declared)
        self._lost = LostJobs(store=store, queue=queue, declared=declared, policy=policy)
        self._policy = policy
        self._observers = observers
        self._id = secrets.token_hex(8)
        self._seen: dict[str, Expiring] = {}
        self._publishing: set[str] = set()
        self._late: deque[tuple[float, list[str]]] = deque(maxlen=MAX_LATE)
        """Celery ids of jobs that were revoked because their tasks expired, by when to forget their results again."""
        self._trusts_deaths_at: float | None = None
        self.elected = asyncio.Event()

    async def run(self) -> None:
        """Sweep for ever."""
        pause = self._policy.heartbeat_ms / 1000
        last = self._now()
        while True:
            if self._now() - last > 2 * pause:
                self._trusts_deaths_at = None  # this process stood still, and others may have too
            try:
                more = await self.sweep()
            except StoreUnavailableError:
                self._trusts_deaths_at = None
                self._lost.forget()
                more = False
            except Exception:
                logger.exception("a sweep failed")  # and the next one may not
                more = False
            last = self._now()
            if not more:
                await asyncio.sleep(pause)

    async def resign(self) -> None:
        """Let another process reap at once."""
        try:
            await self._store.resign(self._id)
        except McpCeleryError:
            logger.debug("stopped reaping; another process takes over when this one's election ends")

    async def sweep(self) -> bool:
        """Do what there is to do now.

        Returns:
            Whether there was more than a batch.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        found = await self._store.sweep(self._id, self._policy, self._lost.skipped)
        # From when on the store has answered for one lease, so that live workers could renew theirs. A process that has
        # asked it all the time need not wait when it becomes the reaper.
        if self._trusts_deaths_at is None:
            self._trusts_deaths_at = self._now() + self._policy.lease_ms / 1000
        if found is None:
            self.elected.clear()
            self._seen.clear()
            self._lost.forget()
            return False
        self.elected.set()
        if found.after_failover:
            self._trusts_deaths_at = self._now() + self._policy.lease_ms / 1000
            self._lost.forget()
        trusts_deaths = self._now() >= self._trusts_deaths_at
        if trusts_deaths:
            for worker in found.dead:
                try:
                    await self._reap(worker)
                except StoreUnavailableError:
                    raise
                except Exception:
                    logger.exception("could not recover the jobs of worker %s", worker)  # others may be dead too
        await self._publish_due(found.due)
        await self._expire(found.expiring)
        if trusts_deaths:
            for key in found.abandoned:
                await self._cancel_abandoned(key, found.at_ms)
        lost = await self._replace_lost(found, trusts_deaths=trusts_deaths)
        return lost >= UNCLAIMED_BATCH or sum(one.left_ms <= -self._policy.lease_ms for one in found.expiring) >= BATCH

    async def _replace_lost(self, found: Sweep, *, trusts_deaths: bool) -> int:
        """Decide on every task whose job the broker has lost.

        Args:
            found: The sweep.
            trusts_deaths: Whether live workers have said since when they may have unread messages. If not, the queues
                are looked at only, for what the looks of several sweeps prove.

        Returns:
            How many tasks were decided on.
        """
        verdicts: Counter[Verdict] = Counter()
        lost = await self._lost.find(found)
        if not trusts_deaths:
            return 0
        for job in lost:
            verdict = await self._store.lost(job, self._policy)
            verdicts[verdict] += 1
            if verdict == "again":
                await self._try_to_publish(job.key)
        if verdicts["again"] or verdicts["failed"]:
            logger.warning(
                "the broker has lost jobs: %d of them are published again, %d tasks have failed",
                verdicts["again"],
                verdicts["failed"],
            )
        return len(lost)

    async def _reap(self, worker: str) -> None:
        """Decide on every task whose job a dead worker had."""
        verdicts = await self.settle(worker, "died")
        if verdicts["alive"] or not await self._store.bury(worker, died=True):
            return
        logger.warning(
            "worker %s has died: %d of its jobs are published again, %d of its tasks have failed",
            worker,
            verdicts["again"],
            verdicts["failed"],
        )

    async def settle(self, worker: str, loss: Loss, before_ms: int = 0) -> Counter[Verdict]:
        """Decide on every task whose job a worker had.

        Raises:
            StoreUnavailableError: The store did not answer; what is not decided yet is still the worker's.
        """
        verdicts: Counter[Verdict] = Counter()
        for key in await self._store.claimed(worker):
            verdict = await self._store.recover(key, worker, loss, self._policy, before_ms=before_ms)
            verdicts[verdict] += 1
            if verdict == "again":
                await self._try_to_publish(key)
            if verdict == "alive":
                break
        return verdicts

    async def publish_due(self, key: str) -> None:
        """Publish a job that is due, before a sweep takes it up.

        Raises:
            StoreUnavailableError: The store did not answer; a later sweep publishes it.
        """
        await self._try_to_publish(key)

    async def publish_overdue(self) -> None:
        """Publish the jobs that are due and that no process publishes. What the broker does not take stays due.

        Raises:
            StoreUnavailableError: The store did not answer; a later sweep publishes them.
        """
        keys = await self._store.overdue()
        for start in range(0, len(keys), PUBLISHED_TOGETHER):
            some = keys[start : start + PUBLISHED_TOGETHER]
            outcomes = await asyncio.gather(*map(self._try_to_publish, some), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            if not all(outcomes):
                return

    async def _cancel_abandoned(self, key: str, at_ms: int) -> None:
        """Cancel a task whose owner is gone, unless the owner has come back.

        Args:
            key: Its compound key.
            at_ms: When it was found.
        """
        until_ms = await self._store.attended_until_ms(key)
        if until_ms is None or until_ms > at_ms:
            return
        try:
            stored = await self._tasks.load(TaskRef.of_key(key))
            record = None if stored is None or stored.record.key != key else stored.record
            if record is not None and record.is_open and record.abandon_after_ms is not None:
                message = ABANDONED.format(seconds=record.abandon_after_ms / 1000)
                changed = await self._tasks.change(record.ref, Change(to="cancelled", status_message=message))
                if changed is not None and changed.record.status == "cancelled":
                    logger.info("cancelled task %s: its owner is gone", record.shown_id)
                    await self._queue.revoke(*changed.record.job_ids, terminate=record.work.may_terminate)
        except StoredDataError as error:
            logger.error("could not cancel task %s, whose owner is gone: %s", key, error.reason)
            if error.fault != "damaged":
                return  # a process that can read its record cancels it
        await self._store.forget_attended(key)

    async def _publish_due(self, keys: Sequence[str]) -> None:
        for key in keys:
            if not await self._try_to_publish(key):
                return  # the broker is not asked for each

    async def _try_to_publish(self, key: str) -> bool:
        """Publish a job that is due. What stands in the way of one concerns no other.

        Returns:
            False: The broker did not take it; a later sweep tries again.
        """
        if key in self._publishing:
            return True
        self._publishing.add(key)
        try:
            # The list that it was found in may be old: published in between, its job may have begun or ended.
            return await self._publish(key) if await self._store.is_due(key) else True
        except StoreUnavailableError:
            raise
        except StoredDataError as error:
            if error.fault != "damaged":
                logger.error("left the job of task %s to processes that can read its record: %s", key, error.reason)
            else:
                await self._store.drop_due(key, error.reason)
        except Exception:
            logger.exception("could not publish the due job of task %s", key)
        finally:
            self._publishing.discard(key)
        return True

    async def _publish(self, key: str) -> bool:
        """As :meth:`_try_to_publish`.

        Raises:
            StoredDataError: What is kept of its task cannot be read.
        """
        stored = await self._tasks.load(TaskRef.of_key(key))
        if stored is None:
            await self._store.forget_due(key)
            return True
        record = stored.record
        if record.key != key:
            await self._store.drop_due(key, "it is not the key of its task")
            return True
        if record.status == "working" and record.claim is None:
            if record.is_too_late(now_ms()):
                await self._tasks.change(record.ref, replace(expired(record.retries), attempt=record.attempt))
                # Not `forget_due`: if another attempt counts by now, that one is due.
                await self._tasks.published(record.ref, attempt=record.attempt)
                return True
            if record.attempt > record.leg:
                # A result that an earlier attempt stored would settle this one.
                await self._results.forget([record.job_id])
            try:
                await self._jobs.publish(record)
            except QueueUnavailableError:
                return False
            again = " again" if record.attempt > 1 else ""
            logger.info("job %s is published%s: attempt %d", record.job_id, again, record.attempt)
        await self._tasks.published(record.ref, attempt=record.attempt)
        return True

    async def _expire(self, expiring: Sequence[Expiring]) -> None:
        """Revoke the jobs of tasks whose time is over, and forget their results.

        A record is gone when its time is over, so the store remembers what it said last. Where it does not, the sweep
        before counts; and where the job has been revoked.
        """
        seen = self._seen
        self._seen = {one.key: _last_of(one, seen.get(one.key)) for one in expiring}
        for key in [one.key for one in expiring if one.left_ms <= 0]:
            if (last := self._seen[key]).is_open:
                logger.info("job %s is revoked: its task has outlived its time to live", last.job_ids[0])
                await self._queue.revoke(*last.open_job_ids, terminate=last.work.may_terminate)
                self._seen[key] = replace(last, status=None)
                self._observers.notify(
                    Transition.of_key(
                        last.key,
                        last.declared_as,
                        before=last.status,
                        after=None,
                        attempt=last.attempt,
                        leg=last.leg,
                        cause="expired",
                        at_ms=now_ms(),
                    )
                )
        # A job that is ended has a result too, which a worker stores in its own time.
        over = [self._seen.pop(one.key) for one in expiring if one.left_ms <= -self._policy.lease_ms]
        if over:
            await self._results.forget([job_id for one in over for job_id in one.job_ids])
            await self._store.forget(over)
        # A job that its worker could not end within a lease stores its result after that.
        if late := [job_id for one in over if one.status is None for job_id in one.job_ids]:
            self._late.append((self._now() + LATE_LEASES * self._policy.lease_ms / 1000, late))
        while self._late and self._late[0][0] <= self._now():
            await self._results.forget(self._late.popleft()[1])

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _last_of(task: Expiring, before: Expiring | None) -> Expiring:
    """The last that is known of a task that expires.

    Args:
        task: What the store knows of it.
        before: What the sweep before has left; None: it did not see the task.
    """
    if before is None or task.left_ms > 0:
        return task
    return before if before.status is None or task.status is None else task
