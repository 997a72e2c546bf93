"""A worker declares the queues of its servers' jobs before it consumes them. Celery loads this module in workers only.

Celery declares them too. But where RabbitMQ refuses, Celery shows a traceback, or connects again for ever
(``broker_channel_error_retry``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import kombu
from celery import Celery, bootsteps
from celery.exceptions import WorkerShutdown

from mcp_celery.broker.queues import QueueUse, declare, require_priorities
from mcp_celery.errors import ConfigurationError
from mcp_celery.logs import get_logger
from mcp_celery.worker.celery.bootsteps import AMQP_TRANSPORTS, runtimes

logger = get_logger(__name__)


class DeclareQueues(bootsteps.StartStopStep):
    """A step of a worker, which comes before its consumer as all steps do. Only RabbitMQ refuses queues."""

    def start(self, parent: Any) -> None:
        """Connect to the broker, as long as that takes, and declare the queues.

        Raises:
            WorkerShutdown: RabbitMQ refuses one, or has no priorities there. The log says so in one line.
        """
        app: Celery = parent.app
        uses = uses_of(app)
        if not uses or app.connection_for_read().transport_cls not in AMQP_TRANSPORTS:
            return
        consumer = parent.consumer
        try:
            # It waits for a broker that does not answer as the settings say, and heeds signals meanwhile.
            with consumer.connection_for_read() as connection:
                _declare(uses, connection)
        except (*consumer.connection_errors, *consumer.channel_errors) as error:
            # A lost connection, a user who may not declare: the consumer meets it too, as Celery's settings say.
            logger.warning("could not declare the queues before they are consumed: %s", type(error).__name__)


def _declare(uses: Sequence[QueueUse], connection: kombu.Connection) -> None:
    try:
        require_priorities(uses, connection)
    except ConfigurationError as error:
        _end(str(error))
    for queue in {use.queue.name: use.queue for use in uses}.values():
        if (refusal := declare(queue, connection)) is not None:
            _end(refusal)


def uses_of(app: Celery) -> list[QueueUse]:
    """The requirements of this package's jobs for the queues that a worker consumes."""
    amqp: Any = app.amqp
    consumed: Mapping[str, kombu.Queue] = amqp.queues.consume_from
    return [
        QueueUse(one.name, consumed[one.queue], one.priority)
        for runtime in runtimes(app)
        for one in runtime.held
        if one.queue is not None and one.queue in consumed
    ]


def _end(reason: str) -> NoReturn:
    logger.critical("the worker ends: %s", reason)
    raise WorkerShutdown(1)
