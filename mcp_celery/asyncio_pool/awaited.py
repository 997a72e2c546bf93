"""A coroutine that runs on an event loop while another thread waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Awaited(Generic[T]):
    """Starts a coroutine on a loop; it sees a copy of the caller's context variables.

    Not ``asyncio.run_coroutine_threadsafe``: cancelling its future answers at once, before ``finally`` blocks have run.

    Args:
        coroutine: What to run.
        loop: Where. It belongs to another thread than the caller's.

    Raises:
        RuntimeError: The loop is closed.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._ended = threading.Event()
        try:
            loop.call_soon_threadsafe(self._start)
        except RuntimeError:
            coroutine.close()
            raise

    def result(self) -> T:
        """Wait for the coroutine's end.

        Returns:
            Its result.

        Raises:
            BaseException: What the coroutine raised; or what was raised in the waiting thread, and then the coroutine
                goes on.
        """
        self._ended.wait()
        return cast("asyncio.Task[T]", self._task).result()  # it has ended, so it was started

    def cancel(self) -> None:
        """Cancel the coroutine, from any thread. Does nothing if it has ended."""
        if not self._ended.is_set():
            self._loop.call_soon_threadsafe(self._cancel)

    def ends_within(self, seconds: float) -> bool:
        """Wait for the coroutine's end, for so many seconds at most.

        Returns:
            Whether it has ended.
        """
        return self._ended.wait(seconds)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(lambda _: self._ended.set())

    def _cancel(self) -> None:
        cast("asyncio.Task[T]", self._task).cancel()  # the loop calls in order, so it was started before
