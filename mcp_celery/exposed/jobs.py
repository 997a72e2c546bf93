"""Finding the jobs that are to be exposed in a user's Celery app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, cast

from celery import Celery, Task

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
    if not isinstance(job, str | Task) or not job:
        raise ConfigurationError(
            f"expose({job!r}): expected a Celery task or the name of one; signatures are exposed with expose_canvas"
        )
    name = job if isinstance(job, str) else str(cast(Any, job).name)
    if name.startswith(_NEVER):
        raise ConfigurationError(f"the job {name!r} is never exposed: it belongs to Celery itself or to mcp_celery")
    # Celery registers a task with every app of the process, but only its own has its broker and its results.
    if not isinstance(job, str) and job.app is not app:
        raise ConfigurationError(
            f"the job {name!r} belongs to another Celery app than the server: give that app as celery=…, or expose the "
            "job by its name"
        )
    tasks = cast("dict[str, Any]", app.tasks)
    if name not in tasks:
        app.loader.import_default_modules()
    return FoundJob(name, tasks.get(name))


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
