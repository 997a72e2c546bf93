"""Workers die: nothing that they had stays ``working``, and nothing runs twice that must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_celery import Settings, TaskConfig
from mcp_celery.engine import TaskRecord
from mcp_celery.errors import INTERNAL_ERROR
from tests.integration.conftest import TOOLS, Starter, lines, settings_for
from tests.integration.faults.conftest import HEARTBEAT_MS
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import tools
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

REPEATABLE = ["hold_again", "hold_hinted", "hold_reading"]


on_each_broker = pytest.mark.parametrize("broker", ["redis", "rabbitmq"])


async def ended(live: LiveServer, record: TaskRecord) -> TaskRecord:
    return (await live.end_of(record)).record


@pytest.mark.each_pool
@pytest.mark.smoke
@pytest.mark.shows("M12", "C5")
@on_each_broker
async def test_a_killed_workers_tasks_run_again_or_fail(quick: Settings, own: Starter, pool: Pool, gate: Gate) -> None:
    async with live_server(tools.build, quick) as live:
        worker = own.worker(TOOLS, pool, quick, concurrency=4)
        tool = ["hold", *REPEATABLE]
        records = {name: await live.submit(name, {"gate": str(gate)}) for name in tool}
        await gate.reached(len(tool))
        worker.kill_all()

        failed = await ended(live, records["hold"])
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.code == INTERNAL_ERROR
        assert "may have had effects" in failed.error.message

        own.worker(TOOLS, pool, quick, concurrency=4)
        await gate.reached(len(tool) + len(REPEATABLE))
        gate.open()
        for name in REPEATABLE:
            record = await ended(live, records[name])
            assert (record.status, record.attempt, record.redeliveries) == ("completed", 2, 1)
        assert len(gate.arrived()) == len(tool) + len(REPEATABLE)


@pytest.mark.each_pool
@pytest.mark.smoke
async def test_jobs_that_a_killed_worker_had_not_begun_run_elsewhere(
    quick: Settings, own: Starter, pool: Pool, tmp_path: Path
) -> None:
    async with live_server(tools.build, quick) as live:
        worker = own.worker(TOOLS, pool, quick)
        first = await live.submit("touch_hourly", {"path": str(tmp_path / "first")})
        assert (await ended(live, first)).status == "completed"
        reserved = await live.submit("touch_hourly", {"path": str(tmp_path / "reserved")})
        await live.becomes(reserved, lambda record: record.claim is not None, "the job is received")
        worker.kill_all()

        own.worker(TOOLS, pool, quick)
        record = await ended(live, reserved)
        assert (record.status, record.attempt, record.redeliveries) == ("completed", 2, 1)
        assert len(lines(tmp_path / "reserved")) == 1


@on_each_broker
async def test_a_job_whose_workers_are_killed_again_and_again_fails(
    quick: Settings, own: Starter, pool: Pool, gate: Gate
) -> None:
    async with live_server(tools.build, quick) as live:
        record = await live.submit("hold_again", {"gate": str(gate)})
        for deaths in (1, 2):
            worker = own.worker(TOOLS, pool, quick)
            await gate.reached(deaths)
            worker.kill_all()
        failed = await ended(live, record)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "too often" in failed.error.message
        assert len(gate.arrived()) == 2


@on_each_broker
async def test_a_slow_job_of_a_live_worker_is_left_alone(quick: Settings, own: Starter, pool: Pool, gate: Gate) -> None:
    async with live_server(tools.build, quick) as live:
        own.worker(TOOLS, pool, quick)
        record = await live.submit("hold_sync", {"gate": str(gate)})
        await gate.reached()
        with live.redis() as client:

            def beat() -> float:
                ((_, score),) = client.zrange(live.keys.workers, 0, -1, withscores=True)
                return float(score)

            first = beat()
            await eventually(lambda: beat() > first + 5 * 3 * HEARTBEAT_MS, what="five leases have passed")
        gate.open()
        finished = await ended(live, record)
        assert (finished.status, finished.attempt) == ("completed", 1)


@pytest.mark.each_pool
@on_each_broker
async def test_a_cold_shutdown_fails_its_tasks_at_once_with_that_reason(
    quick: Settings, own: Starter, pool: Pool, gate: Gate
) -> None:
    patient = quick.model_copy(update={"heartbeat_ms": 60_000})  # nobody is found dead in this test
    async with live_server(tools.build, patient) as live:
        worker = own.worker(TOOLS, pool, patient)
        once = await live.submit("hold", {"gate": str(gate)})
        again = await live.submit("hold_again", {"gate": str(gate)})
        await gate.reached(2)
        worker.kill("SIGQUIT")
        assert (await ended(live, once)).status == "failed"
        if pool == "threads":  # which end no thread, but cancel its job
            assert "was ended: its task has ended, or its worker ends" in worker.logs()

        own.worker(TOOLS, pool, patient)
        await gate.reached(3)
        gate.open()
        assert (await ended(live, again)).status == "completed"


@pytest.mark.each_pool
async def test_a_warm_shutdown_fails_and_repeats_no_job(
    quick: Settings, own: Starter, pool: Pool, tmp_path: Path
) -> None:
    async with live_server(tools.build, quick) as live:
        worker = own.worker(TOOLS, pool, quick)
        first = await live.submit("touch_hourly", {"path": str(tmp_path / "first")})
        assert (await ended(live, first)).status == "completed"
        reserved = await live.submit("touch_hourly", {"path": str(tmp_path / "reserved")})
        await live.becomes(reserved, lambda record: record.claim is not None, "the job is received")
        worker.kill("SIGTERM")
        with live.redis() as client:
            assert client.zcard(live.keys.workers) == 0

        own.worker(TOOLS, pool, quick)
        record = await ended(live, reserved)
        assert (record.status, record.attempt, record.redeliveries) == ("completed", 1, 0)
        assert len(lines(tmp_path / "reserved")) == 1


async def test_no_running_job_is_taken_for_lost_when_the_store_restarts(
    own: Starter, own_store: EmbeddedStoreContainer, pool: Pool, gate: Gate
) -> None:
    broker = own.valkey("broker")
    settings = settings_for(own_store, "store-dies", broker_url=broker.url, heartbeat_ms=HEARTBEAT_MS)
    worker: WorkerProcess = own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        finished = await live.submit("add", {"a": 1, "b": 2})
        assert (await ended(live, finished)).status == "completed"
        held = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        own_store.crash()
        await eventually(lambda: "the task store (MCP_CELERY_REDIS_URL) failed" in worker.logs())
        own_store.start()
        gate.open()
        assert (await ended(live, held)).status == "completed"
        assert (await live.engine.get(ANYONE, finished.task_id)).result is not None


async def test_a_job_that_ends_while_the_store_is_down_keeps_its_result(
    own: Starter, own_store: EmbeddedStoreContainer, pool: Pool, gate: Gate
) -> None:
    broker = own.valkey("broker")
    settings = settings_for(own_store, "ends-in-an-outage", broker_url=broker.url)
    worker = own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        record = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        own_store.crash()
        before = worker.logs().count("the task store (MCP_CELERY_REDIS_URL) failed")
        gate.open()
        # Of its heartbeat and its reaper there may be two such lines; the job's end makes more, one every half second.
        await eventually(lambda: worker.logs().count("the task store (MCP_CELERY_REDIS_URL) failed") > before + 3)
        own_store.start()
        assert (await ended(live, record)).status == "completed"
        view = await live.engine.get(ANYONE, record.task_id)
        assert view.result is not None
        assert view.result["content"][0]["text"] == "passed"


async def test_a_task_that_outlives_its_ttl_is_ended_where_it_runs(
    quick: Settings, own: Starter, pool: Pool, gate: Gate
) -> None:
    # The reaper remembers what will end within three heartbeats: the whole life of this task, whatever holds it up.
    settings = quick.model_copy(update={"heartbeat_ms": 1_000})
    async with live_server(tools.build, settings) as live:
        own.worker(TOOLS, pool, settings)
        config = TaskConfig(ttl=2_000)
        record = await live.submit("hold", {"gate": str(gate)}, config=config)
        await gate.reached()
        with live.redis() as client:
            await eventually(lambda: not client.exists(live.keys.record(None, record.task_id)))
            await eventually(gate.cancelled, what="the coroutine is cancelled")
            await eventually(lambda: not client.zcard(live.keys.expiry))
            await eventually(lambda: not client.keys(f"*{record.task_id}*"), what="nothing of it is left")


async def test_jobs_that_had_not_begun_run_although_the_killed_broker_does_not_redeliver_them(
    own: Starter, store: EmbeddedStoreContainer, own_store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path
) -> None:
    """The broker keeps its queue. That of Redis gives back what a worker has received after an hour."""
    settings = settings_for(store, f"broker-dies-{pool}", broker_url=own_store.url, heartbeat_ms=HEARTBEAT_MS)
    async with live_server(tools.build, settings) as live:
        worker = own.worker(TOOLS, pool, settings)
        first = await live.submit("touch_hourly", {"path": str(tmp_path / "first")})
        assert (await ended(live, first)).status == "completed"
        reserved = await live.submit("touch_hourly", {"path": str(tmp_path / "reserved")})
        await live.becomes(reserved, lambda record: record.claim is not None, "the job is received")
        # Else it may get the job once more when it is connected again, and hold it back once more.
        live.app.control.cancel_consumer(live.tasks.queue_name, destination=[worker.hostname], reply=True)
        own_store.crash()
        await eventually(lambda: worker.status == "exited" or "Connection to broker lost" in worker.logs())
        own_store.start()

        own.worker(TOOLS, pool, settings)
        record = await ended(live, reserved)
        assert (record.status, record.attempt, record.redeliveries) == ("completed", 1, 0)
        assert len(lines(tmp_path / "reserved")) == 1
