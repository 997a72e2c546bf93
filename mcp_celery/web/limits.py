"""Limits for requests of clients that are not known yet, as an ASGI middleware.

A middleware gets a request when its headers are complete. In uvicorn, `mcp_celery.web.protocol` limits what comes
before.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Self

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_celery.settings import ENV_PREFIX, Settings
from mcp_celery.web.refusals import client_of, log, respond

logger = logging.getLogger(__name__)

HEADER_OVERHEAD_BYTES: Final = 4
"""Of a header on the wire: a colon, a space, and the end of the line."""
LINES_OVERHEAD_BYTES: Final = len(" ") + len(" HTTP/1.1\r\n") + len("\r\n")
"""Of the request's line, and of the line that ends the headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits of requests and connections.

    Args:
        max_header_bytes: Size of a request's line and headers together.
        max_headers: Number of a request's headers.
        max_body_bytes: Size of a request's body.
        max_unfinished_bytes: Size of all incomplete bodies together.
        receive_timeout_seconds: Time for a request's headers to arrive, and again for its body.
        max_connections: Open connections of one server process.
    """

    max_header_bytes: int
    max_headers: int
    max_body_bytes: int
    max_unfinished_bytes: int
    receive_timeout_seconds: float
    max_connections: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits that settings name."""
        return cls(
            max_header_bytes=settings.http_max_header_bytes,
            max_headers=settings.http_max_headers,
            max_body_bytes=settings.http_max_body_bytes,
            max_unfinished_bytes=settings.http_max_unfinished_bytes,
            receive_timeout_seconds=settings.http_receive_timeout_ms / 1000,
            max_connections=settings.http_max_connections,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason to refuse a request.

    Args:
        status: Status of the response.
        text: The reason, for the client.
        setting: The setting at fault, without its prefix.
    """

    status: HTTPStatus
    text: str
    setting: str

    def note(self, client: object) -> None:
        """Log the refusal of a client's request, with the setting to change."""
        log.note(self.setting, client, f"{self.text} ({ENV_PREFIX}{self.setting})")

    async def answer(self, send: Send) -> None:
        """Send it as the response to a request."""
        # After 413 the connection stays open, and the server drops the rest of the body: a client that is still sending
        # would get a connection reset instead of the response.
        close = self.status is not HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        await respond(send, self.status, self.text, close=close)


def too_many_header_bytes(limits: HttpLimits) -> Refusal:
    """Refuse a too large request line and headers with 431."""
    text = f"The request's headers are larger than {limits.max_header_bytes} bytes"
    return Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text, "HTTP_MAX_HEADER_BYTES")


def too_many_headers(limits: HttpLimits) -> Refusal:
    """Refuse too many headers with 431."""
    text = f"The request has more than {limits.max_headers} headers"
    return Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text, "HTTP_MAX_HEADERS")


def too_large(limits: HttpLimits) -> Refusal:
    """Refuse a too large body with 413."""
    text = f"The request's body is larger than {limits.max_body_bytes} bytes"
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, "HTTP_MAX_BODY_BYTES")


def too_large_together(limits: HttpLimits) -> Refusal:
    """Refuse a body with 503 because all incomplete bodies together are too large."""
    text = (
        f"The server has received {limits.max_unfinished_bytes} bytes of unfinished requests already; try again later"
    )
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, text, "HTTP_MAX_UNFINISHED_BYTES")


def too_slow(limits: HttpLimits) -> Refusal:
    """Refuse headers or a body that did not arrive in time with 408."""
    text = f"The request did not arrive within {limits.receive_timeout_seconds:g} seconds"
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, text, "HTTP_RECEIVE_TIMEOUT_MS")


def too_many_connections(limits: HttpLimits) -> Refusal:
    """Refuse a connection above the limit with 503."""
    text = f"The server has {limits.max_connections} open connections already; try again later"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, text, "HTTP_MAX_CONNECTIONS")


class RequestLimits:
    """ASGI middleware: refuses requests with too many or too large headers, or with a too large or too slow body.

    It counts the body while the app reads it, and keeps nothing: a request that the app refuses without reading its
    body (401) costs no memory. The timeout covers the time spent waiting for the body and ends with the body, so it
    never cuts a response.

    ```python
    app = RequestLimits(Starlette(routes=[Mount("/tools", server.streamable_http_app())], lifespan=…))
    ```

    Args:
        app: The app behind it, including its authentication.
        limits: None: those of ``MCP_CELERY_HTTP_…`` in the environment.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """

    def __init__(self, app: ASGIApp, limits: HttpLimits | None = None) -> None:
        self._app = app
        self._limits = limits or HttpLimits.of(Settings.load())
        self._unfinished = _Unfinished()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal_by_head(scope)
        if refusal is None:
            await _Exchange(self._app, self._limits, self._unfinished, scope, receive, send).run()
            return
        refusal.note(client_of(scope))
        await refusal.answer(send)

    def _refusal_by_head(self, scope: Scope) -> Refusal | None:
        limits = self._limits
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > limits.max_headers:
            return too_many_headers(limits)
        target = scope.get("raw_path") or scope["path"].encode()
        query = scope["query_string"]
        size = len(scope["method"]) + len(target) + len(query) + bool(query) + LINES_OVERHEAD_BYTES
        for name, value in headers:
            size += len(name) + len(value) + HEADER_OVERHEAD_BYTES
            if name == b"content-length" and value.isdigit() and int(value[:20]) > limits.max_body_bytes:
                return too_large(limits)
        return too_many_header_bytes(limits) if size > limits.max_header_bytes else None


@dataclass(slots=True)
class _Unfinished:
    """Bytes of all incomplete bodies that apps have read."""

    size: int = 0


class _Exchange:
    """One request whose body is counted and timed on its way to the app."""

    def __init__(
        self, app: ASGIApp, limits: HttpLimits, unfinished: _Unfinished, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._app = app
        self._limits = limits
        self._unfinished = unfinished
        self._scope = scope
        self._receive = receive
        self._send = send
        self._size = 0
        self._waited = 0.0
        self._complete = False
        self._started = False
        self._refused = False

    async def run(self) -> None:
        try:
            await self._app(self._scope, self._bounded_receive, self._tracked_send)
        except Exception:
            if not self._refused:
                raise
            # The app got `http.disconnect` after the refusal; apps report that in different ways.
            logger.debug("The app raised after its request was refused", exc_info=True)
        finally:
            self._finish()

    def _finish(self) -> None:
        """Stop counting this body as incomplete."""
        if not self._complete:
            self._complete = True
            self._unfinished.size -= self._size

    async def _bounded_receive(self) -> Message:
        if self._refused:
            return {"type": "http.disconnect"}
        if self._complete:
            # The app now waits for the client to disconnect, for as long as its response lasts.
            return await self._receive()
        try:
            message = await self._timed_receive()
        except TimeoutError:
            return await self._refuse(too_slow(self._limits))
        refusal = self._count(message) if message["type"] == "http.request" else None
        return message if refusal is None else await self._refuse(refusal)

    def _count(self, message: Message) -> Refusal | None:
        size = len(message.get("body", b""))
        self._size += size
        self._unfinished.size += size
        if self._size > self._limits.max_body_bytes:
            return too_large(self._limits)
        if not message.get("more_body", False):
            self._finish()
            return None
        return too_large_together(self._limits) if self._unfinished.size > self._limits.max_unfinished_bytes else None

    async def _timed_receive(self) -> Message:
        loop = asyncio.get_running_loop()
        began = loop.time()
        # The time that the app takes between two reads is not the client's.
        async with asyncio.timeout(max(0.0, self._limits.receive_timeout_seconds - self._waited)):
            message = await self._receive()
        self._waited += loop.time() - began
        return message

    async def _refuse(self, refusal: Refusal) -> Message:
        self._refused = True
        self._finish()
        refusal.note(client_of(self._scope))
        if not self._started:
            await refusal.answer(self._send)
        return {"type": "http.disconnect"}

    async def _tracked_send(self, message: Any) -> None:
        if self._refused and not self._started:
            return
        self._started = True
        await self._send(message)
