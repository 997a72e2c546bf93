"""A connection to the broker that is never waited for long, and the one thread that publishes over it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import amqp
import kombu
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from mcp_celery.broker.blocking_calls import BlockingCalls
from mcp_celery.broker.cluster_mode import cluster_mode_problem
from mcp_celery.common.outage import Outage
from mcp_celery.engine import Unusable
from mcp_celery.errors import QueueRefusedError

_CONFIRMING_TRANSPORTS: Final = ("pyamqp", "amqp", "amqps")

_SQL: Final = "sql"
"""kombu's transport over a database gives all options to SQLAlchemy, which refuses those that it does not know."""
_SILENCE: Final = (TimeoutError, redis.TimeoutError)
"""What transports raise of a broker that does not answer in time."""

Answer = TypeVar("Answer")


def bounded(base: kombu.Connection, timeout_seconds: float) -> kombu.Connection:
    """A connection as another one, which is not open, but that gives up on a broker in time and confirms (AMQP).

    Args:
        base: The app's connection. It is not changed.
        timeout_seconds: How long the broker may take to answer.
    """
    options: dict[str, Any] = dict(base.transport_options or {})
    if base.transport.driver_type == _SQL:
        return base.clone(connect_timeout=timeout_seconds)
    if base.transport_cls in _CONFIRMING_TRANSPORTS:
        options["confirm_publish"] = True
    else:
        options.setdefault("socket_timeout", timeout_seconds)
        # redis-py would send a message again that the broker may have taken.
        options["retry_on_timeout"] = False
    options.setdefault("socket_connect_timeout", timeout_seconds)
    # kombu would wait for a broker that is gone, in the caller's thread and for longer each time. A publisher's request
    # gives up anyway, and the first one after the broker's return must not find the thread asleep.
    options.update(max_retries=1, interval_start=0, interval_step=0)
    return base.clone(transport_options=options, connect_timeout=timeout_seconds)


def unusable_broker(app: Celery, service: str, *, timeout_seconds: float) -> Unusable | None:
    """Connect to an app's broker, and wait for its answer.

    Args:
        app: Whose broker it is.
        service: The broker, with the setting that names it.
        timeout_seconds: How long it may take to answer.

    Returns:
        Why it cannot be used; None where it can.
    """
    with bounded(app.connection_for_write(), timeout_seconds) as connection:
        try:
            connection.ensure_connection(max_retries=0, interval_start=0)
            problem = cluster_mode_problem(connection)
        except Exception as error:  # noqa: BLE001 - transports raise their libraries' own errors, which have no common root
            return Unusable(service, failure_kind(error), reason_of(error), is_refusal(error))
    if problem is not None:
        return Unusable(service, "ClusterMode", problem, is_refusal=False, is_misfit=True)
    return None


def failure_kind(error: BaseException) -> str:
    """The name of the error of the transport's library."""
    return type(error.__cause__ or error).__name__


def reason_of(error: BaseException) -> str:
    """An error's kind; and its text, where the library is known to put no password into it."""
    cause = error.__cause__ or error
    known = isinstance(cause, OSError | redis.RedisError | amqp.AMQPError)
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300] if known else type(cause).__name__


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that the broker does not accept the user or the password."""
    return isinstance(error.__cause__ or error, redis.AuthenticationError | amqp.AccessRefused)


def is_silence(error: BaseException) -> bool:
    """Whether an error says that the broker did not answer, and not that it refused or broke the connection."""
    return isinstance(error, _SILENCE) or isinstance(error.__cause__, _SILENCE)


class Publisher:
    """Publishes in one thread, because more of them only wait for each other.

    Belongs to one event loop.

    Args:
        app: Whose broker it is.
        name: For its thread.
        timeout_seconds: How long the broker may take to answer, from when the thread begins with the work.
        idle_seconds: After which time without work the connection is replaced before the next.
        outage: Whether the broker is lost, where the owner keeps track of that.
    """

    def __init__(
        self,
        app: Celery,
        name: str,
        *,
        timeout_seconds: float,
        idle_seconds: float,
        outage: Outage | None = None,
    ) -> None:
        self._app = app
        self._timeout_seconds = timeout_seconds
        self._idle_seconds = idle_seconds
        # Each apart: with Redis, kombu has a connection for each channel.
        self._published_at = 0.0
        self._looked_at = 0.0
        self._calls = BlockingCalls(
            "the broker (MCP_CELERY_BROKER_URL)",
            name,
            threads=1,
            timeout_seconds=timeout_seconds,
            is_silence=is_silence,
            outage=outage,
        )
        self._connection: kombu.Connection | None = None
        self._producer: Any = None
        self._looking: Any = None

    async def do(
        self, work: Callable[[], Answer], *, longer_seconds: float = 0.0, may_be_repeated: bool = True
    ) -> Answer:
        """Do work in the thread, once more on a new connection if the old one broke: the broker may have restarted.

        Work that has not begun when this is cancelled is not done; what has begun is not stopped.

        Args:
            work: What to do.
            longer_seconds: How much longer than other work it may take.
            may_be_repeated: Whether it may be done once more when the broker may have done it already. Else it is done
                once, on a connection that works as far as can be seen.

        Raises:
            NoAnswerError: It did not begin, because the broker does not answer.
            TimeoutError: The broker did not answer in time.
            Exception: As the work raises it.
        """
        attempt = self._fresh_if_broken if may_be_repeated else self._once
        return await self._calls.call(lambda: attempt(work), longer_seconds=longer_seconds)

    async def do_at_last(self, work: Callable[[], Answer]) -> Answer:
        """As :meth:`do`, however long the broker takes to answer this and what comes before it."""
        return await self._calls.call_at_last(lambda: self._fresh_if_broken(work))

    def _fresh_if_broken(self, work: Callable[[], Answer]) -> Answer:
        had_connection = self._connection is not None
        try:
            return work()
        except QueueRefusedError:
            self._disconnect()  # RabbitMQ has closed the channel
            raise
        except (OperationalError, OSError, *self.broker_errors()) as error:
            self._drop()
            if not had_connection or is_silence(error):
                raise
            return work()

    def _once(self, work: Callable[[], Answer]) -> Answer:
        self._fresh_if_broken(self._check)
        try:
            return work()
        except QueueRefusedError:
            self._disconnect()  # RabbitMQ has closed the channel
            raise
        except (OperationalError, OSError, *self.broker_errors()):
            self._drop()
            raise

    def _check(self) -> None:
        """Connect; raise the transport's error where the broker has closed or reset the connection meanwhile.

        Redis' connections are checked by redis-py, whenever it takes one from its pool.
        """
        _ = self.producer().channel
        if self.connection().transport_cls in _CONFIRMING_TRANSPORTS:
            with suppress(TimeoutError):
                while True:  # until nothing is there to be read
                    self.connection().drain_events(timeout=0)

    def connection(self) -> kombu.Connection:
        """The connection; for work in the thread."""
        if self._connection is None:
            self._connection = bounded(self._app.connection_for_write(), self._timeout_seconds)
        return self._connection

    def producer(self) -> Any:
        """A producer on the connection; for work in the thread."""
        if self._producer is not None and self._is_idle(self._published_at):
            self._drop()
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self.connection(), auto_declare=False)
        self._published_at = time.monotonic()
        return self._producer

    def looking_channel(self) -> Any:
        """A channel to look at queues with; for work in the thread.

        It is of its own: AMQP closes the channel when there is no such queue, and py-amqp opens it again.
        """
        if self._looking is not None and self._is_idle(self._looked_at):
            self._drop()
        if self._looking is None:
            self._looking = self.connection().channel()
        self._looked_at = time.monotonic()
        return self._looking

    def broker_errors(self) -> tuple[type[BaseException], ...]:
        """Errors of the transport in use; the broker's library decides which they are."""
        connection = self._connection or self._app.connection_for_write()
        return (*connection.connection_errors, *connection.channel_errors)

    def refusals(self) -> tuple[type[BaseException], ...]:
        """What else a publish may end in, for example a message that AMQP's broker did not confirm."""
        connection = self._connection or self._app.connection_for_write()
        return connection.recoverable_connection_errors

    def _drop(self) -> None:
        """Close the connection without a word to the broker. It may not hear it, and AMQP would wait for its answer."""
        if (connection := self._forget()) is not None:
            connection.collect()

    def _disconnect(self) -> None:
        if self._is_idle(max(self._published_at, self._looked_at)):
            self._drop()
        elif (connection := self._forget()) is not None:
            connection.release()

    def _is_idle(self, used_at: float) -> bool:
        return time.monotonic() - used_at > self._idle_seconds

    def _forget(self) -> kombu.Connection | None:
        connection, self._connection, self._producer, self._looking = self._connection, None, None, None
        return connection

    async def aclose(self, *, patience_seconds: float) -> None:
        """Let what is being published finish, and close the connection.

        Args:
            patience_seconds: How long that may take. A thread that hangs longer is left to its end.
        """
        await self._calls.aclose(self._disconnect, patience_seconds=patience_seconds)
