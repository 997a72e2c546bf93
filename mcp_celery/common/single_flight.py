"""One call whose answer all concurrent callers share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class SingleFlight(Generic[Answer]):
    """Makes a call for the first who asks, and gives its answer, or its error, to all who ask before it has ended.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._flight: asyncio.Task[Answer] | None = None

    async def do(self, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Make the call, or share the one that is made. It goes on when those who asked are cancelled.

        Args:
            call: Makes it.

        Raises:
            Exception: As the call raises it.
        """
        if self._flight is None:
            self._flight = asyncio.create_task(call())
            self._flight.add_done_callback(self._on_end)
        return await asyncio.shield(self._flight)

    def _on_end(self, flight: asyncio.Task[Answer]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # read here, since all who asked may have gone
