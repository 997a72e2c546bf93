"""Where the master is that Redis Sentinels watch: they are asked whenever a connection to it is made, and each second.

A Sentinel is asked over a connection of its own, which is closed afterwards: that is cheap,
and a connection that was idle may be dead. The one that answered last is asked first.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from mcp_celery.common.background import ended
from mcp_celery.common.redis_translation import SENTINEL_SECONDS, sentinel_url
from mcp_celery.common.redis_url import RedisUrl, parse
from mcp_celery.common.sentinel_url import Sentinels
from mcp_celery.common.single_flight import SingleFlight
from mcp_celery.common.within import within

logger = logging.getLogger(__name__)

Address = tuple[str, int]
LOOK_SECONDS: Final = 1.0
"""How often Sentinels are asked whether the master is another one. A former master that lives keeps its clients for
some ten seconds after a failover, and loses what they write.
"""
LOOK_AFTER_FAILURE_SECONDS: Final = 10.0
"""How soon a blocking client asks again when no Sentinel has answered, since its call waits for them."""
_MOST_CHARS: Final = 100
_COMMAND: Final = "SENTINEL GET-MASTER-ADDR-BY-NAME"


class NoMasterError(redis.ConnectionError):
    """No Sentinel says where the master is. The text names the master and what each Sentinel said."""


class SentinelRefusalError(redis.AuthenticationError):
    """Each Sentinel that answers refuses user or password."""


class _Search:
    """The Sentinels of one client of the store, and what they say.

    Args:
        url: The URL of the store.
        sentinels: The URL's.
        timeout_seconds: How long the store may take to answer. Sentinels have no longer.
    """

    def __init__(self, url: RedisUrl, sentinels: Sentinels, *, timeout_seconds: float) -> None:
        self._sentinels = sentinels
        self._urls = {address: sentinel_url(url, sentinels, *address) for address in sentinels.hosts}
        self._order = list(self._urls)
        self._named: tuple[Address, Address] | None = None
        self._seconds = min(timeout_seconds, SENTINEL_SECONDS)

    @property
    def order(self) -> Sequence[Address]:
        """The Sentinels in the order in which to ask them."""
        return list(self._order)

    def read(self, sentinel: Address, reply: Any, failures: list[tuple[Address, Exception | None]]) -> Address | None:
        """The master's address in a reply; None, and a failure more, where the Sentinel does not know it."""
        if not reply:
            failures.append((sentinel, None))
            return None
        host, port = cast("tuple[bytes | str, bytes | str | int]", reply)
        found = host.decode() if isinstance(host, bytes) else host, int(port)
        # One assignment, since threads share it.
        self._order = [sentinel, *(one for one in self._order if one != sentinel)]
        self._named = sentinel, found
        return found

    def distrust(self, address: Address) -> None:
        """Ask another Sentinel first, since no master answers where the last one says: it may be cut off from the
        others, which have made another server the master.

        Args:
            address: Where no master answers.
        """
        named = self._named
        if named is not None and named[1] == address and self._order[0] == named[0]:
            self._named = None
            self._order = [*(one for one in self._order if one != named[0]), named[0]]

    def failed(self, failures: list[tuple[Address, Exception | None]]) -> redis.ConnectionError:
        """What it means that no Sentinel named the master."""
        texts = [
            f"{host}:{port} {'knows no such master' if error is None else _reason(error)}"
            for (host, port), error in failures
        ]
        text = f"no Sentinel names the master {self._sentinels.master}: {'; '.join(texts)}"
        answered = [error for _, error in failures if error is None or isinstance(error, redis.AuthenticationError)]
        if answered and all(error is not None for error in answered):
            return SentinelRefusalError(text)
        return NoMasterError(text)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no answer in time"
    return f"({type(error).__name__}: {text[:_MOST_CHARS]})"


class MasterFinder(_Search):
    """Asks Sentinels where the master is, and again each second from then on. Belongs to one event loop.

    Args:
        url: As :class:`_Search`.
        sentinels: As :class:`_Search`.
        timeout_seconds: As :class:`_Search`.

    Attributes:
        moves: How often the master was found at another address than before.
        address: Where it was found last; None: it was not found yet.
        on_move: Called when it was found at another address.
    """

    def __init__(self, url: RedisUrl, sentinels: Sentinels, *, timeout_seconds: float) -> None:
        super().__init__(url, sentinels, timeout_seconds=timeout_seconds)
        self._flight = SingleFlight[Address]()
        self.address: Address | None = None
        self._watching: asyncio.Task[None] | None = None
        self.moves = 0
        self.on_move: Callable[[], Awaitable[None]] = _nothing

    async def find(self) -> Address:
        """Ask. Calls that come meanwhile get the same answer.

        Raises:
            NoMasterError: No Sentinel knows.
            SentinelRefusalError: They refuse user or password.
        """
        if self._watching is None:
            # Not in the context of the call that happens to be the first: a trace of it would have a look each second.
            context = contextvars.Context()
            self._watching = asyncio.create_task(self._watch(), name="mcp-celery-master", context=context)
        return await self._flight.do(self._ask_all)

    async def aclose(self) -> None:
        """Stop asking."""
        if self._watching is not None:
            await ended(self._watching)
            self._watching = None

    async def _watch(self) -> None:
        known = self.moves
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            try:
                await self._flight.do(self._ask_all)
                if self.moves != known:
                    known = self.moves
                    await self.on_move()
            except redis.ConnectionError as error:
                logger.debug("could not ask the Sentinels which server is the master: %s", error)
            except Exception:
                logger.exception("could not ask the Sentinels which server is the master")  # and may next time

    async def _ask_all(self) -> Address:
        failures: list[tuple[Address, Exception | None]] = []
        for sentinel in self.order:
            try:
                reply = await self._ask(sentinel)
            except (redis.RedisError, OSError) as error:
                failures.append((sentinel, error))
                continue
            if (found := self.read(sentinel, reply, failures)) is not None:
                self.moves += self.address not in (None, found)
                self.address = found
                return found
        raise self.failed(failures)

    async def _ask(self, sentinel: Address) -> Any:
        async with _client(self._urls[sentinel]) as client, within(self._seconds):
            return await client.execute_command(_COMMAND, self._sentinels.master)


async def _nothing() -> None:
    """Nothing follows from it that the master is another one."""


class BlockingMasterFinder(_Search):
    """As :class:`MasterFinder`, for threads. It asks again when a connection is used.

    Args:
        url: As :class:`_Search`.
        sentinels: As :class:`_Search`.
        timeout_seconds: As :class:`_Search`.
    """

    def __init__(self, url: RedisUrl, sentinels: Sentinels, *, timeout_seconds: float) -> None:
        super().__init__(url, sentinels, timeout_seconds=timeout_seconds)
        self._next_look = 0.0

    def is_elsewhere(self, address: Address) -> bool:
        """Ask, where the last answer is old, whether the master has another address than a connection.

        Args:
            address: Of the connection.

        Returns:
            False also where no Sentinel answers.
        """
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + LOOK_SECONDS  # other threads go on meanwhile
        try:
            return self.find() != address
        except redis.ConnectionError as error:
            self._next_look = time.monotonic() + LOOK_AFTER_FAILURE_SECONDS
            logger.debug("could not ask the Sentinels which server is the master: %s", error)
            return False

    def find(self) -> Address:
        """As :meth:`MasterFinder.find`."""
        failures: list[tuple[Address, Exception | None]] = []
        for sentinel in self.order:
            try:
                reply = self._ask(sentinel)
            except (redis.RedisError, OSError) as error:
                failures.append((sentinel, error))
                continue
            if (found := self.read(sentinel, reply, failures)) is not None:
                return found
        raise self.failed(failures)

    def _ask(self, sentinel: Address) -> Any:
        client: Any = redis.Redis.from_url(
            self._urls[sentinel],
            socket_timeout=self._seconds,
            socket_connect_timeout=self._seconds,
            retry=BlockingRetry(NoBackoff(), 0),
        )
        with client:
            return client.execute_command(_COMMAND, self._sentinels.master)


@dataclass(frozen=True, slots=True)
class SentinelView:
    """What one Sentinel says.

    Attributes:
        sentinel: Its address.
        problem: Why it says nothing; None where it answers.
        master: Where it says that the master is.
        replicas: How many replicas it knows that answer it.
        sentinels: How many Sentinels it knows, with itself.
        no_failover: Why Sentinels could not agree on a failover now; None where they can.
    """

    sentinel: str
    problem: str | None = None
    master: str = ""
    replicas: int = 0
    sentinels: int = 0
    no_failover: str | None = None


async def views_of(url: str, *, timeout_seconds: float) -> list[SentinelView]:
    """Ask each Sentinel of a URL, at the same time; empty where the URL names none.

    Args:
        url: ``MCP_CELERY_REDIS_URL``.
        timeout_seconds: How long each may take.
    """
    parsed = parse(url)
    sentinels = parsed.sentinels
    if sentinels is None:
        return []
    return await asyncio.gather(
        *(
            _view(f"{host}:{port}", sentinel_url(parsed, sentinels, host, port), sentinels.master, timeout_seconds)
            for host, port in sentinels.hosts
        )
    )


async def _view(address: str, url: str, master: str, timeout_seconds: float) -> SentinelView:
    try:
        async with _client(url) as client, within(timeout_seconds):
            known: Any = await client.execute_command("SENTINEL MASTER", master)
            replicas: Any = await client.execute_command("SENTINEL SLAVES", master)
            try:
                await client.execute_command("SENTINEL CKQUORUM", master)
                no_failover = None
            except redis.ResponseError as error:
                no_failover = str(error)
    except (redis.RedisError, OSError) as error:
        return SentinelView(address, _reason(error).strip("()"))
    return SentinelView(
        address,
        master=f"{known['ip']}:{known['port']}",
        replicas=sum(not (one["is_sdown"] or one["is_odown"]) for one in replicas),
        sentinels=int(known["num-other-sentinels"]) + 1,
        no_failover=no_failover,
    )


@asynccontextmanager
async def _client(url: str) -> AsyncGenerator[Any]:
    client: Any = redis.asyncio.Redis.from_url(
        url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
    )
    try:
        yield client
    finally:
        await client.aclose()


def finder_of(url: str, *, timeout_seconds: float) -> MasterFinder | None:
    """What finds the master of a URL; None where the URL names the server itself."""
    parsed = parse(url)
    if parsed.sentinels is None:
        return None
    return MasterFinder(parsed, parsed.sentinels, timeout_seconds=timeout_seconds)


def blocking_finder_of(url: str, *, timeout_seconds: float) -> BlockingMasterFinder | None:
    """As :func:`finder_of`, for threads."""
    parsed = parse(url)
    if parsed.sentinels is None:
        return None
    return BlockingMasterFinder(parsed, parsed.sentinels, timeout_seconds=timeout_seconds)
