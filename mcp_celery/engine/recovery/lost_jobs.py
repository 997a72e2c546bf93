"""Finds jobs that the broker has lost: it restarted empty, or its queue was purged or deleted.

The store knows which jobs no worker has claimed, and since when the broker should have each. One of them is lost when

- its queue was empty at a time when the broker should have had it, and for so long afterwards that a worker that had
  just taken it would have claimed it; or
- a later job of the same queue and priority has been claimed for 30 s; or
- the broker cannot say how many jobs wait in the queue, and the job has waited for ``MCP_CELERY_LOST_AFTER_MS``.

The first two prove nothing while a worker may hold messages that it has not read. Such a worker reports since when
(``worker/celery/unread.py``). A job that is published again although its message is still there does no harm: one
of the two messages is dropped, since a body starts once for each attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from mcp_celery.engine.followup_jobs import Declared, as_recorded
from mcp_celery.engine.ports import RecoveryStore, TaskQueue
from mcp_celery.engine.recovery.model import (
    LATER_CLAIMED_MS,
    ORDER_MS,
    UNCLAIMED_BATCH,
    Lane,
    PublishedJob,
    RecoveryPolicy,
    Sweep,
)
from mcp_celery.engine.submission import JobKind
from mcp_celery.errors import QueueUnavailableError, StoreUnavailableError
from mcp_celery.keys import TaskKeyParts, parse_task_key
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

UNKNOWN: Final = None
"""The length of a queue that the broker cannot count."""


class EmptyTimes:
    """When a queue is known to have been empty.

    Args:
        claiming_ms: How long it must have stayed empty for that to count.
    """

    def __init__(self, claiming_ms: int) -> None:
        self._claiming_ms = claiming_ms
        self._looks = deque[int]()
        self.proven_ms: int | None = None
        """The last such time (ms since the epoch). A job that the broker had then and no worker has claimed is lost."""

    def looked(self, at_ms: int, *, is_empty: bool) -> None:
        """Note what a look has shown."""
        if not is_empty:
            self._looks.clear()
            return
        self._looks.append(at_ms)
        while self._looks and self._looks[0] <= at_ms - self._claiming_ms:
            self.proven_ms = self._looks.popleft()


class LaterClaims:
    """The latest jobs of a lane that workers have claimed, and when that was first seen."""

    def __init__(self) -> None:
        self._seen = deque[tuple[int, int]]()

    def saw(self, published_ms: int, at_ms: int) -> None:
        """Note a job that a worker has: when it was published at the earliest."""
        if not self._seen or published_ms > self._seen[-1][1]:
            self._seen.append((at_ms, published_ms))
        while len(self._seen) > 1 and self._seen[1][0] <= at_ms - LATER_CLAIMED_MS:
            self._seen.popleft()

    def since(self, published_ms: int, now_ms: int) -> int | None:
        """Since when a job is known to be claimed that is behind the one of that time; None: not for long enough."""
        at_ms = next((at for at, later_ms in self._seen if later_ms >= published_ms + ORDER_MS), None)
        return None if at_ms is None or at_ms > now_ms - LATER_CLAIMED_MS else at_ms


class LostJobs:
    """Finds lost jobs, from what it sees in one sweep after another.

    Args:
        store: What recovery keeps.
        queue: The broker.
        declared: What the components declare, for their jobs' queues.
        policy: How soon.
    """

    def __init__(self, *, store: RecoveryStore, queue: TaskQueue, declared: Declared, policy: RecoveryPolicy) -> None:
        self._store = store
        self._queue = queue
        self._declared = declared
        self._policy = policy
        self.skipped = 0
        """How many unclaimed jobs the next sweep leaves out, the oldest first: those that this one has seen."""
        self._empty: dict[str, EmptyTimes] = {}
        self._later: dict[Lane, LaterClaims] = {}
        self._seen: set[Lane] = set()
        """The lanes of the unclaimed jobs that the sweeps since the oldest one have seen."""
        self._lanes: dict[PublishedJob, Lane | None] = {}
        """Where the jobs of components wait, by a job that differs from the others in what they are routed by."""

    def forget(self) -> None:
        """Begin anew: the store or the broker did not answer, or another process has reaped."""
        self.skipped = 0
        self._empty.clear()
        self._later.clear()
        self._seen.clear()
        self._lanes.clear()

    async def find(self, found: Sweep) -> Sequence[PublishedJob]:
        """The jobs among the unclaimed ones that are lost.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        try:
            lost = await self._find(found)
        except QueueUnavailableError:  # logged by the queue
            self.forget()
            return ()
        self._turn(len(found.unclaimed), len(lost))
        return lost

    async def _find(self, found: Sweep) -> list[PublishedJob]:
        lanes = await self._lanes_of(found.unclaimed)
        self._seen.update(lanes.values())
        lengths = {name: await self._queue.length(name) for name in self._queues(lanes.values())}
        for name, length in lengths.items():
            times = self._empty.setdefault(name, EmptyTimes(self._policy.claiming_ms))
            times.looked(found.at_ms, is_empty=length == 0)
        await self._see_claims(found, lanes, lengths)
        return [
            job
            for job in found.unclaimed
            if (lane := lanes.get(job.key)) is not None and self._is_lost(job, lane, lengths, found)
        ]

    async def _lanes_of(self, jobs: Iterable[PublishedJob]) -> dict[str, Lane]:
        """Where jobs wait, by compound key. Those are left out that no broker has."""
        found: dict[str, Lane] = {}
        for job in jobs:
            parts = parse_task_key(job.key)
            kind = replace(job, key=f"{parts.task_type}:{parts.component_identifier}", at_ms=0)
            if kind not in self._lanes:
                self._lanes[kind] = await self._lane_of(job, parts)
            if (lane := self._lanes[kind]) is not None:
                found[job.key] = lane
        return found

    async def _lane_of(self, job: PublishedJob, parts: TaskKeyParts) -> Lane | None:
        component = parts.component_identifier
        try:
            declared_as, config = await self._declared(parts.task_type, component)
            if job.options is not None:
                declared_as, config = as_recorded(config, component, job.declared_as, dict(job.options))
            return await self._queue.lane(JobKind(parts.task_type, declared_as, config, job.job_name))
        except (QueueUnavailableError, StoreUnavailableError):
            raise
        except Exception:
            logger.exception("could not find the queue of the jobs of %r, so none of them counts as lost", component)
            return None

    def _queues(self, lanes: Iterable[Lane]) -> set[str]:
        """The queues to look at. One that was seen empty is looked at again, though its jobs are in another part."""
        return {lane.queue for lane in lanes if lane.queue is not None} | self._empty.keys()

    async def _see_claims(self, found: Sweep, lanes: Mapping[str, Lane], lengths: Mapping[str, int | None]) -> None:
        """Note which jobs of the same lanes workers have claimed, where unclaimed ones have waited for long enough."""
        waiting = {
            lane
            for job in found.unclaimed
            if (lane := lanes.get(job.key)) is not None
            and job.at_ms <= found.at_ms - ORDER_MS
            and (lane.queue is None or lengths[lane.queue] != 0)
        }
        if not waiting:
            return
        claimed = await self._store.some_claimed()
        claimed_lanes = await self._lanes_of(claimed)
        for job in claimed:
            if (lane := claimed_lanes.get(job.key)) in self._seen:
                self._later.setdefault(lane, LaterClaims()).saw(job.at_ms, found.at_ms)

    def _is_lost(self, job: PublishedJob, lane: Lane, lengths: Mapping[str, int | None], found: Sweep) -> bool:
        times = None if lane.queue is None else self._empty.get(lane.queue)
        empty_ms = None if times is None else times.proven_ms
        if empty_ms is not None and job.at_ms + self._policy.publishing_ms <= empty_ms and _all_read(empty_ms, found):
            return True
        later = self._later.get(lane)
        claimed_ms = None if later is None else later.since(job.at_ms, found.at_ms)
        if claimed_ms is not None and _all_read(claimed_ms, found):
            return True
        length = UNKNOWN if lane.queue is None else lengths[lane.queue]
        return length is UNKNOWN and job.at_ms <= found.at_ms - self._policy.lost_after_ms

    def _turn(self, seen: int, lost: int) -> None:
        """Go on to the next part of the unclaimed jobs; after the last one, begin anew and forget what is not there."""
        if seen >= UNCLAIMED_BATCH:
            self.skipped += seen - lost
            return
        self.skipped = 0
        queues = {lane.queue for lane in self._seen}
        self._empty = {name: times for name, times in self._empty.items() if name in queues}
        self._later = {lane: later for lane, later in self._later.items() if lane in self._seen}
        self._seen.clear()
        self._lanes.clear()


def _all_read(at_ms: int, found: Sweep) -> bool:
    """Whether no worker can have messages that it has not read since that time."""
    return found.unread_since_ms is None or found.unread_since_ms > at_ms
