"""Which requests are cut when a server begins to end, and how."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from mcp_celery.web import EndingStreams

pytestmark = pytest.mark.anyio

LISTEN = ("POST", [(b"mcp-method", b"subscriptions/listen"), (b"accept", b"application/json, text/event-stream")])
CHANNEL = ("GET", [(b"accept", b"application/json, text/event-stream")])
CALL = ("POST", [(b"mcp-method", b"tools/call"), (b"accept", b"application/json, text/event-stream")])
OWN_ROUTE = ("GET", [(b"accept", b"text/html")])


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(("request_", "is_cut"), [(LISTEN, True), (CHANNEL, True), (CALL, False), (OWN_ROUTE, False)])
async def test_only_streams_are_ended_at_shutdown(request_: tuple[str, Any], is_cut: bool) -> None:
    begun, released = asyncio.Event(), asyncio.Event()
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        await released.wait()
        await send({"type": "http.response.body", "body": b"whole"})

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = EndingStreams(app)
    method, headers = request_
    running = asyncio.create_task(middleware({"type": "http", "method": method, "headers": headers}, never, send))
    await begun.wait()
    middleware.end_streams()
    if not is_cut:
        await asyncio.sleep(0)
        released.set()
    await running
    assert sent[1:] == [
        {"type": "http.response.body", "body": b"", "more_body": False}
        if is_cut
        else {"type": "http.response.body", "body": b"whole"}
    ]


async def test_a_request_that_has_not_begun_is_refused_at_shutdown() -> None:
    sent: list[Message] = []
    begun = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = EndingStreams(app)
    method, headers = LISTEN
    running = asyncio.create_task(middleware({"type": "http", "method": method, "headers": headers}, never, send))
    await begun.wait()
    middleware.end_streams()
    await running
    assert [message.get("status") for message in sent] == [503, None]
