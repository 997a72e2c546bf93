"""Notes the messages that a worker takes from Redis and acknowledges them, many at a time.

What is stored is what kombu's own transport stores (``unacked``, ``unacked_index``), so a worker on either transport
restores what the other has left behind. kombu sends four commands for each message that it takes and four for each
that it acknowledges, over a client that it makes anew each time; here a script notes a message and takes those behind
it, and another acknowledges all that were acknowledged in one turn of the worker's loop.

Provisional seam, with :mod:`mcp_celery.worker.celery.batched_channel`, which looks whether kombu has what it needs.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import redis
from kombu.asynchronous import get_event_loop
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

from mcp_celery.logs import get_logger

if TYPE_CHECKING:

    class _QoS:
        channel: Any
        unacked_key: str
        unacked_index_key: str
        _delivered: dict[str, Any]

        def __init__(self, channel: Any, prefetch_count: int = 0) -> None: ...
        def append(self, message: Any, delivery_tag: str) -> None: ...
        def can_consume_max_estimate(self) -> int | None: ...
        def restore_unacked_once(self, stderr: Any = None) -> None: ...
        def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None: ...
        def _remove_from_indices(self, delivery_tag: str, pipe: Any = None) -> Any: ...
else:
    _QoS = object

logger = get_logger(__name__)

_IN_MEMORY: Final[Any] = virtual.QoS
"""What kombu keeps of the messages in memory, whatever the broker."""

MOST_TAKEN: Final = 32
"""Messages that one script takes."""
MOST_ACKNOWLEDGED: Final = 500
"""Delivery tags of one script: Lua's ``unpack`` takes some thousands."""
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0
MOST_DOUBLINGS: Final = 20
"""Of the pause, by when it is the longest. A float of 2**1024 does not exist, and an outage may last for hours."""
LOST: Final = (OSError, redis.RedisError, AttributeError, TypeError)
"""What redis-py raises for a connection that is lost; from Python 3.12 on the last two as well."""


def script(name: str) -> str:
    """The text of one of this package's Lua scripts."""
    return resources.files("mcp_celery.worker.celery").joinpath(f"{name}.lua").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that was taken behind another one.

    Attributes:
        queue: The queue's name.
        message: As it was in the queue.
        tag: Its delivery tag; ``""`` where the message is not noted.
    """

    queue: str
    message: bytes
    tag: str


class _Scripts:
    """The scripts, on a client that is kept for as long as a channel has the same pool of connections.

    Args:
        pool: The channel's.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        client: Any = redis.Redis(
            connection_pool=pool, credential_provider=pool.connection_kwargs.get("credential_provider")
        )
        self.take: Any = client.register_script(script("take"))
        self.acknowledge: Any = client.register_script(script("acknowledge"))


class BatchedQoS(_QoS):
    """A mixin for the ``QoS`` of kombu's Redis channel."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._scripts: _Scripts | None = None
        self._acknowledged = deque[str]()
        """Delivery tags that Redis does not know to be acknowledged yet. Threads of a pool add to them."""
        self._is_flush_due = False
        self._failures = 0
        self._is_plain = False

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message, and take those behind it where the channel reads its queues.

        Raises:
            RedisError: Redis could not be reached. kombu's own transport raises the same.
        """
        channel = self.channel
        if delivery_tag == channel.noted_tag:
            _IN_MEMORY.append(self, message, delivery_tag)
        elif self._is_plain:
            super().append(message, delivery_tag)
        else:
            info = message.delivery_info
            noted = dumps([message._raw, info["exchange"], info["routing_key"]])
            self._note(message, delivery_tag, noted)

    def _note(self, message: Any, tag: str, noted: str) -> None:
        channel = self.channel
        room = self.can_consume_max_estimate()
        most = MOST_TAKEN if room is None else min(room, MOST_TAKEN)
        queues: Sequence[str] = ()
        lists: Sequence[str] = ()
        if most > 1:
            queues, lists = channel.lists_to_take_from()
        try:
            found = self._take_once_more(tag, noted, most - 1, queues, lists)
        except redis.ResponseError as error:
            self._go_plain(error)
            super().append(message, tag)
            return
        _IN_MEMORY.append(self, message, tag)
        channel.taken.extend(found)

    def _take_once_more(
        self, tag: str, noted: str, most: int, queues: Sequence[str], lists: Sequence[str]
    ) -> Iterable[Taken]:
        """Note a message; on a lost connection once more, since BRPOP has taken it, and it is here alone."""
        try:
            return self._take(tag, noted, most, queues, lists)
        except redis.ResponseError:
            raise
        except LOST:
            try:
                return self._take(tag, noted, 0, (), ())
            except (AttributeError, TypeError) as error:  # the intake would take these for an unreadable message
                raise redis.ConnectionError("the connection to the broker is lost") from error

    def _take(self, tag: str, noted: str, most: int, queues: Sequence[str], lists: Sequence[str]) -> Iterable[Taken]:
        channel = self.channel
        found: list[Any] = self._of_pool().take(
            keys=[*self._keys, *lists],
            args=[repr(time.time()), tag, noted, max(most, 0), len(queues) or 1, int(channel.takes_turns)],
        )
        return [
            Taken(queues[int(number) % len(queues)], message, bytes_to_str(tag_behind))
            for number, message, tag_behind in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, at the end of this turn of the worker's loop.

        At once where there is no such loop, where the channel consumes nothing any more, and for a job that is
        acknowledged before it begins: it must not be delivered again if it ends its worker.

        Raises:
            RedisError: The message is acknowledged at once, and Redis could not be reached.
        """
        hub: Any = get_event_loop()
        message: Any = self._delivered.get(delivery_tag)
        if hub is None or not self.channel.may_wait(message):
            self._send([delivery_tag])
            _IN_MEMORY.ack(self, delivery_tag)
            return
        _IN_MEMORY.ack(self, delivery_tag)
        self._acknowledged.append(delivery_tag)
        if not self._is_flush_due:
            self._is_flush_due = True
            hub.call_soon(self._flush_or_try_later)

    def flush(self) -> None:
        """Send the acknowledgements that wait.

        Raises:
            RedisError: They could not be sent, and wait on.
        """
        self._is_flush_due = False
        while tags := [self._acknowledged.popleft() for _ in range(min(len(self._acknowledged), MOST_ACKNOWLEDGED))]:
            try:
                self._send(tags)
            except LOST:
                self._acknowledged.extendleft(reversed(tags))
                raise
        self._failures = 0

    def _flush_or_try_later(self) -> None:
        try:
            self.flush()
        except LOST as error:
            longest = min(FIRST_PAUSE_SECONDS * 2 ** min(self._failures, MOST_DOUBLINGS), LONGEST_PAUSE_SECONDS)
            pause = longest * random.uniform(0.5, 1)  # noqa: S311 - no secret
            if not self._failures:
                logger.warning("could not acknowledge %d jobs yet: %s", len(self._acknowledged), error)
            self._failures += 1
            if (hub := get_event_loop()) is not None and not self.channel.closed:
                self._is_flush_due = True
                hub.call_later(pause, self._flush_or_try_later)

    def _send(self, tags: Sequence[str]) -> None:
        if not self._is_plain:
            try:
                self._of_pool().acknowledge(keys=self._keys, args=tags)
            except redis.ResponseError as error:
                self._go_plain(error)
            else:
                return
        for tag in tags:
            self._remove_from_indices(tag).execute()

    def forget(self, tag: str) -> None:
        """Remove what is noted of a message that no code may handle."""
        self._remove_from_indices(tag).execute()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put the messages back into their queues that were not acknowledged, when the channel is closed."""
        try:
            self.flush()
        except LOST as error:
            logger.warning(
                "could not acknowledge %d jobs, which will be delivered again and dropped: %s",
                len(self._acknowledged),
                error,
            )
        super().restore_unacked_once(stderr)

    def _go_plain(self, error: redis.ResponseError) -> None:
        """Go on with kombu's own commands until the next connection, where Redis refuses the scripts."""
        if not self._is_plain:
            self._is_plain = True
            logger.warning("Redis refuses the scripts of the worker's transport, which goes on without: %s", error)

    def _of_pool(self) -> _Scripts:
        pool: Any = self.channel.pool
        if self._scripts is None or self._scripts.pool is not pool:
            self._scripts = _Scripts(pool)
        return self._scripts

    @property
    def _keys(self) -> tuple[str, str]:
        prefix: str = self.channel.global_keyprefix
        return f"{prefix}{self.unacked_index_key}", f"{prefix}{self.unacked_key}"
