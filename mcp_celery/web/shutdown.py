"""How open requests end when their server does.

uvicorn waits for the responses that are being sent. A stream that pushes to a client lasts for as long as the client
wants, so it is ended at once: the client opens it again, on another server or on this one's successor. Other requests
have the server's time for its end. What uvicorn cancels after that is ended as HTTP has it, with a last chunk or with
503, and not with a traceback.

uvicorn notifies an app only when all requests have ended. It does notify its protocol (``web/protocol.py``), which
calls what this middleware has put into the state of the lifespan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATE_KEY: Final = "mcp_celery.end_streams"
"""Under this key the lifespan's state has a function without arguments, to be called when the server begins to end."""
LISTEN: Final = b"subscriptions/listen"
EVENTS: Final = b"text/event-stream"
RETRY_AFTER_SECONDS: Final = 1


class EndingStreams:
    """ASGI middleware: ends open requests in order when the server ends.

    Args:
        app: The app behind it.
        on_end: Called when the server begins to end.
    """

    def __init__(self, app: ASGIApp, on_end: Callable[[], None] = lambda: None) -> None:
        self._app = app
        self._on_end = on_end
        self._streams: set[asyncio.Task[Any]] = set()
        self._is_ending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "lifespan":
            self._is_ending = False
            if "state" in scope:
                scope["state"][STATE_KEY] = self.end_streams
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(send)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        if _pushes(scope):
            if self._is_ending:  # a client that is faster than the end of its connection
                await response.end()
                return
            self._streams.add(task)
        try:
            await self._app(scope, receive, response.send)
            # sse_starlette, with which the SDK streams at 2025-11-25, ends its streams itself upon a signal to
            # uvicorn, and sends no last chunk.
            await response.complete()
        except asyncio.CancelledError:
            if not self._is_ending:
                raise
            await response.end()
        finally:
            self._streams.discard(task)

    def end_streams(self) -> None:
        """End the streams that push to clients. From now on, cancelled requests end without an error."""
        if self._is_ending:
            return
        self._is_ending = True
        self._on_end()
        for task in self._streams:
            task.cancel()


def _pushes(scope: Scope) -> bool:
    """Whether a request opens a stream for as long as the client wants: ``subscriptions/listen``, and at 2025-11-25 a
    GET that accepts events. Other GET requests are those of the user's own routes.
    """
    headers = cast("list[tuple[bytes, bytes]]", scope["headers"])
    if scope["method"] == "GET":
        return any(name == b"accept" and EVENTS in value for name, value in headers)
    return any(name == b"mcp-method" and value == LISTEN for name, value in headers)


class _Response:
    """How far a response has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False
        self._is_complete = False

    async def send(self, message: Message) -> None:
        self._has_begun = self._has_begun or message["type"] == "http.response.start"
        self._is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Complete it: a response that has begun ends, and a request that has not begun is refused."""
        if not self._has_begun:
            headers = [(b"content-length", b"0"), (b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
            await self.send({"type": "http.response.start", "status": 503, "headers": headers})
        await self.complete()

    async def complete(self) -> None:
        """Send the last chunk of a response that has begun, if it was not sent."""
        if self._has_begun and not self._is_complete:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})
