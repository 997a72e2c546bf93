"""Running jobs inside Celery's workers."""

from __future__ import annotations

from collections.abc import Mapping

from celery import Celery

from mcp_celery.config import TaskConfig
from mcp_celery.keys import TaskType
from mcp_celery.worker.job import WorkerRuntime, job_class
from mcp_celery.worker.runner import ClosableTaskStore, JobRunner
from mcp_celery.worker.signals import connect

__all__ = ["ClosableTaskStore", "JobRunner", "WorkerRuntime", "register"]


def register(app: Celery, runtime: WorkerRuntime, components: Mapping[tuple[TaskType, str], TaskConfig]) -> list[str]:
    """Register one job for each component with a Celery app, and connect the signal handlers.

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
    return names
