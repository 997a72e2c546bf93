"""A server whose jobs no worker takes says so, once for each queue: otherwise its tasks only stay ``working``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Final

from celery import Celery
from typing_extensions import override

from mcp_celery.broker.consumers import is_consumed
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.common.background import BackgroundTasks
from mcp_celery.engine import JobKind, Lane, QueueMessage, Submission, TaskRecord, TaskStore
from mcp_celery.engine.ports import TaskQueue
from mcp_celery.errors import McpCeleryError
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

PATIENCE_SECONDS: Final = 10.0
"""How long the first job may wait for a worker before the workers are asked."""


class FirstJobCheck(TaskQueue):
    """A queue that looks, at the first job of each component, whether a worker takes it. Else it is the queue given.

    Args:
        queue: The queue.
        app: Its Celery app.
        store: The records.
        worker_command: Gives the command that starts a worker of a queue.
    """

    def __init__(self, queue: CeleryQueue, app: Celery, store: TaskStore, worker_command: Callable[[str], str]) -> None:
        self._queue = queue
        self._app = app
        self._store = store
        self._worker_command = worker_command
        self._background = BackgroundTasks(logger, "could not check whether a worker takes the jobs")
        self._seen: set[tuple[str, str]] = set()
        """The kinds of jobs that were published."""
        self._logged: set[str] = set()
        """The queues of which the log says that no worker consumes them."""

    @override
    def place_for(self, submission: Submission) -> AbstractAsyncContextManager[None]:
        return self._queue.place_for(submission)

    @override
    def message_of(self, record: TaskRecord, submission: Submission) -> AbstractContextManager[QueueMessage | None]:
        return self._queue.message_of(record, submission)

    @override
    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        await self._queue.publish(record, submission)
        # The jobs of foreign workers are claimed by none.
        kind = (submission.task_type, submission.declared_as or submission.component)
        if submission.plan is None and kind not in self._seen:
            self._seen.add(kind)
            self._background.start(self._check(record, submission), name="mcp-celery-first-job")

    @override
    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        await self._queue.revoke(*job_ids, terminate=terminate)

    @override
    async def lane(self, kind: JobKind) -> Lane | None:
        return await self._queue.lane(kind)

    @override
    async def length(self, queue: str) -> int | None:
        return await self._queue.length(queue)

    async def aclose(self) -> None:
        """As the queue."""
        await self._background.aclose()
        await self._queue.aclose()

    async def _check(self, record: TaskRecord, submission: Submission) -> None:
        await asyncio.sleep(PATIENCE_SECONDS)
        try:
            found = await self._store.load(record.ref)
            name = await self._queue.queue_name(submission)
        except McpCeleryError as error:
            logger.debug("could not check whether a worker took the first job: %s", error)
            return
        if found is None or found.record.is_terminal or found.record.claim is not None or name is None:
            return
        if name in self._logged:
            return
        if await asyncio.to_thread(is_consumed, self._app, name) or name in self._logged:
            return
        self._logged.add(name)
        logger.warning(
            "no worker consumes the queue %r: a task has waited for %.0f s, and tasks stay `working` until a "
            "worker runs. Start one, with the server's settings: %s",
            name,
            PATIENCE_SECONDS,
            self._worker_command(name),
        )
