"""The note that clients get with a task whose job still waits in the broker's queue: that no worker lives, or how many
jobs are ahead.

The record says nothing of it, since it does not change meanwhile. So the note is added when the task is read. It
costs one look at the store in two seconds, for all tasks that wait, and none while no task that waits is read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from cachetools import LRUCache

from mcp_celery.common.single_flight import SingleFlight
from mcp_celery.engine.followup_jobs import Declared
from mcp_celery.engine.ports import QueuedJobs, TaskQueue
from mcp_celery.engine.read_models import Queued
from mcp_celery.engine.record import TaskRecord, now_ms
from mcp_celery.engine.recovery.model import Lane
from mcp_celery.engine.submission import JobKind
from mcp_celery.errors import McpCeleryError
from mcp_celery.keys import TaskType, parse_task_key
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

NO_WORKER: Final = "Waiting for a worker"
"""The status message of a task while no live worker takes its job."""
SOON_MS: Final = 2_000
"""A job that waits for less is not said to wait: a worker is about to receive it."""
LOOK_SECONDS: Final = 2.0
"""How long a look at the store is good for."""
MOST_PLACES: Final = 1_000
"""Of how many waiting jobs the places are known, the oldest first."""
MOST_COMPONENTS: Final = 1_000


def queued_message(ahead: int | None) -> str:
    """The status message of a task whose job waits its turn.

    >>> queued_message(3), queued_message(None)
    ('Queued, 3 ahead', 'Queued')

    Args:
        ahead: How many jobs of the same queue and priority have waited for longer; None: that is not known.
    """
    return "Queued" if ahead is None else f"Queued, {ahead} ahead"


@dataclass(frozen=True, slots=True)
class _Look:
    """The result of one look: the waiting jobs by their place, each with the number of jobs ahead in its lane."""

    queued: Queued
    ahead: Mapping[str, int | None]
    at: float


class QueueNotes:
    """Adds a status message to tasks whose job waits for a worker. Belongs to one event loop.

    Args:
        jobs: Which jobs wait, and which versions of components live workers take.
        queue: Where jobs are routed.
        declared: What the components declare, for their jobs' queues.
    """

    def __init__(self, jobs: QueuedJobs, queue: TaskQueue, declared: Declared) -> None:
        self._jobs = jobs
        self._queue = queue
        self._declared = declared
        self._lanes: LRUCache[tuple[TaskType, str], Lane | None] = LRUCache(MOST_COMPONENTS)
        self._looking = SingleFlight[_Look]()
        self._look: _Look | None = None

    async def noted(self, record: TaskRecord) -> TaskRecord:
        """A record as its owner sees it: with the note, where its job waits and the record has no own message."""
        if not _may_wait(record):
            return record
        try:
            look = await self._looked()
        except McpCeleryError as error:
            logger.debug("could not read which jobs wait: %s", error)
            return record
        queued = look.queued
        if record.key not in look.ahead and not queued.is_cut:
            return record
        fingerprints = queued.fingerprints
        taken = bool(fingerprints) if record.fingerprint is None else record.fingerprint in fingerprints
        message = queued_message(look.ahead.get(record.key)) if taken else NO_WORKER
        return replace(record, status_message=message)

    async def _looked(self) -> _Look:
        if self._look is None or time.monotonic() - self._look.at > LOOK_SECONDS:
            self._look = await self._looking.do(self._do_look)
        return self._look

    async def _do_look(self) -> _Look:
        queued = await self._jobs.queued(MOST_PLACES)
        seen: dict[Lane, int] = {}
        ahead: dict[str, int | None] = {}
        for key in queued.keys:
            lane = await self._lane_of(key)
            ahead[key] = None if lane is None else seen.get(lane, 0)
            if lane is not None:
                seen[lane] = seen.get(lane, 0) + 1
        return _Look(queued, ahead, time.monotonic())

    async def _lane_of(self, key: str) -> Lane | None:
        """Where a job waits; None where that cannot be said."""
        parts = parse_task_key(key)
        component = (parts.task_type, parts.component_identifier)
        if component not in self._lanes:
            self._lanes[component] = await self._routed(*component)
        return self._lanes[component]

    async def _routed(self, task_type: TaskType, component: str) -> Lane | None:
        try:
            declared_as, config = await self._declared(task_type, component)
            return await self._queue.lane(JobKind(task_type, declared_as, config))
        except McpCeleryError as error:
            logger.debug("could not find the queue of the jobs of %r: %s", component, error)
            return None


def _may_wait(record: TaskRecord) -> bool:
    """Whether a record may be that of a job in the queue, and has room for the note."""
    return (
        record.status == "working"
        and record.claim is None
        and record.started_at_ms is None
        and not record.status_message
        and not record.work.is_foreign
        and now_ms() - record.updated_at_ms >= SOON_MS
    )
