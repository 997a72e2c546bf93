"""HTTP for clients that outlive their servers' restarts."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx2
import mcp_types as types
from mcp.client.streamable_http import streamable_http_client

CONNECT_SECONDS: Final = 30.0
READ_SECONDS: Final = 300.0
"""As the SDK has it: a stream may be silent for so long."""
LARGEST_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of one JSON answer. (A single event of a stream is bounded by the SDK.)"""

logger = logging.getLogger(__name__)


class _AnsweringClient(httpx2.AsyncClient):
    """Answers for a server that cannot be reached, so that one failed request fails alone.

    The SDK's transport takes an error of the connection for its own end, and takes the whole client with it.
    """

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; a failure of the connection is an answer with a JSON-RPC error."""
        try:
            response = await super().send(request, **options)
            if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                return response
            return await _whole(response)
        except httpx2.TransportError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            body = {"code": types.CONNECTION_CLOSED, "message": f"{request.url.host} cannot be reached ({reason})"}
            return httpx2.Response(503, json={"jsonrpc": "2.0", "id": None, "error": body}, request=request)


async def _whole(response: httpx2.Response) -> httpx2.Response:
    """Read an answer to its end here, where a broken connection is still an answer."""
    if response.is_stream_consumed:
        return response
    body = bytearray()
    try:
        async for part in response.aiter_bytes():
            body += part
            if len(body) > LARGEST_ANSWER:
                raise httpx2.ReadError(f"the answer is longer than {LARGEST_ANSWER} bytes")
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
    url: str, *, headers: Mapping[str, str] | None = None, auth: httpx2.Auth | None = None
) -> AsyncGenerator[Any]:
    """Streamable HTTP that lives through restarts of the server: ``Client(resilient_http(url), …)``.

    Where the server cannot be reached, the one request fails with an ``MCPError``; with the SDK's own transport, the
    whole client ends.

    Args:
        url: The server's endpoint.
        headers: Sent with every request.
        auth: As for ``httpx2.AsyncClient``, for example the SDK's ``OAuthClientProvider``.

    Yields:
        The transport's two streams.
    """
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=READ_SECONDS)
    try:
        async with (
            _AnsweringClient(headers=dict(headers or {}), auth=auth, timeout=timeout) as client,
            streamable_http_client(url, http_client=client) as streams,
        ):
            yield streams
    except* (anyio.BrokenResourceError, anyio.ClosedResourceError):
        # An answer came while the client was being closed; the SDK has nowhere to put it, and raises that.
        logger.debug("An answer of %s came too late to be read", httpx2.URL(url).host)
