"""Where the master is: asked of servers that know it, whenever a connection to it is made, and again after a while.

Sentinels know the master that they watch (:mod:`mcp_celery.store.sentinel`), nodes of a Redis Cluster the master of
each shard (:mod:`mcp_celery.store.cluster`). What is asked and how the answer reads is a :class:`Search`.

A server is asked over a connection of its own, which is closed afterwards: that is cheap,
and a connection that was idle may be dead. The one that answered last is asked first.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from mcp_celery.common.background import ended
from mcp_celery.common.redis_translation import SENTINEL_SECONDS
from mcp_celery.common.single_flight import SingleFlight
from mcp_celery.common.within import within

logger = logging.getLogger(__name__)

Address = tuple[str, int]
Failures = list[tuple[Address, Exception | None]]
"""The servers that were asked, and why each named no master; None: it answered, and knows none."""
LOOK_AFTER_FAILURE_SECONDS: Final = 10.0
"""How soon a blocking client asks again when no server has answered, since its call waits for them."""
_MOST_CHARS: Final = 100


class NoMasterError(redis.ConnectionError):
    """No server says where the master is. The text names the master and what each server said."""


class Search(ABC):
    """The servers that one client of the store asks, and what they say.

    Args:
        urls: Where they are, for redis-py, by their addresses. The first is asked first.
        timeout_seconds: How long the store may take to answer. They have no longer.
        credentials: Gives user and password for each connection. None: those of their URLs.

    Attributes:
        seconds: How long a server may take to answer.
        credentials: Gives user and password.
    """

    look_seconds: float
    """How often they are asked whether the master is another one."""
    command: tuple[str, ...]
    """What they are asked."""

    def __init__(
        self,
        urls: Mapping[Address, str],
        *,
        timeout_seconds: float,
        credentials: redis.CredentialProvider | None = None,
    ) -> None:
        self._urls = urls
        self._order = list(urls)
        self._named: tuple[Address, Address] | None = None
        self.seconds = min(timeout_seconds, SENTINEL_SECONDS)
        self.credentials = credentials

    @property
    def order(self) -> Sequence[Address]:
        """The servers in the order in which to ask them."""
        return list(self._order)

    def url(self, server: Address) -> str:
        """Where a server is, for redis-py."""
        return self._urls[server]

    @abstractmethod
    def read(self, server: Address, reply: Any) -> Address | None:
        """The master's address in a server's reply; None where the server does not know it."""

    def believe(self, server: Address, master: Address) -> None:
        """Ask a server first from now on.

        Args:
            server: It answered.
            master: Where it says that the master is.
        """
        # One assignment, since threads share it.
        self._order = [server, *(one for one in self._order if one != server)]
        self._named = server, master

    def distrust(self, address: Address) -> None:
        """Ask another server first, since no master answers where the last one says: it may be cut off from the
        others, which have made another server the master.

        Args:
            address: Where no master answers.
        """
        named = self._named
        if named is not None and named[1] == address and self._order[0] == named[0]:
            self._named = None
            self._order = [*(one for one in self._order if one != named[0]), named[0]]

    def is_elsewhere(self, error: redis.ResponseError, address: Address) -> bool:  # noqa: ARG002 - of subclasses
        """Whether a server's error means that the master is another one, and nothing was run. What the error says of
        the other one is noted.

        Args:
            error: The error.
            address: The server's.
        """
        return False

    @abstractmethod
    def failed(self, failures: Failures) -> redis.ConnectionError:
        """What it means that no server named the master."""


def reason(error: Exception) -> str:
    """A failure of a server that was asked, in brackets."""
    text = " ".join(str(error).split()) or "no answer in time"
    return f"({type(error).__name__}: {text[:_MOST_CHARS]})"


def texts_of(failures: Failures, unknown: str) -> str:
    """What each server said, on one line.

    Args:
        failures: The servers.
        unknown: What is said of a server that answered.
    """
    texts = (f"{host}:{port} {unknown if error is None else reason(error)}" for (host, port), error in failures)
    return "; ".join(texts)


def all_refuse(failures: Failures) -> bool:
    """Whether each server that answered refuses user or password, and one did."""
    answered = [error for _, error in failures if error is None or isinstance(error, redis.AuthenticationError)]
    return bool(answered) and all(error is not None for error in answered)


class MasterFinder:
    """Asks where the master is, and again after a while from then on. Belongs to one event loop.

    Args:
        search: What to ask whom.

    Attributes:
        search: The same.
        moves: How often the master was found at another address than before.
        address: Where it was found last; None: it was not found yet.
        on_move: Called when it was found at another address.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self._flight = SingleFlight[Address]()
        self.address: Address | None = None
        self._watching: asyncio.Task[None] | None = None
        self.moves = 0
        self.on_move: Callable[[], Awaitable[None]] = _nothing

    async def find(self) -> Address:
        """Ask. Calls that come meanwhile get the same answer.

        Raises:
            NoMasterError: No server knows.
            redis.AuthenticationError: They refuse user or password.
        """
        if self._watching is None:
            # Not in the context of the call that happens to be the first: a trace of it would have every look.
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
            await asyncio.sleep(self.search.look_seconds * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            try:
                await self._flight.do(self._ask_all)
                if self.moves != known:
                    known = self.moves
                    await self.on_move()
            except redis.ConnectionError as error:
                logger.debug("could not ask which server is the master: %s", error)
            except Exception:
                logger.exception("could not ask which server is the master")  # and may next time

    async def _ask_all(self) -> Address:
        failures: Failures = []
        for server in self.search.order:
            try:
                reply = await self._ask(server)
            except (redis.RedisError, OSError) as error:
                failures.append((server, error))
                continue
            found = self.search.read(server, reply)
            if found is None:
                failures.append((server, None))
                continue
            self.search.believe(server, found)
            self.moves += self.address not in (None, found)
            self.address = found
            return found
        raise self.search.failed(failures)

    async def _ask(self, server: Address) -> Any:
        search = self.search
        async with client_of(search.url(server), search.credentials) as client, within(search.seconds):
            return await client.execute_command(*search.command)


async def _nothing() -> None:
    """Nothing follows from it that the master is another one."""


class BlockingMasterFinder:
    """As :class:`MasterFinder`, for threads. It asks again when a connection is used.

    Args:
        search: What to ask whom.

    Attributes:
        search: The same.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self._next_look = 0.0

    def is_elsewhere(self, address: Address) -> bool:
        """Ask, where the last answer is old, whether the master has another address than a connection.

        Args:
            address: Of the connection.

        Returns:
            False also where no server answers.
        """
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + self.search.look_seconds  # other threads go on meanwhile
        try:
            return self.find() != address
        except redis.ConnectionError as error:
            self._next_look = time.monotonic() + LOOK_AFTER_FAILURE_SECONDS
            logger.debug("could not ask which server is the master: %s", error)
            return False

    def find(self) -> Address:
        """As :meth:`MasterFinder.find`."""
        failures: Failures = []
        for server in self.search.order:
            try:
                reply = self._ask(server)
            except (redis.RedisError, OSError) as error:
                failures.append((server, error))
                continue
            if (found := self.search.read(server, reply)) is not None:
                self.search.believe(server, found)
                return found
            failures.append((server, None))
        raise self.search.failed(failures)

    def _ask(self, server: Address) -> Any:
        client: Any = redis.Redis.from_url(
            self.search.url(server),
            credential_provider=self.search.credentials,
            socket_timeout=self.search.seconds,
            socket_connect_timeout=self.search.seconds,
            retry=BlockingRetry(NoBackoff(), 0),
        )
        with client:
            return client.execute_command(*self.search.command)


@asynccontextmanager
async def client_of(
    url: str, credentials: redis.CredentialProvider | None = None, *, timeout_seconds: float | None = None
) -> AsyncGenerator[Any]:
    """A client of one server that tries nothing again.

    Args:
        url: Where the server is, for redis-py.
        credentials: Gives user and password. None: those of the URL.
        timeout_seconds: How long connecting may take, and an answer. None: the caller sees to that.
    """
    client: Any = redis.asyncio.Redis.from_url(
        url,
        credential_provider=credentials,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    finally:
        await client.aclose()


def distinct(addresses: Iterable[Address]) -> list[Address]:
    """Addresses in their order, each once."""
    return list(dict.fromkeys(addresses))
