"""Says which job keeps the event loop from all others, and where it does.

A sync call in a coroutine (``time.sleep``, ``requests.get``, a long computation) holds the loop's thread; the other
jobs just seem slow then, and nothing shows why.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from typing import Any, Final

logger = logging.getLogger(__name__)

STALL_SECONDS: Final = 1.0
LOOK_EVERY_SECONDS: Final = 1.0
FRAMES_SHOWN: Final = 12

_frames_of_all_threads: Final = sys._current_frames  # pyright: ignore[reportPrivateUsage] - there is no other way


class StallWatch:
    """Asks the loop for a sign of life, once a second.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._busy_with: Any = None
        self._asked_at: float | None = None
        self._ended = threading.Event()

    def busy_with(self, job: Any) -> None:
        """Note the job that has the loop's thread, None for none."""
        self._busy_with = job

    def held_seconds(self) -> float:
        """For how long the loop has not answered the last check, in seconds; 0 if it has."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def start(self, thread: threading.Thread) -> None:
        """Watch the loop's thread."""
        threading.Thread(target=self._main, args=(thread,), name="asyncio-pool-watch", daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()

    def _main(self, thread: threading.Thread) -> None:
        while not self._ended.wait(LOOK_EVERY_SECONDS):
            sign = threading.Event()
            self._asked_at = asked_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(sign.set)
            except RuntimeError:  # closed
                return
            if sign.wait(STALL_SECONDS):
                self._asked_at = None
                continue
            who = self._say_who(thread)
            while not sign.wait(LOOK_EVERY_SECONDS):
                if self._ended.is_set():
                    return
            self._asked_at = None
            logger.warning("%s has held the event loop for %.1f s", who, time.monotonic() - asked_at)

    def _say_who(self, thread: threading.Thread) -> str:
        job = self._busy_with
        who = "Code outside a job's greenlet" if job is None else f"Task {job}"
        frame = _frames_of_all_threads().get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)[-FRAMES_SHOWN:]) if frame is not None else ""
        logger.warning(
            "%s holds the event loop, and no other job goes on: await what takes long, or make the task a plain "
            "function, which runs in a thread. It is here:\n%s",
            who,
            stack,
        )
        return who
