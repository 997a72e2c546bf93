"""Hints of changes over Redis pub/sub: one connection a process, however many tasks and followers there are.

Subscriptions are counted by reference: a channel is subscribed while somebody follows its task. One task owns the
connection, reads it, and makes a new one when it fails; each time Redis confirms a subscription, first or again, the
followers are hinted to read their records, so that nothing said meanwhile is missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, cast

import anyio
import redis
import redis.asyncio
from redis.asyncio.client import PubSub

from mcp_celery.engine import TaskHints, TaskRef
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.keys import RedisKeys

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 15.0
"""After this silence the connection is asked for a sign of life; after twice as much it is taken for dead."""

_BACKOFF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0)
_FAILURES = (redis.RedisError, OSError)


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
        await self._bus.leave(self, [ref])


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
        self._keys = keys
        self._timeout_seconds = timeout_seconds
        self._channels: dict[str, _Channel] = {}
        self._connection: PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

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
            # Also when the follower is cancelled; what cannot be unsubscribed in time ends with the connection.
            with anyio.move_on_after(self._timeout_seconds, shield=True):
                await self.leave(follower, refs)

    async def _join(self, follower: _Follower, refs: Sequence[TaskRef]) -> None:
        fresh: list[str] = []
        joined: list[_Channel] = []
        for ref in refs:
            name = self._keys.channel(ref.scope, ref.task_id)
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel(ref)
                fresh.append(name)
            channel.followers.add(follower)
            joined.append(channel)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_for_ever(), name="mcp-celery-bus")
        elif fresh:
            await self._send("subscribe", fresh)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for channel in joined:
                    await channel.confirmed.wait()
        except TimeoutError:
            logger.warning("the task store (MCP_CELERY_REDIS_URL) did not confirm a subscription in time")
            raise StoreUnavailableError from None

    async def leave(self, follower: _Follower, refs: Sequence[TaskRef]) -> None:
        """Take a follower off the channels of some tasks; channels without followers are unsubscribed."""
        empty: list[str] = []
        for ref in refs:
            name = self._keys.channel(ref.scope, ref.task_id)
            channel = self._channels.get(name)
            if channel is None or follower not in channel.followers:
                continue
            channel.followers.discard(follower)
            if not channel.followers:
                del self._channels[name]
                empty.append(name)
        if empty:
            await self._send("unsubscribe", empty)

    async def _send(self, command: Literal["subscribe", "unsubscribe"], names: Sequence[str]) -> None:
        """Subscribe or unsubscribe now; if that fails, the reader's next connection starts from the wanted channels."""
        async with self._writing:
            # What is wanted may have changed while another call was writing.
            wanted = [name for name in names if (name in self._channels) == (command == "subscribe")]
            if not wanted or self._connection is None:
                return
            with suppress(*_FAILURES):
                if command == "subscribe":
                    await self._connection.subscribe(*wanted)
                else:
                    await cast("Any", self._connection).unsubscribe(*wanted)

    async def _read_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                async with self._client.pubsub() as connection:
                    async with self._writing:
                        await connection.subscribe(*self._channels or ["mcp_celery:idle"])
                        self._connection = connection
                    if failures:
                        logger.info("the task store (MCP_CELERY_REDIS_URL) answers again")
                    failures = 0
                    await self._read(connection)
            except _FAILURES as error:
                logger.warning("pub/sub connection to the task store lost, reconnecting: %s", type(error).__name__)
            finally:
                self._connection = None
            await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
            failures += 1

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
            channel = self._channels.get(cast(bytes, message["channel"]).decode())
            if channel is None:
                continue
            if message["type"] == "subscribe":
                channel.confirmed.set()
            for follower in channel.followers:
                follower.hint(channel.ref)

    async def aclose(self) -> None:
        """End the reader and close the connection."""
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        await self._client.aclose(close_connection_pool=True)
