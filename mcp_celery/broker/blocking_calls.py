"""Blocking calls to a service, each in one of a few threads, for an event loop that waits for them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mcp_celery.common.call_limiter import CallLimiter
from mcp_celery.common.outage import Outage
from mcp_celery.common.within import within

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class BlockingCalls:
    """Makes blocking calls in threads. A call's time-out begins when a thread begins it.

    Belongs to one event loop.

    Args:
        service: What is called, for log lines.
        name: For the threads.
        threads: How many calls run at a time; further calls wait in order.
        timeout_seconds: How long the service may take to answer.
        is_silence: Whether an error says that the service did not answer, for example a time-out of its driver.
        outage: Whether the service is lost, where the owner keeps track of that: then silence is not logged again.
    """

    def __init__(
        self,
        service: str,
        name: str,
        *,
        threads: int,
        timeout_seconds: float,
        is_silence: Callable[[BaseException], bool] = lambda error: isinstance(error, TimeoutError),
        outage: Outage | None = None,
    ) -> None:
        self._service = service
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._timeout_seconds = timeout_seconds
        self._is_silence = is_silence
        self._limiter = CallLimiter(threads, timeout_seconds=timeout_seconds)
        self._ended = 0
        self._outage = outage
        self._given_up = set[asyncio.Future[Any]]()
        """Calls whose silence has been noted already. Their drivers may report it a moment later."""

    async def call(self, work: Callable[[], Answer], *, longer_seconds: float = 0.0) -> Answer:
        """Make a call.

        One that has not begun when this is cancelled is not made; one that has begun is not stopped.

        Args:
            work: Makes it, in a thread.
            longer_seconds: How much longer than others it may take.

        Raises:
            NoAnswerError: It did not begin, because the service does not answer.
            TimeoutError: The service did not answer in time.
            Exception: As the call raises it.
        """
        await self._limiter.enter()
        working, ended_before = self._begin(work), self._ended
        try:
            async with within(self._timeout_seconds + longer_seconds):
                return await asyncio.shield(working)
        except TimeoutError:
            if not working.done():
                self._given_up.add(working)
                self._on_silence(ended_before)
            raise

    async def call_at_last(self, work: Callable[[], Answer]) -> Answer:
        """As :meth:`call`, however long the service takes to answer this call and those before it."""
        await self._limiter.enter(may_fail=False)
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Callable[[], Answer]) -> asyncio.Future[Answer]:
        ended_before = self._ended
        # In a copy of the caller's context: what traces the call in the thread finds the caller's span there, and what
        # it leaves behind ends with the copy.
        run = contextvars.copy_context().run
        try:
            working = asyncio.get_running_loop().run_in_executor(self._threads, run, work)
        except RuntimeError:  # it is closed
            self._limiter.leave()
            raise
        working.add_done_callback(lambda _: self._on_end(working, ended_before))
        return working

    def _on_end(self, working: asyncio.Future[Any], ended_before: int) -> None:
        # Read here, since the caller may have gone.
        error = None if working.cancelled() else working.exception()
        if error is not None and self._is_silence(error) and working not in self._given_up:
            self._on_silence(ended_before)
        self._given_up.discard(working)
        self._ended += 1
        self._limiter.leave()

    def _on_silence(self, ended_before: int) -> None:
        if self._ended == ended_before and (waiting := self._limiter.fail_waiting()):
            known = self._outage is not None and self._outage.is_on
            level = logging.DEBUG if known else logging.WARNING
            logger.log(level, "%s does not answer: %d calls that waited for it have failed", self._service, waiting)

    async def aclose(self, last: Callable[[], None], *, patience_seconds: float) -> None:
        """Let the calls that run end, then make a last one, and end the threads.

        Args:
            last: What is done at last, in a thread.
            patience_seconds: How long that may take. A thread that hangs longer is left to its end.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_seconds):
                await loop.run_in_executor(self._threads, last)
        except TimeoutError:
            logger.warning("stopped waiting for %s, which does not answer", self._service)
            self._threads.shutdown(wait=False, cancel_futures=True)
        else:
            await loop.run_in_executor(None, self._threads.shutdown)

    def abandon(self) -> None:
        """Make no further calls; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
