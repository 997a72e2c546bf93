"""A server that is told to end while clients are connected: no traceback, no broken response, and clients reconnect."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, resilient_http
from tests.support.deployment import MODULE, Deployment, answering_url, process
from tests.support.locks import reserve_port
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.shows("C19")]

SERVE = ("-m", "mcp_celery", "serve", f"{MODULE}:server")
UVICORN = (
    *("-m", "uvicorn", "workers.asgi:app", "--http", "mcp_celery.web:BoundedHttpProtocol", "--ws", "none"),
    *("--lifespan", "on", "--timeout-graceful-shutdown", "3"),
)


class Serving:
    """A server in a process of its own."""

    def __init__(self, running: Any, log: Path, url: str) -> None:
        self.running, self.log, self.url = running, log, url

    async def ends(self) -> str:
        """Tell it to end, and wait until it has. Returns its log."""
        self.running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self.running.wait, 30) in (0, -signal.SIGTERM)
        return self.log.read_text()


@contextmanager
def serving(deployment: Deployment, folder: Path, port: int, argv: tuple[str, ...] = SERVE) -> Generator[Serving]:
    log = folder / f"{len(list(folder.iterdir()))}.log"
    with process([sys.executable, *argv, "--port", str(port)], deployment.env(), log) as running:
        url = f"http://127.0.0.1:{port}/mcp"
        if argv is SERVE:
            url = answering_url(log, running)
        yield Serving(running, log, url)


async def answers(url: str) -> bool:
    try:
        async with Wire(url) as wire:
            return (await wire.ask("tools/list")).status == 200
    except httpx2.TransportError:
        return False


async def session_of(http: httpx2.AsyncClient, url: str) -> dict[str, str]:
    """Open a session of revision 2025-11-25. Returns the headers of its requests."""
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    response = await http.post(url, json=body, headers=headers)
    headers["mcp-session-id"] = response.headers["mcp-session-id"]
    await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
    return headers


@pytest.mark.parametrize("argv", [SERVE, UVICORN], ids=["serve", "uvicorn"])
async def test_streams_end_at_once_and_in_order(
    idle_deployment: Deployment, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    with serving(idle_deployment, tmp_path, reserve_port(), argv) as server:
        await eventually(lambda: answers(server.url))
        async with AsyncExitStack() as stack:
            wire = await stack.enter_async_context(Wire(server.url))
            tool = "slow_compute" if argv is SERVE else "index_folder"
            created = await wire.create(tool, **({} if argv is SERVE else {"path": "."}))
            events = await stack.enter_async_context(wire.listen([created["taskId"]]))
            await anext(events)
            http = await stack.enter_async_context(httpx2.AsyncClient(timeout=30))
            headers = await session_of(http, server.url)
            channel = await stack.enter_async_context(http.stream("GET", server.url, headers=headers))
            ended = asyncio.create_task(server.ends())
            # What is cut in the middle of a chunk raises.
            async for _ in events:
                pass
            async for _ in channel.aiter_lines():
                pass
            log = await soon(ended)
    assert "Traceback" not in log
    assert "exceeded" not in log, "nothing was waited for until uvicorn lost patience"


async def test_a_call_that_lasts_longer_than_the_end_is_cut_without_a_traceback(
    idle_deployment: Deployment, tmp_path: Path
) -> None:
    (logs := tmp_path / "logs").mkdir()
    with serving(idle_deployment, logs, reserve_port()) as server:
        async with Wire(server.url, extension=False) as wire:
            call = asyncio.create_task(wire.call("wait_for_file", path=str(tmp_path / "never")))
            await eventually((tmp_path / "never.awaited").exists)
            log = await server.ends()
            with pytest.raises((IndexError, ValueError, httpx2.HTTPError)):  # an answer without a message
                await call
    assert "Traceback" not in log
    assert "ASGI callable returned without completing response" not in log


async def test_clients_continue_with_the_servers_successor(deployment: Deployment, tmp_path: Path) -> None:
    port = reserve_port()
    released = tmp_path / "released"
    (logs := tmp_path / "logs").mkdir()
    with serving(deployment, logs, port) as first:
        async with Client(resilient_http(first.url), extensions=[TasksClient()]) as client:
            call = asyncio.create_task(client.call_tool("wait_for_file", {"path": str(released)}))
            await eventually((tmp_path / "released.awaited").exists)
            assert "Traceback" not in await first.ends()
            with serving(deployment, logs, port):
                released.touch()
                result = await soon(call)
    assert not result.is_error
