"""Submissions: the input from which the engine creates a task, and how its jobs are published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.record import Caller, TaskRecord
from mcp_celery.engine.work import OWN_WORK, ForeignWork, Work
from mcp_celery.keys import TaskType

Publish = Callable[[TaskRecord, Any], None]
"""Publishes the jobs of a record with this producer; blocks, in the publisher's thread."""


class Plan(Protocol):
    """How the jobs of a task are published."""

    @property
    def queue(self) -> str | None:
        """Where the job goes; None where that is not known, or there are several jobs."""
        ...

    @property
    def publish(self) -> Publish:
        """Publishes the jobs."""
        ...


@dataclass(frozen=True, slots=True)
class ForeignPlan:
    """How foreign jobs are published. Fulfils :class:`Plan`.

    Attributes:
        job_name: Celery name of the job; of several, the one that gives the result.
        work: What the record holds about them.
        publish: Publishes them.
        queue: Where the job goes; None where that is not known, or there are several jobs.
        arguments: Those of the job, for ``task_always_eager``; None where there are several jobs.
        expires: When a job that no worker has begun is too late: seconds from its publication, or a time; None for
            never, or where there are several jobs.
    """

    job_name: str
    work: ForeignWork
    publish: Publish
    queue: str | None = None
    arguments: dict[str, Any] | None = None
    expires: float | datetime | None = None


@dataclass(frozen=True, slots=True)
class JobKind:
    """The jobs of one component, as far as it matters where they are published.

    Attributes:
        task_type: Kind of the component.
        declared_as: What it is declared as: its name, or a resource's template.
        config: What it declares.
        job_name: Celery name of the jobs, None for the component's own.
    """

    task_type: TaskType
    declared_as: str
    config: TaskConfig
    job_name: str | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Makes one task of all requests with one idempotency key.

    Attributes:
        name: Digest of the key and of whose it is.
        request: Digest of the request. Another request under the same key is refused.
    """

    name: str
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMessage:
    """The message of a job, for a store that can put it into the broker's queue, since both are one database.

    Attributes:
        queue: The queue, as the store names it.
        payload: The message, as the broker's library writes it.
        lanes: Everything that holds messages of the queue, each priority apart; empty where nothing is counted.
        most: How many messages may wait in it, None for any number.
        retry_after_ms: When a request that finds the queue full may come again.
    """

    queue: str
    payload: str | bytes
    lanes: tuple[str, ...] = ()
    most: int | None = None
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request that is to become a task.

    Attributes:
        caller: Who asks.
        task_type: Kind of the component.
        component: Its name, or the resource's URI.
        config: What the component declares.
        snapshot: The request and its context for the worker.
        ttl_ms: The time to live that the client asks, None where it does not say.
        declared_as: What the job is named for, where that is not the component itself: a resource's template.
        job_name: Celery name of the task's jobs, None for the component's own.
        listed: Whether the owner's list of tasks shows it.
        plan: How foreign jobs are published, None for a component's own job.
        fingerprint: Of the component that the request was checked against. None: any worker may run the job.
        task_id: The id of its task, where a repeated submission has to make the same task. None: a new id.
        idempotency: Its client's idempotency key, None where it sent none.
    """

    caller: Caller
    task_type: TaskType
    component: str
    config: TaskConfig
    snapshot: TaskContextSnapshot
    ttl_ms: int | None = None
    declared_as: str | None = None
    job_name: str | None = None
    listed: bool = True
    plan: ForeignPlan | None = None
    fingerprint: str | None = None
    task_id: str | None = None
    idempotency: Idempotency | None = None

    @property
    def work(self) -> Work:
        """What the record holds about the jobs."""
        return OWN_WORK if self.plan is None else self.plan.work

    @property
    def expires(self) -> float | datetime | None:
        """When a job that has not started is too late: seconds from its publication, or a time; None for never."""
        return self.config.expires if self.plan is None else self.plan.expires
