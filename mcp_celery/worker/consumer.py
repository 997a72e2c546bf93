"""A worker's consumer that outlives its broker. Celery loads it in workers only (the setting ``worker_consumer``).

With Redis as broker, kombu 5.7 leaves a lost channel half closed: what is done with it afterwards ends in an
``AttributeError`` instead of one of the broker's errors, and that would end the worker with every job that runs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.worker import state
from kombu.common import ignore_errors

if TYPE_CHECKING:

    class _Consumer:
        connection: Any

        def on_connection_error_after_connected(self, exc: BaseException) -> None: ...
else:
    from celery.worker.consumer import Consumer as _Consumer

logger = logging.getLogger(__name__)


class Consumer(_Consumer):
    """Celery's, but it lets go of a lost connection, whatever state that is in."""

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Give up a lost connection; Celery makes another one, on which the broker delivers what was not acknowledged.

        Jobs that run go on. Their messages cannot be acknowledged any more, so nobody shall try; delivered again, they
        are dropped, since a body begins once.
        """
        connection = self.connection
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            logger.info("the lost connection to the broker is closed once more: %s", error)
            ignore_errors(connection, connection.close)
        for request in tuple(state.active_requests):
            request.acknowledged = True
