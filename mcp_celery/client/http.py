"""HTTP for clients that outlive their servers' restarts."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import anyio
import httpx2
import mcp_types as types
from mcp.client.streamable_http import streamable_http_client

from mcp_celery.client.busy import BUSY_SECONDS, NOT_SENT, obeying
from mcp_celery.client.retry import jittered
from mcp_celery.client.wire import JSON, MAX_EVENT_BYTES_META
from mcp_celery.config import DEFAULT_MAX_RESULT_BYTES

CONNECT_SECONDS: Final = 30.0
READ_SECONDS: Final = 300.0
"""As the SDK has it: a stream may be silent for so long."""
LARGEST_ANSWER: Final = 3 * DEFAULT_MAX_RESULT_BYTES + 1024 * 1024
"""Bytes of one answer, or of one event of a stream: the largest result that our servers store by default, three times
since the SDK's server sends a character of two bytes as an escape of six, and room for what surrounds the result.
"""
ACCEPTED: Final = 202
NOTICE_SECONDS: Final = 10.0
"""How long a server may be silent upon a message that has no answer: the SDK sends the next one only then."""
GET_SPACING_SECONDS: Final = 2.0
GETS_AT_ONCE: Final = 16
"""A stream that a server ends is fetched again by the SDK after a pause that the server says, which may be none. So
many fetches may come at once, and more than those only in this spacing.
"""
FRAME_BYTES: Final = 1024
"""What an event of a stream may have beside its message: the names of its fields, and an id."""
_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
_UNANSWERED: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""What a proxy answers for a server that took a request and gave no answer; and with 503 a server that ended first."""

logger = logging.getLogger(__name__)


class _AnsweringClient(httpx2.AsyncClient):
    """Answers for a server that cannot be reached, so that one failed request fails alone.

    The SDK's transport takes an error of the connection for its own end, and takes the whole client with it.

    Args:
        max_answer_bytes: Size of the largest answer, and of the largest event of a stream.
        options: As for ``httpx2.AsyncClient``.
    """

    def __init__(self, *, max_answer_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_answer_bytes = max_answer_bytes
        self._next_get = 0.0

    def build_request(
        self, method: str, url: httpx2.URL | str, *, json: JSON | None = None, **options: Any
    ) -> httpx2.Request:
        """Build a request. One for a stream of pushes states how large an event this transport takes."""
        if json and json.get("method") == "subscriptions/listen":
            json["params"].setdefault("_meta", {})[MAX_EVENT_BYTES_META] = self._max_answer_bytes - FRAME_BYTES
        if method == "DELETE" or (json and not {"id", "method"} <= json.keys()):
            options["timeout"] = NOTICE_SECONDS
        return super().build_request(method, url, json=json, **options)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; a failure of the connection is an answer with a JSON-RPC error."""
        if request.method == "GET":
            await self._space()
        try:
            response = await super().send(request, **options)
            if response.status_code in _UNANSWERED and not _is_json(response):
                await response.aclose()
                text = f"Server returned an error response: {response.status_code} {response.reason_phrase}"
                return _answer(request, {"code": types.CONNECTION_CLOSED, "message": text})
            return response if _is_read_in_parts(response) else await _whole(response, self._max_answer_bytes)
        except httpx2.RequestError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            address = f"{request.url.host}:{request.url.port or {'http': 80}.get(request.url.scheme, 443)}"
            body: JSON = {"code": types.CONNECTION_CLOSED, "message": f"{address} cannot be reached ({reason})"}
            if isinstance(error, _NOT_SENT):
                body["data"] = NOT_SENT
            return _answer(request, body)

    async def _space(self) -> None:
        now = anyio.current_time()
        earliest = now - GETS_AT_ONCE * GET_SPACING_SECONDS
        self._next_get = max(self._next_get, earliest) + GET_SPACING_SECONDS
        await anyio.sleep(jittered(max(0, self._next_get - now)))


def _answer(request: httpx2.Request, error: JSON) -> httpx2.Response:
    """An answer in the place of the server's."""
    return httpx2.Response(503, json={"jsonrpc": "2.0", "id": None, "error": error}, request=request)


def _is_json(response: httpx2.Response) -> bool:
    return response.headers.get("content-type", "").lower().startswith("application/json")


def _is_read_in_parts(response: httpx2.Response) -> bool:
    """Whether the SDK reads a body event by event, or not at all. It reads the body of a redirect whole."""
    is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    return (is_stream or response.status_code == ACCEPTED) and response.next_request is None


async def _whole(response: httpx2.Response, most: int) -> httpx2.Response:
    """Read an answer to its end here, where a broken connection is still an answer."""
    if response.is_stream_consumed:
        return response
    body = bytearray()
    try:
        async for part in response.aiter_bytes():
            if len(body) + len(part) > most:
                raise httpx2.ReadError(f"the answer exceeded the {most} byte limit")
            body += part
    finally:
        await response.aclose()
    headers = [
        (name, value) for name, value in response.headers.items() if name not in ("content-encoding", "content-length")
    ]
    whole = httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)
    whole.next_request = response.next_request
    return whole


@asynccontextmanager
async def resilient_http(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    auth: httpx2.Auth | None = None,
    max_answer_bytes: int = LARGEST_ANSWER,
    busy_seconds: float = BUSY_SECONDS,
) -> AsyncGenerator[Any]:
    """Streamable HTTP that survives restarts of the server: ``Client(resilient_http(url), …)``.

    If the server cannot be reached, only that request fails with an ``MCPError``; with the SDK's own transport, the
    whole client ends. A request that a busy server refuses is sent again at the time that the server names. A request
    that becomes a task has an idempotency key, and is sent again for a minute when its answer was lost, if the server
    announces that it creates only one task for it. A tool call that would run in the foreground is not sent again.

    Args:
        url: The server's endpoint.
        headers: Sent with every request.
        auth: As for ``httpx2.AsyncClient``, for example the SDK's ``OAuthClientProvider``.
        max_answer_bytes: Size of the largest answer, and of the largest event of a stream. The default takes every
            result that servers of this package store by default; where ``MCP_CELERY_MAX_RESULT_BYTES`` is larger, take
            three times as much.
        busy_seconds: How long requests that a busy server refuses are sent again; 0: not at all.

    Yields:
        The transport's two streams.
    """
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=READ_SECONDS)
    try:
        async with (
            # No limit of connections: a request that a server does not answer must not be in the way of others.
            _AnsweringClient(
                max_answer_bytes=max_answer_bytes,
                headers=dict(headers or {}),
                auth=auth,
                timeout=timeout,
                limits=httpx2.Limits(max_keepalive_connections=20),
            ) as client,
            streamable_http_client(url, http_client=client, max_sse_event_size=max_answer_bytes) as streams,
            obeying(streams, busy_seconds=busy_seconds) as obedient,
        ):
            yield obedient
    except* (anyio.BrokenResourceError, anyio.ClosedResourceError):
        # An answer came while the client was being closed; the SDK has nowhere to put it, and raises that.
        logger.debug("An answer of %s came too late to be read", httpx2.URL(url).host)
