"""Celery's message for one job, sent without a result subscription.

No ``AsyncResult`` is made: ``app.amqp.send_task_message`` is what ``app.send_task`` calls after it has subscribed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kombu
from celery import Celery


def send_job(
    app: Celery,
    producer: kombu.Producer,
    job_id: str,
    name: str,
    arguments: dict[str, Any],
    *,
    options: Mapping[str, Any],
    timeout_seconds: float,
    **headers: Any,
) -> None:
    """Publish one job; returns when the broker has it.

    Args:
        app: The app whose settings are used.
        producer: On a connection of ours.
        job_id: Celery id of the job.
        name: Celery name of the job.
        arguments: Its keyword arguments.
        options: The destination, and properties of the message.
        timeout_seconds: How long it may take.
        headers: Further arguments of ``create_task_message``, such as ``kwargsrepr``, ``expires`` and ``retries``.
    """
    amqp: Any = app.amqp
    message = amqp.create_task_message(
        job_id,
        name,
        (),
        arguments,
        **headers,
        create_sent_event=app.conf.task_send_sent_event,
        argsrepr="()",
        ignore_result=False,
    )
    # Without a limit, a broker that takes a message but does not confirm it blocks the thread and later messages.
    limits = {"timeout": timeout_seconds, "confirm_timeout": timeout_seconds}
    amqp.send_task_message(producer, name, message, retry=False, **{**options, **limits})
