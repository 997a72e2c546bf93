"""Cancels a running job by the task's end, where no command of Celery's reaches the worker.

Celery ends a job of a worker by remote control. The solo pool handles no command while a job runs, some brokers
carry none, and ``worker_enable_remote_control=False`` turns them off. The end of a task is also published on the task's
channel, over the store's pub/sub. So such a worker follows the tasks of the jobs that run in its process: over the one
connection of the process's bus, which connects again by itself, and on the event loop of the jobs, which ends with the
worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

from mcp_celery.common.background import ended
from mcp_celery.engine import TaskBus, TaskHints, TaskRef, TaskStore
from mcp_celery.engine.retry import pauses
from mcp_celery.errors import StoredDataError, StoreUnavailableError

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.2
"""Shortest time between two looks at a record: a job's own reports of progress are hints, too."""
RECHECK_SECONDS: Final = 10.0
"""How long silence is trusted before the record is read again."""
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Longest pause between two attempts to follow a task while the store does not answer."""

Over = Literal["ended", "superseded"]
"""The task has ended; or it is gone, or counts another attempt."""


class EndWatch:
    """Follows the tasks of running jobs, on one event loop.

    Args:
        store: Gives the loop's store.
        bus: Gives the loop's bus.
    """

    def __init__(self, store: Callable[[], TaskStore], bus: Callable[[], TaskBus]) -> None:
        self._store = store
        self._bus = bus

    @asynccontextmanager
    async def following(self, ref: TaskRef, attempt: int, is_over: Callable[[Over], None]) -> AsyncGenerator[None]:
        """Follow a task until the context ends.

        Args:
            ref: The task.
            attempt: The attempt that runs.
            is_over: Called once, on this loop, when the job is not wanted any more.
        """
        watch = asyncio.create_task(self._watch(ref, attempt, is_over), name="mcp-celery-end-watch")
        try:
            yield
        finally:
            await ended(watch)

    async def _watch(self, ref: TaskRef, attempt: int, is_over: Callable[[Over], None]) -> None:
        try:
            is_over(await self._end_of(ref, attempt))
        except StoredDataError as error:
            logger.error("could not watch for the end of task %s: %s", ref.shown_id, error.reason)
        except Exception:
            logger.exception("could not watch for the end of task %s", ref.shown_id)

    async def _end_of(self, ref: TaskRef, attempt: int) -> Over:
        """Wait until a job is not wanted any more. While the store does not answer it is tried again and again."""
        pause = pauses(LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._bus().subscribe([ref]) as hints:
                    while (over := await self._look(ref, attempt)) is None:
                        pause = pauses(LONGEST_PAUSE_SECONDS)
                        await _hint(hints)
                        await asyncio.sleep(LOOK_SECONDS)
                    return over
            except StoreUnavailableError:
                logger.debug("could not watch for the end of task %s yet", ref.shown_id)
            await asyncio.sleep(next(pause))

    async def _look(self, ref: TaskRef, attempt: int) -> Over | None:
        found = await self._store().load(ref)
        if found is not None and found.record.is_terminal:
            return "ended"
        return "superseded" if found is None or found.record.attempt != attempt else None


async def _hint(hints: TaskHints) -> None:
    """Wait for a hint, but not without end: a hint may be lost with a connection that breaks silently."""
    try:
        async with asyncio.timeout(RECHECK_SECONDS):
            await hints.__anext__()
    except TimeoutError:
        return
