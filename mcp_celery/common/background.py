"""Asyncio tasks in the background, with an owner that holds them, logs their failures and ends them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


class BackgroundTasks:
    """Work of one event loop that is not awaited where it begins.

    Args:
        logger: Where a failure is logged.
        complaint: What a failure means to people.
    """

    def __init__(self, logger: logging.Logger, complaint: str) -> None:
        self._logger = logger
        self._complaint = complaint
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, work: Coroutine[Any, Any, None], *, name: str, context: contextvars.Context | None = None
    ) -> asyncio.Task[None]:
        """Begin some work.

        Args:
            work: What to do.
            name: For logs.
            context: What it sees of context variables, None for a copy of the caller's.
        """
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.error("%s: %s", task.get_name(), self._complaint, exc_info=error)

    def __len__(self) -> int:
        """How much is under way."""
        return len(self._tasks)

    async def aclose(self, patience_seconds: float = 0) -> int:
        """End everything; what is under way gets a moment first.

        Returns:
            How much was not done in time.
        """
        if self._tasks and patience_seconds:
            await asyncio.wait(self._tasks, timeout=patience_seconds)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
