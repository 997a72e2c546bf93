"""How servers and workers answer probes, without processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import httpx2
import pytest
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from mcp_celery import Settings, TaskServer
from mcp_celery.common import endpoint_listener
from mcp_celery.common.endpoint_listener import EndpointListener, bind
from mcp_celery.errors import ConfigurationError, StoreUnavailableError
from mcp_celery.server import health
from mcp_celery.server.health import ServerHealth, StoreState
from mcp_celery.web import http_app
from mcp_celery.worker import ProbeOptions
from mcp_celery.worker.celery.probes import WorkerProbes
from tests.support.waiting import soon

pytestmark = pytest.mark.anyio

IN_MEMORY = Settings.load(redis_url="memory://")


class Verifier:
    async def verify_token(self, token: str) -> None:
        """Nobody is let in."""


@asynccontextmanager
async def asking(server: TaskServer) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of a server's app while its lifespan lasts."""
    app = http_app(server)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://10.1.2.3") as client,
    ):
        yield client


class TestServers:
    async def test_a_probe_needs_neither_a_token_nor_a_known_host(self) -> None:
        auth = AuthSettings(issuer_url=AnyHttpUrl("https://one.example"), resource_server_url=None)
        server = TaskServer("guarded", task=True, settings=IN_MEMORY, auth=auth, token_verifier=Verifier())
        async with asking(server) as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert (await client.get("/readyz")).json() == {"status": "ready", "store": "ok"}
            assert (await client.post("/readyz")).status_code == 405

    @pytest.mark.parametrize("path", ["/readyz", "/{path:path}"])
    async def test_a_route_of_the_user_replaces_the_probe(self, path: str) -> None:
        server = TaskServer("own", task=True, settings=IN_MEMORY)

        @server.custom_route(path, methods=["GET"])
        async def own(_request: Request) -> PlainTextResponse:
            return PlainTextResponse("mine")

        async with asking(server) as client:
            assert (await client.get("/readyz")).text == "mine"

    async def test_a_server_is_not_ready_before_its_lifespan_nor_when_it_ends(self) -> None:
        server = TaskServer("early", task=True, settings=IN_MEMORY)
        found = ServerHealth(server)
        app = http_app(server, health=found)
        assert (await found.ready()).status == 503
        async with app.router.lifespan_context(app):
            assert (await found.ready()).status == 200
            found.ends()
            assert (await found.ready()).status == 503
            assert (await found.alive()).status == 200
        assert (await found.ready()).status == 503

    async def test_a_port_in_use_is_named_in_the_error(self) -> None:
        settings = Settings.load(redis_url="memory://", health_port=9, health_host="192.0.2.1")
        app = http_app(TaskServer("nowhere", task=True, settings=settings))
        with pytest.raises(ConfigurationError, match=r"MCP_CELERY_HEALTH_PORT=9 cannot be used on 192\.0\.2\.1: "):
            await app.router.lifespan_context(app).__aenter__()


class Store:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.is_lost = False

    async def ask(self) -> None:
        self.asked += 1
        await self.may_answer.wait()
        if self.is_lost:
            raise StoreUnavailableError


class TestTheStoresState:
    async def test_simultaneous_probes_share_one_call_to_the_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "PROBE_SECONDS", 60.0)
        store = Store()
        state = StoreState(store.ask)
        probes = [asyncio.create_task(state.answers()) for _ in range(50)]
        await asyncio.sleep(0)
        store.may_answer.set()
        assert await soon(asyncio.gather(*probes)) == [True] * 50
        monkeypatch.setattr(health, "ASK_EVERY_SECONDS", 3600.0)
        assert await soon(state.answers())
        assert store.asked == 1

    async def test_a_slow_answer_is_no_outage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "ASK_EVERY_SECONDS", 0.0)
        store = Store()
        state = StoreState(store.ask)
        store.may_answer.set()
        assert await soon(state.answers())
        store.may_answer.clear()
        monkeypatch.setattr(health, "PROBE_SECONDS", 0.0)
        assert await soon(state.answers())
        store.is_lost = True
        store.may_answer.set()
        monkeypatch.setattr(health, "PROBE_SECONDS", 60.0)
        assert not await soon(state.answers())


class TestTheListener:
    async def test_a_client_that_sends_too_much_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_listener, "CONNECTION_SECONDS", 3600.0)
        listener = EndpointListener({}, bound := bind("127.0.0.1", 0))
        address = bound.getsockname()
        await listener.open()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"x" * endpoint_listener.MOST_BYTES)
        with suppress(ConnectionError):
            assert await soon(reader.read()) == b""
        writer.close()
        await listener.aclose()

    async def test_a_connection_is_closed_after_its_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_listener, "CONNECTION_SECONDS", 0.01)
        listener = EndpointListener({}, bound := bind("127.0.0.1", 0))
        address = bound.getsockname()
        await listener.open()
        reader, writer = await asyncio.open_connection(*address)
        assert await soon(reader.read()) == b""
        writer.close()
        await listener.aclose()

    async def test_the_number_of_connections_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_listener, "MOST_CONNECTIONS", 1)
        listener = EndpointListener({}, bound := bind("127.0.0.1", 0))
        address = bound.getsockname()
        await listener.open()
        connections = [await asyncio.open_connection(*address) for _ in range(2)]
        reading = [asyncio.create_task(reader.read()) for reader, _ in connections]
        done, waiting = await soon(asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED))
        assert (len(done), len(waiting)) == (1, 1)
        await listener.aclose()
        await soon(asyncio.gather(*reading, return_exceptions=True))
        for _, writer in connections:
            writer.close()


class TestWorkers:
    def test_a_setting_that_cannot_be_used_ends_the_start(self, tmp_path: Path) -> None:
        worker: Any = SimpleNamespace(pool=None)
        elsewhere = ProbeOptions(port=9, host="192.0.2.1", file=None, overdue_seconds=20.0)
        with pytest.raises(click.ClickException, match=r"MCP_CELERY_WORKER_HEALTH_PORT=9 cannot be used on 192\."):
            WorkerProbes(worker, [], elsewhere)
        nowhere = replace(elsewhere, port=None, file=tmp_path / "nowhere" / "heartbeat")
        with pytest.raises(click.ClickException, match=r"MCP_CELERY_WORKER_HEARTBEAT_FILE=.*: No such file"):
            WorkerProbes(worker, [], nowhere)

    async def test_a_worker_without_heartbeats_is_not_live(self) -> None:
        heart: Any = SimpleNamespace(beaten_at=None, is_stored=True)
        served: Any = [SimpleNamespace(heart=heart)]
        worker: Any = SimpleNamespace(pool=SimpleNamespace(num_processes=1))
        options = ProbeOptions(port=None, host="", file=None, overdue_seconds=3600.0)
        probes = WorkerProbes(worker, served, options)
        assert (await probes.alive()).status == 503
        heart.beaten_at = 0.0
        assert (await probes.alive()).status == 503
        heart.beaten_at = float("inf")
        assert (await probes.alive()).status == 200
