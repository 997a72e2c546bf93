"""A worker's consumer that outlives its broker. Celery loads it in workers only (the setting ``worker_consumer``).

With Redis as broker, kombu 5.7 leaves a lost channel half closed: what is done with it afterwards ends in an
``AttributeError`` instead of one of the broker's errors, and that would end the worker with every job that runs. Here
the channel is closed once more, and :mod:`mcp_celery.worker.celery.intake` acknowledges nothing on it afterwards.

It also sends the events of jobs in groups. Each message of events costs about what half a job costs the worker.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from celery.exceptions import WorkerShutdown
from celery.worker import state
from kombu.common import ignore_errors

from mcp_celery.broker.queues import is_refusal
from mcp_celery.worker.celery.claims import StartingJobs
from mcp_celery.worker.celery.hub_call import HubCall
from mcp_celery.worker.celery.intake import tolerate

if TYPE_CHECKING:

    class _Consumer:
        app: Any
        pool: Any
        connection: Any
        connection_errors: tuple[type[BaseException], ...]
        channel_errors: tuple[type[BaseException], ...]
        hub: Any

        def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]: ...
        def ensure_connected(self, conn: Any) -> Any: ...
        def _flush_events(self) -> None: ...
        def shutdown(self) -> None: ...
        def on_connection_error_after_connected(self, exc: BaseException) -> None: ...
else:
    from celery.worker.consumer import Consumer as _Consumer

logger = logging.getLogger(__name__)

EVENTS_SECONDS: Final = 0.05
"""How long the events of jobs may wait for others. As many as Celery's buffer holds are sent at once."""


class Consumer(_Consumer):
    """Celery's, but it lets go of a lost connection, whatever state that is in, outlives items that are no messages,
    and sends events in groups.
    """

    @functools.cached_property
    def starting(self) -> StartingJobs:
        """The jobs whose claim is left to their start."""
        return StartingJobs(self)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Connect to the broker. What is no message in a queue is dropped."""
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        self._prepare(connection)
        return self.ensure_connected(connection)

    def _prepare(self, connection: Any) -> None:
        """Set up a connection that is not open yet."""
        tolerate(connection)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """What is called with each message. One that Celery cannot read is rejected, and ends no worker."""
        handle = super().create_task_handler(*args, **options)
        # kombu counts KeyError among the errors of a connection, so that a message without an id would have the worker
        # connect again and get the message again, without end.
        lost = tuple(
            error for error in (*self.connection_errors, *self.channel_errors) if not issubclass(error, LookupError)
        )

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except lost:
                raise
            except Exception as error:  # noqa: BLE001 - Celery and kombu read the message's fields as they are
                logger.error("rejected a message that cannot be read: %s", type(error).__name__)
                if not message.acknowledged:
                    message.reject_log_error(logger, self.connection_errors)

        return on_task_received

    @functools.cached_property
    def _sending(self) -> HubCall:
        return HubCall(self._flush_events, EVENTS_SECONDS)

    def on_send_event_buffered(self) -> None:
        """Have the events of jobs sent soon. Celery would send them each time that the loop is idle."""
        self._sending.ask(self.hub)

    def shutdown(self) -> None:
        """End, when the last job has."""
        self._flush_events()
        super().shutdown()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Give up a lost connection; Celery makes another one, on which the broker delivers what was not acknowledged.

        Jobs that run go on, and those that wait in the pool run later. Their messages cannot be acknowledged any more;
        delivered again, they are dropped, since a body begins once. No code tries for those that run. On Redis the
        channel does nothing for all others.

        Raises:
            WorkerShutdown: RabbitMQ refuses a queue, which it would do each time.
        """
        connection = self.connection
        if is_refusal(exc):
            logger.critical("the worker ends: %s", exc)
            raise WorkerShutdown(1) from exc
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            logger.info("the lost connection to the broker is closed once more: %s", error)
            ignore_errors(connection, connection.close)
        for request in tuple(state.active_requests):
            request.acknowledged = True
