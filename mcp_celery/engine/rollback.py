"""Taking back a task whose creation failed half-way, so that it leaves nothing and never runs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

import anyio

from mcp_celery.common.background import BackgroundTasks
from mcp_celery.common.within import within
from mcp_celery.engine.ports import TaskQueue, TaskStore
from mcp_celery.engine.record import TaskRecord, now_ms
from mcp_celery.engine.retry import until_store_answers
from mcp_celery.errors import McpCeleryError, QueueUnavailableError, StoreUnavailableError

logger = logging.getLogger(__name__)

FIRST_TRY_SECONDS: Final = 0.4
"""How long a request waits for its record to be taken back, after the time-out that it has waited for already."""
MAX_LEFT: Final = 10_000
"""How many records may wait for a store that does not answer."""


class Rollback:
    """Takes back tasks; those that a store does not let go of now, as soon as it answers. Belongs to one event loop.

    Args:
        store: Where the records are.
        queue: What revokes jobs that may have been published.
    """

    def __init__(self, store: TaskStore, queue: TaskQueue) -> None:
        self._store = store
        self._queue = queue
        self._left: deque[TaskRecord] = deque()
        self._work = BackgroundTasks(logger, "could not delete a task whose job was not published")
        self._trying: asyncio.Task[None] | None = None

    async def undo(self, record: TaskRecord, error: BaseException, *, has_message: bool = False) -> bool:
        """Take back a task, also when its client hangs up.

        Args:
            record: The task's.
            error: What its creation failed with.
            has_message: Whether the record, where there is one, came with the job's message.

        Returns:
            Whether it stays: the broker, or with ``has_message`` the store, had the message and was too slow to say so,
            and a worker has begun the job.
        """
        if isinstance(error, StoreUnavailableError) and not error.is_sent:
            return False  # there is nothing of it
        if isinstance(error, QueueUnavailableError) and not error.is_sent:
            self._undo_later(record)
            return False
        try:
            is_deleted = await self._delete(record)
        except (TimeoutError, StoreUnavailableError):
            self._undo_later(record)
            return False
        except McpCeleryError as failure:
            _log_failure(record, failure)
            return False
        too_slow = isinstance(
            error, QueueUnavailableError | StoreUnavailableError if has_message else QueueUnavailableError
        )
        if not is_deleted and too_slow:
            return True
        self._revoke(record)
        return False

    async def _delete(self, record: TaskRecord) -> bool:
        with anyio.CancelScope(shield=True):
            async with within(FIRST_TRY_SECONDS):
                return await self._store.delete(record.ref)
        raise RuntimeError("unreachable: a shielded scope of one's own is not cancelled")

    def _revoke(self, record: TaskRecord) -> None:
        if record.work.is_foreign:  # its worker starts it without asking the store
            revoking = self._queue.revoke(*record.job_ids, terminate=record.work.may_terminate)
            self._work.start(revoking, name=f"mcp-celery-revoke-{record.task_id}")

    def _undo_later(self, record: TaskRecord) -> None:
        if len(self._left) >= MAX_LEFT:
            _log_failure(record, "too many others wait for the task store")
            return
        self._left.append(record)
        if self._trying is None or self._trying.done():
            self._trying = self._work.start(self._undo_all(), name="mcp-celery-rollback")

    async def _undo_all(self) -> None:
        while self._left:
            record = self._left[0]
            try:
                # A record that has expired is gone by itself.
                left_seconds = (record.expires_at_ms - now_ms()) / 1000
                await until_store_answers(lambda ref=record.ref: self._store.delete(ref), give_up_seconds=left_seconds)
            except McpCeleryError as failure:
                _log_failure(record, failure)
            self._left.popleft()
            self._revoke(record)

    async def aclose(self, *, patience_seconds: float) -> None:
        """Stop.

        Args:
            patience_seconds: How long what is left may take.
        """
        await self._work.aclose(patience_seconds)
        if self._left:
            logger.warning(
                "could not delete %d tasks whose jobs were not published: the task store does not answer. If it has "
                "their records, their jobs run when it is back",
                len(self._left),
            )


def _log_failure(record: TaskRecord, failure: object) -> None:
    logger.warning("could not delete task %s, whose job was not published: %s", record.shown_id, failure)
