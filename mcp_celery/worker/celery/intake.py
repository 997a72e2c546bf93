"""What ends a worker on kombu's Redis transport, and ends none here: items that are no messages, and lost channels.

With Redis as broker, kombu 5.7 takes an item off its list before it reads it, and an error of the reading ends the
worker's loop, and with it the worker. Such an item is dropped and logged; it is gone from the queue already.

A message of a lost connection may still be acknowledged or rejected: its job has waited in the pool meanwhile, or the
task store has not answered. Its channel has no connection then, and kombu raises ``AttributeError``, which is none of
the broker's errors and ends the worker, too. The broker delivers the message again whatever is done with it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import redis
from kombu import Connection
from kombu.transport import virtual

logger = logging.getLogger(__name__)

_NO_MESSAGE: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    redis.DataError,
)
"""What kombu raises for an item that is no message."""

if TYPE_CHECKING:

    class _Channel:
        client: Any
        connection: Any
        active_queues: Any

        def basic_consume(
            self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **options: Any
        ) -> Any: ...
        def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None: ...
        def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None: ...
        def _brpop_read(self, **options: Any) -> bool: ...
else:
    _Channel = object


class TolerantChannel(_Channel):
    """A mixin for the channels of kombu's Redis transports."""

    _is_handed_on = False

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **options: Any
    ) -> Any:
        """Consume from a queue, and note when a message is handed on: errors from then on are not the item's."""

        def hand_on(message: Any) -> Any:
            self._is_handed_on = True
            return callback(message)

        return super().basic_consume(queue, no_ack, hand_on, consumer_tag, **options)

    @property
    def _is_lost(self) -> bool:
        """Whether the worker has given up this channel's connection. While it closes one in order, it has not."""
        transport = self.connection
        return transport is None or transport.client is None

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message. Does nothing once the connection is lost."""
        if not self._is_lost:
            super().basic_ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message. Does nothing once the connection is lost."""
        if not self._is_lost:
            super().basic_reject(delivery_tag, requeue)

    def _brpop_read(self, **options: Any) -> bool:
        """Take the next item. One that is no message is dropped."""
        with self.tolerating():
            return super()._brpop_read(**options)
        return True

    @contextmanager
    def tolerating(self) -> Generator[None]:
        """Drop what is read within, if that is no message."""
        self._is_handed_on = False
        was_connected = self.client.connection is not None  # a channel that is half closed raises AttributeError too
        try:
            yield
        except _NO_MESSAGE as error:
            if self._is_handed_on or not was_connected or self.client.connection is None:
                raise
            logger.error(
                "dropped an item that is no message of Celery's from a queue (one of %s): %s",
                ", ".join(sorted(str(queue) for queue in self.active_queues)),
                type(error).__name__,
            )


def tolerate(connection: Connection) -> None:
    """Have a connection that is not open yet drop what is no message, and forget messages when it is lost.

    Other brokers than Redis need nothing.
    """
    transport: Any = connection.transport
    if isinstance(transport, virtual.Transport) and hasattr(transport.Channel, "_brpop_read"):
        transport.Channel = _tolerant(transport.Channel)


@functools.cache
def _tolerant(channel: type[Any]) -> type[Any]:
    return type(channel.__name__, (TolerantChannel, channel), {})
