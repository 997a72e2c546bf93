"""More slots while all jobs wait: a job that waits costs little, so nothing is won by leaving it in the queue.

That holds as long as the event loop has time. A job that computes on it slows all others; what such a worker does not
take, another one can. Nor do more slots help jobs that wait for one of the threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Final, Protocol

from anyio.to_thread import current_default_thread_limiter

from mcp_celery.asyncio_pool.roster import Census

logger = logging.getLogger(__name__)

FULL: Final = 0.75
"""The share of the slots that is in use when more are made: early enough that no job has to wait for them."""
GROWTH: Final = 0.5
"""How many are made at a time, as a share of those that there are."""
BUSY: Final = 0.7
"""The share of its time from which on the loop has none for more jobs."""
WINDOW_SECONDS: Final = 0.02
"""How long the loop is watched."""
AGAIN_SECONDS: Final = 0.5
"""Until a loop that was busy is watched again."""


class ResizablePool(Protocol):
    """The pool, as the growth sees it."""

    @property
    def limit(self) -> int:
        """How many jobs run at once."""
        ...

    def census(self) -> Census:
        """Count its jobs."""
        ...

    def grow(self, n: int = 1) -> None:
        """Run more jobs at a time."""
        ...

    def shrink(self, n: int = 1) -> None:
        """Run fewer jobs at a time; those that run go on."""
        ...


class Growth:
    """Gives a pool more slots when it should have them, and takes them back when it has more than it needs.

    Slots that Celery's `pool_grow` adds stay; `pool_shrink` also ends the growth.

    Args:
        pool: The pool.
        most: How many slots it may have.
    """

    def __init__(self, pool: ResizablePool, most: int) -> None:
        self._pool = pool
        self._most = most
        self._given = self._known = pool.limit
        self._peak = 0
        # Jobs arrive, timers fire and the loop is watched on threads of their own. Reentrant as the roster's, and for
        # the same reason: signal handlers.
        self._lock = threading.RLock()

    def is_short(self) -> bool:
        """Whether the pool may have more slots, and nearly all are in use, by jobs that need no thread to go on."""
        with self._lock:
            self._heed_others()
            census = self._pool.census()
            self._peak = max(self._peak, census.running)
            if self._pool.limit >= self._most or census.running < FULL * self._pool.limit:
                return False
            return not census.waits_for_thread

    async def wait_for_time(self) -> bool:
        """Wait until the event loop, on which this is called, has time for more jobs, or the pool needs no more slots.

        Returns:
            Whether it needs them, and the loop has the time.
        """
        while self.is_short():
            cpu, clock = time.thread_time(), time.monotonic()
            await asyncio.sleep(WINDOW_SECONDS)
            passed = time.monotonic() - clock
            # Its use of a processor; or its lateness, where jobs hold it without one, or other programs have them all.
            busy = max(time.thread_time() - cpu, passed - WINDOW_SECONDS) / passed
            # Plain functions as tools of the MCP SDK, and whatever else calls `anyio.to_thread`.
            waiting = current_default_thread_limiter().statistics().tasks_waiting
            if busy < BUSY and not waiting:
                return self.is_short()
            logger.debug("no more slots: the event loop is %.0f %% busy, %d jobs wait for threads", busy * 100, waiting)
            await asyncio.sleep(AGAIN_SECONDS)
        return False

    def add(self) -> int:
        """Add slots, if there are still too few.

        Returns:
            How many.
        """
        with self._lock:
            if not self.is_short():
                return 0
            limit = self._pool.limit
            added = min(self._most, limit + max(1, int(limit * GROWTH))) - limit
            self._pool.grow(added)
            self._known = self._pool.limit
            return added

    def remove(self) -> int:
        """Take back what has not been needed since the last call.

        A pool keeps twice as many slots as jobs have run at once, so that it does not shrink and grow by turns.

        Returns:
            How many.
        """
        with self._lock:
            self._heed_others()
            needed = 2 * max(self._peak, self._pool.census().running)
            self._peak = 0
            removed = max(0, self._pool.limit - max(self._given, needed))
            if removed:
                self._pool.shrink(removed)
                self._known = self._pool.limit
            return removed

    def info(self) -> dict[str, int]:
        """How many slots the pool may have, and how many of those that it has were added."""
        with self._lock:
            self._heed_others()
            return {"max": self._most, "added": self._pool.limit - self._given}

    def _heed_others(self) -> None:
        """Look at what an operator has made of the pool meanwhile."""
        limit = self._pool.limit
        if limit > self._known:
            self._given += limit - self._known
        elif limit < self._known:
            self._given = min(self._given, limit)
            self._most = limit
        self._known = limit
