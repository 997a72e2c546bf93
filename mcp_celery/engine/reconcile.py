"""Bringing a record up to what Celery has stored of its job, and reading what the task completed with."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from cachetools import TTLCache

from mcp_celery.engine.foreign.states import ExposedTasks, Results
from mcp_celery.engine.outcome import REFUSED, SUCCESS, JobOutcome, expired, settlement
from mcp_celery.engine.ports import TaskResults, TaskStore
from mcp_celery.engine.read_models import StoredTask
from mcp_celery.engine.record import Change, StoredResult, TaskRecord, TaskRef, now_ms
from mcp_celery.engine.result_seals import ResultSeals
from mcp_celery.errors import ResultRefusedError, ResultUnavailableError, TaskNotFoundError

_LOOKS_REMEMBERED: Final = 10_000


class Settling:
    """Reads stored results.

    Args:
        store: Where records are kept.
        results: Celery's result backend, None where ``store.load`` reads it in the same step.
        exposed: Reads foreign jobs.
        interval_ms: How often an open task's stored result is looked at, where that is a request of its own.
        seals: Opens the stored results of own jobs.
    """

    def __init__(
        self,
        store: TaskStore,
        results: TaskResults | None,
        *,
        exposed: ExposedTasks,
        interval_ms: int,
        seals: ResultSeals,
    ) -> None:
        self._store = store
        looks = _Looks(interval_ms)
        self._own = _OwnJobs(results, looks, seals)
        self._foreign = _ForeignJobs(exposed, looks, are_loaded=results is None)

    async def settled(self, stored: StoredTask) -> StoredTask:
        """A task whose record is not behind Celery's stored result.

        Raises:
            TaskNotFoundError: It has expired meanwhile.
            StoreUnavailableError: The store did not answer.
        """
        if not stored.record.is_open:
            return stored
        return await self._changed(stored, await self._jobs_of(stored.record).reconcile(stored))

    async def settle(self, stored: StoredTask, results: Results) -> StoredTask:
        """A task of foreign jobs, once its record reflects what is stored of them."""
        return await self._changed(stored, self._foreign.change(stored, results))

    async def outcome(self, stored: StoredTask) -> JobOutcome:
        """The result of a completed task.

        Raises:
            ResultRefusedError: What is stored was not sealed for this task.
            ResultUnavailableError: The result backend does not give it.
        """
        if (outcome := await self._jobs_of(stored.record).outcome(stored)) is None:
            raise ResultUnavailableError
        return outcome

    def _jobs_of(self, record: TaskRecord) -> _Jobs:
        return self._foreign if record.work.is_foreign else self._own

    async def _changed(self, stored: StoredTask, owed: _Owed | None) -> StoredTask:
        if owed is None:
            return stored
        change, result = owed
        record = stored.record
        settled = await self._store.change(record.ref, replace(change, attempt=record.attempt))
        if settled is None:
            raise TaskNotFoundError
        return StoredTask(settled.record, result)


_Owed = tuple[Change, StoredResult | None]
"""The change that stored results owe to a record, and the result that the task has after it."""


class _Jobs(Protocol):
    """How the stored results of a task's jobs are read."""

    async def reconcile(self, stored: StoredTask) -> _Owed | None:
        """The change of an open task's record that its stored results require. None: none, or too early to look."""
        ...

    async def outcome(self, stored: StoredTask) -> JobOutcome | None:
        """The result of a completed task. None: the result backend does not give it.

        Raises:
            ResultRefusedError: What is stored was not sealed for this task.
        """
        ...


class _Looks:
    """Limits how often this process looks at the stored results of an open task.

    Args:
        interval_ms: Time between two looks, at least.
    """

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._looked_at: TTLCache[TaskRef, None] = TTLCache(_LOOKS_REMEMBERED, interval_ms, timer=now_ms)

    def is_time(self, record: TaskRecord) -> bool:
        """Whether it is time to look. If so, this counts as the look."""
        if record.ref in self._looked_at or now_ms() - record.created_at_ms < self._interval_ms:
            return False
        self._looked_at[record.ref] = None
        return True


class _OwnJobs:
    """Workers with this package move the record themselves, unless one dies or loses the store too early."""

    def __init__(self, results: TaskResults | None, looks: _Looks, seals: ResultSeals) -> None:
        self._results = results
        self._looks = looks
        self._seals = seals

    async def reconcile(self, stored: StoredTask) -> _Owed | None:
        record, result = stored.record, stored.result
        if result is None and self._results is not None and self._looks.is_time(record):
            result = await self._results.read(record.job_id)
        change = None if result is None else settlement(self._seals.opened(record, result))
        if change is not None and change.to != "completed" and record.attempt > record.leg:
            change = None  # the result may be of a superseded attempt; the current one reports its own end
        if change is None and record.is_too_late(now_ms()):
            change = expired()  # no worker was running to report it
        return None if change is None else (change, result)

    async def outcome(self, stored: StoredTask) -> JobOutcome | None:
        result = stored.result
        if result is None and self._results is not None:
            result = await self._results.read(stored.record.job_id)
        if result is None:
            return None
        if (opened := self._seals.opened(stored.record, result)) == REFUSED:
            raise ResultRefusedError
        return JobOutcome.from_json(opened.value) if opened.state == SUCCESS else None


class _ForeignJobs:
    """Workers of foreign jobs move no record: each change of it is read from the stored results.

    Args:
        exposed: Reads their stored results.
        looks: Limits how often.
        are_loaded: Whether ``store.load`` has read the result of a single job.
    """

    def __init__(self, exposed: ExposedTasks, looks: _Looks, *, are_loaded: bool) -> None:
        self._exposed = exposed
        self._looks = looks
        self._are_loaded = are_loaded

    async def reconcile(self, stored: StoredTask) -> _Owed | None:
        record = stored.record
        if self._are_loaded and record.job_ids == [record.job_id]:
            return self.change(stored, [stored.result])
        results = await self._read(stored) if self._looks.is_time(record) else None
        return None if results is None else self.change(stored, results)

    def change(self, stored: StoredTask, results: Results) -> _Owed | None:
        change = self._exposed.change(stored.record, results)
        return None if change is None else (change, stored.result)

    async def outcome(self, stored: StoredTask) -> JobOutcome | None:
        results = await self._read(stored)
        return None if results is None else self._exposed.outcome(stored.record, results)

    async def _read(self, stored: StoredTask) -> Results | None:
        record = stored.record
        if stored.result is not None and record.job_ids == [record.job_id]:
            return [stored.result]
        return (await self._exposed.read([record]))[0]
