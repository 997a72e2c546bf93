"""The Redis transport of our own app's workers: kombu's, but many messages for each round trip.

A worker takes up to 32 messages at once, as many as it may prefetch, in turn from its queues, and acknowledges together
what ended in one turn of its loop (:mod:`mcp_celery.worker.celery.batched_qos`). All else is kombu's: how it waits for
a message, remote control, events, what it restores and when.

Provisional seam: kombu's Redis ``Channel`` and ``QoS``. Where those have changed, and for Sentinels, kombu's own
transport is used; so it is on Celery's solo pool, which runs a job while it takes its message.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celery.concurrency.solo import TaskPool as SoloPool
from kombu import Connection
from kombu.transport import redis as redis_transport
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from mcp_celery.logs import get_logger
from mcp_celery.worker.celery.batched_qos import LOST, BatchedQoS, Taken
from mcp_celery.worker.celery.intake import TolerantChannel

if TYPE_CHECKING:

    class _Channel(TolerantChannel):
        connection: Any
        qos: Any
        closed: bool
        priority_steps: Sequence[int]
        queue_order_strategy: str
        global_keyprefix: str
        _consumers: set[str]
        _queue_cycle: Any

        def __init__(self, *args: Any, **options: Any) -> None: ...
        def _q_for_pri(self, queue: str, pri: int) -> str: ...
        def _basic_cancel(self, consumer_tag: str) -> Any: ...
        def conn_or_acquire(self, client: Any = None) -> Any: ...
        def close(self) -> None: ...
else:
    _Channel = TolerantChannel

logger = get_logger(__name__)

IN_TURN: Final = "round_robin"
ONE_AFTER_ANOTHER: Final = ("sorted", "priority")
NEEDED: Final[Mapping[type[Any], Mapping[str, Sequence[str] | None]]] = {
    redis_transport.Channel: {
        "_brpop_read": ("self", "options"),
        "_basic_cancel": ("self", "consumer_tag"),
        "_q_for_pri": ("self", "queue", "pri"),
        "_update_queue_cycle": ("self",),
        "conn_or_acquire": ("self", "client"),
        "close": ("self",),
        "active_queues": None,
        "pool": None,
        "priority_steps": None,
        "queue_order_strategy": None,
        "global_keyprefix": None,
        "_closing": None,
    },
    redis_transport.QoS: {
        "append": ("self", "message", "delivery_tag"),
        "ack": ("self", "delivery_tag"),
        "restore_by_tag": ("self", "tag", "client", "leftmost"),
        "restore_unacked_once": ("self", "stderr"),
        "_remove_from_indices": ("self", "delivery_tag", "pipe"),
        "can_consume_max_estimate": ("self",),
        "unacked_key": None,
        "unacked_index_key": None,
        "_delivered": None,
    },
    redis_transport.Transport: {"_deliver": ("self", "message", "queue")},
}
"""What is used of kombu's Redis transport, and what its functions take."""


def missing(needed: Mapping[type[Any], Mapping[str, Sequence[str] | None]] = NEEDED) -> str | None:
    """The first thing that kombu's Redis transport lacks of what is needed; None where it has all."""
    for owner, names in needed.items():
        for name, parameters in names.items():
            found = inspect.getattr_static(owner, name, None)
            if not hasattr(owner, name):
                return f"{owner.__name__}.{name}"
            if parameters is not None and tuple(inspect.signature(found).parameters) != tuple(parameters):
                return f"{owner.__name__}.{name}({', '.join(parameters)})"
    return None


class BatchedChannel(_Channel):
    """A mixin for kombu's Redis channel.

    Attributes:
        taken: Messages that are noted as delivered, and still to be handed to the worker.
        noted_tag: Delivery tag of the message that is handed on now, where the script has noted it.
        takes_turns: Whether one message of each queue is taken in turn.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.taken = deque[Taken]()
        self.noted_tag: str | None = None
        self._is_reading = False
        self._unacknowledged = set[str]()
        """Queues whose messages need no acknowledgement, such as that of answers to remote control."""
        super().__init__(*args, **options)
        self.takes_turns = self.queue_order_strategy == IN_TURN
        self._takes_many = self.takes_turns or self.queue_order_strategy in ONE_AFTER_ANOTHER

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **options: Any
    ) -> Any:
        """Consume from a queue. Of one whose messages need no acknowledgement, none may be noted."""
        (self._unacknowledged.add if no_ack else self._unacknowledged.discard)(queue)
        return super().basic_consume(queue, no_ack, callback, consumer_tag, **options)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        """Stop consuming. Once no queue is left, nothing is acknowledged later: the loop may turn no more."""
        cancelled = super()._basic_cancel(consumer_tag)
        if not self._consumers and isinstance(self.qos, BatchedQoS):
            try:
                self.qos.flush()
            except LOST as error:
                logger.warning("could not acknowledge jobs yet: %s", error)
        return cancelled

    def may_wait(self, message: Any) -> bool:
        """Whether the acknowledgement of a message may wait for the end of this turn of the worker's loop."""
        transport = self.connection  # None: the channel is closed
        if message is None or transport is None or not self._consumers:
            return False
        headers: Mapping[str, Any] = message.headers or {}
        return transport.acknowledges_late(str(headers.get("task")))

    def lists_to_take_from(self) -> tuple[Sequence[str], Sequence[str]]:
        """From where messages may be taken besides the one that BRPOP has given.

        Returns:
            The queues, in the order in which it is their turn; and their lists, the most urgent priority first.
        """
        if not self._is_reading or not self._takes_many:
            return (), ()
        queues: Sequence[str] = self._queue_cycle.consume(len(self.active_queues))
        if not self._unacknowledged.isdisjoint(queues):
            return (), ()
        lists = [
            f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"
            for priority in self.priority_steps
            for queue in queues
        ]
        return queues, lists

    def _brpop_read(self, **options: Any) -> bool:
        """Hand on the message that BRPOP has given, and those that were taken behind it."""
        self._is_reading = not getattr(self, "_closing", False)
        try:
            delivered = super()._brpop_read(**options)
        finally:
            self._is_reading = False
        while self.taken:
            self._hand_on(self.taken.popleft())
        return delivered

    def _hand_on(self, taken: Taken) -> None:
        self.noted_tag = taken.tag or None
        is_message = False
        try:
            with self.tolerating():
                self._queue_cycle.rotate(taken.queue)
                self.connection._deliver(loads(bytes_to_str(taken.message)), taken.queue)
                is_message = True
        finally:
            self.noted_tag = None
        if taken.tag and not is_message:
            self.qos.forget(taken.tag)

    def close(self) -> None:
        """Close the channel. What was taken and not handed on goes back to where it was."""
        while not self.closed and self.taken:
            taken = self.taken.pop()  # the last first, so that the first is the next one again
            try:
                self._put_back(taken)
            except LOST as error:
                logger.warning("a job that was taken is delivered again after the visibility timeout: %s", error)
        super().close()

    def _put_back(self, taken: Taken) -> None:
        if taken.tag:
            self.qos.restore_by_tag(taken.tag)
            return
        with self.conn_or_acquire() as client:
            client.rpush(taken.queue, taken.message)


@functools.cache
def _batched(channel: type[Any]) -> type[Any]:
    qos = type("QoS", (BatchedQoS, channel.QoS), {})
    return type(channel.__name__, (BatchedChannel, channel), {"QoS": qos})


def batch(connection: Connection, *, pool: object, acknowledges_late: Callable[[str], bool]) -> bool:
    """Have a connection that is not open yet take and acknowledge many messages at once.

    Args:
        connection: To the broker. Others than Redis are left as they are.
        pool: Celery's pool.
        acknowledges_late: Whether a job of this Celery name is acknowledged when it has ended.

    Returns:
        Whether it does.
    """
    transport: Any = connection.transport
    if transport.__class__ is not redis_transport.Transport or isinstance(pool, SoloPool):
        return False
    if lacking := missing():
        logger.warning("the worker uses kombu's own transport: this version of kombu has no %s", lacking)
        return False
    transport.Channel = _batched(redis_transport.Channel)
    transport.acknowledges_late = acknowledges_late
    return True
