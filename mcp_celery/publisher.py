"""A connection to the broker that is never waited for long, and the one thread that publishes over it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import kombu
from celery import Celery
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

_CONFIRMING_TRANSPORTS: Final = ("pyamqp", "amqp", "amqps")

Answer = TypeVar("Answer")


def bounded(base: kombu.Connection, timeout_seconds: float) -> kombu.Connection:
    """A connection as another one, which is not open, but that gives up on a broker in time and confirms (AMQP).

    Args:
        base: The app's connection. It is not changed.
        timeout_seconds: How long the broker may take to answer.
    """
    options: dict[str, Any] = dict(base.transport_options or {})
    if base.transport_cls in _CONFIRMING_TRANSPORTS:
        options["confirm_publish"] = True
    else:
        options.setdefault("socket_timeout", timeout_seconds)
    options.setdefault("socket_connect_timeout", timeout_seconds)
    # kombu would wait for a broker that is gone, in the caller's thread and for longer each time. A publisher's request
    # gives up anyway, and the first one after the broker's return must not find the thread asleep.
    options.update(max_retries=1, interval_start=0, interval_step=0)
    return base.clone(transport_options=options, connect_timeout=timeout_seconds)


class Publisher:
    """Publishes in one thread, because more of them only wait for each other.

    Args:
        app: Whose broker it is.
        name: For its thread.
        timeout_seconds: How long the broker may take to answer.
    """

    def __init__(self, app: Celery, name: str, *, timeout_seconds: float) -> None:
        self._app = app
        self._timeout_seconds = timeout_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: kombu.Connection | None = None
        self._producer: Any = None
        self._looking: Any = None

    async def do(self, work: Callable[[], Answer]) -> Answer:
        """Do work in the thread, once more on a new connection if the old one broke: the broker may have restarted.

        Work that has not begun when this is cancelled is not done; what has begun is not stopped.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._fresh_if_broken, work)

    def _fresh_if_broken(self, work: Callable[[], Answer]) -> Answer:
        had_connection = self._connection is not None
        try:
            return work()
        except (OperationalError, OSError, *self.broker_errors()):
            self._disconnect()
            if not had_connection:
                raise
            return work()

    def connection(self) -> kombu.Connection:
        """The connection; for work in the thread."""
        if self._connection is None:
            self._connection = bounded(self._app.connection_for_write(), self._timeout_seconds)
        return self._connection

    def producer(self) -> Any:
        """A producer on the connection; for work in the thread."""
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self.connection(), auto_declare=False)
        return self._producer

    def looking_channel(self) -> Any:
        """A channel to look at queues with; for work in the thread.

        It is of its own: AMQP closes the channel when there is no such queue, and py-amqp opens it again.
        """
        if self._looking is None:
            self._looking = self.connection().channel()
        return self._looking

    def broker_errors(self) -> tuple[type[BaseException], ...]:
        """Errors of the transport in use; the broker's library decides which they are."""
        connection = self._connection or self._app.connection_for_write()
        return (*connection.connection_errors, *connection.channel_errors)

    def refusals(self) -> tuple[type[BaseException], ...]:
        """What else a publish may end in, for example a message that AMQP's broker did not confirm."""
        connection = self._connection or self._app.connection_for_write()
        return connection.recoverable_connection_errors

    def _disconnect(self) -> None:
        connection, self._connection, self._producer, self._looking = self._connection, None, None, None
        if connection is not None:
            connection.release()

    async def aclose(self, *, patience_seconds: float) -> None:
        """Let what is being published finish, and close the connection.

        Args:
            patience_seconds: How long that may take. A thread that hangs longer is left to its end.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_seconds):
                await loop.run_in_executor(self._thread, self._disconnect)
        except TimeoutError:
            logger.warning("the broker (MCP_CELERY_BROKER_URL) does not answer, and is not waited for any longer")
            self._thread.shutdown(wait=False, cancel_futures=True)
        else:
            await loop.run_in_executor(None, self._thread.shutdown)
