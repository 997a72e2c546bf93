"""Noting that an exposed job has begun, where only an event of its worker's says so."""

from __future__ import annotations

import logging
from collections.abc import Container

from mcp_celery.engine.ports import TaskStore
from mcp_celery.engine.record import Change, TaskRef, now_ms
from mcp_celery.errors import McpCeleryError
from mcp_celery.keys import TaskType, parse_task_key

logger = logging.getLogger(__name__)


class Beginnings:
    """Without ``task_track_started`` a job that runs has no result yet, as one that waits: it would seem too late.

    Args:
        store: Where records are kept.
        exposed: The components whose jobs other people's workers run.
    """

    def __init__(self, store: TaskStore, exposed: Container[tuple[TaskType, str]]) -> None:
        self._store = store
        self._exposed = exposed

    async def note(self, key: str) -> None:
        """Note it of the task with a compound key; nothing happens to one that is no open one of exposed jobs."""
        parts = parse_task_key(key)
        if (parts.task_type, parts.component_identifier) not in self._exposed:
            return
        ref = TaskRef(parts.task_scope, parts.client_task_id)
        try:
            stored = await self._store.load(ref)
            record = None if stored is None else stored.record
            if record is None or not record.work.is_foreign or not record.is_open or record.started_at_ms is not None:
                return
            await self._store.change(ref, Change(to="working", attempt=record.attempt, started_at_ms=now_ms()))
        except McpCeleryError as error:
            logger.warning("could not record the start of task %s: %s", ref.shown_id, error)
