"""What a running job says of itself: pushed at most so often, and its last word never lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from mcp_celery.engine import Change, Changed, Progress
from mcp_celery.errors import McpCeleryError

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARS: Final = 2_000
"""A message is for people, and is carried by every push and poll of the task."""


class ProgressReporter:
    """Throttles a job's progress to one write an interval, the newest value winning.

    A report within the interval waits for its end; the job does not. What is still waiting when the job ends is carried
    by the terminal status (:attr:`last_message`).

    Args:
        write: Applies a change to the task.
        attempt: The attempt that reports; changes of an older one are refused.
        interval_seconds: Shortest time between two writes.
    """

    def __init__(
        self, write: Callable[[Change], Awaitable[Changed | None]], *, attempt: int, interval_seconds: float
    ) -> None:
        self._write = write
        self._attempt = attempt
        self._interval_seconds = interval_seconds
        self._message: str | None = None
        self._progress: Progress | None = None
        self._dirty = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    @property
    def last_message(self) -> str | None:
        """The job's last word, None if it said nothing."""
        return self._message

    @property
    def last_progress(self) -> Progress | None:
        """The numbers of the last report, None if there was none."""
        return self._progress

    async def report(self, value: float, total: float | None, message: str | None) -> None:
        """``ctx.report_progress``: the numbers, and ``message (3/10)`` for people."""
        count = f"{value:g}" if total is None else f"{value:g}/{total:g}"
        self._progress = Progress(value, total)
        await self.say(f"{message} ({count})" if message else count)

    async def say(self, message: str) -> None:
        """Set the task's message."""
        self._message = message[:MAX_MESSAGE_CHARS]
        self._dirty.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_on(), name="mcp-celery-progress")
        # A tool that only computes would otherwise never let the writer run.
        await asyncio.sleep(0)

    async def _write_on(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            change = Change(to="working", attempt=self._attempt, status_message=self._message, progress=self._progress)
            async with self._writing:
                try:
                    await self._write(change)
                except McpCeleryError as error:
                    logger.warning("progress was not stored: %s", error)
            await asyncio.sleep(self._interval_seconds)

    async def aclose(self) -> None:
        """End the writer. What it had not written is in :attr:`last_message`."""
        if self._writer is not None:
            async with self._writing:  # a write under way ends by itself: cancelled, it would cost its connection
                self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
