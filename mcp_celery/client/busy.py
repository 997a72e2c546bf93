"""Requests that a busy server refuses are sent again when it says that they may: -32005 with ``retryAfterMs``.

Over HTTP so are requests that become tasks, when their answer was lost (``client/idempotency.py``).
"""

from __future__ import annotations

import contextvars
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import anyio
import anyio.abc
import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from mcp_celery.client.idempotency import announced_in, is_refused_repeat, may_become_task, repeated, with_key
from mcp_celery.client.retry import growing_pauses, spread
from mcp_celery.client.wire import MOST_MS
from mcp_celery.errors import LIMIT_EXCEEDED

BUSY_SECONDS: Final = 60.0
"""How long a request is sent again that a busy server refuses, unless the program says otherwise."""

LOST_SECONDS: Final = 60.0
"""How long a request that becomes a task is sent again whose answer was lost."""
FIRST_PAUSE_SECONDS: Final = 0.05
NOT_SENT: Final = {"isSent": False}
"""The data of the error of a request that did not reach the server."""
_TOO_LARGE: Final = re.compile(r"exceeded the \d+ byte limit")
"""In what the SDK's transport, and ours, answer for a server whose answer is larger than they take."""

Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


def is_too_large(error: types.ErrorData) -> bool:
    """Whether the server's answer was larger than the transport takes, as the next one will be."""
    return error.code == types.CONNECTION_CLOSED and _TOO_LARGE.search(error.message) is not None


def retry_after_seconds(error: types.ErrorData) -> float | None:
    """How long to wait before a refused request is sent again; None where the server does not say, or did not refuse.

    A server of this package does nothing of a request that it refuses so, and answers no component's own error with
    that time, so that sending it again does nothing twice.
    """
    if error.code != LIMIT_EXCEEDED or not isinstance(error.data, Mapping):
        return None
    after_ms = cast("Mapping[str, Any]", error.data).get("retryAfterMs")
    if isinstance(after_ms, bool) or not isinstance(after_ms, int | float) or not after_ms >= 0:
        return None
    return min(after_ms, MOST_MS) / 1000


async def unless_busy(send: Callable[[], Awaitable[Answer]], *, busy_seconds: float) -> Answer:
    """Send a request, again and again while the server is busy.

    Args:
        send: Sends it, and returns its answer.
        busy_seconds: How long to go on.

    Returns:
        The answer.

    Raises:
        MCPError: The server refused it for another reason, or is busy for longer.
    """
    until = anyio.current_time() + busy_seconds
    while True:
        try:
            return await send()
        except MCPError as error:
            pause = _pause_within(error.error, until)
            if pause is None:
                raise
        await anyio.sleep(pause)


def _pause_within(error: types.ErrorData, until: float) -> float | None:
    after = retry_after_seconds(error)
    if after is None:
        return None
    pause = spread(after)
    return pause if anyio.current_time() + pause <= until else None


@dataclass(slots=True)
class _Sent:
    """A request that has no answer yet."""

    message: SessionMessage
    request: types.JSONRPCRequest
    since: float
    """When it was sent first, in the event loop's time."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    lost: SessionMessage | None = None
    """What came in the place of its first answer, which was lost."""
    pauses: Iterator[float] = field(default_factory=lambda: growing_pauses(FIRST_PAUSE_SECONDS))


class _Requests:
    """The requests of a transport that have no answer yet."""

    def __init__(self, write: Any, group: anyio.abc.TaskGroup, busy_seconds: float) -> None:
        self._write = write
        self._group = group
        self._busy_seconds = busy_seconds
        self._sent: dict[types.RequestId, _Sent] = {}
        self._makes_one_task = False

    def note(self, message: SessionMessage) -> SessionMessage:
        """Keep a request that is sent, and forget one that is cancelled.

        Returns:
            What to send: a request that may become a task has an idempotency key.
        """
        message = with_key(message)
        match message.message:
            case types.JSONRPCRequest(id=request_id) as request:
                self._sent[request_id] = _Sent(message, request, anyio.current_time())
            case types.JSONRPCNotification(method="notifications/cancelled", params={"requestId": request_id}):
                self._sent.pop(request_id, None)
            case _:
                pass
        return message

    def received(self, message: SessionMessage | Exception) -> SessionMessage | Exception | None:
        """The message that the client receives; None where its request is sent again."""
        if not isinstance(message, SessionMessage):
            return message
        answer = message.message
        if not isinstance(answer, types.JSONRPCResponse | types.JSONRPCError) or answer.id is None:
            return message
        sent = self._sent.get(answer.id)
        if sent is None:
            return message
        if isinstance(answer, types.JSONRPCError):
            pause = self._pause_before_repeat(sent, message, answer.error)
            if pause is not None:
                # What it carries of the caller's context goes with it again.
                sent.context.run(self._group.start_soon, self._send_again, answer.id, sent, pause)
                return None
        del self._sent[answer.id]
        if isinstance(answer, types.JSONRPCResponse):
            self._makes_one_task |= announced_in(sent.request, answer.result)
        elif sent.lost is not None and is_refused_repeat(answer.error):
            return sent.lost  # whether the call has run cannot be found out
        return message

    def _pause_before_repeat(self, sent: _Sent, message: SessionMessage, error: types.ErrorData) -> float | None:
        """How long to wait before a request is sent again; None where its error is for the client."""
        pause = _pause_within(error, sent.since + self._busy_seconds)
        if pause is not None:
            return pause
        if not (self._makes_one_task and may_become_task(sent.request) and _is_lost(error, is_repeat=bool(sent.lost))):
            return None
        pause = next(sent.pauses)
        if anyio.current_time() + pause > sent.since + LOST_SECONDS:
            return None
        sent.lost = sent.lost or message
        sent.message = repeated(sent.message)
        return pause

    async def _send_again(self, request_id: types.RequestId, sent: _Sent, pause: float) -> None:
        await anyio.sleep(pause)
        if self._sent.get(request_id) is not sent:
            return
        try:
            await self._write.send(sent.message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("The connection ended before a request was sent again")


def _is_lost(error: types.ErrorData, *, is_repeat: bool) -> bool:
    """Whether an error stands for an answer that was lost. A request that was never sent has none to lose."""
    if error.code != types.CONNECTION_CLOSED or is_too_large(error):
        return False
    return is_repeat or error.data != NOT_SENT


class _Stream:
    """Stands in for a stream of a transport."""

    def __init__(self, stream: Any, requests: _Requests) -> None:
        self._stream = stream
        self._requests = requests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stream.__aexit__(kind, error, traceback)


class _WriteStream(_Stream):
    async def send(self, item: SessionMessage) -> None:
        await self._stream.send(self._requests.note(item))


class _ReadStream(_Stream):
    async def receive(self) -> SessionMessage | Exception:
        while (message := self._requests.received(await self._stream.receive())) is None:
            pass
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


@asynccontextmanager
async def obeying(streams: Any, *, busy_seconds: float) -> AsyncGenerator[Any]:
    """Put the sending again behind a transport's streams, so that it holds for every request of the SDK's client.

    Requests that may become tasks get idempotency keys, and are sent again also when their answer was lost, where the
    server makes one task of them.

    Args:
        streams: The transport's two streams.
        busy_seconds: How long to go on with a request.

    Yields:
        Two streams in their place.
    """
    read, write = streams
    async with anyio.create_task_group() as group:
        requests = _Requests(write, group, busy_seconds)
        yield _ReadStream(read, requests), _WriteStream(write, requests)
        group.cancel_scope.cancel()
