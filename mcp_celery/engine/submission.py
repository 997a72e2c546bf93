"""What the engine is given to make a task of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.plan import ForeignPlan
from mcp_celery.engine.record import Caller
from mcp_celery.engine.work import OWN_WORK, Work
from mcp_celery.keys import TaskType


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request that shall become a task.

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

    @property
    def work(self) -> Work:
        """What the record says of the jobs."""
        return OWN_WORK if self.plan is None else self.plan.work

    @property
    def expires(self) -> float | datetime | None:
        """When a job that has not started is too late: seconds from its publication, or a time; None for never."""
        return self.config.expires if self.plan is None else self.plan.expires
