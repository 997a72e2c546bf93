"""The states of tasks whose jobs foreign workers run: Celery's result backend is the only source.

Such a worker knows nothing of MCP, so there are no claims, no snapshot and no second delivery. The states of its jobs
are read instead, and each that the record does not reflect yet becomes a change of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, Self, cast

from mcp_celery.common.jsonable import finite_number
from mcp_celery.config import DEFAULT_MAX_RESULT_BYTES
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.outcome import (
    FAILURE,
    MAX_MESSAGE_CHARS,
    REVOKED,
    SUCCESS,
    UNREADABLE,
    JobOutcome,
    expired,
    failure,
    revoked,
    success,
    too_large,
)
from mcp_celery.engine.ports import JobResults
from mcp_celery.engine.record import Change, JSONObject, Progress, RpcError, StoredResult, TaskRecord, now_ms
from mcp_celery.engine.submission import ForeignPlan, Submission
from mcp_celery.engine.work import Work
from mcp_celery.errors import INTERNAL_ERROR

STARTED: Final = "STARTED"
RETRY: Final = "RETRY"
PROGRESS: Final = "PROGRESS"
_CURRENT: Final = ("current", "done", "completed")
_MESSAGE: Final = ("message", "status", "description")
"""Names that people give to the messages of their jobs, the documented one first."""
_QUEUED: Final = ("PENDING", "RECEIVED")

NOT_OF_THE_JOB: Final = frozenset(
    {
        "SoftTimeLimitExceeded",
        "TimeLimitExceeded",
        "WorkerLostError",
        "NotRegistered",
        "EncodeError",
        "Terminated",
        "UnreadableResult",
    }
)
"""Exceptions that concern Celery, not the job's own code: the task fails, and no tool has reported an error."""
RETRY_MESSAGE: Final = "Trying again"

Results = Sequence[StoredResult | None]
"""What is stored of a task's jobs, in the order of its ``job_ids``; None for one that has not started."""


class Exposure(Protocol):
    """A server's declaration of the jobs that it exposes."""

    async def plan(self, submission: Submission) -> ForeignPlan | None:
        """How a request's work is begun. None: its component is no exposed job.

        Raises:
            InvalidRequestError: No work can be made of these arguments.
        """
        ...

    def returned(self, component: str, value: Any) -> JSONObject:
        """The wire result of a component whose job returned a value."""
        ...

    def raised(self, component: str, exception_name: str, arguments: Sequence[Any]) -> JSONObject:
        """The wire result of a component whose job raised an exception."""
        ...


class _NothingExposed:
    """Fulfils :class:`Exposure` and :class:`JobResults` for a server that exposes no jobs, and so has no results."""

    async def plan(self, submission: Submission) -> None:
        """Each component runs as its own job."""

    def returned(self, component: str, value: Any) -> JSONObject:
        """Never called."""
        raise NotImplementedError

    def raised(self, component: str, exception_name: str, arguments: Sequence[Any]) -> JSONObject:
        """Never called."""
        raise NotImplementedError

    async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:  # noqa: ARG002
        """Nothing is stored."""
        return {}


class ExposedTasks:
    """Reads states of jobs as changes of their task.

    Args:
        exposure: What the server declares.
        results: Celery's result backend.
        max_result_bytes: Size of the largest result, as JSON.

    Attributes:
        began: Told the compound key of each task whose jobs have been published.
    """

    def __init__(
        self, exposure: Exposure, results: JobResults, *, max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES
    ) -> None:
        self._exposure = exposure
        self._max_result_bytes = max_result_bytes
        self._results = results
        self.began: Callable[[str], None] = lambda _: None

    @classmethod
    def none(cls) -> Self:
        """Of a server that exposes no jobs."""
        nothing = _NothingExposed()
        return cls(nothing, nothing)

    async def read(self, records: Sequence[TaskRecord]) -> Sequence[Results | None]:
        """What is stored of the jobs of tasks, read together. None for a task whose jobs could not all be read."""
        jobs = [record.job_ids for record in records]
        found = await self._results.read_many([job_id for job_ids in jobs for job_id in job_ids])
        return [
            [found[job_id] for job_id in job_ids] if all(job_id in found for job_id in job_ids) else None
            for job_ids in jobs
        ]

    async def planned(self, submission: Submission) -> Submission:
        """The submission with the plan of its foreign jobs, unchanged if its component is no exposed job.

        Raises:
            InvalidRequestError: No work can be made of its arguments.
        """
        plan = await self._exposure.plan(submission)
        if plan is None:
            return submission
        # A foreign worker cannot read the caller's context, so the store keeps none.
        context = TaskContextSnapshot(protocol_version=submission.snapshot.protocol_version)
        return replace(submission, plan=plan, job_name=plan.job_name, snapshot=context)

    def change(self, record: TaskRecord, results: Results) -> Change | None:
        """The change that stored results owe to a record that is open, None while they hold nothing new."""
        work = record.work
        outcome = self.outcome(record, results)
        if outcome is not None:
            if outcome.size > self._max_result_bytes:
                reason = too_large(outcome.size, self._max_result_bytes)
                return Change(to="failed", error=RpcError(INTERNAL_ERROR, reason), status_message=reason)
            change = success(outcome)
            return change if outcome.is_error else replace(change, status_message=_last_words(record, work))
        if (ended := _broken_off(results, work.gathered or 1)) is not None:
            return ended
        change = _gone_on(results[0]) if work.parts == 1 else _counted(results)
        if change is None:
            return expired() if record.is_too_late(now_ms()) else None
        return change if _is_news(record, change) else None

    def outcome(self, record: TaskRecord, results: Results) -> JobOutcome | None:
        """The result or exception of the task's tool; None while there is neither."""
        work = record.work
        for stored in results:
            if stored is not None and stored.state == FAILURE:
                name, arguments = _exception(stored)
                # Celery stores it for a chord's body too, whose header has failed with the exception that matters.
                if name not in NOT_OF_THE_JOB and not (name == "ChordError" and _has_failed(results, but=stored)):
                    return JobOutcome(self._exposure.raised(record.component, name, arguments))
        last = results[: work.gathered or 1]
        if any(stored is None or stored.state != SUCCESS for stored in last):
            return None
        values = [stored.value for stored in last if stored is not None]
        progress = None if work.parts == 1 else Progress(work.parts, work.parts)
        value = values if work.gathered else values[0]
        return JobOutcome(self._exposure.returned(record.component, value), progress=progress)


def _last_words(record: TaskRecord, work: Work) -> str | None:
    """The message of a task that has completed: what its job said last, but nothing that was said in its place."""
    if work.parts > 1:
        return _count(work.parts, work.parts)
    return "" if record.status_message == RETRY_MESSAGE else None


def _count(done: int, jobs: int) -> str:
    return f"{done} of {jobs} jobs done"


def _exception(stored: StoredResult) -> tuple[str, Sequence[Any]]:
    """Name and arguments of the exception that a job ended in."""
    described = cast(JSONObject, stored.value) if isinstance(stored.value, dict) else {}
    arguments = described.get("exc_message")
    return str(described.get("exc_type")), cast("list[Any]", arguments) if isinstance(arguments, list | tuple) else ()


def _has_failed(results: Results, *, but: StoredResult) -> bool:
    return any(one is not None and one is not but and one.state == FAILURE for one in results)


def _broken_off(results: Results, told: int) -> Change | None:
    """The end of a task one of whose jobs ended without returning or raising anything. What the jobs after the first
    ``told`` return is for other jobs to read.
    """
    for position, stored in enumerate(results):
        if stored == UNREADABLE and position >= told:
            continue
        if stored is not None and stored.state == FAILURE:
            return failure(_exception(stored)[0])
        if stored is not None and stored.state == REVOKED:
            return expired() if "expired" in _exception(stored)[1] else revoked()
    return None


def _gone_on(stored: StoredResult | None) -> Change | None:
    """The message and progress in the state of a running job."""
    if stored is None or stored.state in _QUEUED or stored.state == SUCCESS:
        return None
    message, progress = None, None
    if stored.state == RETRY:
        message = RETRY_MESSAGE
    elif stored.state != STARTED:
        message, progress = _told(stored)
    return Change(to="working", status_message=message, progress=progress, started_at_ms=now_ms())


def _told(stored: StoredResult) -> tuple[str, Progress | None]:
    """Message and numbers of a state that the job made itself (``update_state``)."""
    meta = stored.value
    if isinstance(meta, str) and meta:
        return meta[:MAX_MESSAGE_CHARS], None
    found = cast(JSONObject, meta) if isinstance(meta, dict) else {}
    current = next((number for name in _CURRENT if (number := _number(found.get(name))) is not None), None)
    total = _number(found.get("total"))
    progress = None if current is None else Progress(current, total)
    for name in _MESSAGE:
        if isinstance(message := found.get(name), str) and message:
            return message[:MAX_MESSAGE_CHARS], progress
    if stored.state != PROGRESS or current is None:
        return stored.state[:MAX_MESSAGE_CHARS], progress
    return f"{current:g}" if total is None else f"{current:g} of {total:g}", progress


def _number(value: object) -> float | None:
    """A number that says how far a job is, else None."""
    return None if isinstance(value, bool) else finite_number(value)


def _counted(results: Results) -> Change | None:
    """How far several jobs have come."""
    begun = [one for one in results if one is not None and one.state not in _QUEUED]
    if not begun:
        return None
    done = sum(one.state == SUCCESS for one in begun)
    message = _count(done, len(results))
    return Change(to="working", status_message=message, progress=Progress(done, len(results)), started_at_ms=now_ms())


def _is_news(record: TaskRecord, change: Change) -> bool:
    return (
        record.started_at_ms is None
        or (change.status_message is not None and change.status_message != record.status_message)
        or (change.progress is not None and change.progress != record.progress)
    )
