"""Hints of changes, in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from typing_extensions import override

from mcp_celery.engine import TaskHints, TaskRef
from mcp_celery.engine.ports import TaskBus
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.testing.breakable import Breakable

MOST_TOLD: Final = 10_000
"""How many changes a bus remembers, for tests to look at."""


class _Follower:
    """The hints of one subscriber; many hints of one task between two looks are one."""

    def __init__(self, refs: Sequence[TaskRef]) -> None:
        self._refs = set(refs)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[TaskRef, None] = {}
        self._some = asyncio.Event()

    def hint(self, *refs: TaskRef) -> None:
        """Callable from any thread: signal handlers change tasks in threads of their own."""
        for ref in [ref for ref in refs if ref in self._refs] if refs else tuple(self._refs):
            with suppress(RuntimeError):  # its loop was closed, so its subscription has ended
                self._loop.call_soon_threadsafe(self._add, ref)

    def _add(self, ref: TaskRef) -> None:
        if ref in self._refs:
            self._waiting[ref] = None
            self._some.set()

    async def __anext__(self) -> TaskRef:
        await self._some.wait()
        ref = next(iter(self._waiting))
        self._discard(ref)
        return ref

    async def drop(self, ref: TaskRef) -> None:
        self._refs.discard(ref)
        self._discard(ref)

    def _discard(self, ref: TaskRef) -> None:
        self._waiting.pop(ref, None)
        if not self._waiting:
            self._some.clear()


class MemoryTaskBus(Breakable, TaskBus):
    """Hints of changes. Fulfils :class:`mcp_celery.engine.TaskBus`. Failing, it loses hints.

    Attributes:
        told: The tasks of the last changes, in order, followed or not.
    """

    def __init__(self) -> None:
        self.told: deque[TaskRef] = deque(maxlen=MOST_TOLD)
        self._followers: list[_Follower] = []

    @property
    def followers(self) -> int:
        """How many subscriptions there are."""
        return len(self._followers)

    def tell(self, ref: TaskRef) -> None:
        """Say that a task has changed."""
        self.told.append(ref)
        for follower in () if self._failing else tuple(self._followers):
            follower.hint(ref)

    @override
    @asynccontextmanager
    async def subscribe(self, refs: Sequence[TaskRef]) -> AsyncGenerator[TaskHints]:
        if self._failing:
            raise StoreUnavailableError
        follower = _Follower(refs)
        self._followers.append(follower)
        try:
            yield follower
        finally:
            self._followers.remove(follower)

    @override
    async def aclose(self) -> None:
        """Close nothing: the bus is the process's."""

    def recover(self) -> None:
        """Answer again, and hint every follower to look at its tasks, as after a lost connection."""
        super().recover()
        for follower in tuple(self._followers):
            follower.hint()
