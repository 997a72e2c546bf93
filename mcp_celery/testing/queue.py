"""The broker, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from typing_extensions import override

from mcp_celery.engine import JobKind, Lane, Submission, TaskRecord
from mcp_celery.engine.ports import TaskQueue
from mcp_celery.errors import QueueFullError, QueueUnavailableError
from mcp_celery.testing.breakable import Breakable


class MemoryTaskQueue(Breakable, TaskQueue):
    """The broker. Fulfils :class:`mcp_celery.engine.TaskQueue`.

    Attributes:
        published: Every published job, as the record and the request it was made of.
        revoked: The id of every revoked job.
        lengths: How many jobs wait in a queue, by its name; None where the broker cannot say. A queue that is not named
            here has one.
        most: How many jobs may be published, None for any number.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._on_the_way = 0
        self.published: list[tuple[TaskRecord, Submission]] = []
        self.revoked: list[str] = []
        self.lengths: dict[str, int | None] = {}
        self._open = asyncio.Event()
        self._open.set()

    @override
    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:
        if self.most is not None and len(self.published) + self._on_the_way >= self.most:
            raise QueueFullError(self.most, retry_after_ms=1_000)
        self._on_the_way += 1
        try:
            yield
        finally:
            self._on_the_way -= 1

    @override
    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        await self._open.wait()
        if self._failing:
            raise QueueUnavailableError
        self.published.append((record, submission))

    @override
    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        if not self._failing:
            self.revoked.extend(job_ids)

    @override
    async def lane(self, kind: JobKind) -> Lane | None:
        return Lane(kind.config.queue or "memory", kind.config.priority)

    @override
    async def length(self, queue: str) -> int | None:
        if self._failing:
            raise QueueUnavailableError
        return self.lengths.get(queue, 1)

    def hold(self) -> None:
        """Let every publish wait until :meth:`release`."""
        self._open.clear()

    def release(self) -> None:
        """Let the waiting publishes go on."""
        self._open.set()
