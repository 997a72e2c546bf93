"""Following tasks: subscribe, load, then load again whenever the bus hints at a change.

The order matters. The subscription is in force before the first load, so a change falls into one or the other.
Subscribers always get what was loaded, so that a repeated, merged or lost hint changes only the time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from mcp_celery import audit
from mcp_celery.engine.attendance import pause_seconds
from mcp_celery.engine.lookup import Lookups
from mcp_celery.engine.ports import TaskBus, TaskHints, TaskStore
from mcp_celery.engine.read_models import StoredTask, TaskView
from mcp_celery.engine.record import Caller, TaskRecord, TaskRef
from mcp_celery.errors import McpCeleryError, StoredDataError, StoreUnavailableError, TaskNotFoundError

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 10.0
"""How long a follower trusts silence before it reads the records again."""


class TaskWatch:
    """An async context manager and iterator over :class:`TaskView`; made by ``TaskEngine.watch``."""

    def __init__(
        self,
        caller: Caller,
        refs: Sequence[TaskRef],
        *,
        store: TaskStore,
        lookups: Lookups,
        bus: TaskBus,
        view: Callable[[StoredTask], Awaitable[TaskView]],
    ) -> None:
        self._caller = caller
        self._refs = refs
        self._store = store
        self._lookups = lookups
        self._bus = bus
        self._view = view
        self._revisions: dict[TaskRef, int] = {}
        self._attended: dict[TaskRef, TaskRecord] = {}
        """The followed tasks that would be abandoned if they were not."""
        self._ready: list[TaskRef | StoredTask] = []
        self._hints: TaskHints | None = None
        self._subscription: AbstractAsyncContextManager[TaskHints] | None = None

    @property
    def accepted(self) -> list[str]:
        """The ids that are the caller's own and alive, in the order asked."""
        return [ref.task_id for ref in self._refs if ref in self._revisions]

    async def __aenter__(self) -> Self:
        self._lookups.admit(self._caller)
        # Nothing is subscribed to and read for ids that name nothing.
        refs = await self._lookups.present(self._caller, self._refs)
        subscription = self._bus.subscribe(refs)
        hints = await subscription.__aenter__()
        self._subscription, self._hints = subscription, hints
        try:
            for ref, stored in zip(refs, await self._lookups.own_many(self._caller, refs), strict=True):
                if stored is None:
                    await hints.drop(ref)
                    continue
                self._revisions[ref] = 0
                self._ready.append(stored)
                if stored.record.abandon_after_ms is not None:
                    self._attended[ref] = stored.record
            await self._attend()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._subscription is not None:
            await self._subscription.__aexit__(None, None, None)
            self._subscription = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskView:
        """The next state of any of the tasks.

        Raises:
            StopAsyncIteration: All of them have ended or expired.
        """
        while self._revisions:
            if not self._ready:
                await self._hear()
                continue
            if (view := await self._news(self._ready.pop(0))) is not None:
                return view
        raise StopAsyncIteration

    async def _hear(self) -> None:
        if self._hints is None:
            raise RuntimeError("TaskWatch is used outside its context")
        await self._attend()
        recheck = min((RECHECK_SECONDS, *(pause_seconds(one) or RECHECK_SECONDS for one in self._attended.values())))
        try:
            async with asyncio.timeout(recheck):
                self._ready.append(await self._hints.__anext__())
        except TimeoutError:
            self._ready.extend(self._revisions)

    async def _attend(self) -> None:
        """Note that the owner of the followed tasks is there."""
        for record in self._attended.values():
            await self._lookups.attendance.note(record)

    async def _news(self, found: TaskRef | StoredTask) -> TaskView | None:
        """The task's view, None when there is nothing new."""
        ref = found if isinstance(found, TaskRef) else found.record.ref
        if ref not in self._revisions:
            return None
        try:
            stored = await self._store.load(ref) if isinstance(found, TaskRef) else found
            view = None if stored is None else await self._view(stored)
        except TaskNotFoundError:
            view = None
        except StoreUnavailableError as error:
            # The bus sends a hint when the store is back; until then a subscriber waits.
            logger.warning("could not read task %s for its subscribers: %s", ref.shown_id, error)
            return None
        except McpCeleryError as error:
            # One task that cannot be shown must not end the stream of the others.
            reason = error.reason if isinstance(error, StoredDataError) else error
            logger.error("could not report task %s to its subscribers: %s", ref.shown_id, reason)
            view = None
        if view is None:
            await self._forget(ref)
            return None
        if view.record.revision <= self._revisions[ref]:
            return None
        self._revisions[ref] = view.record.revision
        if view.record.is_terminal:
            audit.retrieved(ref.scope, ref.task_id, view.record.status, is_open=False)
            await self._forget(ref)
        return view

    async def _forget(self, ref: TaskRef) -> None:
        del self._revisions[ref]
        self._attended.pop(ref, None)
        if self._hints is not None:
            await self._hints.drop(ref)
