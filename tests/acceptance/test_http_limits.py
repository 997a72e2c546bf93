"""What a client may send before anything is known of it: real servers, and sockets that no client library would use."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import psutil
import pytest
import uvicorn
from mcp.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mcp_celery.web import HttpLimits, RequestLimits
from tests.support.deployment import Deployment, answering_url, deployed, process, wait_until
from tests.support.programs import Running
from tests.support.raw_http import Raw, open_connections
from tests.support.waiting import eventually
from tests.support.wire import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.shows("C19")]

MEGABYTE: Final = 1_000_000
MOST_HEADER_BYTES: Final = 20_000
MOST_HEADERS: Final = 30
MOST_BODY_BYTES: Final = 300_000
MOST_CONNECTIONS: Final = 400
LIMITS: Final = {
    "MCP_CELERY_HTTP_MAX_HEADER_BYTES": str(MOST_HEADER_BYTES),
    "MCP_CELERY_HTTP_MAX_HEADERS": str(MOST_HEADERS),
    "MCP_CELERY_HTTP_MAX_BODY_BYTES": str(MOST_BODY_BYTES),
    "MCP_CELERY_HTTP_MAX_CONNECTIONS": str(MOST_CONNECTIONS),
}


@dataclass(frozen=True)
class Site:
    """A server with limits."""

    url: str
    running: Running
    log: Path

    def memory(self) -> int:
        """Bytes that its process holds."""
        return psutil.Process(self.running.pid).memory_info().rss


@contextmanager
def site(deployment: Deployment, argv: list[str], says: str = "", **settings: str) -> Generator[Site]:
    """Start a server; ``says`` is its URL where it does not tell it by itself."""
    deployment.servers += 1
    log = deployment.folder / f"limited-{deployment.servers}.log"
    with process([sys.executable, "-m", *argv], deployment.env(**settings), log) as running:
        yield Site(says or answering_url(log, running), running, log)


@contextmanager
def limited(deployment: Deployment, attribute: str, **settings: str) -> Generator[Site]:
    spec = f"{deployment.spec.partition(':')[0]}:{attribute}"
    with site(deployment, ["mcp_celery", "serve", spec, "--port", "0"], **{**LIMITS, **settings}) as found:
        yield found


@pytest.fixture(scope="module")
def place(store_url: str) -> Iterator[Deployment]:
    """A store, but no worker."""
    with deployed(store_url, "http-limits") as found:
        yield found


@pytest.fixture(scope="module")
def server(place: Deployment) -> Iterator[Site]:
    """A server for anybody."""
    with limited(place, "server") as found:
        yield found


@pytest.fixture(scope="module")
def hasty(place: Deployment) -> Iterator[Site]:
    """A server that does not wait for long."""
    with limited(place, "server", MCP_CELERY_HTTP_RECEIVE_TIMEOUT_MS="1000") as found:
        yield found


@pytest.fixture(scope="module")
def guarded(place: Deployment) -> Iterator[Site]:
    """A server that asks for a token, which no test here has."""
    with limited(place, "guarded") as found:
        yield found


# --- Headers


UNFINISHED: Final = {
    "header": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX: ",
    "request line": b"GET /",
    "header's name": b"POST /mcp HTTP/1.1\r\nX",
    "trailer": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ",
}


@pytest.mark.parametrize("what", UNFINISHED)
def test_an_endless_request_is_refused_and_not_kept(guarded: Site, what: str) -> None:
    with Raw(guarded.url) as warm:
        assert warm.head("GET").status() == 401
    before = guarded.memory()
    with Raw(guarded.url) as client:
        sent = client.send(UNFINISHED[what]).send_while_taken(50 * MEGABYTE)
        grown = guarded.memory() - before
    assert grown < 5 * MEGABYTE, f"{sent} bytes sent"


def test_the_answer_says_that_the_headers_are_too_large(guarded: Site) -> None:
    with Raw(guarded.url) as client:
        answer = client.send(UNFINISHED["header"] + b"x" * MOST_HEADER_BYTES).until_closed().decode()
    assert answer.startswith("HTTP/1.1 431 ")
    assert answer.endswith(f"larger than {MOST_HEADER_BYTES} bytes\n")
    assert "MCP_CELERY_HTTP_MAX_HEADER_BYTES" in guarded.log.read_text()


@pytest.mark.parametrize(("more", "status"), [(0, 401), (1, 431)])
def test_headers_are_served_up_to_their_number(guarded: Site, more: int, status: int) -> None:
    with Raw(guarded.url) as client:
        others = [f"X-{number}: 1" for number in range(MOST_HEADERS - 1 + more)]  # besides Host
        assert client.head("GET", *others).status() == status


@pytest.mark.parametrize(("more", "status"), [(0, 401), (1, 431)])
def test_headers_are_served_up_to_their_size(guarded: Site, more: int, status: int) -> None:
    with Raw(guarded.url) as client:
        rest = MOST_HEADER_BYTES - len(f"GET /mcp HTTP/1.1\r\nHost: {client.netloc}\r\nX: \r\n\r\n")
        assert client.head("GET", f"X: {'x' * (rest + more)}").status() == status


def test_requests_in_one_piece_are_limited(guarded: Site) -> None:
    with Raw(guarded.url) as client:
        answers = client.send(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000).until_closed()
    assert answers.count(b"HTTP/1.1 401 ") < 100


# --- Bodies


def ping(size: int) -> bytes:
    """A request of the protocol, of a size."""
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"_meta": {"x": ""}}})
    return text.replace('""', f'"{"x" * (size - len(text))}"').encode()


JSON_HEADERS: Final = ("Content-Type: application/json", "Accept: application/json, text/event-stream")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("more", [0, 1], ids=["at the limit", "over it"])
def test_a_body_is_served_up_to_its_size(server: Site, chunked: bool, more: int) -> None:
    body = ping(MOST_BODY_BYTES + more)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with Raw(server.url) as client:
        status = client.head("POST", *JSON_HEADERS, framing).send(sent).status()
    assert status is not None
    assert (status == 413) is bool(more)


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: Site) -> None:
    with Raw(server.url) as client:
        assert client.head("POST", *JSON_HEADERS, "Content-Length: 1000000000000").status() == 413


def test_an_endless_body_is_not_kept(server: Site) -> None:
    before = server.memory()
    with Raw(server.url) as client:
        client.head("POST", *JSON_HEADERS, "Content-Length: 1000000000").send_while_taken(30 * MEGABYTE)
        assert server.memory() - before < 5 * MEGABYTE
    with Raw(server.url) as client:
        client.head("POST", *JSON_HEADERS, "Transfer-Encoding: chunked").send(b"%x\r\n" % (30 * MEGABYTE))
        client.send_while_taken(29 * MEGABYTE)
        assert server.memory() - before < 5 * MEGABYTE


# --- Time


async def test_300_unfinished_bodies_end_after_the_deadline_and_others_are_served_meanwhile(hasty: Site) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(hasty.url)) for _ in range(300)]
        for client in slow:
            client.head("POST", *JSON_HEADERS, "Content-Length: 1000").send(b'{"jsonrpc":')
        async with Wire(hasty.url) as wire:
            assert (await wire.ask("tools/list")).status == 200
        answers = await asyncio.gather(*(asyncio.to_thread(client.until_closed) for client in slow))
    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 408"}
    await eventually(lambda: open_connections(hasty.running.pid) <= 1, what="the connections are closed")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /mcp HTTP/1.1\r\nHost: loc", b"HTTP/1.1 408"),
    ],
    ids=["nothing", "half of the headers"],
)
def test_a_client_that_sends_nothing_more_is_disconnected(hasty: Site, sent: bytes, answer: bytes) -> None:
    with Raw(hasty.url) as client:
        assert client.send(sent).until_closed()[:12] == answer


async def test_a_trickle_after_the_answer_does_not_hold_the_connection(hasty: Site) -> None:
    with Raw(hasty.url) as client:
        client.head("POST", "Content-Length: 100000", path="/nowhere")
        assert client.status() == 404

        def ends() -> bool:
            try:
                client.send(b"x")
            except ConnectionError:
                return True
            return False

        await eventually(ends, what="the server closes the connection")


async def test_a_stream_outlives_the_deadline(hasty: Site) -> None:
    async with Wire(hasty.url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        async with wire.listen([task_id]) as events:
            assert (await anext(events))["method"] == "notifications/subscriptions/acknowledged"
            for _ in range(2):  # the time that these are given has passed when they are closed
                with Raw(hasty.url) as late:
                    await asyncio.to_thread(late.send(b"POST").until_closed)
            await wire.ask("tasks/cancel", {"taskId": task_id})
            while (await anext(events))["params"].get("status") != "cancelled":
                pass


# --- Connections


async def test_a_connection_too_many_is_refused_and_a_client_is_served_when_others_have_gone(place: Deployment) -> None:
    with limited(place, "server", MCP_CELERY_HTTP_MAX_CONNECTIONS="10") as found:
        await eventually(lambda: open_connections(found.running.pid) == 0, what="nobody is connected")
        with ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(Raw(found.url)).send(b"P")
            with Raw(found.url) as refused:
                assert refused.head("GET").status() == 503
        await eventually(lambda: open_connections(found.running.pid) == 0, what="they have gone")
        async with Client(found.url) as client:
            assert (await client.list_tools()).tools
        assert "MCP_CELERY_HTTP_MAX_CONNECTIONS" in found.log.read_text()


@pytest.mark.slow
def test_an_idle_connection_outlives_those_that_python_clients_keep(server: Site) -> None:
    """Else the server would close it in the moment in which the client sends its next request."""
    with Raw(server.url) as client:
        assert client.head("GET", path="/healthz").status() == 200
        assert client.is_open_after(httpx2.Limits().keepalive_expiry or 0.0)
        assert client.head("GET", path="/healthz").status() == 200


# --- Other servers


def test_the_app_of_the_checkout_is_limited_where_uvicorn_runs_it(place: Deployment) -> None:
    argv = ["uvicorn", "workers.asgi:app", "--port", "0", "--http", "mcp_celery.web:BoundedHttpProtocol"]
    settings = {**LIMITS, "MCP_CELERY_NAMESPACE": "http-limits-asgi"}
    with site(place, argv, "unknown", **settings) as found:
        wait_until(lambda: "running on http" in found.log.read_text(), "uvicorn listens")
        url = found.log.read_text().partition("running on ")[2].split()[0]
        with Raw(url) as client:
            assert client.send(UNFINISHED["header"] + b"x" * MOST_HEADER_BYTES).status() == 431
        with Raw(url) as client:
            assert client.head("POST", *JSON_HEADERS, f"Content-Length: {MOST_BODY_BYTES + 1}").status() == 413


async def test_the_middleware_limits_any_app() -> None:
    read: list[int] = []

    async def echo(request: Request) -> Response:
        read.append(len(await request.body()))
        return Response("read")

    limits = HttpLimits(
        max_header_bytes=1_000,
        max_headers=5,
        max_body_bytes=1_000,
        max_unfinished_bytes=2_500,
        receive_timeout_seconds=1.0,
        max_connections=1,
    )
    app = RequestLimits(Starlette(routes=[Route("/", echo, methods=["POST"])]), limits)
    runner = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    running = asyncio.create_task(runner.serve())
    await eventually(lambda: runner.started, what="the server listens")
    url = f"http://127.0.0.1:{runner.servers[0].sockets[0].getsockname()[1]}"

    def status(*headers: str, body: bytes = b"") -> int | None:
        with Raw(url) as client:
            return client.head("POST", *headers, path="/").send(body).status()

    try:
        assert await asyncio.to_thread(status, "Content-Length: 1000", body=b"x" * 1_000) == 200
        assert read == [1_000]
        for expected, headers, body in (
            (413, ["Content-Length: 1001"], b""),
            (413, ["Transfer-Encoding: chunked"], b"3e9\r\n" + b"x" * 1_001),
            (408, ["Content-Length: 1000"], b"x"),
            (431, [f"X-{number}: 1" for number in range(5)], b""),
            (431, [f"X: {'x' * 1_000}"], b""),
        ):
            assert await asyncio.to_thread(status, *headers, body=body) == expected, headers
        assert read == [1_000]
        with ExitStack() as stack:
            slow = [stack.enter_context(Raw(url)) for _ in range(3)]
            for client in slow:
                client.head("POST", "Content-Length: 1000", path="/").send(b"x" * 900)
            statuses = await asyncio.gather(*(asyncio.to_thread(client.status) for client in slow))
            assert sorted(str(one) for one in statuses) == ["408", "408", "503"]
        assert await asyncio.to_thread(status, "Content-Length: 1000", body=b"x" * 1_000) == 200
    finally:
        runner.should_exit = True
        await running


# --- Sessions


async def test_sessions_are_limited_and_end_when_nothing_is_asked(place: Deployment) -> None:
    url = place.serve(MCP_CELERY_HTTP_MAX_SESSIONS="1", MCP_CELERY_HTTP_SESSION_IDLE_SECONDS="1")
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "one", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    headers = {"accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(timeout=60, headers=headers) as http:
        opened = await http.post(url, json=body)
        assert opened.status_code == 200
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}

        async def is_admitted() -> bool:
            answer = await http.post(url, json=body)
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200

        await eventually(is_admitted, what="the idle session has ended")
        assert not await is_admitted()
        assert (await http.post(url, json=ping, headers=session)).status_code == 404
