"""How many jobs wait in a queue, as far as one publisher knows: it looks now and then, and counts what it lets in."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from mcp_celery.common.single_flight import SingleFlight

LOOK_SECONDS: Final = 1.0
"""How long a look is good for. What other servers publish in the meantime is not seen."""
LOOK_AGAIN_SECONDS: Final = 0.1
"""How long a queue that was full is taken to be full, so that refusals cost the broker next to nothing."""


class Backlog:
    """What is known of one queue.

    Args:
        most: How many jobs may wait in it.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._length = 0
        self._let_in = 0
        self._on_the_way = 0
        self._looked_at: float | None = None
        self._looking = SingleFlight[None]()

    async def has_room(self, length: Callable[[], Awaitable[int]]) -> bool:
        """Let a job in and count it, looking first where that is needed. Each that is let in must :meth:`leave`.

        Args:
            length: Reads how many jobs wait. Calls that come meanwhile wait for the same answer.
        """
        if self.enter():
            return True
        if self.is_surely_full:
            return False
        while True:
            await self._looking.do(lambda: self._look(length))
            # By what has just been seen, however long it took to get here.
            if self._take():
                return True
            if self._length >= self._most:
                return False

    async def _look(self, length: Callable[[], Awaitable[int]]) -> None:
        self.looked(await length())

    def enter(self) -> bool:
        """Let a job in, and count it, as far as the last look allows."""
        return self._age() < LOOK_SECONDS and self._take()

    def _take(self) -> bool:
        if self._length + self._let_in >= self._most:
            return False
        self._let_in += 1
        self._on_the_way += 1
        return True

    def leave(self) -> None:
        """A job that was let in is in the queue by now, or will never be."""
        self._on_the_way -= 1

    @property
    def is_surely_full(self) -> bool:
        """Whether it was full when it was looked at, a moment ago."""
        return self._length >= self._most and self._age() < LOOK_AGAIN_SECONDS

    def looked(self, length: int) -> None:
        """Note how long the queue is. Jobs on their way may be in it or not: they are counted in any case."""
        self._length = length + self._on_the_way
        self._let_in = 0
        self._looked_at = self._clock()

    def _age(self) -> float:
        return float("inf") if self._looked_at is None else self._clock() - self._looked_at
