"""Workers that consume a server's queue, and use another store than the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import pytest

from mcp_celery import Settings
from mcp_celery.engine import TaskRecord
from tests.integration.conftest import TOOLS, Starter, settings_for
from tests.support.brokers import delete_queues
from tests.support.live import LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import tools
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

HEARTBEAT_MS: Final = 500
STOPPED: Final = "no more until its task is found"
AGAIN: Final = "again: the task of a job that was given back is found or lost"
NUMBERS: Final = {"a": 1, "b": 2}


@pytest.fixture
def fleet(store: EmbeddedStoreContainer) -> Settings:
    """The settings of the server and of the right worker."""
    return settings_for(store, f"stores-{uuid4().hex[:8]}", heartbeat_ms=HEARTBEAT_MS)


@pytest.fixture
def rabbit_fleet(own_store: EmbeddedStoreContainer, rabbitmq_url: str) -> Generator[Settings]:
    """The same with RabbitMQ as broker, and a store of the test's own."""
    fleet = settings_for(own_store, f"stores-{uuid4().hex[:8]}", heartbeat_ms=HEARTBEAT_MS, broker_url=rabbitmq_url)
    yield fleet
    delete_queues(rabbitmq_url, f"mcp.{fleet.namespace}")


def elsewhere(fleet: Settings, **values: Any) -> Settings:
    """The same settings, but for the prefix of the keys."""
    return fleet.model_copy(update={"key_prefix": "elsewhere", **values})


@asynccontextmanager
async def serving(fleet: Settings) -> AsyncGenerator[LiveServer]:
    """A server whose store has its mark."""
    async with live_server(tools.build, fleet) as live:
        await marked(live)
        yield live


async def marked(live: LiveServer, but: str | None = None) -> str:
    """Wait until the server knows the mark of its store, which is another than before."""
    with live.redis() as client:
        mark = await eventually(lambda: found if (found := client.get(live.keys.mark)) != but else None)
    identity = next(iter(live.tasks.connections._live.values())).identity  # pyright: ignore[reportPrivateUsage]
    await eventually(lambda: str(identity.mark) == mark)
    return str(mark)


async def added(live: LiveServer) -> TaskRecord:
    return await live.submit("add", NUMBERS)


async def total(live: LiveServer, record: TaskRecord) -> Any:
    view = await live.end_of(record)
    assert view.result is not None, view.record
    return view.result["structuredContent"]["result"]


def stops(worker: WorkerProcess) -> int:
    return worker.logs().count(STOPPED)


async def the_right_worker_gets_them(own: Starter, pool: Pool, fleet: Settings) -> None:
    lost = own.worker(TOOLS, pool, elsewhere(fleet))
    async with serving(fleet) as live:
        tasks = [await added(live) for _ in range(5)]
        await eventually(lambda: stops(lost) == 1)
        assert {(await live.now(task)).status for task in tasks} == {"working"}
        own.worker(TOOLS, pool, fleet)
        assert [await total(live, task) for task in tasks] == [3] * 5
        assert [await total(live, await added(live)) for _ in range(5)] == [3] * 5
    (line,) = [line for line in lost.logs().splitlines() if STOPPED in line]
    assert f"consumes queue {live.tasks.queue_name} {STOPPED}" in line
    assert "key prefix 'elsewhere'" in line
    assert "MCP_CELERY_REDIS_URL" in line


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_job_goes_to_the_worker_that_has_its_record(own: Starter, pool: Pool, fleet: Settings) -> None:
    await the_right_worker_gets_them(own, pool, fleet)


async def test_over_rabbitmq_a_job_goes_to_the_worker_that_has_its_record(
    own: Starter, pool: Pool, rabbit_fleet: Settings
) -> None:
    await the_right_worker_gets_them(own, pool, rabbit_fleet)


async def test_a_job_of_a_component_that_the_worker_lacks_is_given_back_too(
    own: Starter, pool: Pool, fleet: Settings
) -> None:
    lost = own.worker("tests.support.servers.deploys:old", pool, elsewhere(fleet))
    async with serving(fleet) as live:
        task = await added(live)
        await eventually(lambda: stops(lost) == 1)
        own.worker(TOOLS, pool, fleet)
        assert await total(live, task) == 3


async def test_the_queue_is_consumed_again_when_a_server_uses_the_workers_store(
    own: Starter, pool: Pool, fleet: Settings
) -> None:
    worker = own.worker(TOOLS, pool, elsewhere(fleet))
    async with serving(fleet) as live:
        task = await added(live)
        await eventually(lambda: stops(worker) == 1)
        async with serving(elsewhere(fleet)) as other:
            assert await total(other, await added(other)) == 3
        assert AGAIN in worker.logs()
        await live.engine.cancel(live.submission("add").caller, task.task_id)


async def test_with_that_setting_a_job_of_another_store_is_dropped(own: Starter, pool: Pool, fleet: Settings) -> None:
    worker = own.worker(TOOLS, pool, elsewhere(fleet, other_store="drop"))
    async with serving(fleet) as live:
        task = await added(live)
        await eventually(lambda: "dropped job" in worker.logs())
        assert stops(worker) == 0
        async with serving(elsewhere(fleet)) as other:
            assert await total(other, await added(other)) == 3
        await live.engine.cancel(live.submission("add").caller, task.task_id)


async def test_jobs_of_a_store_that_has_lost_its_data_are_dropped(
    own: Starter, pool: Pool, rabbit_fleet: Settings
) -> None:
    async with serving(rabbit_fleet) as live:
        before = await marked(live)
        for _ in range(3):
            await added(live)
        with live.redis() as client:
            client.flushall()
        await marked(live, before)
        worker = own.worker(TOOLS, pool, rabbit_fleet)
        assert [await total(live, await added(live)) for _ in range(5)] == [3] * 5
        assert stops(worker) == 0
