"""More slots while all jobs wait: a slot costs memory only, so nothing is won by leaving work in the queue.

That holds as long as the event loop has time. A job that computes on it slows all others; what such a worker does not
take, another one can. Nor do more slots help jobs that wait for one of the threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, Protocol

from anyio.to_thread import current_default_thread_limiter

from mcp_celery.worker.aio.roster import Census

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


class GrowingPool(Protocol):
    """The pool, as it is asked."""

    @property
    def limit(self) -> int:
        """How many jobs run at once."""
        ...

    def census(self) -> Census:
        """Count its jobs."""
        ...


class Growth:
    """Says when a pool should have more slots, and when it has more than it needs.

    Args:
        pool: The pool.
        most: How many slots it may have.

    Attributes:
        most: The same.
        added: How many of its slots it has from here.
    """

    def __init__(self, pool: GrowingPool, most: int) -> None:
        self._pool = pool
        self.most = most
        self.added = 0
        self._peak = 0

    def is_short(self) -> bool:
        """Whether the pool may have more slots, and nearly all are in use, by jobs that need no thread to go on."""
        census = self._pool.census()
        self._peak = max(self._peak, census.running)
        if self._pool.limit >= self.most or census.running < FULL * self._pool.limit:
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

    def more(self) -> int:
        """How many slots to add. They count as added."""
        limit = self._pool.limit
        added = max(0, min(self.most, limit + max(1, int(limit * GROWTH))) - limit)
        self.added += added
        return added

    def fewer(self) -> int:
        """How many of the added slots have not been needed since the last call, and go again. They count as gone.

        A pool keeps twice as many as jobs have run at once, so that it does not shrink and grow by turns.
        """
        needed = 2 * max(self._peak, self._pool.census().running)
        self._peak = 0
        removed = max(0, min(self.added, self._pool.limit - needed))
        self.added -= removed
        return removed
