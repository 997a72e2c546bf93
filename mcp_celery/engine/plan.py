"""How the foreign jobs of a new task are published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mcp_celery.engine.work import ForeignWork

Publish = Callable[[Sequence[str], Any], None]
"""Publishes the jobs under these Celery ids with this producer; blocks, in the publisher's thread."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a task's exposed work is begun.

    Attributes:
        job_name: Celery name of the job; of several, the one that gives the result.
        work: What the record says of it.
        publish: Publishes it.
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
