"""Commands over a shared connection: a command is sent without waiting for the answers to those before it.

redis-py lends a connection to one call at a time, with a lock, a stream and a time-out for each call. Here a call is a
place in a queue: answers come in the order of the commands. What is sent in one turn of the event loop is written
together.

redis-py still opens each connection, with TLS, user, password and database, and parses what comes.

No call has a time-out. A watchdog ends a *connection* on which commands wait and nothing comes, and everything that
waits there fails. Half-way another connection is opened. Where the store answers on that, it was the network that lost
the first, and what may be repeated is sent once more; where it does not, the store is silent.

A second connection takes large commands and answers, so that small ones do not wait behind them.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, cast

import hiredis
import redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from mcp_celery.common.background import BackgroundTasks
from mcp_celery.common.call_limiter import NoAnswerError
from mcp_celery.common.single_flight import SingleFlight
from mcp_celery.common.within import STEPS
from mcp_celery.store.connection import AlsoSilentError, AnswerLostError, Checked, Heard, parse_error
from mcp_celery.store.roles import ReplicaError, is_of_replica

logger = logging.getLogger(__name__)

_MISSING: Final = object()
"""In place of an answer that has not come to its end."""
LARGE_BYTES: Final = 64 * 1024
"""A command of more bytes is large. So is an answer, once more bytes of it have arrived and it is not complete."""


def _packed(*command: str | bytes | int) -> bytes:
    return cast(Any, hiredis).pack_command(command)


def _lost(reason: str) -> Iterator[Exception]:
    while True:
        yield AnswerLostError(reason)


def _silent(number: int) -> Iterator[Exception]:
    yield redis.TimeoutError(f"the store is silent; commands that wait for an answer: {number}")
    while True:
        yield AlsoSilentError("the store is silent")


class SharedConnection(asyncio.Protocol):
    """An open connection and the commands that wait for their answers. Belongs to one event loop.

    Args:
        connection: As redis-py has opened it. It is given up to this one.
        timeout_seconds: How long the store may be silent while a command waits.
        on_doubt: Called with this connection when it has been silent for half of that time.

    Attributes:
        is_lost: Whether it is closed, or given up.
    """

    def __init__(
        self, connection: Checked, timeout_seconds: float, on_doubt: Callable[[SharedConnection], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: Heard = connection.heard
        # The writer is kept, because it closes the connection when nothing refers to it any more.
        self._writer, came_before = connection.hand_over()
        self._transport = self._writer.transport
        self._reader = hiredis.Reader(
            protocolError=redis.InvalidResponse, replyError=parse_error, notEnoughData=_MISSING
        )
        self._step_seconds = timeout_seconds / STEPS
        self._on_doubt = on_doubt
        self._context = contextvars.Context()  # a timer holds no request's, which may go on for long
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unwritten: list[bytes] = []  # commands of the last in `_waiting`
        self.is_lost = self._is_retired = False
        self._received = self._written = 0
        self._of_one_answer = 0  # bytes that have come of an answer that is not complete
        self._timer: asyncio.Handle | None = None
        self._used_at = time.monotonic()
        self._transport.set_protocol(self)
        if came_before:
            self.data_received(came_before)

    @property
    def is_busy(self) -> bool:
        """Whether a large command or answer is on its way."""
        return self._of_one_answer > LARGE_BYTES or self._transport.get_write_buffer_size() > LARGE_BYTES

    def may_be_used(self, idle_seconds: float) -> bool:
        """Whether one more command may be sent.

        Args:
            idle_seconds: After which time without a command the connection is replaced.
        """
        if self.is_lost or self._is_retired or self._transport.is_closing():
            return False
        if self._used_at < self._heard.doubted_at:
            return False
        return bool(self._waiting) or self._used_at >= time.monotonic() - idle_seconds

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """Send a command.

        Returns:
            Its answer.

        Raises:
            redis.ConnectionError: The connection was lost; nothing was sent.
            AnswerLostError: The connection was lost after the command was written.
            redis.TimeoutError: The store is silent.
            redis.RedisError: As the store answers.
        """
        if self.is_lost:
            raise redis.ConnectionError("the connection was lost while it was idle")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(answer)
        if not self._unwritten:
            self._loop.call_soon(self._write)
        self._unwritten.append(packed)
        self._used_at = time.monotonic()
        if self._timer is None:
            self._watch()
        return answer

    async def send_all(self, packed: Sequence[bytes]) -> list[Any]:
        """Send commands, which the store carries out one after the other.

        Returns:
            Their answers.

        Raises:
            redis.RedisError: As :meth:`send`, of the first that failed.
        """
        answers = [self.send(one) for one in packed]
        try:
            return [await answer for answer in answers]
        finally:
            for answer in answers:
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # asyncio logs those that are not taken

    def _write(self) -> None:
        # What is not written when the connection closes is failed as that by `connection_lost`.
        if not self._unwritten or self._transport.is_closing():
            return
        commands = b"".join(self._unwritten)
        was_empty = not self._transport.get_write_buffer_size()
        self._transport.write(commands)
        # asyncio has made one attempt to send it, and closes the connection when that fails.
        if was_empty and self._transport.is_closing():
            return
        self._unwritten.clear()
        self._written += len(commands)

    def data_received(self, data: bytes) -> None:
        """Give answers to those who wait for them."""
        self._received += 1
        self._heard.times += 1
        self._of_one_answer += len(data)
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _MISSING:
                self._of_one_answer = 0
                self._take(answer)
        except redis.InvalidResponse as error:
            reason = str(error)
            self._give_up(_lost(reason), lambda: redis.ConnectionError(reason))

    def _take(self, answer: Any) -> None:
        if isinstance(answer, hiredis.PushNotification):
            logger.debug("the store sent a notification that has no use here")
            return
        if not self._waiting:
            logger.debug("the store sent an answer to no command: %s", type(answer).__name__)
            self._transport.abort()
            return
        waiting = self._waiting.popleft()
        if isinstance(answer, redis.ResponseError) and is_of_replica(answer, has_sentinels=False):
            self._heard.doubted_at = time.monotonic()
            answer = ReplicaError(str(answer))
        if isinstance(answer, redis.ConnectionError):  # such as one that must authenticate again
            self.retire()
        if not waiting.done():
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)
        if self._is_retired:
            self.retire()

    def retire(self) -> None:
        """Send no further command, and close when all are answered."""
        self._is_retired = True
        if not self._waiting:
            self._transport.abort()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._waiting) > len(self._unwritten):
            self._heard.doubted_at = time.monotonic()
        reason = "Connection closed by server." if exc is None else str(exc) or type(exc).__name__
        self._fail(_lost(reason), lambda: redis.ConnectionError(reason))

    def _fail(self, failures: Iterator[Exception], unwritten: Callable[[], Exception]) -> None:
        """Fail everything that waits.

        Args:
            failures: One for each command that was written.
            unwritten: Makes those of the others.
        """
        waiting, written = self._waiting, len(self._waiting) - len(self._unwritten)
        self._waiting, self._unwritten = deque(), []
        for position, answer in enumerate(waiting):
            if not answer.done():
                answer.set_exception(next(failures) if position < written else unwritten())

    def _give_up(self, failures: Iterator[Exception], unwritten: Callable[[], Exception]) -> None:
        self._heard.doubted_at = time.monotonic()
        self.is_lost = True
        self._transport.abort()
        self._fail(failures, unwritten)

    def _watch(self) -> None:
        self._left = STEPS
        self._note_progress()
        self._timer = self._loop.call_later(self._step_seconds, self._count, context=self._context)

    def _note_progress(self) -> None:
        self._seen = self._progress()
        self._others = self._heard.times - self._received

    def _progress(self) -> tuple[int, int]:
        """Changes while the store answers, and while it takes more than the connection itself holds."""
        unsent = self._transport.get_write_buffer_size()
        return self._received, self._written - unsent if unsent else 0

    def _count(self) -> None:
        """One step of a time-out, as :class:`mcp_celery.common.within.within` counts."""
        if not self._waiting:
            self._timer = None
            return
        if self._progress() != self._seen:
            self._left = STEPS
            self._note_progress()
        else:
            self._left -= 1
            if self._left == STEPS // 2 and not self._is_retired:
                self._on_doubt(self)
        if self._left:
            self._timer = self._loop.call_later(self._step_seconds, self._count, context=self._context)
        else:
            # What has arrived in this turn of the event loop is taken in the next one.
            self._timer = self._loop.call_soon(self._expire, context=self._context)

    def _expire(self) -> None:
        if not self._waiting or self._progress() != self._seen:
            self._watch()
        elif self._heard.times - self._received != self._others:
            reason = "no answer came, while the store answered on other connections"
            self._give_up(_lost(reason), lambda: redis.ConnectionError(reason))
        else:
            self._give_up(_silent(len(self._waiting)), NoAnswerError)


OnDoubt = Callable[[SharedConnection], None]


class _Lane:
    """One shared connection at a time, replaced when it is lost.

    Args:
        open_connection: Makes a connection, and passes on when it is in doubt.
        idle_seconds: After which time without a command it is replaced.
    """

    def __init__(self, open_connection: Callable[[OnDoubt], Awaitable[SharedConnection]], idle_seconds: float) -> None:
        self._open = open_connection
        self._idle_seconds = idle_seconds
        self._flight = SingleFlight[SharedConnection]()
        self._replacing = BackgroundTasks(logger, "a connection to the task store could not be replaced")
        self._current: SharedConnection | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a large command or answer is on its way."""
        return self._current is not None and self._current.is_busy

    async def connection(self) -> SharedConnection:
        """The connection for one more command."""
        current = self._current
        if current is not None:
            if current.may_be_used(self._idle_seconds):
                return current
            current.retire()
            self._current = None
        return await self._flight.do(self._connect)

    async def _connect(self) -> SharedConnection:
        self._current = await self._open(self._doubt)
        return self._current

    def _doubt(self, silent: SharedConnection) -> None:
        if silent is self._current and not self._replacing:
            self._replacing.start(self._replace(silent), name="mcp-celery-store-connection")

    async def _replace(self, silent: SharedConnection) -> None:
        try:
            await self._flight.do(self._connect)
        except (redis.RedisError, OSError) as error:
            logger.debug("could not open another connection while one is silent: %s", type(error).__name__)
        else:
            silent.retire()

    async def aclose(self) -> None:
        """Open no further connection."""
        await self._replacing.aclose()


class Pipeline:
    """Calls scripts, and reads, over two shared connections. Belongs to one event loop.

    Args:
        make_connection: Makes a connection of redis-py's that is not open.
        timeout_seconds: How long the store may be silent while a command waits.
        idle_seconds: After which time without a command a connection is replaced.
    """

    def __init__(self, make_connection: Callable[[], Checked], *, timeout_seconds: float, idle_seconds: float) -> None:
        self._make_connection = make_connection
        self._timeout_seconds = timeout_seconds
        self._small = _Lane(self._open, idle_seconds)
        self._large = _Lane(self._open, idle_seconds)
        self._loads: dict[str, SingleFlight[None]] = {}
        self._connections: set[SharedConnection] = set()
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether a large command or answer is on its way, so that small ones take the second connection."""
        return self._small.is_busy

    async def call(
        self, script: AsyncScript, keys: Sequence[str | bytes], args: Sequence[str | bytes | int], *, is_large: bool
    ) -> Any:
        """Call a script, which is sent to the store where that does not know it.

        Args:
            script: The script.
            keys: KEYS.
            args: ARGV.
            is_large: Whether a large answer is expected.

        Returns:
            The reply.

        Raises:
            redis.RedisError: As :meth:`SharedConnection.send`, and where no connection could be made.
        """
        packed = _packed("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            return await self._send(packed, is_large=is_large)
        except NoScriptError:
            await self._loads.setdefault(script.sha, SingleFlight[None]()).do(lambda: self._load(script))
            return await self._send(packed, is_large=is_large)

    async def ask(self, *commands: Sequence[str | bytes]) -> list[Any]:
        """Send commands of Redis' own together; the store carries them out one after the other.

        Returns:
            Their answers.

        Raises:
            redis.RedisError: As :meth:`SharedConnection.send`, of the first that failed, and where no connection could
                be made.
        """
        packed = [_packed(*command) for command in commands]
        lane = self._large if self._small.is_busy else self._small
        connection = await lane.connection()
        try:
            return await connection.send_all(packed)
        except redis.ConnectionError:  # nothing was sent
            connection = await lane.connection()
        return await connection.send_all(packed)

    async def _load(self, script: AsyncScript) -> None:
        await self._send(_packed("SCRIPT", "LOAD", cast("str | bytes", script.script)), is_large=False)

    async def _send(self, packed: bytes, *, is_large: bool) -> Any:
        """Send a command, once more where its connection was lost before it was sent."""
        if not is_large:
            is_large = len(packed) > LARGE_BYTES or self._small.is_busy
        lane = self._large if is_large else self._small
        connection = await lane.connection()
        try:
            return await connection.send(packed)
        except redis.ConnectionError:
            connection = await lane.connection()
        return await connection.send(packed)

    async def _open(self, on_doubt: OnDoubt) -> SharedConnection:
        if self._is_closed:
            raise redis.ConnectionError("the client of the store is closed")
        connection = self._make_connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        shared = SharedConnection(connection, self._timeout_seconds, on_doubt)
        if self._is_closed:
            shared.abort()
        self._connections = {one for one in self._connections if not one.is_lost} | {shared}
        return shared

    async def aclose(self) -> None:
        """Close both connections."""
        self._is_closed = True
        await asyncio.gather(self._small.aclose(), self._large.aclose())
        for one in self._connections:
            one.abort()
        await asyncio.sleep(0)  # asyncio closes the sockets in the next turn of the event loop
