"""Publishing a component's own job: its name, its queue and its message."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kombu
from celery import Celery

from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject, Submission, TaskRecord
from mcp_celery.formats import FORMAT, FORMAT_HEADER
from mcp_celery.job_message import send_job
from mcp_celery.names import job_name
from mcp_celery.queues import queue_of
from mcp_celery.sealing import UNSIGNED, MessageSigner
from mcp_celery.shown import shown_arguments


class OwnJobs:
    """The jobs of a server's components.

    Args:
        app: The Celery app whose broker, routes and queues are used. Its settings are read, never changed.
        namespace: Namespace of the server, in the names of jobs.
        default_queue: Queue of the jobs that neither the component nor a route sends elsewhere.
        timeout_seconds: How long a publish may take.
        signer: Signs the messages.
    """

    def __init__(
        self,
        app: Celery,
        *,
        namespace: str,
        default_queue: str,
        timeout_seconds: float,
        signer: MessageSigner = UNSIGNED,
    ) -> None:
        self._signer = signer
        self._app = app
        self._namespace = namespace
        self._default_queue = default_queue
        self._timeout_seconds = timeout_seconds
        # By name, of what components declare. Making one anew for each publish reads a dozen of Celery's settings.
        self._queues: dict[str, kombu.Queue] = {}

    def queue_name(self, submission: Submission) -> str | None:
        """Where the job of a request goes; None where a route names an exchange only."""
        queue = self._route(name_of_job(self._namespace, submission), submission.config).get("queue")
        return None if queue is None else str(getattr(queue, "name", queue))

    def publish(self, record: TaskRecord, submission: Submission, producer: kombu.Producer) -> None:
        """Publish the job of a record; returns when the broker has it."""
        name = name_of_job(self._namespace, submission, record.job_name)
        config = submission.config
        options = self._route(name, config) | config.celery_options("property")
        if (priority := self._app.conf.task_default_priority) is not None:
            options.setdefault("priority", priority)
        send_job(
            self._app,
            producer,
            record.job_id,
            name,
            arguments_of(record),
            options={**options, "serializer": "json", "headers": self._headers(record)},
            timeout_seconds=self._timeout_seconds,
            kwargsrepr=shown_arguments(submission.snapshot.params, config),
            retries=record.retries,
            eta=None if record.retry_at_ms is None else datetime.fromtimestamp(record.retry_at_ms / 1000, UTC),
            # Of these `expires` is not the message's own expiration (AMQP), upon which the broker would drop the job
            # without a word: a worker that meets an expired job reports it.
            **config.celery_options("header"),
        )

    def _headers(self, record: TaskRecord) -> dict[str, Any]:
        signed = self._signer.headers(self._namespace, arguments_of(record), record.retries)
        return {FORMAT_HEADER: FORMAT, **signed}

    def _route(self, name: str, config: TaskConfig) -> dict[str, Any]:
        """The job's destination: the component's queue, else a matching route's, else the server's own.

        An explicit queue beats ``task_routes``, so none is given when a route matches.
        """
        router: Any = self._app.amqp.router
        if config.queue is not None:
            return router.route({"queue": self._queue(config.queue)}, name, (), {})
        options = dict(router.lookup_route(name, (), {}, {}) or {})
        if not options.get("queue") and not options.get("exchange"):
            options["queue"] = self._queue(self._default_queue)
        return router.expand_destination(options)

    def _queue(self, name: str) -> kombu.Queue:
        if name not in self._queues:
            self._queues[name] = queue_of(self._app, name)
        return self._queues[name]


@dataclass(frozen=True, slots=True)
class OwnPlan:
    """Fulfils :class:`mcp_celery.engine.Plan` for a component's own job."""

    jobs: OwnJobs
    submission: Submission

    @property
    def queue(self) -> str | None:
        """Where the job goes; None where a route names an exchange only."""
        return self.jobs.queue_name(self.submission)

    def publish(self, record: TaskRecord, producer: kombu.Producer) -> None:
        """Publish the job."""
        self.jobs.publish(record, self.submission, producer)


def name_of_job(namespace: str, submission: Submission, given: str | None = None) -> str:
    """What the job of a request is called: as its record (``given``) or the request says, else as its component."""
    component = submission.declared_as or submission.component
    return given or submission.job_name or job_name(namespace, submission.task_type, component)


def arguments_of(record: TaskRecord) -> JSONObject:
    """The keyword arguments of a record's job."""
    return {"key": record.key, "attempt": record.attempt, "leg": record.leg}
