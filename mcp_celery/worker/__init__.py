"""Running jobs inside Celery's workers."""

from __future__ import annotations

from collections.abc import Mapping

from celery import Celery

from mcp_celery.config import TaskConfig
from mcp_celery.host_app import add_steps
from mcp_celery.keys import TaskType
from mcp_celery.logs import shorten_ids_of_celery
from mcp_celery.worker.asking import InputLifetimes
from mcp_celery.worker.celery.bootsteps import pool_problem, require_fit_broker, require_readable
from mcp_celery.worker.celery.result_backend import ResultPlace
from mcp_celery.worker.celery.signals import connect, connect_outcomes
from mcp_celery.worker.job import ComponentJob, WorkerRuntime, job_class
from mcp_celery.worker.loop import JobLoop, ServerLoop
from mcp_celery.worker.probe_options import ProbeOptions
from mcp_celery.worker.revision import JobRevisions
from mcp_celery.worker.runner import JobRunner
from mcp_celery.worker.versions import HeldVersion, VersionCheck, VersionPolicy

__all__ = [
    "ComponentJob",
    "HeldVersion",
    "InputLifetimes",
    "JobLoop",
    "JobRevisions",
    "JobRunner",
    "ProbeOptions",
    "ResultPlace",
    "ServerLoop",
    "VersionCheck",
    "VersionPolicy",
    "WorkerRuntime",
    "bind_jobs",
    "pool_problem",
    "register",
    "require_fit_broker",
    "require_readable",
]


def register(app: Celery, runtime: WorkerRuntime, components: Mapping[tuple[TaskType, str], TaskConfig]) -> list[str]:
    """Register one job for each component with a Celery app, and connect what a worker does for them: its signal
    handlers, its heartbeat, its look at revoked jobs.

    Args:
        app: The worker's app.
        runtime: What the jobs share.
        components: The components that may run as tasks, by type and name.

    Returns:
        The names of the jobs.
    """
    jobs = _jobs(runtime, components)
    for job in jobs.values():
        app.register_task(job)
    connect(runtime)
    shorten_ids_of_celery()
    add_steps(app)
    return list(jobs)


def bind_jobs(
    app: Celery, runtime: WorkerRuntime, components: Mapping[tuple[TaskType, str], TaskConfig]
) -> dict[str, ComponentJob]:
    """Make jobs that run in this process, which is no worker: with the app's settings, but not among its own.

    Args:
        app: The app whose settings, annotations and result backend hold for them.
        runtime: What the jobs share.
        components: The components that may run as tasks, by type and name.

    Returns:
        The jobs by name.
    """
    jobs = _jobs(runtime, components)
    for job in jobs.values():
        job.bind(app)
    connect_outcomes()
    shorten_ids_of_celery()
    return jobs


def _jobs(runtime: WorkerRuntime, components: Mapping[tuple[TaskType, str], TaskConfig]) -> dict[str, ComponentJob]:
    made = [job_class(task_type, component, config, runtime)() for (task_type, component), config in components.items()]
    return {job.name: job for job in made}
