"""How many requests about tasks one process works on at a time. A request too many is refused before any work."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from mcp_celery import audit
from mcp_celery.engine.limits import TaskLimits
from mcp_celery.engine.record import Caller
from mcp_celery.errors import ServerBusyError

SHORTEST_RETRY_MS: Final = 250
LONGEST_RETRY_MS: Final = 10_000


class PendingRequests:
    """Counts the requests that wait for, or use, the store and the broker.

    Args:
        limits: How many there may be.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, limits: TaskLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = limits.max_pending_requests
        self._clock = clock
        self._since: dict[Place, float] = {}  # the oldest first

    def place_for(self, caller: Caller) -> Place:
        """Take a place for a request of a caller, until the context ends or the place is left.

        Raises:
            ServerBusyError: All places are taken.
        """
        if self._most is not None and len(self._since) >= self._most:
            error = ServerBusyError(self._most, retry_after_ms=self._retry_after_ms())
            audit.limited(caller.scope, error.limit)
            raise error
        place = Place(self._since)
        self._since[place] = self._clock()
        return place

    def _retry_after_ms(self) -> int:
        """When a place will be free: a new request waits about as long as the oldest has waited."""
        waited_ms = round((self._clock() - next(iter(self._since.values()))) * 1000)
        return min(max(waited_ms, SHORTEST_RETRY_MS), LONGEST_RETRY_MS)


class Place:
    """A place of one request; a context manager."""

    def __init__(self, since: dict[Place, float]) -> None:
        self._since = since

    def leave(self) -> None:
        """Give the place to another request: what is left to do of this one is to wait for something else."""
        self._since.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()
