"""Requests whose idempotency key has made a task already: they get that task, once its job is published."""

from __future__ import annotations

import asyncio
import logging

import anyio

from mcp_celery.engine.idempotency import EarlierTask
from mcp_celery.engine.ports import TaskQueue, TaskStore
from mcp_celery.engine.record import TaskRecord, TaskRef
from mcp_celery.engine.retry import pauses
from mcp_celery.engine.submission import Submission
from mcp_celery.errors import IdempotencyKeyReusedError, McpCeleryError

logger = logging.getLogger(__name__)


class RepeatedRequests:
    """Answers requests with the tasks of earlier ones.

    Args:
        store: Where the tasks are.
        queue: Where the job of a request that has died is published.
    """

    def __init__(self, store: TaskStore, queue: TaskQueue) -> None:
        self._store = store
        self._queue = queue

    async def answer(self, record: TaskRecord, submission: Submission, earlier: EarlierTask) -> TaskRecord | None:
        """The task of an earlier request.

        While that request publishes the job, it may yet take the task back; so it is waited for. Where it has died,
        this request publishes the job.

        Args:
            record: What this request would have created.
            submission: This request.
            earlier: The task that its idempotency key leads to.

        Returns:
            None: The task was taken back, or has expired, so that this request may create one.

        Raises:
            IdempotencyKeyReusedError: The earlier request said something else.
            StoreUnavailableError: The store did not answer.
            QueueUnavailableError: The broker did not take the job. The task stays, for the earlier request may have had
                it as its answer; recovery publishes its job.
        """
        found: EarlierTask | None = earlier
        pause, once = pauses(), submission.idempotency
        while found is not None and once is not None and found.publication == "publishing":
            await asyncio.sleep(next(pause))
            found = await self._store.earlier(record, once)
        if found is None:
            return None
        if not found.is_same_request:
            raise IdempotencyKeyReusedError
        stored = await self._store.load(TaskRef(record.scope, found.task_id))
        if stored is None:
            return None
        kept = stored.record
        if found.publication == "unpublished":
            if kept.status == "working" and kept.claim is None and kept.started_at_ms is None:
                await self._queue.publish(kept, submission)
                logger.info("published the job of task %s for a request that died before it could", kept.shown_id)
            await self.note_published(kept)
        logger.info("answered a repeated request with task %s, which has its idempotency key", kept.shown_id)
        return kept

    async def note_published(self, record: TaskRecord) -> None:
        """Note that the job of a task is with the broker, so that requests with its key need not wait for that.

        Without the note they wait for longer, and publish the job a second time, which its record does not start.
        """
        with anyio.CancelScope(shield=True):
            try:
                await self._store.published(record.ref, attempt=record.attempt)
            except McpCeleryError as error:
                logger.info("could not record that the job of task %s is published: %s", record.shown_id, error)
