"""How many streams callers hold open. A stream costs the process that serves it, so each process counts its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from mcp_celery import audit
from mcp_celery.engine.limits import TaskLimits
from mcp_celery.engine.record import Caller
from mcp_celery.errors import LimitExceededError, StreamsFullError, TooManyStreamsError

RETRY_AFTER_MS: Final = 10_000
"""Streams last for minutes, so there is no hurry."""


class OpenStreams:
    """Counts the open streams of each caller, and all of them.

    Args:
        limits: How many there may be.
    """

    def __init__(self, limits: TaskLimits) -> None:
        self._most_of_one = limits.max_open_streams
        self._most = limits.max_streams
        self._open = Counter[str | None]()

    @contextmanager
    def place_for(self, caller: Caller) -> Generator[None]:
        """Count a stream of a caller while the context lasts.

        Raises:
            TooManyStreamsError: On entry: the caller has as many as it may.
            StreamsFullError: On entry: there are as many as there may be.
        """
        if (refusal := self._refusal(caller)) is not None:
            audit.limited(caller.scope, refusal.limit)
            raise refusal
        requestor = caller.requestor
        self._open[requestor] += 1
        try:
            yield
        finally:
            self._open[requestor] -= 1
            if not self._open[requestor]:
                del self._open[requestor]

    def _refusal(self, caller: Caller) -> LimitExceededError | None:
        requestor, most = caller.requestor, self._most_of_one
        if requestor is not None and most is not None and self._open[requestor] >= most:
            return TooManyStreamsError(most)
        if self._most is not None and self._open.total() >= self._most:
            return StreamsFullError(self._most, retry_after_ms=RETRY_AFTER_MS)
        return None
