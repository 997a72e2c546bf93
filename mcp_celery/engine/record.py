"""What is known of a task: its record, the changes to it, and what a caller gets to see."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.status import OPEN, TERMINAL, TaskStatus
from mcp_celery.keys import TaskType, build_task_key, celery_job_id

JSONObject = dict[str, Any]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def new_task_id() -> str:
    """256 random bits in the URL-safe alphabet: for anonymous callers the id is the bearer of the right to read."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        scope: The scope of its tasks, None for an anonymous caller.
        issuer: Issuer of its token, None where the token names none.
    """

    scope: str | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Where a task is kept."""

    scope: str | None
    task_id: str


@dataclass(frozen=True, slots=True)
class RpcError:
    """A JSON-RPC error object."""

    code: int
    message: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job says it is, as in ``ctx.report_progress``."""

    value: float
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """Which worker holds the job.

    Attributes:
        worker: Celery's node name of the worker.
        can_terminate: Whether its pool can end a running job (prefork can, threads cannot).
        at_ms: When it took the job.
    """

    worker: str
    can_terminate: bool
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """The task as the store keeps it. The truth: pub/sub messages are hints to read it again.

    Attributes:
        task_id: The id that the client holds.
        scope: Who may reach the task, None for an anonymous caller.
        issuer: Issuer of the creating token; every access compares it.
        task_type: ``tool``, ``prompt`` or ``resource``.
        component: The tool's or prompt's name, or the resource's URI.
        created_at_ms: Never changes.
        updated_at_ms: Changes with the state or its message only, never by reading.
        ttl_ms: The granted time to live, counted from creation.
        poll_interval_ms: How often a client without push should ask.
        status: See :mod:`mcp_celery.engine.status`.
        status_message: For people; None when there is nothing to say.
        is_error: For a completed tool: whether its result says ``isError``.
        error: For a failed task.
        progress: The last progress the job reported.
        attempt: Which delivery of the job counts, from 1. Jobs of any other attempt do not run.
        leg: Which job of the task, from 1.
        claim: The worker that received the job, None while it is queued.
        started_at_ms: When the body of this attempt began, None before.
        start_before_ms: When a body that has not begun is too late, None for never.
        revision: Counts the changes, so that readers can tell news from repetition.
    """

    task_id: str
    scope: str | None
    issuer: str | None
    task_type: TaskType
    component: str
    created_at_ms: int
    updated_at_ms: int
    ttl_ms: int
    poll_interval_ms: int
    status: TaskStatus = "working"
    status_message: str | None = None
    is_error: bool = False
    error: RpcError | None = None
    progress: Progress | None = None
    attempt: int = 1
    leg: int = 1
    claim: Claim | None = None
    started_at_ms: int | None = None
    start_before_ms: int | None = None
    revision: int = 1

    @property
    def ref(self) -> TaskRef:
        """Where the record is kept."""
        return TaskRef(self.scope, self.task_id)

    @property
    def key(self) -> str:
        """The compound key."""
        return build_task_key(self.scope, self.task_id, self.task_type, self.component)

    @property
    def job_id(self) -> str:
        """The Celery id of the current leg."""
        return celery_job_id(self.key, self.leg)

    @property
    def expires_at_ms(self) -> int:
        """When the record is forgotten."""
        return self.created_at_ms + self.ttl_ms

    def is_too_late(self, now: int) -> bool:
        """Whether the job should have begun before ``now`` (ms), and has not."""
        return self.start_before_ms is not None and self.started_at_ms is None and now > self.start_before_ms

    @property
    def is_open(self) -> bool:
        """Whether something may still happen to the task."""
        return self.status in OPEN

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A move of a task, applied only if the status table and the attempt allow it.

    Attributes:
        to: The new status; the same as before for a new message.
        attempt: Apply only to this attempt of the task, None for any.
        if_unstarted: Apply only while no body of the attempt has begun.
        status_message: The new message, None to keep the old one.
        is_error: See :class:`TaskRecord`.
        error: See :class:`TaskRecord`.
        progress: The job's progress, None to keep the old one.
        at_ms: When it happened.
    """

    to: TaskStatus
    attempt: int | None = None
    if_unstarted: bool = False
    status_message: str | None = None
    is_error: bool = False
    error: RpcError | None = None
    progress: Progress | None = None
    at_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a store says of a change.

    Attributes:
        accepted: Whether it was applied.
        record: The record after it.
    """

    accepted: bool
    record: TaskRecord


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What Celery's result backend holds of a job.

    Attributes:
        state: Celery's state, for example ``SUCCESS``.
        value: The job's return value, or the description of its exception.
    """

    state: str
    value: Any


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """A job's result as Celery's result backend would store it.

    Attributes:
        key: Where.
        payload: What.
        expires_seconds: The backend's own lifetime of results, None for ever.
    """

    key: str
    payload: str | bytes
    expires_seconds: int | None


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A record with the job's stored result, where the store could read both at once."""

    record: TaskRecord
    result: StoredResult | None = None


@dataclass(frozen=True, slots=True)
class TaskView:
    """What a caller gets to see of its task.

    Attributes:
        record: The record.
        result: For a completed task the result that the foreground request would have had.
    """

    record: TaskRecord
    result: JSONObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request that shall become a task.

    Attributes:
        caller: Who asks.
        task_type: Kind of the component.
        component: Its name, or the resource's URI.
        params: Parameters of the MCP request, without ``_meta``.
        config: What the component declares.
        snapshot: The request's context for the worker.
        ttl_ms: The time to live that the client asks, None where it does not say.
        declared_as: What the job is named for, where that is not the component itself: a resource's template.
    """

    caller: Caller
    task_type: TaskType
    component: str
    params: Mapping[str, Any]
    config: TaskConfig
    snapshot: TaskContextSnapshot
    ttl_ms: int | None = None
    declared_as: str | None = None
