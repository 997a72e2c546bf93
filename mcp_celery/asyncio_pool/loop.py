"""The pool's event loop, on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mcp_celery.asyncio_pool.current import Cleanup
from mcp_celery.asyncio_pool.stalls import StallWatch
from mcp_celery.base_exceptions import log_raised
from mcp_celery.common.background import BackgroundTasks

logger = logging.getLogger(__name__)

CLEANUP_SECONDS: Final = 5.0
"""How long each clean-up may take."""


class LoopThread:
    """Runs an event loop until it is stopped, whatever the tasks on it raise."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.watch = StallWatch(self.loop)
        self._stopping = asyncio.Event()
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._woken = False
        self._cleanups: list[Cleanup] = []
        self._background = BackgroundTasks(logger, "the pool goes on without it")
        self._patience = 0.0
        self._thread = threading.Thread(target=self._main, name="asyncio-pool", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self.watch.start(self._thread)

    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the loop's thread, from any thread. On a loop that has ended it is not called."""
        self._calls.append((function, args))
        # Many calls need one awakening: a burst of jobs would write to the loop's socket as often.
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._run_calls)
            except RuntimeError:
                logger.debug("the event loop has ended: %r is not called", function)

    def _run_calls(self) -> None:
        self._woken = False  # first: a call that is added after this line wakes the loop again
        while self._calls:
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                logger.exception("%r failed on the event loop", function)

    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Await something on the loop, from any thread. What it raises is logged; it ends with the loop at the latest.

        Args:
            make: Makes the coroutine.
            name: For its task.
        """
        self.call(lambda: self._background.start(make(), name=name))

    def at_stop(self, cleanup: Cleanup) -> None:
        """Await something before the loop ends."""
        self._cleanups.append(cleanup)

    def stop(self, patience: float) -> None:
        """Run the clean-ups, cancel the tasks that jobs have left behind, and end the loop. A second call does nothing.

        Args:
            patience: How many seconds those tasks may take together.
        """
        self.watch.stop()
        if not self.is_alive():
            return
        self._patience = patience
        longest = CLEANUP_SECONDS * len(self._cleanups) + patience + 1.0
        self.call(self._stopping.set)
        self._thread.join(longest)
        if self.is_alive():
            logger.error("The event loop did not end within %.0f s; its thread is left running", longest)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        # A task, not run_forever(): by this anyio finds its root task, to which it ties the threads that jobs share.
        life = self.loop.create_task(self._live(), name="asyncio-pool")
        while not life.done():
            try:
                self.loop.run_until_complete(life)
            except BaseException:  # noqa: BLE001 - it is logged
                # SystemExit in a task that a job has started, which asyncio lets through; loop.stop(). A job may end
                # itself by such means, not the worker.
                log_raised(logger, "A job tried to end the event loop")
        self.loop.close()

    async def _live(self) -> None:
        await self._stopping.wait()
        while self._cleanups:
            cleanup = self._cleanups.pop()
            try:
                async with asyncio.timeout(CLEANUP_SECONDS):
                    await cleanup()
            except Exception:
                logger.exception("Clean-up %r failed", cleanup)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self._patience)
        await self.loop.shutdown_asyncgens()
