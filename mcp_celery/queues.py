"""Queues of a Celery app, as its workers declare them."""

from __future__ import annotations

from typing import Any

import kombu
from celery import Celery


def queue_of(app: Celery, name: str) -> kombu.Queue:
    """A queue as servers and workers both declare it, since RabbitMQ refuses to declare one in two ways.

    It is the host's, or else made as the host's settings say (its type, its highest priority), but not among the
    host's. Never a bare name, which is refused under ``task_create_missing_queues=False``.
    """
    amqp: Any = app.amqp
    return amqp.queues.get(name) or amqp.Queues({}, create_missing=True)[name]
