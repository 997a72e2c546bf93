"""HTTP of a client that outlives its server: a failed request fails alone."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from mcp_celery.client import http as http_module
from mcp_celery.client import resilient_http
from tests.support.locks import reserve_port
from tests.support.scripted import Scripted, text_of
from tests.support.wire import JSON

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncGenerator[str]:
    """Answers every request with these bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"


async def test_a_failed_request_fails_no_other(scripted: Scripted) -> None:
    scripted.makes_tasks = False
    async with scripted.http() as server, Client(resilient_http(server.url)) as client:
        assert text_of(await client.call_tool("work")) == "in the foreground"
        await server.stop()
        for _ in range(2):
            with pytest.raises(MCPError, match=r"127\.0\.0\.1:\d+ cannot be reached \(ConnectError"):
                await client.call_tool("work")
        await server.start()
        assert text_of(await client.call_tool("work", {"answer": "again"})) == "again"


async def test_headers_are_sent_with_every_request(scripted: Scripted) -> None:
    async with (
        scripted.http() as server,
        Client(resilient_http(server.url, headers={"Authorization": "Bearer t"})) as client,
    ):
        await client.list_tools()
    assert {headers.get("authorization") for headers in scripted.headers} == {"Bearer t"}


async def test_an_unreachable_server_is_reported() -> None:
    with pytest.raises(ExceptionGroup) as group:
        async with Client(resilient_http(f"http://127.0.0.1:{reserve_port()}/mcp")):
            pass
    assert group.group_contains(MCPError, match="cannot be reached", depth=None)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "cannot be reached"),
        (HEAD + b"content-length: 100\r\n\r\n{", "cannot be reached"),
        (HEAD + b"content-length: 200\r\n\r\n" + b" " * 200, "exceeded the 100 byte limit"),
        (HEAD + b"content-length: 8\r\n\r\nnot JSON", "Failed to parse"),
        (HEAD + b"content-encoding: gzip\r\ncontent-length: 8\r\n\r\nnot gzip", "cannot be reached"),
        (STREAM + b"data: " + b" " * 200, "exceeded the 100 byte limit"),
        (STREAM + b"data: not JSON\n\n", "Failed to parse"),
        (STREAM, "ended without a response"),
        (STREAM.replace(b"200 OK", b"307 See elsewhere\r\nlocation: /") + b" " * 200, "exceeded the 100 byte limit"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nno", "error response"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/\r\ncontent-length: 0\r\n\r\n", "not followed"),
    ],
)
async def test_broken_answers_are_errors_of_their_request(answer: bytes, says: str) -> None:
    async with (
        raw_server(answer) as url,
        Client(resilient_http(url, max_answer_bytes=100), mode="2026-07-28") as client,
    ):
        for _ in range(2):
            with pytest.raises(MCPError, match=says):
                await client.list_tools(cache_mode="refresh")


@pytest.mark.parametrize("stalls", ["DELETE", "notifications/initialized"])
async def test_a_server_that_does_not_take_notice_stops_nothing_else(
    monkeypatch: pytest.MonkeyPatch, stalls: str
) -> None:
    """The SDK sends the next message only when the server has taken notice of the one before."""
    monkeypatch.setattr(http_module, "NOTICE_SECONDS", 0.2)
    info = {"name": "s", "version": "1"}
    hello: JSON = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
    results: dict[str, object] = {"initialize": hello, "tools/list": {"tools": []}}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        message: JSON = json.loads(await reader.readexactly(int(length[1]))) if length and int(length[1]) else {}
        asked: str = message.get("method", head.partition(b" ")[0].decode())
        if asked == stalls:
            await reader.read()
        elif asked in results:
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": results[asked]}).encode()
            writer.write(
                HEAD + b"mcp-session-id: s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
            )
        else:
            writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        with anyio.fail_after(60):
            async with Client(resilient_http(url), mode="legacy") as client:
                assert (await client.list_tools()).tools == []


async def test_a_redirect_within_the_server_is_followed(scripted: Scripted) -> None:
    async with scripted.http() as server, Client(resilient_http(server.url + "/")) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["work"]


@pytest.mark.parametrize("end", ["receiving", "sending"])
async def test_an_answer_that_arrives_while_the_client_closes_is_dropped(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    @asynccontextmanager
    async def late(*_: object, **__: object) -> AsyncGenerator[tuple[None, None]]:
        async with anyio.create_task_group() as group:
            yield None, None
            group.start_soon(send_to_a_closed_stream)

    async def send_to_a_closed_stream() -> None:
        send, receive = anyio.create_memory_object_stream[None]()
        (receive if end == "receiving" else send).close()
        with send, receive:
            await send.send(None)

    monkeypatch.setattr(http_module, "streamable_http_client", late)
    async with resilient_http("http://127.0.0.1/mcp"):
        pass
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        async with resilient_http("http://127.0.0.1/mcp"):
            raise ValueError


async def test_compressed_answers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict[str, object] = {"resultType": "complete", "tools": [], "ttlMs": 0, "cacheScope": "private"}
    body = gzip.compress(json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode())
    head = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with raw_server(head + body) as url, Client(resilient_http(url), mode="2026-07-28") as client:
        assert (await client.list_tools()).tools == []
