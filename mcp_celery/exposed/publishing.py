"""Publishing an exposed job as its own app would: with its options, its route, its queue and its serializer."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import kombu
from celery import Celery
from celery.utils.time import maybe_iso8601

from mcp_celery.broker.job_message import send_job
from mcp_celery.broker.queues import queue_of
from mcp_celery.config import TaskConfig, celery_options_of
from mcp_celery.engine import JSONObject
from mcp_celery.exposed.jobs import FoundJob


def options_of(app: Celery, job: FoundJob, config: TaskConfig) -> dict[str, Any]:
    """The options of a job's message: what its task declares, and before that what is declared for the tool."""
    declared: dict[str, Any] = {} if job.task is None else job.task._get_exec_options()
    options = {name: value for name, value in declared.items() if value is not None}
    options |= config.celery_options("header", exposed=True) | config.celery_options("property", exposed=True)
    if config.queue is not None:
        for name in ("exchange", "routing_key"):
            options.pop(name, None)
        options["queue"] = queue_of(app, config.queue)
    return options


def expires_of(app: Celery, job: FoundJob, config: TaskConfig) -> float | datetime | None:
    """When a job is too late to begin: seconds from its publication, or a time; None for never."""
    expires = options_of(app, job, config).get("expires")
    return maybe_iso8601(expires) if isinstance(expires, str) else expires


def queue_name_of(app: Celery, job: FoundJob, arguments: JSONObject, config: TaskConfig) -> str | None:
    """Where a job goes; None where a route names an exchange only."""
    queue = _routed(app, job, arguments, options_of(app, job, config)).get("queue")
    return None if queue is None else str(getattr(queue, "name", queue))


def _routed(app: Celery, job: FoundJob, arguments: JSONObject, options: dict[str, Any]) -> dict[str, Any]:
    amqp: Any = app.amqp
    return amqp.router.route(options, job.name, (), arguments, job.task)


def serializer_of(app: Celery, job: FoundJob) -> str:
    """The serializer of a job's messages."""
    return str((None if job.task is None else job.task.serializer) or app.conf.task_serializer)


def publish_job(
    app: Celery,
    job: FoundJob,
    job_id: str,
    arguments: JSONObject,
    *,
    config: TaskConfig,
    shown: str,
    producer: kombu.Producer,
    timeout_seconds: float,
) -> None:
    """Publish one job; returns when the broker has it.

    Args:
        app: Whose broker, routes and queues are used.
        job: The job.
        job_id: Its Celery id.
        arguments: Its keyword arguments.
        config: What is declared for the tool.
        shown: What Celery's events and Flower show of the arguments.
        producer: On one of this package's connections.
        timeout_seconds: How long it may take.
    """
    options = options_of(app, job, config)
    of_headers = [name for name, how in celery_options_of(type(config)).items() if how.exposed == "header"]
    headers = {name: options.pop(name) for name in of_headers if name in options}
    send_job(
        app,
        producer,
        job_id,
        job.name,
        arguments,
        options=_routed(app, job, arguments, options),
        timeout_seconds=timeout_seconds,
        create_sent_event=app.conf.task_send_sent_event,
        kwargsrepr=shown,
        **headers,
    )
