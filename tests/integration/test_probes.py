"""What probes of Kubernetes and load balancers are told, of real servers and workers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from mcp import MCPError
from mcp.client import Client

from mcp_celery.client import TasksClient, call_tool_task
from tests.integration.conftest import TOOLS, Starter, settings_for
from tests.integration.test_serve import serving
from tests.support.live import Gate, live_server
from tests.support.locks import reserved_port
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.servers import tools
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

READY: Final = {"status": "ready", "store": "ok", "broker": "ok"}


async def probe(url: str) -> tuple[int, dict[str, Any]]:
    """Ask as a probe does, without a token and by an address. Returns status and body; 0: nothing listens there."""
    async with httpx2.AsyncClient(headers={"host": "10.1.2.3"}) as client:
        try:
            response = await soon(client.get(url))
        except httpx2.TransportError:
            return 0, {}
    return response.status_code, response.json() if response.status_code in (200, 503) else {}


async def is_told(url: str, code: int, **values: object) -> None:
    """Wait until a probe is told this, among other things."""
    seen: list[tuple[int, dict[str, Any]]] = []

    async def found() -> bool:
        seen.append(await probe(url))
        return seen[-1][0] == code and values.items() <= seen[-1][1].items()

    try:
        await eventually(found)
    except AssertionError:
        raise AssertionError(f"{url} answers {seen[-1]}") from None


class TestServers:
    async def test_a_lost_store_makes_a_server_unready_and_a_lost_broker_does_not(self, own: Starter) -> None:
        store, broker = own.valkey("store"), own.valkey("broker")
        settings = {"MCP_CELERY_REDIS_URL": store.url, "MCP_CELERY_BROKER_URL": broker.url}
        with serving(**settings) as server:
            server.ready()
            base = server.url.removesuffix("/mcp")
            await is_told(f"{base}/readyz", 200, **READY)
            broker.stop()
            async with Client(server.url, extensions=[TasksClient()]) as client:
                with pytest.raises(MCPError):
                    await soon(call_tool_task(client, "add", {"a": 2, "b": 3}))
            assert await probe(f"{base}/readyz") == (200, {**READY, "broker": "lost"})
            store.stop()
            await is_told(f"{base}/readyz", 503, status="not ready", store="lost")
            assert await probe(f"{base}/healthz") == (200, {"status": "ok"})
            store.start()
            await is_told(f"{base}/readyz", 200, store="ok")

    @pytest.mark.smoke
    @pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
    async def test_a_server_serves_for_the_drain_time_after_sigterm(
        self, store: EmbeddedStoreContainer, several: bool
    ) -> None:
        options = ("--workers", "2", "--stateless") if several else ()
        with reserved_port() as port:
            settings = {
                "MCP_CELERY_REDIS_URL": store.url,
                "MCP_CELERY_HEALTH_PORT": str(port),
                "MCP_CELERY_DRAIN_SECONDS": "600",
            }
            with serving(*options, **settings) as server:
                server.ready()
                ready, base = f"http://127.0.0.1:{port}/readyz", server.url.removesuffix("/mcp")
                await is_told(ready, 200, **READY)
                assert (await probe(f"{base}/readyz"))[0] == 404  # it has a port of its own
                server.send(signal.SIGTERM)
                await is_told(ready, 503, status="not serving")
                assert (await probe(f"{base}/mcp"))[0] == 421  # refused by name: it is served
                server.send(signal.SIGTERM)
                assert server.process.wait(60) in (0, -signal.SIGTERM)
                assert (await probe(ready))[0] == 0


class TestWorkers:
    @pytest.mark.smoke
    @pytest.mark.each_pool
    async def test_a_workers_probe_reports_its_store_slots_and_event_loop(
        self, own: Starter, pool: Pool, gate: Gate, gates: Callable[[], Gate], tmp_path: Path
    ) -> None:
        store, file = own.valkey("store"), tmp_path / "heartbeat"
        settings = settings_for(store, f"probes-{pool}", heartbeat_ms=100)
        with reserved_port() as port:
            env = {"MCP_CELERY_WORKER_HEALTH_PORT": str(port), "MCP_CELERY_WORKER_HEARTBEAT_FILE": str(file)}
            worker = own.worker(TOOLS, pool, settings, env=env, concurrency=1)
            ready = f"http://127.0.0.1:{port}/readyz"
            await is_told(ready, 200, status="ready", store="ok", broker="ok", loop="ok", pool="ok")
            written_at = file.stat().st_mtime
            await eventually(lambda: file.stat().st_mtime > written_at, what="further heartbeats")

            async with live_server(tools.build, settings) as live:
                held = await live.submit("hold_loop", {"gate": str(gate)})
                await gate.reached()
                blocked = pool != "prefork"  # whose loops are in its children
                await is_told(ready, 503 if blocked else 200, loop="blocked" if blocked else "ok", pool="full")
                _, told = await probe(ready)
                assert told["pool_full_seconds"] > 0
                assert not blocked or told["loop_blocked_seconds"] > 1
                gate.open()
                assert (await live.end_of(held)).record.status == "completed"
            await is_told(ready, 200, loop="ok", pool="ok")

            store.stop()
            await is_told(ready, 503, store="lost", status="not ready")
            lost_at = file.stat().st_mtime
            await eventually(lambda: file.stat().st_mtime > lost_at, what="heartbeats that are not stored")
            assert await probe(f"http://127.0.0.1:{port}/healthz") == (200, {"status": "ok"})
            store.start()
            await is_told(ready, 200, status="ready", store="ok")

            async with live_server(tools.build, settings) as live:
                await live.submit("hold", {"gate": str(last := gates())})
                await last.reached()
                worker.send(signal.SIGTERM)
                await is_told(ready, 503, status="ending", store="ok", pool="full")
                last.open()
                await asyncio.to_thread(worker.process.wait, 60)
            assert not file.exists()
