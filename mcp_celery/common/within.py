"""A time-out that waits for another process, and counts only the time in which this one ran."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

STEPS: Final = 8
"""A time-out is so many timers, one after another. One that comes late, because the event loop or the whole process had
to wait for a processor, counts for its own time alone: the answer may be there, and is read first.
"""


def _nothing() -> object:
    return None


class within:  # noqa: N801 - used as asyncio.timeout is
    """An async context that ends with ``TimeoutError`` after some time, as ``asyncio.timeout`` does.

    Args:
        seconds: How long the other process may take. A busy machine makes it longer, never shorter.
        progress: Says how far the other process has got. Whenever its value changes, the time begins anew.
    """

    def __init__(self, seconds: float, *, progress: Callable[[], object] = _nothing) -> None:
        self._timeout = asyncio.timeout(None)
        self._step_seconds = seconds / STEPS
        self._left = STEPS
        self._progress = progress

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._seen = self._progress()
        self._timer: asyncio.Handle = self._loop.call_later(self._step_seconds, self._count)
        return self

    def _count(self) -> None:
        if self._has_progressed():
            self._left = STEPS
        else:
            self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._step_seconds, self._count)
        else:
            # What has arrived in this turn of the event loop is taken in the next one.
            self._timer = self._loop.call_soon(self._expire)

    def _expire(self) -> None:
        if self._has_progressed():
            self._left = STEPS
            self._timer = self._loop.call_later(self._step_seconds, self._count)
        else:
            self._timeout.reschedule(self._loop.time())

    def _has_progressed(self) -> bool:
        before, self._seen = self._seen, self._progress()
        return self._seen != before

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._timer.cancel()
        return await self._timeout.__aexit__(kind, error, traceback)
