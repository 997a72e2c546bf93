"""Messages that the task store puts into a queue itself, where it and the broker are one Redis database.

Record and message are one step and one round trip then, without the publisher's thread. kombu writes the message, over
a connection that goes nowhere: the channel's Redis client keeps what it is called for. Whatever is not exactly one
``LPUSH`` to the queue is published as with any other broker.

Provisional seam: kombu's ``Channel`` of Redis asks ``_create_client`` for its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import kombu
from celery import Celery, signals
from celery.app.routes import MapRoute
from kombu.transport import redis as redis_transport

from mcp_celery.broker.job_message import declared_mark, serializer_of_messages
from mcp_celery.broker.own_jobs import OwnJobs, name_of_job
from mcp_celery.broker.queue_limit import LOOK_SECONDS
from mcp_celery.broker.queues import arguments_of
from mcp_celery.engine import QueueMessage, Submission, TaskRecord
from mcp_celery.errors import MessageRefusedError
from mcp_celery.logs import get_logger
from mcp_celery.telemetry.traces import publishing

logger = get_logger(__name__)

_WATCHED: Final[Sequence[Any]] = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
"""Their receivers may change a message, take time, and see each that is published."""


class _OtherCommandError(AttributeError):
    """kombu would send another command than the one ``LPUSH``."""


class _Client:
    """Stands for kombu's Redis client: keeps the message, and sends nothing."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str | bytes]] = []

    def ping(self) -> bool:
        """Answer kombu, which asks when it makes a channel."""
        return True

    def lpush(self, key: str, *payloads: str | bytes) -> int:
        """Keep messages."""
        self._messages += ((key, payload) for payload in payloads)
        return len(self._messages)

    def __getattr__(self, name: str) -> Any:
        raise _OtherCommandError(name)

    def take(self) -> list[tuple[str, str | bytes]]:
        """The messages since the last call, each with its key."""
        messages, self._messages = self._messages, []
        return messages


class _Channel(redis_transport.Channel):
    """kombu's channel, without a connection."""

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ARG002 - one for all
        return _Client()

    def conn_or_acquire(self, client: Any = None) -> Any:
        return super().conn_or_acquire(client or self.client)


class _Transport(redis_transport.Transport):
    Channel = _Channel


@dataclass(frozen=True, slots=True)
class _Writer:
    """What writes messages.

    Attributes:
        producer: kombu's.
        channel: The producer's.
    """

    producer: kombu.Producer
    channel: Any

    def lanes(self, queue: str) -> tuple[str, ...]:
        """The keys of a queue's messages, one for each priority."""
        channel = self.channel
        names = (channel._q_for_pri(queue, priority) for priority in channel.priority_steps)
        return tuple(f"{channel.global_keyprefix}{name}" for name in names)


class StoreMessages:
    """Writes the messages of own jobs for the store. Belongs to one event loop, and never blocks it.

    The first job of each kind is published over a connection to the broker, which also makes its queue known there.

    Args:
        app: The Celery app whose broker is used.
        jobs: Gives jobs their queues and options.
        namespace: The server's.
        most: How many messages may wait in a queue, None for any number.
        holds_queues_at: Says of the URL of a Redis broker, and of what the names of its queues begin with, whether the
            store can put messages into them.
    """

    def __init__(
        self,
        app: Celery,
        jobs: OwnJobs,
        *,
        namespace: str,
        most: int | None,
        holds_queues_at: Callable[[str, str], bool],
    ) -> None:
        self._app = app
        self._jobs = jobs
        self._namespace = namespace
        self._most = most
        self._holds_queues_at = holds_queues_at
        self._writer: _Writer | None = None
        self._is_off = False
        self._queues: dict[tuple[str, str | None], str | None] = {}
        """By the Celery name of a job and its component's queue, where the store puts its messages; None: nowhere."""

    @contextmanager
    def message_of(self, record: TaskRecord, submission: Submission) -> Generator[QueueMessage | None]:
        """As :meth:`mcp_celery.engine.TaskQueue.message_of`."""
        if submission.plan is not None or self._is_off or self._is_watched:
            yield None
            return
        kind = self._kind(record, submission)
        if (queue := self._queues.get(kind)) is None:
            yield None
            return
        with ExitStack() as span:
            span.enter_context(publishing(record))
            message = self._written(record, submission, queue)
            if message is None:
                self._queues[kind] = None
                span.close()
            try:
                yield message
            except MessageRefusedError as error:
                self._is_off = True
                logger.info(
                    "publishing jobs over connections to the broker, not together with their records: %s", error.reason
                )
                raise

    def close(self) -> None:
        """Write no more messages."""
        self._is_off = True
        if self._writer is not None:
            connection: Any = self._writer.producer.connection
            connection.release()

    def learn(self, record: TaskRecord, submission: Submission) -> None:
        """Find out whether the store can have the messages of such jobs, when one has been published otherwise.

        A message is written to find that out, of which receivers of Celery's signals must not hear.
        """
        kind = self._kind(record, submission)
        if self._is_off or self._is_watched or kind in self._queues:
            return
        try:
            queue = self._queue_to_write(submission, kind[0])
            is_written = queue is not None and self._written(record, submission, queue) is not None
            self._queues[kind] = queue if is_written else None
        except Exception:
            # What a later release of kombu or a host's own classes do here must not fail a request.
            logger.warning(
                "publishing jobs over connections to the broker, not together with their records", exc_info=True
            )
            self._is_off = True

    @property
    def _is_watched(self) -> bool:
        return any(signal.receivers for signal in _WATCHED) or self._jobs.sends_events

    def _kind(self, record: TaskRecord, submission: Submission) -> tuple[str, str | None]:
        return name_of_job(self._namespace, submission, record.job_name), submission.config.queue

    def _queue_to_write(self, submission: Submission, name: str) -> str | None:
        """The queue of a message that can be written on the event loop, and says everything that kombu knows of the
        queue; None for another one.
        """
        if self._writer is None:
            self._writer = self._opened()
        amqp: Any = self._app.amqp
        routes: Sequence[object] = amqp.router.routes
        if self._writer is None or serializer_of_messages(self._app) != "json":
            self._is_off = True
            return None
        if not all(isinstance(route, MapRoute) for route in routes):
            return None  # a function of the host's, which may block
        queue: Any = self._jobs.queue_to_declare(name, submission.config)
        if queue is None or queue.expires is not None or "x-expires" in arguments_of(queue):
            return None
        connection: Any = self._writer.producer.connection
        connection.declared_entities.add(declared_mark(queue))
        return str(queue.name)

    def _opened(self) -> _Writer | None:
        """What writes messages; None where the broker is not the store's database."""
        base: Any = self._app.connection_for_write()
        if base.alt or base.get_transport_cls() is not redis_transport.Transport:
            return None
        connection = base.clone()
        connection.transport_cls = _Transport  # as an argument it loses against the scheme of redis+socket://
        channel = connection.default_channel
        if not isinstance(channel.client, _Client) or not self._holds_queues_at(
            _url_of(channel.pool.connection_kwargs), channel.global_keyprefix
        ):
            return None
        amqp: Any = self._app.amqp
        return _Writer(amqp.Producer(connection, auto_declare=False), channel)

    def _written(self, record: TaskRecord, submission: Submission, queue: str) -> QueueMessage | None:
        """The message of a job; None where kombu would do more than push it into its queue."""
        writer = self._writer
        if writer is None:
            return None
        client = writer.channel.client
        try:
            self._jobs.publish(record, submission, writer.producer)
        except _OtherCommandError:
            client.take()
            return None
        messages = client.take()
        if len(messages) != 1:
            return None
        (key, payload) = messages[0]
        if key != queue:
            return None  # that of a priority
        return QueueMessage(
            queue=f"{writer.channel.global_keyprefix}{key}",
            payload=payload,
            lanes=() if self._most is None else writer.lanes(key),
            most=self._most,
            retry_after_ms=round(LOOK_SECONDS * 1000),
        )


def _url_of(options: dict[str, Any]) -> str:
    """The database that kombu connects to, as a URL.

    Args:
        options: Those of redis-py's connections.
    """
    username = options.get("username")
    user = "" if username is None else f"{quote(str(username), safe='')}@"
    if path := options.get("path"):
        return f"unix://{user}{quote(str(path))}?db={options['db']}"
    host = str(options["host"])
    return f"redis://{user}{f'[{host}]' if ':' in host else quote(host)}:{options['port']}/{options['db']}"
