"""How many streams callers hold open. A stream costs the process that serves it, so each process counts its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from mcp_celery import audit
from mcp_celery.engine.limits import TaskLimits
from mcp_celery.engine.record import Caller
from mcp_celery.errors import TooManyStreamsError


class OpenStreams:
    """Counts the open streams of each caller.

    Args:
        limits: How many a caller may have.
    """

    def __init__(self, limits: TaskLimits) -> None:
        self._most = limits.max_open_streams
        self._open = Counter[str]()

    @contextmanager
    def place_for(self, caller: Caller) -> Generator[None]:
        """Count a stream of a caller while the context lasts.

        Raises:
            TooManyStreamsError: On entry: the caller has as many as it may.
        """
        requestor = caller.requestor
        if self._most is None or requestor is None:
            yield
            return
        if self._open[requestor] >= self._most:
            error = TooManyStreamsError(self._most)
            audit.limited(caller.scope, error.limit)
            raise error
        self._open[requestor] += 1
        try:
            yield
        finally:
            self._open[requestor] -= 1
            if not self._open[requestor]:
                del self._open[requestor]
