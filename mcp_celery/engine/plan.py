"""How the jobs of a task are published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from mcp_celery.engine.record import TaskRecord
from mcp_celery.engine.work import ForeignWork

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
        work: What the record says of them.
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
