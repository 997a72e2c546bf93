"""Bringing a record up to what Celery has stored of its job, and reading what the task completed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cachetools import TTLCache

from mcp_celery.engine.exposed import ExposedTasks
from mcp_celery.engine.outcome import JobOutcome, expired, settlement
from mcp_celery.engine.ports import TaskResults, TaskStore
from mcp_celery.engine.record import Change, StoredResult, TaskRecord, TaskRef, now_ms
from mcp_celery.engine.views import StoredTask
from mcp_celery.errors import ResultUnavailableError, TaskNotFoundError

_LOOKS_REMEMBERED: Final = 10_000


class Settling:
    """Reads stored results.

    Args:
        store: Where records are kept.
        results: Celery's result backend, None where ``store.load`` reads it in the same step.
        exposed: What becomes of exposed jobs, None where there are none.
        interval_ms: How often an open task's stored result is looked at, where that is a request of its own.
    """

    def __init__(
        self,
        store: TaskStore,
        results: TaskResults | None,
        *,
        exposed: ExposedTasks | None,
        interval_ms: int,
    ) -> None:
        self._store = store
        self._results = results
        self._exposed = exposed
        self._interval_ms = interval_ms
        self._looked_at: TTLCache[TaskRef, None] = TTLCache(_LOOKS_REMEMBERED, interval_ms, timer=now_ms)

    async def settled(self, stored: StoredTask) -> StoredTask:
        """A task whose record is not behind Celery's stored result.

        Raises:
            TaskNotFoundError: It has expired meanwhile.
            StoreUnavailableError: The store did not answer.
        """
        record = stored.record
        if not record.is_open:
            return stored
        if record.work.is_foreign:
            results = await self._results_of(stored)
            return stored if results is None else await self.settle(stored, results)
        result = stored.result or await self._look(record)
        change = settlement(result)
        if change is not None and change.to != "completed" and record.redeliveries:
            change = None  # perhaps of an attempt that no longer counts; the one that does tells of its end itself
        if change is None and record.is_too_late(now_ms()):
            change = expired()  # and no worker was there to say so
        # The worker died, or lost the store, between storing the result and telling of it.
        return stored if change is None else await self._changed(StoredTask(record, result), change)

    async def settle(self, stored: StoredTask, results: Sequence[StoredResult | None]) -> StoredTask:
        """A task of exposed work, once its record tells what is stored of its jobs."""
        change = None if self._exposed is None else self._exposed.change(stored.record, results)
        return stored if change is None else await self._changed(stored, change)

    async def _changed(self, stored: StoredTask, change: Change) -> StoredTask:
        record = stored.record
        settled = await self._store.change(record.ref, replace(change, attempt=record.attempt))
        if settled is None:
            raise TaskNotFoundError
        return StoredTask(settled.record, stored.result)

    async def outcome(self, stored: StoredTask) -> JobOutcome:
        """What a completed task completed with.

        Raises:
            ResultUnavailableError: The result backend does not give it.
        """
        record, result = stored.record, stored.result
        if record.work.is_foreign:
            results = await self._all_of(stored)
            outcome = None if results is None or self._exposed is None else self._exposed.outcome(record, results)
        else:
            if result is None and self._results is not None:
                result = await self._results.read(record.job_id)
            outcome = None if result is None else JobOutcome.from_json(result.value)
        if outcome is None:
            raise ResultUnavailableError
        return outcome

    async def _results_of(self, stored: StoredTask) -> Sequence[StoredResult | None] | None:
        """What is stored of the jobs of exposed work that is open. None: it was read a moment ago, or cannot be."""
        record = stored.record
        if self._results is None and record.job_ids == [record.job_id]:
            return [stored.result]
        return await self._all_of(stored) if self._is_time_to_look(record) else None

    async def _all_of(self, stored: StoredTask) -> Sequence[StoredResult | None] | None:
        record = stored.record
        if stored.result is not None and record.job_ids == [record.job_id]:
            return [stored.result]
        return None if self._exposed is None else (await self._exposed.read([record]))[0]

    async def _look(self, record: TaskRecord) -> StoredResult | None:
        """Celery's stored result of an open task, where it is time to look at it."""
        if self._results is None or not self._is_time_to_look(record):
            return None
        return await self._results.read(record.job_id)

    def _is_time_to_look(self, record: TaskRecord) -> bool:
        """Whether this process has not looked at an open task's result for ``interval_ms``."""
        if record.ref in self._looked_at or now_ms() - record.created_at_ms < self._interval_ms:
            return False
        self._looked_at[record.ref] = None
        return True
