"""Finding the jobs that are to be exposed in somebody's Celery app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, cast

from celery import Celery

from mcp_celery.errors import ConfigurationError

_NEVER: Final = ("celery.", "mcp.")
"""What Celery's own jobs and ours are named."""


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job to expose.

    Attributes:
        name: Its Celery name.
        task: Celery's task object, None for one that this process knows by name only.
    """

    name: str
    task: Any = None


def find_job(app: Celery, job: Any) -> FoundJob:
    """The job of a task object or a name.

    Raises:
        ConfigurationError: It is no job, not one of this app, or one that is never exposed.
    """
    name: object = job if isinstance(job, str) else getattr(job, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"expose({job!r}): expected a Celery task, or the name of one")
    if name.startswith(_NEVER):
        raise ConfigurationError(f"the job {name!r} is never exposed: it belongs to Celery itself or to mcp_celery")
    tasks = cast("dict[str, Any]", app.tasks)
    if isinstance(job, str) and name not in tasks:
        app.loader.import_default_modules()
    task = tasks.get(name)
    if task is None and not isinstance(job, str):
        raise ConfigurationError(
            f"the job {name!r} belongs to another Celery app than the server: give that app as celery=…"
        )
    return FoundJob(name, task)


def find_jobs(app: Celery, include: Sequence[str], exclude: Sequence[str]) -> list[FoundJob]:
    """The jobs of an app whose names match a pattern, as ``fnmatch`` reads it.

    Raises:
        ConfigurationError: A pattern of ``include`` matches none.
    """
    app.loader.import_default_modules()
    tasks = cast("dict[str, Any]", app.tasks)
    names = [name for name in sorted(tasks) if not name.startswith(_NEVER)]
    for pattern in include:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(f"expose_all(include=…): the Celery app {app.main!r} has no job {pattern!r}")
    return [
        FoundJob(name, tasks[name])
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    ]


def require_results(app: Celery, job: FoundJob) -> None:
    """Refuse a job that stores no result.

    Raises:
        ConfigurationError: It ignores its result, or its errors.
    """
    task = job.task
    if task is None:
        return
    if task.ignore_result:
        setting = "task_ignore_result" if app.conf.task_ignore_result else "ignore_result=True"
        raise ConfigurationError(
            f"the job {job.name!r} cannot be exposed: it stores no result ({setting}); expose(…, keep_result=True) "
            "has the results of the calls kept that come over MCP"
        )
