"""Progress and messages of a running job: pushed at a limited rate, and the last one is never lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mcp_celery.common.jsonable import finite_number, text_of
from mcp_celery.engine import MAX_MESSAGE_CHARS, Change, Changed, Progress
from mcp_celery.errors import McpCeleryError

logger = logging.getLogger(__name__)


class ProgressReporter:
    """Throttles a job's progress to one write an interval, the newest value winning.

    A report within the interval waits for its end; the job does not. What is still waiting when the job ends is carried
    by the terminal status (:attr:`last_message`). A write that the store refuses says that the task has ended without
    its job, or counts another attempt: from then on this one is abandoned, and its reports are dropped.

    Args:
        write: Applies a change to the task.
        attempt: The attempt that reports; changes of an older one are refused.
        interval_seconds: Shortest time between two writes.
    """

    def __init__(
        self, write: Callable[[Change], Awaitable[Changed | None]], *, attempt: int, interval_seconds: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._write = write
        self._attempt = attempt
        self._interval_seconds = interval_seconds
        self._abandoned = False
        self._closed = False
        self._warned = False
        self._message: str | None = None
        self._progress: Progress | None = None
        self._dirty = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    @property
    def last_message(self) -> str | None:
        """The job's last message; None if there was none."""
        return self._message

    @property
    def last_progress(self) -> Progress | None:
        """The numbers of the last report, None if there was none."""
        return self._progress

    @property
    def abandoned(self) -> bool:
        """Whether the job is abandoned: its task has ended, or another attempt counts."""
        return self._abandoned

    def abandon(self) -> None:
        """Mark the job as abandoned. May be called from any thread."""
        self._abandoned = True

    def check(self) -> None:
        """End an abandoned job where it uses its context.

        Raises:
            asyncio.CancelledError: The job is abandoned. A cancelled coroutine gets it at its ``await``; in a thread
                AnyIO makes a ``concurrent.futures.CancelledError`` of it.
        """
        if self._abandoned or self._closed:
            raise asyncio.CancelledError("the task has ended")

    async def report(self, value: object, total: object, message: object) -> None:
        """``ctx.report_progress``: the numbers, and ``message (3/10)`` for people.

        The component may give anything: in the foreground the SDK looks at it only where the client wants progress.
        A value that is no finite number is left out, so that a report never ends a job.

        Args:
            value: How far the job is.
            total: How far it has to go, None for unknown.
            message: For people, None for none.

        Raises:
            asyncio.CancelledError: The task has ended.
        """
        number = finite_number(value)
        if number is None:
            self.check()
            self._warn(value)
            if message is not None:
                await self.say(message)
            return
        self._progress = Progress(number, finite_number(total))
        await self.say(self._progress.told_with(None if message is None else text_of(message)))

    def _warn(self, value: object) -> None:
        """Log once a job that a value was left out."""
        if not self._warned:
            self._warned = True
            logger.warning("left out a progress value of type %s: it is no finite number", type(value).__name__)

    async def say(self, message: object) -> None:
        """Set the task's message.

        Args:
            message: Text, or a value that is shown as JSON.

        Raises:
            asyncio.CancelledError: The task has ended.
        """
        if asyncio.get_running_loop() is not self._loop:  # a plain function may run an event loop of its own
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.say(message), self._loop))
            return
        self.check()
        self._message = text_of(message)[:MAX_MESSAGE_CHARS]
        self._dirty.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_on(), name="mcp-celery-progress")
        # A tool that only computes would otherwise never let the writer run.
        await asyncio.sleep(0)

    async def flush(self) -> None:
        """Write what is still waiting, for a job that ends and leaves its task open."""
        if self._dirty.is_set():
            await self._write_last()

    async def _write_on(self) -> None:
        while True:
            await self._dirty.wait()
            await self._write_last()
            await asyncio.sleep(self._interval_seconds)

    async def _write_last(self) -> None:
        self._dirty.clear()
        change = Change(to="working", attempt=self._attempt, status_message=self._message, progress=self._progress)
        async with self._writing:
            try:
                changed = await self._write(change)
                if changed is None or changed.record.is_terminal or changed.record.attempt != self._attempt:
                    self.abandon()
            except McpCeleryError as error:
                logger.warning("could not store progress: %s", error)

    async def aclose(self) -> None:
        """End the writer. What it had not written is in :attr:`last_message`.

        A thread of the job that nothing could stop goes on without being waited for.
        """
        self._closed = True
        if self._writer is not None:
            async with self._writing:  # a write under way ends by itself: cancelled, it would cost its connection
                self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
