"""Celery's message for one job, sent without a result subscription.

No ``AsyncResult`` is made: ``app.amqp.send_task_message`` is what ``app.send_task`` calls after it has subscribed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import kombu
from celery import Celery
from kombu import serialization

from mcp_celery.broker.queues import is_refusal, queue_of, refusal_of
from mcp_celery.errors import ConfigurationError, QueueRefusedError

SIGNED: Final = "auth"
"""Celery's serializer that signs messages with the host's certificates, around JSON."""
_content_types: Final[Mapping[str, str]] = cast(Any, serialization).registry.name_to_type
"""The content types of the serializers that this process has, by their names."""


def serializer_of_messages(app: Celery) -> str:
    """The serializer of our own messages: JSON whatever the host's are, unless the host signs its messages."""
    return SIGNED if app.conf.task_serializer == SIGNED else "json"


def require_serializer(app: Celery) -> None:
    """Refuse an app that cannot write our messages.

    Raises:
        ConfigurationError: Its messages are to be signed, and this process has not set up how.
    """
    if serializer_of_messages(app) not in _content_types:
        raise ConfigurationError(
            "task_serializer is 'auth', but the app has no keys to sign with: call app.setup_security() where the "
            "Celery app is made"
        )


def accepts_messages(app: Celery) -> bool:
    """Whether workers of an app read our messages."""
    accepted: Iterable[object] = app.conf.accept_content or ()
    needed = _content_types[serializer_of_messages(app)]
    return needed in {_content_types.get(str(one), str(one)) for one in accepted}


FINGERPRINT_HEADER: Final = "mcp_celery_component"
"""The header of a job's message that holds the fingerprint of the server's component. It is a hint, and not signed: a
worker's parent process looks at it, so that jobs for another version take no slot. The record decides.
"""
STORE_HEADER: Final = "mcp_celery_store"
"""The header of a job's message that names the store of the record (``engine/store_mark.py``). Not signed either:
what it says counts only where a worker's store has no such record.
"""


def declared_mark(queue: kombu.Queue | str | None) -> tuple[str, str]:
    """What stands among a connection's ``declared_entities`` for a queue that jobs need not declare there."""
    return "mcp_celery", str(getattr(queue, "name", queue))


def send_job(
    app: Celery,
    producer: kombu.Producer,
    job_id: str,
    name: str,
    arguments: dict[str, Any],
    *,
    options: Mapping[str, Any],
    timeout_seconds: float,
    ignore_result: bool = False,
    **headers: Any,
) -> None:
    """Publish one job; returns when the broker has it.

    Args:
        app: The app whose settings are used.
        producer: On one of this package's connections.
        job_id: Celery id of the job.
        name: Celery name of the job.
        arguments: Its keyword arguments.
        options: The destination, and properties of the message.
        timeout_seconds: How long it may take.
        ignore_result: Whether Celery keeps no result of the job.
        headers: Further arguments of ``create_task_message``, such as ``kwargsrepr``, ``create_sent_event`` and
            ``retries``.

    Raises:
        QueueRefusedError: RabbitMQ has the queue with other arguments.
        Exception: The transport's other errors.
    """
    amqp: Any = app.amqp
    message = amqp.create_task_message(
        job_id,
        name,
        (),
        arguments,
        **headers,
        argsrepr="()",
        ignore_result=ignore_result,
    )
    # kombu copies and binds a queue for each message that is to declare it, and then sees that the connection has
    # declared it. The mark stands beside kombu's own, and goes with them when the connection is made anew.
    broker: Any = producer
    declared: set[Any] = broker.connection.declared_entities
    queue: Any = options.get("queue")
    mark = declared_mark(queue)
    if mark in declared:
        options = {**options, "declare": []}
    # Without a limit, a broker that takes a message but does not confirm it blocks the thread and later messages.
    limits = {"timeout": timeout_seconds, "confirm_timeout": timeout_seconds}
    # RabbitMQ confirms, and drops, a message that reaches no queue, for example because it was deleted. With
    # `mandatory` that is an error; the publisher tries again on a new connection, and declares the queue there.
    try:
        amqp.send_task_message(producer, name, message, retry=False, **{**options, **limits, "mandatory": True})
    except Exception as error:
        if not is_refusal(error):
            raise
        queue = queue or amqp.default_queue
        queue = queue_of(app, queue) if isinstance(queue, str) else queue
        reason = refusal_of(error, queue, broker.connection)
        raise QueueRefusedError(reason or str(error)) from error
    if queue is not None:
        declared.add(mark)
