"""Requests that a busy server refuses are sent again when it says that they may: -32005 with ``retryAfterMs``."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import anyio
import anyio.abc
import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from mcp_celery.client.retry import spread
from mcp_celery.errors import LIMIT_EXCEEDED

BUSY_SECONDS: Final = 60.0
"""How long a request is sent again that a busy server refuses, unless the program says otherwise."""

Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


def retry_after_seconds(error: types.ErrorData) -> float | None:
    """How long to wait before a refused request is sent again; None where the server does not say, or did not refuse.

    Nothing was done of such a request, so that sending it again does nothing twice.
    """
    if error.code != LIMIT_EXCEEDED or not isinstance(error.data, Mapping):
        return None
    after_ms = cast("Mapping[str, Any]", error.data).get("retryAfterMs")
    if isinstance(after_ms, bool) or not isinstance(after_ms, int | float) or not after_ms >= 0:
        return None
    return after_ms / 1000


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
    until: float
    """When it is no longer sent again, in the event loop's time."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class _Requests:
    """The requests of a transport that have no answer yet."""

    def __init__(self, write: Any, group: anyio.abc.TaskGroup, busy_seconds: float) -> None:
        self._write = write
        self._group = group
        self._busy_seconds = busy_seconds
        self._sent: dict[types.RequestId, _Sent] = {}

    def note(self, message: SessionMessage) -> None:
        """Keep a request that is sent, and forget one that is cancelled."""
        match message.message:
            case types.JSONRPCRequest(id=request_id):
                self._sent[request_id] = _Sent(message, anyio.current_time() + self._busy_seconds)
            case types.JSONRPCNotification(method="notifications/cancelled", params={"requestId": request_id}):
                self._sent.pop(request_id, None)
            case _:
                pass

    def is_sent_again(self, message: SessionMessage | Exception) -> bool:
        """Whether a message refuses a request that is sent again, so that no caller sees the refusal."""
        if not isinstance(message, SessionMessage):
            return False
        answer = message.message
        if not isinstance(answer, types.JSONRPCResponse | types.JSONRPCError) or answer.id is None:
            return False
        sent = self._sent.get(answer.id)
        if isinstance(answer, types.JSONRPCError) and sent is not None:
            pause = _pause_within(answer.error, sent.until)
            if pause is not None:
                # What it carries of the caller's context goes with it again.
                sent.context.run(self._group.start_soon, self._send_again, answer.id, sent, pause)
                return True
        self._sent.pop(answer.id, None)
        return False

    async def _send_again(self, request_id: types.RequestId, sent: _Sent, pause: float) -> None:
        await anyio.sleep(pause)
        if self._sent.get(request_id) is not sent:
            return
        try:
            await self._write.send(sent.message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("The connection ended before a refused request was sent again")


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
        self._requests.note(item)
        await self._stream.send(item)


class _ReadStream(_Stream):
    async def receive(self) -> SessionMessage | Exception:
        while self._requests.is_sent_again(message := await self._stream.receive()):
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
