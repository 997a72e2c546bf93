"""Read models of a store: tasks as stored and as their owner may see them, due tasks, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mcp_celery.engine.outcome import JobOutcome
from mcp_celery.engine.record import JSONObject, Question, StoredResult, TaskRecord


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A record with what belongs to it.

    Attributes:
        record: The record.
        result: The job's stored result, where the store could read both at once.
        questions: What the caller of an ``input_required`` task is asked, in the order of asking.
    """

    record: TaskRecord
    result: StoredResult | None = None
    questions: Sequence[Question] = ()


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as its caller may see it.

    Attributes:
        record: The record.
        outcome: What a completed task completed with.
        input_requests: For an ``input_required`` task what its caller is asked, by key: ``{"method": …, "params": …}``.
    """

    record: TaskRecord
    outcome: JobOutcome | None = None
    input_requests: Mapping[str, JSONObject] = field(default_factory=dict[str, JSONObject])

    @property
    def result(self) -> JSONObject | None:
        """For a completed task the result that the foreground request would have had."""
        return None if self.outcome is None else self.outcome.result


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A part of a list of tasks.

    Attributes:
        records: The newest first.
        cursor: Where the next part begins, None at the end.
    """

    records: list[TaskRecord]
    cursor: str | None = None


class FailedLookups(NamedTuple):
    """How often a requestor has asked for tasks that are not there.

    Attributes:
        number: So often in this window.
        left_ms: What is left of it.
    """

    number: int
    left_ms: int


@dataclass(frozen=True, slots=True)
class Queued:
    """Numbers of tasks that wait for a worker.

    Attributes:
        keys: Compound keys of the tasks whose job no worker has received, the oldest first.
        fingerprints: Of the components whose jobs live workers take.
        is_cut: Whether more jobs wait than were asked for.
    """

    keys: Sequence[str]
    fingerprints: frozenset[str]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class DueTasks:
    """The tasks that are due for a look.

    Attributes:
        open: How many tasks of exposed jobs are open.
        records: Those of them that are due.
    """

    open: int
    records: Sequence[TaskRecord]
