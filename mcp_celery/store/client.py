"""The async client of the store: scripts and reads over a shared connection, other calls over a pool of redis-py's.

A call of the pool waits for a connection for as long as the store answers others. Where Sentinels or the nodes of a
cluster name the server, or redis-py authenticates open connections again by itself, scripts go over the pool, too.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.credentials import StreamingCredentialProvider

from mcp_celery.common.call_limiter import CallLimiter
from mcp_celery.common.outage import Outage
from mcp_celery.common.redis_translation import redis_py_url
from mcp_celery.store.connection import CLASSES, IDLE_SECONDS, AnswerLostError, Checked, Heard, Parser, Progress
from mcp_celery.store.masters import MasterFinder
from mcp_celery.store.pipeline import Pipeline
from mcp_celery.store.topology import finder_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_SCRIPTS: Final = 20_000
"""How many calls of scripts may wait for their answers; more wait before they are sent."""


class StoreClient:
    """A client of the store that belongs to one event loop.

    Args:
        client: redis-py's, over connections of this module.
        heard: What they count.
        most: How many calls run at a time.
        timeout_seconds: How long the store may be silent.
        master: Finds the server. None: the URL names it.
        pipeline: Calls scripts. None: the pool does.

    Attributes:
        redis: redis-py's, to make calls of.
        pipeline: Calls scripts; None where the pool does.
        outage: Whether the store is lost, where the owner keeps track of that.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        heard: Heard,
        *,
        most: int,
        timeout_seconds: float,
        master: MasterFinder | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.redis = client
        self._heard = heard
        self._master = master
        self.pipeline = pipeline
        self._limiter = CallLimiter(most, timeout_seconds=timeout_seconds)
        self._scripts_limiter = CallLimiter(MOST_SCRIPTS, timeout_seconds=timeout_seconds)
        self.outage: Outage | None = None

    @property
    def has_sentinels(self) -> bool:
        """Whether Sentinels, or the nodes of a cluster, name the server."""
        return self._master is not None

    @property
    def moves(self) -> int:
        """How often they have named another server than before as the master."""
        return 0 if self._master is None else self._master.moves

    def progress(self, own: Callable[[], object]) -> Progress:
        """Say how far the store gets with what is waited for, and with what others wait for."""
        return Progress(self._heard, own)

    async def call(self, call: Callable[[], Awaitable[T]], *, may_be_repeated: bool = True) -> T:
        """Make one of redis-py's calls, when there is a connection for it.

        Args:
            call: Makes it.
            may_be_repeated: Whether to make it once more when its answer was lost.

        Raises:
            NoAnswerError: It waited for a connection, and the store is silent.
            redis.TimeoutError: The store is silent upon the command. The calls that wait for a connection fail, too.
            redis.RedisError: As redis-py has it.
        """
        return await self._limited(self._limiter, call, may_be_repeated=may_be_repeated)

    async def call_script(
        self,
        script: AsyncScript,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        may_be_repeated: bool = True,
        is_large: bool = False,
    ) -> Any:
        """Call a script.

        Args:
            script: Registered with :attr:`redis`.
            keys: KEYS.
            args: ARGV.
            may_be_repeated: Whether to call it once more when its answer was lost.
            is_large: Whether a large answer is expected.

        Raises:
            NoAnswerError: As :meth:`call`.
            redis.TimeoutError: As :meth:`call`.
            redis.RedisError: As redis-py has it.
        """
        pipeline = self.pipeline
        if pipeline is None:
            return await self.call(lambda: script(keys=keys, args=args), may_be_repeated=may_be_repeated)
        return await self._limited(
            self._scripts_limiter,
            lambda: pipeline.call(script, keys, args, is_large=is_large),
            may_be_repeated=may_be_repeated,
        )

    async def ask(self, pipeline: Pipeline, *commands: Sequence[str | bytes]) -> list[Any]:
        """Read with commands of Redis' own, in one round trip. They are sent once more when their answer was lost.

        Args:
            pipeline: :attr:`pipeline`.
            commands: The commands, which the store carries out one after the other.

        Returns:
            Their answers.

        Raises:
            NoAnswerError: As :meth:`call`.
            redis.TimeoutError: As :meth:`call`.
            redis.RedisError: The first that failed; as redis-py has it.
        """
        return await self._limited(self._scripts_limiter, lambda: pipeline.ask(*commands), may_be_repeated=True)

    async def _limited(self, limiter: CallLimiter, call: Callable[[], Awaitable[T]], *, may_be_repeated: bool) -> T:
        await limiter.enter()
        try:
            try:
                return await call()
            except AnswerLostError:
                if not may_be_repeated:
                    raise
                return await call()
        except redis.TimeoutError:
            if waiting := limiter.fail_waiting():
                known = self.outage is not None and self.outage.is_on
                logger.log(
                    logging.DEBUG if known else logging.WARNING,
                    "the task store (MCP_CELERY_REDIS_URL) does not answer: %d calls that waited for a connection "
                    "have failed",
                    waiting,
                )
            raise
        finally:
            limiter.leave()

    async def aclose(self) -> None:
        """Close every connection."""
        if self.pipeline is not None:
            await self.pipeline.aclose()
        if self._master is not None:
            await self._master.aclose()
        await self.redis.aclose(close_connection_pool=True)


def connect(
    url: str,
    *,
    max_connections: int,
    timeout_seconds: float,
    credentials: redis.CredentialProvider | None = None,
    listens: bool = False,
    idle_seconds: float = IDLE_SECONDS,
    key: str = "",
) -> StoreClient:
    """Make an async client of the store.

    Args:
        url: ``MCP_CELERY_REDIS_URL``. Its options win over those given here, but for time-outs.
        max_connections: How many connections the pool has; calls wait when all are busy. Scripts have two of their own.
        timeout_seconds: How long the store may be silent upon a command.
        credentials: Gives user and password for each connection. None: those of the URL.
        listens: Whether it is for pub/sub, where silence is no fault.
        idle_seconds: After which time without a command a connection is replaced.
        key: What its keys begin with, which a cluster keeps together. Empty: any master of a cluster will do.
    """
    heard = Heard()
    master = finder_of(url, key=key, timeout_seconds=timeout_seconds, credentials=credentials)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        redis_py_url(url, with_user=credentials is None),
        credential_provider=credentials,
        max_connections=max_connections,
        heard=heard,
        master=master,
        connect_seconds=timeout_seconds,
        answer_seconds=None if listens else timeout_seconds,
        idle_seconds=idle_seconds,
        parser_class=Parser,
        # One more try on a fresh connection: what is pooled may be from before the store restarted. An AnswerLostError
        # is none of these errors. (The blocking client's Retry is accepted here too, and never tries again.)
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    pool.connection_class = CLASSES[pool.connection_class]
    # A URL may bring time-outs of redis-py's own, for other clients that it is shared with.
    pool.timeout = None
    pool.connection_kwargs |= {"socket_timeout": None, "socket_connect_timeout": None, "retry_on_timeout": False}
    client = redis.asyncio.Redis(connection_pool=pool, credential_provider=credentials)
    client.auto_close_connection_pool = True

    if master is not None:
        master.on_move = functools.partial(_leave_old_master, master, heard, pool if listens else None)
    pipeline = None
    if not (listens or master is not None or isinstance(credentials, StreamingCredentialProvider)):
        make_connection = cast("Callable[[], Checked]", pool.make_connection)
        pipeline = Pipeline(make_connection, timeout_seconds=timeout_seconds, idle_seconds=idle_seconds)
    most = pool.max_connections
    return StoreClient(client, heard, most=most, timeout_seconds=timeout_seconds, master=master, pipeline=pipeline)


async def _leave_old_master(
    master: MasterFinder, heard: Heard, listening: redis.asyncio.BlockingConnectionPool | None
) -> None:
    """Use no connection again that goes to the former master, and listen to it no longer.

    Args:
        master: Knows where the master is now.
        heard: Of the connections.
        listening: Connections for pub/sub; None: they are for commands.
    """
    heard.doubted_at = time.monotonic()
    if listening is None:
        logger.warning("the master of the task store (MCP_CELERY_REDIS_URL) is now at %s:%d", *(master.address or ()))
    else:
        await listening.disconnect()
