"""Publishing a component's own job: its name, its queue and its message."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kombu
from celery import Celery

from mcp_celery.broker.job_message import FINGERPRINT_HEADER, STORE_HEADER, send_job, serializer_of_messages
from mcp_celery.broker.naming import job_name
from mcp_celery.broker.queues import QueueUse, queue_of
from mcp_celery.common.formats import FORMAT, FORMAT_HEADER
from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject, Lane, Submission, TaskRecord, now_ms
from mcp_celery.redaction import shown_arguments
from mcp_celery.sealing import UNSIGNED, MessageSigner
from mcp_celery.telemetry.traces import message_headers


class OwnJobs:
    """The jobs of a server's components.

    Args:
        app: The Celery app whose broker, routes and queues are used. Its settings are read, never changed.
        namespace: Namespace of the server, in the names of jobs.
        default_queue: Queue of the jobs that neither the component nor a route sends elsewhere.
        timeout_seconds: How long a publish may take.
        signer: Signs the messages.
        store_mark: Gives what a message says of the store that keeps its record; None where that is not known yet.
        is_app_default: As ``is_default`` of :func:`mcp_celery.broker.queues.queue_of`, for the default queue.
    """

    def __init__(
        self,
        app: Celery,
        *,
        namespace: str,
        default_queue: str,
        timeout_seconds: float,
        signer: MessageSigner = UNSIGNED,
        store_mark: Callable[[], str | None] = lambda: None,
        is_app_default: bool = False,
    ) -> None:
        self._store_mark = store_mark
        self._signer = signer
        self._is_app_default = is_app_default
        self._app = app
        self._namespace = namespace
        self._default_queue = default_queue
        self._timeout_seconds = timeout_seconds
        # By name, of what components declare. Making one anew for each publish reads a dozen of Celery's settings.
        self._queues: dict[str, kombu.Queue] = {}

    # Celery looks a setting up in several mappings, which costs more than a message's other fields.

    @functools.cached_property
    def sends_events(self) -> bool:
        """Whether the app sends an event for each message."""
        return bool(self._app.conf.task_send_sent_event)

    @functools.cached_property
    def _serializer(self) -> str:
        return serializer_of_messages(self._app)

    @functools.cached_property
    def _default_priority(self) -> int | None:
        return self._app.conf.task_default_priority

    def queue_name(self, submission: Submission) -> str | None:
        """Where the job of a request goes; None where a route names an exchange only."""
        return self.queue_of_job(name_of_job(self._namespace, submission), submission.config)

    def queue_of_job(self, name: str, config: TaskConfig) -> str | None:
        """Where a job goes; None where a route names an exchange only. Makes no queue known to the app.

        Args:
            name: Celery name of the job.
            config: What its component declares.
        """
        if config.queue is not None:
            return config.queue
        route = self._looked_up(name)
        if (queue := route.get("queue")) is not None:
            return str(getattr(queue, "name", queue))
        return None if route.get("exchange") else self._default_queue

    def lane(self, name: str, config: TaskConfig) -> Lane:
        """Where jobs wait. Makes no queue known to the app.

        Args:
            name: Celery name of the job.
            config: What its component declares.
        """
        options = self._with_properties(self._looked_up(name), config)
        queue = self.queue_of_job(name, config)
        exchange = options.get("exchange")
        named = (str(getattr(exchange, "name", exchange)), str(options.get("routing_key")))
        return Lane(queue, options.get("priority"), named if queue is None else None)

    def queue_to_declare(self, name: str, config: TaskConfig) -> kombu.Queue | None:
        """The queue of a job as workers declare it; None where a route names an exchange only.

        Args:
            name: Celery name of the job.
            config: What its component declares.
        """
        queue = self.queue_of_job(name, config)
        return None if queue is None else self._queue(queue)

    def use(self, name: str, config: TaskConfig, component: str) -> QueueUse | None:
        """What a component's jobs want of their queue; None where a route names an exchange only.

        Args:
            name: Celery name of its jobs.
            config: What it declares.
            component: The component, for people.
        """
        queue = self.queue_to_declare(name, config)
        return None if queue is None else QueueUse(component, queue, self.lane(name, config).priority)

    def _looked_up(self, name: str) -> dict[str, Any]:
        """What ``task_routes`` say of a job; a router of the host's may also give just the name of a queue."""
        router: Any = self._app.amqp.router
        route: Any = router.lookup_route(name, (), {}, {}) or {}
        return {"queue": route} if isinstance(route, str) else dict(route)

    def publish(self, record: TaskRecord, submission: Submission, producer: kombu.Producer) -> None:
        """Publish the job of a record; returns when the broker has it."""
        name = name_of_job(self._namespace, submission, record.job_name)
        config = submission.config
        options = self._with_properties(self._route(name, config), config)
        send_job(
            self._app,
            producer,
            record.job_id,
            name,
            arguments_of(record),
            options={**options, "serializer": self._serializer, "headers": self._headers(record)},
            timeout_seconds=self._timeout_seconds,
            create_sent_event=self.sends_events,
            kwargsrepr=shown_arguments(submission.snapshot.params, config),
            retries=record.retries,
            eta=_time_of(record.retry_at_ms),
            **self._header_options(record, config),
        )

    @staticmethod
    def _header_options(record: TaskRecord, config: TaskConfig) -> dict[str, Any]:
        """What a component declares for the headers of a job's message.

        ``expires`` is when the record says that the job is too late. It is not the message's own expiration (AMQP),
        upon which the broker would drop the job without a word: a worker that meets an expired job reports it.
        """
        options = config.celery_options("header")
        return options if "expires" not in options else options | {"expires": _time_of(record.start_before_ms)}

    def publish_webhook(self, name: str, webhook_id: str, config: TaskConfig, producer: kombu.Producer) -> None:
        """Publish the job that delivers a webhook; returns when the broker has it.

        Args:
            name: Celery name of the job.
            webhook_id: The webhook's id, all that the message holds of it.
            config: Names the queue, where it has one of its own.
            producer: On a connection of ours.
        """
        options = self._with_properties(self._route(name, config), config)
        send_job(
            self._app,
            producer,
            str(uuid.uuid4()),
            name,
            {"webhook_id": webhook_id},
            options={**options, "serializer": self._serializer},
            timeout_seconds=self._timeout_seconds,
            create_sent_event=self.sends_events,
            ignore_result=True,
            **config.celery_options("header"),
        )

    def _headers(self, record: TaskRecord) -> dict[str, Any]:
        signed = self._signer.headers(self._namespace, arguments_of(record), record.retries)
        version = {} if record.fingerprint is None else {FINGERPRINT_HEADER: record.fingerprint}
        store = {} if (mark := self._store_mark()) is None else {STORE_HEADER: mark}
        available_at_ms = max(now_ms(), record.retry_at_ms or 0)
        return {FORMAT_HEADER: FORMAT, **version, **store, **message_headers(available_at_ms), **signed}

    def _with_properties(self, route: dict[str, Any], config: TaskConfig) -> dict[str, Any]:
        """A job's route, with what its component declares for its message, and its priority."""
        options = route | config.celery_options("property")
        if self._default_priority is not None:
            options.setdefault("priority", self._default_priority)
        return options

    def _route(self, name: str, config: TaskConfig) -> dict[str, Any]:
        """The job's destination: the component's queue, else a matching route's, else the server's own.

        An explicit queue beats ``task_routes``, so none is given when a route matches.
        """
        router: Any = self._app.amqp.router
        if config.queue is not None:
            return router.route({"queue": self._queue(config.queue)}, name, (), {})
        options = self._looked_up(name)
        if not options.get("queue") and not options.get("exchange"):
            options["queue"] = self._default_queue
        if options.get("queue") == self._default_queue:  # Celery refuses others that the host does not have
            options["queue"] = self._queue(self._default_queue)
        return router.expand_destination(options)

    def _queue(self, name: str) -> kombu.Queue:
        if name not in self._queues:
            is_default = self._is_app_default and name == self._default_queue
            self._queues[name] = queue_of(self._app, name, is_default=is_default)
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


def _time_of(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)


def name_of_job(namespace: str, submission: Submission, given: str | None = None) -> str:
    """What the job of a request is called: as its record (``given``) or the request says, else as its component."""
    component = submission.declared_as or submission.component
    return given or submission.job_name or job_name(namespace, submission.task_type, component)


def arguments_of(record: TaskRecord) -> JSONObject:
    """The keyword arguments of a record's job."""
    return {"key": record.key, "attempt": record.attempt, "leg": record.leg}
