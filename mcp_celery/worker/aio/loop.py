"""The pool's event loop, on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from mcp_celery.worker.aio.current import Cleanup
from mcp_celery.worker.aio.stalls import StallWatch

logger = logging.getLogger(__name__)

CLEANUP_SECONDS: Final = 5.0
"""How long each clean-up may take, and the tasks that jobs have left behind together."""


class LoopThread:
    """Runs an event loop until it is stopped, whatever the tasks on it raise."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.watch = StallWatch(self.loop)
        self._stopping = asyncio.Event()
        self._cleanups: list[Cleanup] = []
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
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop has ended: %r is not called", function)

    def at_stop(self, cleanup: Cleanup) -> None:
        """Await something before the loop ends."""
        self._cleanups.append(cleanup)

    def stop(self) -> None:
        """Run the clean-ups, cancel the tasks that jobs have left behind, and end the loop. A second call does nothing."""
        self.watch.stop()
        if not self.is_alive():
            return
        patience = CLEANUP_SECONDS * (len(self._cleanups) + 2)
        self.call(self._stopping.set)
        self._thread.join(patience)
        if self.is_alive():
            logger.error("The event loop did not end within %.0f s, and is left behind", patience)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        # A task, not run_forever(): anyio finds its root task by this, to which it ties the threads that jobs share.
        life = self.loop.create_task(self._live(), name="asyncio-pool")
        while not life.done():
            try:
                self.loop.run_until_complete(life)
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these two through. They come from a task that a job has started: its end, not the worker's.
                logger.exception("A task on the event loop tried to end the process")
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
            await asyncio.wait(left, timeout=CLEANUP_SECONDS)
        await self.loop.shutdown_asyncgens()
