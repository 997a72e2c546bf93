"""The result backend goes away: statuses are still told, results are refused in time, and read when it is back."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import Final

import psycopg
import pytest
from psycopg import sql

from mcp_celery.engine import RpcError, TaskRecord
from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.errors import INTERNAL_ERROR, ResultUnavailableError
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import POSTGRESQL, postgresql
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, ValkeyProcess
from tests.support.servers import anywhere
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.anywhere:server"


@pytest.fixture
def results(own: Starter) -> ValkeyProcess:
    """A result backend that keeps nothing over a restart."""
    return own.valkey("results")


@pytest.fixture
async def live(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, results: ValkeyProcess
) -> AsyncGenerator[LiveServer]:
    settings = settings_for(store, f"away-{pool}", result_backend=results.url, store_timeout_ms=1_000)
    own.worker(SERVER, pool, settings)
    async with live_server(anywhere.build, settings) as server:
        yield server


async def can_be_read(live: LiveServer, record: TaskRecord) -> bool:
    """Wait for a result; a backend that is back may need a moment for its first connections."""

    async def read() -> bool:
        try:
            return (await live.engine.get(ANYONE, record.task_id)).result is not None
        except ResultUnavailableError:
            return False

    return await eventually(read)


@pytest.mark.smoke
@pytest.mark.shows("C6")
async def test_a_backend_that_is_gone_makes_results_unavailable_and_keeps_statuses(
    live: LiveServer, results: ValkeyProcess, gate: Gate
) -> None:
    completed = await live.submit("add", {"a": 1, "b": 1})
    assert (await live.end_of(completed)).result is not None
    running = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()

    results.stop()
    assert (await live.now(completed)).status == "completed"
    assert (await soon(live.engine.get(ANYONE, running.task_id))).record.status == "working"
    for ask in (live.engine.get, live.engine.wait):
        with pytest.raises(ResultUnavailableError) as refused:
            await soon(ask(ANYONE, completed.task_id))
        assert refused.value.code == INTERNAL_ERROR
        assert "can no longer be read from the result backend" in str(refused.value)

    results.start()
    results.ready()
    with pytest.raises(ResultUnavailableError):  # it has forgotten
        await soon(live.engine.get(ANYONE, completed.task_id))
    gate.open()
    assert (await live.end_of(running)).record.status == "completed"
    assert await live.text_of("add", {"a": 2, "b": 2}) == "4"


@pytest.mark.shows("C6")
async def test_a_backend_that_hangs_delays_no_status_and_blocks_no_thread(
    live: LiveServer, results: ValkeyProcess
) -> None:
    completed = (await live.run("add", {"a": 1, "b": 1})).record
    results.send(signal.SIGSTOP)
    try:
        for _ in range(10):  # more than there are threads that could wait for it
            assert (await soon(live.engine.find(ANYONE, completed.task_id))).status == "completed"
        with pytest.raises(ResultUnavailableError):
            await soon(live.engine.get(ANYONE, completed.task_id))
    finally:
        results.send(signal.SIGCONT)
    assert await can_be_read(live, completed)


@contextmanager
def closed(database_url: str) -> Generator[None]:
    """Let nobody into a database of PostgreSQL."""
    name = database_url.rpartition("/")[2]
    with psycopg.connect(f"{POSTGRESQL}/postgres", autocommit=True) as server:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        server.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            server.execute(allow.format(sql.Identifier(name), sql.Literal(True)))


@pytest.mark.shows("C6")
async def test_a_database_that_refuses_connections_makes_results_unavailable(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, gate: Gate
) -> None:
    with postgresql() as url:
        settings = settings_for(store, f"closed-{pool}", result_backend=f"db+{url}", store_timeout_ms=1_000)
        own.worker(SERVER, pool, settings)
        async with live_server(anywhere.build, settings) as live:
            completed = (await live.run("add", {"a": 1, "b": 1})).record
            running = await live.submit("hold", {"gate": str(gate)})
            await gate.reached()
            with closed(url):
                assert (await live.now(completed)).status == "completed"
                with pytest.raises(ResultUnavailableError):
                    await soon(live.engine.get(ANYONE, completed.task_id))
                gate.open()
                lost = (await live.end_of(running)).record
                assert (lost.status, lost.error) == (
                    "failed",
                    RpcError(INTERNAL_ERROR, FAILURE_REASONS["ResultLost"]),
                )
            assert await can_be_read(live, completed)
            assert await live.text_of("add", {"a": 2, "b": 2}) == "4"
