"""Connections to the store, async and blocking, that check each command and its answer.

redis-py's own time-outs count the time in which a call waits for a pooled connection, and that in which the event loop
is busy. Here a call's time-out begins when its command is sent, and again whenever the store answers any other call: it
says that the store is silent.

What is done when a connection is lost is decided here, for both clients:

- The connection was lost before the command was written, so that the store cannot have run it: redis-py sends it once
  more, on a new connection (``Retry``).
- The command was written, and its answer was lost (:class:`AnswerLostError`): the store may have run it. It is sent
  once more if that changes nothing and gives the same answer
  (:attr:`mcp_celery.store.commands.Command.may_be_repeated`).
- A connection that was idle for long is replaced before it is used: what is between may have forgotten it without a
  word, and a command would wait for its answer in vain.
- A store that is silent is not asked again.
- A server that answers as a replica does has run nothing: it was the master, or the address led to another server. All
  connections are replaced, and the command is sent once more. Where Sentinels or the nodes of a cluster know the
  master, they are asked for it each time that a connection is made, and the server has to say that it is the master.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

import redis
import redis.connection as blocking
from redis._parsers import _AsyncHiredisParser  # pyright: ignore[reportPrivateUsage] - it has no public name
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

from mcp_celery.common.redis_translation import redis_py_url
from mcp_celery.common.within import STEPS, within
from mcp_celery.store.masters import BlockingMasterFinder, MasterFinder
from mcp_celery.store.roles import ReplicaError, address_of, direct, is_elsewhere, require_master, require_still_master
from mcp_celery.store.topology import blocking_finder_of

T = TypeVar("T")

MOST_TIMEOUTS: Final = 5
"""For how many time-outs a connection may be silent while the store answers on others. It is lost then, and its command
is sent once more on a new one.
"""
IDLE_SECONDS: Final = 60.0
"""After this time without a command a connection is replaced."""
_NEVER_DRAINS: Final = 2**31 - 1
"""Bytes, the most that uvloop takes. The commands that wait to be written are in memory in any case."""


class AnswerLostError(redis.RedisError):
    """The connection was lost after a command was written. The store may have run it.

    It is no ``redis.ConnectionError``, after which redis-py's ``Retry`` would send any command again.
    """


class AlsoSilentError(redis.TimeoutError):
    """The store was silent upon a command that was sent with others. The first of them says so in the log."""


@dataclass(slots=True)
class Heard:
    """What the connections of one client know of the store.

    Attributes:
        times: How often anything came from it.
        doubted_at: When a connection was last found silent or lost, by the clock ``time.monotonic``. Connections that
            were last used before are replaced: a network may have forgotten them all, an operator may end those of a
            user one after the other, and a call that is made again must not meet the next of them.
    """

    times: int = 0
    doubted_at: float = 0.0


class Progress:
    """Shows that the store is alive while one wait for it lasts.

    Args:
        heard: What came from the store.
        own: Says how far the store has got with what is waited for, by a value that changes.
    """

    def __init__(self, heard: Heard, own: Callable[[], object]) -> None:
        self._heard = heard
        self._own = own
        self._seen = heard.times
        self._steps = 0

    def __call__(self) -> tuple[object, int]:
        if self._heard.times != self._seen and not self.is_lost:
            self._seen = self._heard.times
            self._steps += 1
        return self._own(), self._steps

    @property
    def is_lost(self) -> bool:
        """Whether the store has answered others for so long that what is waited for will not come."""
        return self._steps >= MOST_TIMEOUTS * STEPS


class Parser(_AsyncHiredisParser):
    """Notes what comes from the store, and gives up on a store from which nothing comes."""

    def on_connect(self, connection: Checked) -> None:
        super().on_connect(connection)
        self._owner = connection

    async def read_from_socket(self) -> Literal[True]:
        """Read what comes next.

        Raises:
            TimeoutError: Nothing came from the store, on any connection.
            redis.ConnectionError: Nothing came on this one.
        """
        owner = self._owner
        if owner.answer_seconds is None:
            await super().read_from_socket()
        else:
            progress = Progress(owner.heard, owner.unsent_bytes)
            try:
                async with within(owner.answer_seconds, progress=progress):
                    await super().read_from_socket()
            except TimeoutError:
                if progress.is_lost:
                    raise redis.ConnectionError(
                        "no answer came, while the store answered on other connections"
                    ) from None
                owner.heard.doubted_at = time.monotonic()
                raise
        owner.heard.times += 1
        return True


def parse_error(text: str) -> Exception:
    """The exception of redis-py's that stands for an error that the store answers."""
    parser: Any = Parser
    return parser.parse_error(text)


class Checked(AbstractConnection):
    """Counts time-outs from when a command is sent, distinguishes a lost answer from an unsent command, and is
    replaced when it was idle for long.

    redis-py 8.1 takes a connection that the other side has reset for a good one. Python 3.12 and 3.13 then raise
    `AttributeError` or `TypeError` from within asyncio's transport when a command is written, which redis-py neither
    retries nor turns into an error of its own.

    Args:
        heard: Counts what comes.
        connect_seconds: How long the store may take to accept a connection.
        answer_seconds: How long it may be silent upon a command, None for ever.
        idle_seconds: After which time without a command it is replaced.
        master: Finds the server. None: the options name it.
        options: As for redis-py.
    """

    def __init__(
        self,
        *,
        heard: Heard,
        connect_seconds: float,
        answer_seconds: float | None,
        idle_seconds: float,
        master: MasterFinder | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._master = master
        self.heard = heard
        self.answer_seconds = answer_seconds
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._used_at = 0.0
        self._is_ready = False
        self._is_sent = False

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self._master is None or self.is_connected:
            await super().connect_check_health(check_health, retry_socket_connect)
            return
        direct(self, await self._master.find())
        try:
            await super().connect_check_health(check_health, retry_socket_connect)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self._master.search.distrust(address_of(self))
            raise

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        self._is_ready = False  # what is sent now is not the command
        await super().on_connect_check_health(check_health)
        if self._master is not None:
            await self.send_command("HELLO", check_health=False)
            require_master(self, await self.read_response())
            require_still_master(self, self._master.address)
        self._is_ready, self._used_at = True, time.monotonic()

    async def connect(self) -> None:
        """Connect, also anew. The pool does this before it gives the connection away."""
        if self.is_connected and self._is_outdated():
            await self.disconnect(nowait=True)
        await super().connect()

    def _is_outdated(self) -> bool:
        if self._master is not None and self._master.address not in (None, address_of(self)):
            return True
        return self._used_at < max(self.heard.doubted_at, time.monotonic() - self._idle_seconds)

    async def _connect(self) -> None:
        async with within(self._connect_seconds):
            await super()._connect()  # pyright: ignore[reportAbstractUsage] - the next class in line has it
        if self._writer is not None:
            # A large command is written while its answer is waited for, which notices a store that takes nothing.
            self._writer.transport.set_write_buffer_limits(high=_NEVER_DRAINS)

    def unsent_bytes(self) -> int:
        """How much of what was written the store has not taken yet."""
        return 0 if self._writer is None else self._writer.transport.get_write_buffer_size()

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        self._is_sent = False
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        parts = (
            [command.encode() if isinstance(command, str) else command]
            if isinstance(command, (str, bytes))
            else command
        )
        if not self._is_written(parts):
            await self.disconnect(nowait=True)
            raise redis.ConnectionError("the connection was lost while it was idle")
        # It may arrive: what the socket did not take at once is sent in the background. Whether it was is seen by who
        # reads the answer.
        self._is_sent = self._is_ready and check_health
        self._used_at = time.monotonic()

    def _is_written(self, parts: Iterable[bytes]) -> bool:
        """Write a command. False: the connection is lost, and nothing of the command was sent."""
        if self._writer is None or self._writer.is_closing():
            return False
        try:
            self._writer.writelines(parts)
        except (AttributeError, TypeError):
            return False
        # asyncio has made one attempt to send it, and closes the connection when that fails.
        return not self._writer.is_closing()

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        reader: Any = super()
        try:
            return await reader.read_response(*arguments, **options)
        except redis.ConnectionError as error:
            raise self._meaning_of(error) from error
        except redis.ResponseError as error:
            if not is_elsewhere(error, self, self._master):
                raise
            self.heard.doubted_at = time.monotonic()
            await self.disconnect(nowait=True)
            raise ReplicaError(str(error)) from error

    def _meaning_of(self, error: redis.ConnectionError) -> redis.RedisError:
        # Errors that the store gives as an answer, as of a wrong password, are of classes of their own.
        is_lost = self._is_sent and self.answer_seconds is not None and type(error) is redis.ConnectionError
        if not is_lost:
            return error
        self.heard.doubted_at = time.monotonic()
        return AnswerLostError(str(error))

    def hand_over(self) -> tuple[asyncio.StreamWriter, bytes]:
        """Give the open connection up to what reads and writes it from now on.

        Returns:
            The writer, and what has come from the store since its last answer.

        Raises:
            redis.ConnectionError: It is not open any more.
        """
        reader, writer = self._reader, self._writer
        if reader is None or writer is None or writer.is_closing():
            raise redis.ConnectionError("the connection was lost as soon as it was made")
        self._reader = self._writer = None
        return writer, bytes(cast(Any, reader)._buffer)

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        if self._writer is not None:
            # Else it would be waited until a store takes what is unsent that takes nothing.
            self._writer.transport.abort()
        await super().disconnect(*arguments, **options)


class _TcpConnection(Checked, Connection):
    """``redis://``."""


class _TlsConnection(Checked, SSLConnection):
    """``rediss://``."""


class _UnixConnection(Checked, UnixDomainSocketConnection):
    """``unix://``."""


CLASSES: Final[Mapping[type[AbstractConnection], type[Checked]]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}
"""By what redis-py chooses for a URL."""


class _CheckedBlocking(blocking.AbstractConnection):
    """As :class:`Checked`, of the blocking client.

    Args:
        heard: Called when the store is silent.
        idle_seconds: After which time without a command it is replaced.
        master: Finds the server. None: the options name it.
        options: As for redis-py.
    """

    def __init__(
        self, *, heard: Heard, idle_seconds: float, master: BlockingMasterFinder | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._master = master
        self._heard = heard
        self._idle_seconds = idle_seconds
        self._used_at = 0.0
        self._is_ready = False
        self._is_sent = False

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self._master is None or self.is_connected:
            super().connect_check_health(check_health, retry_socket_connect)
            return
        direct(self, self._master.find())
        try:
            super().connect_check_health(check_health, retry_socket_connect)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self._master.search.distrust(address_of(self))
            raise

    def on_connect_check_health(self, check_health: bool = True) -> None:
        self._is_ready = False  # what is sent now is not the command
        super().on_connect_check_health(check_health)
        if self._master is not None:
            self.send_command("HELLO", check_health=False)
            require_master(self, self.read_response())
        self._is_ready, self._used_at = True, time.monotonic()

    def connect(self) -> None:
        """Connect, also anew. The pool does this before it gives the connection away."""
        if self.is_connected and self._is_outdated():
            self.disconnect()
        super().connect()

    def _is_outdated(self) -> bool:
        if self._master is not None and self._master.is_elsewhere(address_of(self)):
            self._heard.doubted_at = time.monotonic()
        return self._used_at < max(self._heard.doubted_at, time.monotonic() - self._idle_seconds)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        # A command that cannot be written to its end does not arrive: the store runs none of which a part is missing.
        self._is_sent = False
        super().send_packed_command(command, check_health)
        self._is_sent = self._is_ready and check_health
        self._used_at = time.monotonic()

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        reader: Any = super()
        try:
            return reader.read_response(*arguments, **options)
        except redis.ConnectionError as error:
            if self._is_sent and type(error) is redis.ConnectionError:
                self._heard.doubted_at = time.monotonic()
                raise AnswerLostError(str(error)) from error
            raise
        except redis.ResponseError as error:
            if not is_elsewhere(error, self, self._master):
                raise
            self._heard.doubted_at = time.monotonic()
            self.disconnect()
            raise ReplicaError(str(error)) from error
        except redis.TimeoutError:
            self._heard.doubted_at = time.monotonic()
            raise


class _BlockingTcpConnection(_CheckedBlocking, blocking.Connection):
    """``redis://``."""


class _BlockingTlsConnection(_CheckedBlocking, blocking.SSLConnection):
    """``rediss://``."""


class _BlockingUnixConnection(_CheckedBlocking, blocking.UnixDomainSocketConnection):
    """``unix://``."""


_BLOCKING_CLASSES: Final[Mapping[type[blocking.AbstractConnection], type[blocking.AbstractConnection]]] = {
    blocking.Connection: _BlockingTcpConnection,
    blocking.SSLConnection: _BlockingTlsConnection,
    blocking.UnixDomainSocketConnection: _BlockingUnixConnection,
}


def call_blocking(call: Callable[[], T], *, may_be_repeated: bool) -> T:
    """Make a call of a client from :func:`connect_blocking`.

    Args:
        call: Makes it.
        may_be_repeated: Whether to make it once more when its answer was lost.

    Raises:
        redis.RedisError: As redis-py has it.
    """
    try:
        return call()
    except AnswerLostError:
        if not may_be_repeated:
            raise
        return call()


def connect_blocking(
    url: str,
    *,
    timeout_seconds: float,
    max_connections: int = 32,
    credentials: redis.CredentialProvider | None = None,
    idle_seconds: float = IDLE_SECONDS,
    retries: int = 1,
    key: str = "",
) -> redis.Redis:
    """A blocking client.

    Args:
        url: As :func:`connect`; sizes of the pool do not count.
        timeout_seconds: How long connecting may take, and an answer.
        max_connections: How many connections it has; threads wait when all are busy.
        credentials: As :func:`connect`.
        idle_seconds: As :func:`connect`.
        retries: How often a command is sent again that was not sent, because the connection was lost.
        key: As :func:`connect`.
    """
    pool = redis.BlockingConnectionPool.from_url(
        redis_py_url(url, with_pool=False, with_user=credentials is None),
        credential_provider=credentials,
        max_connections=max_connections,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        heard=Heard(),
        master=blocking_finder_of(url, key=key, timeout_seconds=timeout_seconds, credentials=credentials),
        idle_seconds=idle_seconds,
        retry=BlockingRetry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
    )
    made_by: Any = pool
    made_by.connection_class = _BLOCKING_CLASSES[pool.connection_class]
    # A thread that waits for its turn takes no store for dead.
    pool.timeout = None  # pyright: ignore[reportAttributeAccessIssue] - declared as a number by its default
    client = redis.Redis(connection_pool=pool, credential_provider=credentials)
    client.auto_close_connection_pool = True
    return client
