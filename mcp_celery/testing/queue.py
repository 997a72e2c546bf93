"""The broker, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mcp_celery.engine import Submission, TaskRecord
from mcp_celery.errors import QueueFullError, QueueUnavailableError
from mcp_celery.testing.breakable import Breakable


class MemoryTaskQueue(Breakable):
    """The broker. Fulfils :class:`mcp_celery.engine.TaskQueue`.

    Attributes:
        published: Every published job, as the record and the request it was made of.
        revoked: The id of every revoked job.
        most: How many jobs may be published, None for any number.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._on_the_way = 0
        self.published: list[tuple[TaskRecord, Submission]] = []
        self.revoked: list[str] = []
        self._open = asyncio.Event()
        self._open.set()

    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:  # noqa: ARG002 - there is one queue
        """Hold a place for a job; ``QueueFullError`` when ``most`` have been published or are on their way."""
        if self.most is not None and len(self.published) + self._on_the_way >= self.most:
            raise QueueFullError(self.most, retry_after_ms=1_000)
        self._on_the_way += 1
        try:
            yield
        finally:
            self._on_the_way -= 1

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Take a job, once nothing holds it back; ``QueueUnavailableError`` while the queue fails."""
        await self._open.wait()
        if self._failing:
            raise QueueUnavailableError
        self.published.append((record, submission))

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:  # noqa: ARG002 - here nothing runs
        """Note a revoke; while the queue fails it is lost, since revoking is best effort."""
        if not self._failing:
            self.revoked.extend(job_ids)

    def hold(self) -> None:
        """Let every publish wait until :meth:`release`."""
        self._open.clear()

    def release(self) -> None:
        """Let the waiting publishes go on."""
        self._open.set()
