"""Hints of changes over Redis pub/sub: one connection a process, however many tasks and followers there are.

Subscriptions are counted by reference: a channel is subscribed while its task is followed. Followers only say what
is wanted; one task owns the connection, sends the commands, reads, and makes a new one when anything fails. Each time
Redis confirms a subscription, first or again, the followers get a hint to read their records, so that they miss no
change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from typing_extensions import override

from mcp_celery.common.background import ended
from mcp_celery.common.within import within
from mcp_celery.engine import TaskHints, TaskRef
from mcp_celery.engine.ports import TaskBus
from mcp_celery.engine.retry import pauses
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.store.client import StoreClient
from mcp_celery.store.failures import described
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.unreadable import reason_of

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 15.0
"""After this silence at the latest Redis is asked whether it is there. The connection is replaced if it does not answer
in time.
"""

LONGEST_PAUSE_SECONDS = 1.0
"""Longest pause between two attempts to connect while Redis does not answer."""
LONGEST_PAUSE_AFTER_REFUSAL_SECONDS = 15.0
"""And while it answers and refuses the subscription: an operator has to change something first."""
REPORT_SECONDS = 60.0
"""How often it is logged that Redis refuses the subscription."""


_HINTS: Final = frozenset({"message", "smessage"})
_CONFIRMATIONS: Final = frozenset({"subscribe", "ssubscribe"})
_ENDS: Final = frozenset({"unsubscribe", "sunsubscribe"})
"""Types of messages: those of a channel, and those that a subscription has begun or ended. An s more: sharded."""


class _Follower:
    """The hints of one subscriber; many hints of one task between two looks are one. One asyncio task reads them."""

    def __init__(self, bus: RedisTaskBus) -> None:
        self._bus = bus
        self._waiting: dict[TaskRef, None] = {}
        self._wake: asyncio.Future[None] | None = None  # an Event would take four times the memory of each stream

    def hint(self, ref: TaskRef) -> None:
        self._waiting[ref] = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def __anext__(self) -> TaskRef:
        while not self._waiting:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        ref = next(iter(self._waiting))
        del self._waiting[ref]
        return ref

    async def drop(self, ref: TaskRef) -> None:
        self._waiting.pop(ref, None)
        self._bus.leave(self, [ref])


class _Connection(PubSub):
    """redis-py's pub/sub connection, which fails when it breaks.

    By itself it would connect again in place: reader and writer both, each in the middle of the other's handshake,
    after which neither hears anything. The owner of the connection makes a new one.
    """

    async def connect(self) -> None:
        if self.connection is not None and not self.connection.is_connected:
            raise redis.ConnectionError("pub/sub connection lost")
        await super().connect()

    async def _reconnect(self, conn: Any, *_: Any, **__: Any) -> None:
        await conn.disconnect(nowait=True)


class _Commands:
    """The commands of pub/sub: those of sharded pub/sub where the keys say so and the server has them.

    Args:
        keys: Names of the channels.
    """

    def __init__(self, keys: RedisKeys) -> None:
        self._is_sharded = keys.is_sharded
        self._leaving = Counter[str]()

    def reset(self) -> None:
        """Begin with a new connection."""
        self._leaving.clear()

    def are_unknown(self, error: Exception) -> bool:
        """Whether a connection failed because the server knows no sharded pub/sub, as Redis before version 7. The next
        connection uses the other commands then. Scripts find out too.
        """
        unknown = self._is_sharded and isinstance(error, redis.ResponseError) and "unknown command" in str(error)
        self._is_sharded = self._is_sharded and not unknown
        return unknown

    async def subscribe(self, connection: PubSub, *names: str) -> None:
        """Ask for messages of channels."""
        await (connection.ssubscribe(*names) if self._is_sharded else connection.subscribe(*names))

    async def unsubscribe(self, connection: PubSub, *names: str) -> None:
        """Ask for no more messages of channels."""
        self._leaving.update(names)
        untyped: Any = connection
        await (untyped.sunsubscribe(*names) if self._is_sharded else untyped.unsubscribe(*names))

    def end(self, name: str) -> None:
        """Note that there are no more messages of a channel.

        Raises:
            redis.ConnectionError: They were asked for: another node of the cluster has the channel now.
        """
        if not self._leaving[name]:
            raise redis.ConnectionError("another node of the cluster has the channels now")
        self._leaving[name] -= 1
        if not self._leaving[name]:
            del self._leaving[name]  # a connection lives for long, and each task has a name of its own


class _Channel:
    def __init__(self, ref: TaskRef) -> None:
        self.ref = ref
        self.followers: set[_Follower] = set()
        self._unconfirmed: asyncio.Event | None = asyncio.Event()  # kept no longer than that: it takes a kilobyte

    def confirm(self) -> None:
        """Note that Redis has confirmed the subscription."""
        if self._unconfirmed is not None:
            self._unconfirmed.set()
            self._unconfirmed = None

    async def confirmed(self) -> None:
        """Wait until Redis has confirmed the subscription for the first time."""
        if self._unconfirmed is not None:
            await self._unconfirmed.wait()


class _Failures:
    """Failures in a row of the one connection: when to try again, and what to log.

    A failure ends when Redis has confirmed a subscription. That the command could be sent says nothing: a user who may
    not subscribe gets the refusal afterwards.

    Args:
        keys: Names of the channels.
    """

    def __init__(self, keys: RedisKeys) -> None:
        self._keys = keys
        self._reset()

    def _reset(self) -> None:
        self._pauses = pauses(LONGEST_PAUSE_SECONDS)
        self._refused = False
        self._reported: dict[str, float] = {}

    def add(self, error: Exception) -> None:
        """Count a failure, and log it: a refusal again after a while, anything else once until Redis answers again."""
        refused = isinstance(error, redis.ResponseError)
        if refused != self._refused:
            self._refused = refused
            self._pauses = pauses(LONGEST_PAUSE_AFTER_REFUSAL_SECONDS if refused else LONGEST_PAUSE_SECONDS)
        kind, now = type(error).__name__, time.monotonic()
        if kind in self._reported and (not refused or now < self._reported[kind] + REPORT_SECONDS):
            return
        self._reported[kind] = now
        if isinstance(error, NoPermissionError):
            logger.error(
                "the user of the task store (MCP_CELERY_REDIS_URL) may not subscribe, so that clients get no push: "
                "give it the right &%s* (%s)",
                self._keys.all_channels,
                reason_of(error),
            )
        else:
            logger.warning(
                "pub/sub connection to the task store (MCP_CELERY_REDIS_URL) lost, reconnecting: %s", described(error)
            )

    def end(self) -> None:
        """Note that Redis has confirmed a subscription."""
        if self._reported:
            logger.info("pub/sub connection to the task store (MCP_CELERY_REDIS_URL) restored")
            self._reset()

    def pause(self) -> float:
        """Seconds until the next attempt."""
        return next(self._pauses)


class RedisTaskBus(TaskBus):
    """Fulfils :class:`mcp_celery.engine.TaskBus`. Belongs to one event loop.

    Args:
        client: For the one pub/sub connection, from :func:`mcp_celery.store.connect` with ``listens``; belongs to this
            bus and closes with it.
        keys: Names of the channels.
        timeout_seconds: How long Redis may be silent when it is to answer.
        silence_seconds: After which silence Redis is asked whether it is there.
    """

    def __init__(
        self,
        client: StoreClient,
        keys: RedisKeys,
        *,
        timeout_seconds: float,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._client = client
        client.redis.set_retry(Retry(NoBackoff(), 0))
        self._keys = keys
        self._timeout_seconds = timeout_seconds
        self._silence_seconds = silence_seconds
        self._channels: dict[str, _Channel] = {}  # what is wanted
        self._subscribed: set[str] = set()  # the channels that were requested on this connection
        self._confirmed: set[str] = set()  # what Redis has confirmed of it
        self._messages = 0  # that were read
        self._changed = asyncio.Event()
        self._failures = _Failures(keys)
        self._commands = _Commands(keys)
        self._keeper: asyncio.Task[None] | None = None

    @override
    @asynccontextmanager
    async def subscribe(self, refs: Sequence[TaskRef]) -> AsyncGenerator[TaskHints]:
        """Listen to tasks until the context ends.

        Raises:
            StoreUnavailableError: Redis did not confirm in time.
        """
        follower = _Follower(self)
        try:
            await self._join(follower, refs)
            yield follower
        finally:
            self.leave(follower, refs)

    async def _join(self, follower: _Follower, refs: Sequence[TaskRef]) -> None:
        joined: list[_Channel] = []
        for ref in refs:
            name = self._keys.channel(ref.scope, ref.task_id)
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel(ref)
                if name in self._confirmed:
                    channel.confirm()
            channel.followers.add(follower)
            joined.append(channel)
        self._changed.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._stay_connected(), name="mcp-celery-bus")
        try:
            async with self._within():
                for channel in joined:
                    await channel.confirmed()
        except TimeoutError:
            logger.warning("the task store (MCP_CELERY_REDIS_URL) did not confirm a subscription in time")
            raise StoreUnavailableError from None

    def _within(self) -> within:
        """A time-out that begins anew whenever something comes from Redis."""
        progress = self._client.progress(lambda: self._messages)
        return within(self._timeout_seconds, progress=progress)

    def leave(self, follower: _Follower, refs: Sequence[TaskRef]) -> None:
        """Take a follower off the channels of some tasks; channels without followers are unsubscribed.

        Awaits nothing, so that a request that is cancelled leaves nothing behind.
        """
        for ref in refs:
            name = self._keys.channel(ref.scope, ref.task_id)
            channel = self._channels.get(name)
            if channel is None:
                continue
            channel.followers.discard(follower)
            if not channel.followers:
                del self._channels[name]
                self._changed.set()

    async def _stay_connected(self) -> None:
        while True:
            try:
                async with _Connection(self._client.redis.connection_pool) as connection:
                    async with self._within():
                        await self._commands.subscribe(connection, self._keys.idle_channel)
                    self._changed.set()
                    await self._use(connection)
            except Exception as error:  # noqa: BLE001 - a connection that breaks under two users raises anything
                if self._commands.are_unknown(error):
                    continue
                self._failures.add(error)
            finally:
                self._commands.reset()
                self._subscribed.clear()
                self._confirmed.clear()
            await asyncio.sleep(self._failures.pause())

    async def _use(self, connection: PubSub) -> None:
        """Write and read until one of the two fails."""
        # No TaskGroup: before Python 3.13 it forgets a cancellation that comes while it ends its tasks.
        users = [asyncio.create_task(self._write(connection)), asyncio.create_task(self._read(connection))]
        try:
            done, _ = await asyncio.wait(users, return_when=asyncio.FIRST_COMPLETED)
            for user in done:
                user.result()
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)

    async def _write(self, connection: PubSub) -> None:
        """Keep the connection's subscriptions at what is wanted."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = set(self._channels)
            fresh, stale = wanted - self._subscribed, self._subscribed - wanted
            self._subscribed = wanted
            self._confirmed -= stale
            if fresh:
                await self._commands.subscribe(connection, *fresh)
            if stale:
                await self._commands.unsubscribe(connection, *stale)

    async def _read(self, connection: PubSub) -> None:
        while True:
            message = cast("dict[str, Any] | None", await connection.get_message(timeout=self._silence_seconds))
            if message is None:
                await connection.ping()
                message = await self._answer(connection)
            self._messages += 1
            kind = cast(str, message["type"])
            if kind not in _HINTS | _CONFIRMATIONS | _ENDS:
                continue
            name = cast(bytes, message["channel"]).decode()
            if kind in _ENDS:
                self._commands.end(name)
                continue
            self._failures.end()
            channel = self._channels.get(name)
            if kind in _CONFIRMATIONS and name in self._subscribed:
                self._confirmed.add(name)
            if channel is None:
                continue
            if name in self._confirmed:
                channel.confirm()
            for follower in channel.followers:
                follower.hint(channel.ref)

    async def _answer(self, connection: PubSub) -> dict[str, Any]:
        """The next message, which is expected soon."""
        try:
            async with self._within():
                while True:
                    message = cast("dict[str, Any] | None", await connection.get_message(timeout=None))
                    if message is not None:
                        return message
        except TimeoutError:
            raise redis.ConnectionError("no message arrived in time") from None
        raise RuntimeError("unreachable")

    @override
    async def aclose(self) -> None:
        if self._keeper is not None:
            await ended(self._keeper)
            self._keeper = None
        await self._client.aclose()
