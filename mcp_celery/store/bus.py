"""Hints of changes over Redis pub/sub: one connection a process, however many tasks and followers there are.

Subscriptions are counted by reference: a channel is subscribed while somebody follows its task. Followers only say what
is wanted; one task owns the connection, tells Redis, reads, and makes a new one when anything fails. Each time Redis
confirms a subscription, first or again, the followers are hinted to read their records, so that nothing said meanwhile
is missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import redis
import redis.asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mcp_celery.background import ended
from mcp_celery.engine import TaskHints, TaskRef
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.within import within

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 15.0
"""After this silence the connection is asked for a sign of life; after twice as much it is taken for dead."""

_BACKOFF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0)
_IDLE_CHANNEL = "mcp_celery:idle"
"""Keeps a connection in pub/sub mode while nobody follows anything."""


class _Follower:
    """The hints of one subscriber; many hints of one task between two looks are one."""

    def __init__(self, bus: RedisTaskBus) -> None:
        self._bus = bus
        self._waiting: dict[TaskRef, None] = {}
        self._some = asyncio.Event()

    def hint(self, ref: TaskRef) -> None:
        self._waiting[ref] = None
        self._some.set()

    async def __anext__(self) -> TaskRef:
        await self._some.wait()
        ref = next(iter(self._waiting))
        del self._waiting[ref]
        if not self._waiting:
            self._some.clear()
        return ref

    async def drop(self, ref: TaskRef) -> None:
        self._waiting.pop(ref, None)
        if not self._waiting:
            self._some.clear()
        self._bus.leave(self, [ref])


class _Connection(PubSub):
    """redis-py's pub/sub connection, which fails when it breaks.

    By itself it would connect again in place: reader and writer both, each in the middle of the other's handshake,
    after which neither hears anything. Whoever owns the connection makes a new one.
    """

    async def connect(self) -> None:
        if self.connection is not None and not self.connection.is_connected:
            raise redis.ConnectionError("pub/sub connection lost")
        await super().connect()

    async def _reconnect(self, conn: Any, *_: Any, **__: Any) -> None:
        await conn.disconnect(nowait=True)


class _Channel:
    def __init__(self, ref: TaskRef) -> None:
        self.ref = ref
        self.followers: set[_Follower] = set()
        self.confirmed = asyncio.Event()


class RedisTaskBus:
    """Fulfils :class:`mcp_celery.engine.TaskBus`. Belongs to one event loop.

    Args:
        client: For the one pub/sub connection; belongs to this bus and closes with it.
        keys: Names of the channels.
        timeout_seconds: How long a subscription may take to be confirmed.
    """

    def __init__(self, client: redis.asyncio.Redis, keys: RedisKeys, *, timeout_seconds: float) -> None:
        self._client = client
        client.set_retry(Retry(NoBackoff(), 0))
        self._keys = keys
        self._timeout_seconds = timeout_seconds
        self._channels: dict[str, _Channel] = {}  # what is wanted
        self._subscribed: set[str] = set()  # what this connection was told
        self._confirmed: set[str] = set()  # what Redis has confirmed of it
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

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
                    channel.confirmed.set()
            channel.followers.add(follower)
            joined.append(channel)
        self._changed.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._stay_connected(), name="mcp-celery-bus")
        try:
            async with within(self._timeout_seconds):
                for channel in joined:
                    await channel.confirmed.wait()
        except TimeoutError:
            logger.warning("the task store (MCP_CELERY_REDIS_URL) did not confirm a subscription in time")
            raise StoreUnavailableError from None

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
        failures = 0
        while True:
            try:
                async with _Connection(self._client.connection_pool) as connection:
                    async with within(self._timeout_seconds):
                        await connection.subscribe(_IDLE_CHANNEL)
                    if failures:
                        logger.info("the task store (MCP_CELERY_REDIS_URL) answers again")
                    failures = 0
                    self._changed.set()
                    await self._use(connection)
            except Exception as error:  # noqa: BLE001 - a connection that breaks under two users raises anything
                logger.warning("pub/sub connection to the task store lost, reconnecting: %s", type(error).__name__)
            finally:
                self._subscribed.clear()
                self._confirmed.clear()
            await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
            failures += 1

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
                await connection.subscribe(*fresh)
            if stale:
                await cast("Any", connection).unsubscribe(*stale)

    async def _read(self, connection: PubSub) -> None:
        asked = False
        while True:
            message = cast("dict[str, Any] | None", await connection.get_message(timeout=SILENCE_SECONDS))
            if message is None:
                if asked:
                    raise redis.ConnectionError("no sign of life")
                await connection.ping()
                asked = True
                continue
            asked = False
            if message["type"] not in ("message", "subscribe"):
                continue
            name = cast(bytes, message["channel"]).decode()
            channel = self._channels.get(name)
            if message["type"] == "subscribe" and name in self._subscribed:
                self._confirmed.add(name)
            if channel is None:
                continue
            if name in self._confirmed:
                channel.confirmed.set()
            for follower in channel.followers:
                follower.hint(channel.ref)

    async def aclose(self) -> None:
        """End the keeper of the connection and close it."""
        if self._keeper is not None:
            await ended(self._keeper)
            self._keeper = None
        await self._client.aclose(close_connection_pool=True)
