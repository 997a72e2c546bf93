"""Noting that owners of tasks are there: they poll their tasks, or follow them.

A task whose component declares ``abandon_after`` is cancelled when its owner has done neither for so long. The reaper
does it, by the times that are noted here. A session of 2025-11-25 follows its tasks while it lives.
"""

from __future__ import annotations

import time
from typing import Final

from cachetools import LRUCache

from mcp_celery.engine.ports import TaskStore
from mcp_celery.engine.record import TaskRecord, TaskRef
from mcp_celery.errors import McpCeleryError
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

NOTED_IN_A_TIME: Final = 4
"""How often an owner that is there is noted within the time after which its task is abandoned."""
_REMEMBERED: Final = 10_000
"""For how many tasks a process remembers when it noted the owner. With more tasks it notes some owners more often."""


class Attendance:
    """Notes the owners of tasks that may be abandoned. It costs other tasks nothing.

    Args:
        store: Where it is noted.
    """

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._noted: LRUCache[TaskRef, float] = LRUCache(_REMEMBERED)

    async def note(self, record: TaskRecord) -> None:
        """Note that a task's owner has asked for it. That a store does not answer is no failure of the request."""
        pause = pause_seconds(record)
        if pause is None:
            return
        now, ref = time.monotonic(), record.ref
        if now - self._noted.get(ref, float("-inf")) < pause:
            return
        self._noted[ref] = now
        try:
            await self._store.attend(ref)
        except McpCeleryError as error:
            self._noted.pop(ref, None)
            logger.debug("could not record that the owner of task %s is there: %s", record.shown_id, error)


def pause_seconds(record: TaskRecord) -> float | None:
    """How often the owner of a task is noted; None where it need not be."""
    if record.abandon_after_ms is None or record.is_terminal:
        return None
    return record.abandon_after_ms / 1000 / NOTED_IN_A_TIME
