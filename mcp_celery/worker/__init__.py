"""Running jobs inside Celery's workers."""

from __future__ import annotations

from collections.abc import Mapping

from celery import Celery

from mcp_celery.config import TaskConfig
from mcp_celery.keys import TaskType
from mcp_celery.worker.asking import InputLifetimes
from mcp_celery.worker.job import WorkerRuntime, job_class
from mcp_celery.worker.revoked import WatchRevoked
from mcp_celery.worker.runner import ClosableTaskBus, ClosableTaskStore, JobRunner
from mcp_celery.worker.signals import connect
from mcp_celery.worker.steps import ConsumerTimeout, Reconnection, Vitals, require_json

__all__ = [
    "ClosableTaskBus",
    "ClosableTaskStore",
    "InputLifetimes",
    "JobRunner",
    "WorkerRuntime",
    "add_steps",
    "register",
    "require_json",
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
    names: list[str] = []
    for (task_type, component), config in components.items():
        job = app.register_task(job_class(task_type, component, config, runtime)())
        names.append(job.name)
    connect(runtime)
    add_steps(app)
    return names


def add_steps(app: Celery) -> None:
    """Add to the start of an app's workers what our jobs need there. Too late when a worker collects its steps."""
    app.steps["worker"].update([ConsumerTimeout, Vitals, WatchRevoked])
    app.steps["consumer"].add(Reconnection)
