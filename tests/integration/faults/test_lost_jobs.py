"""The broker loses jobs: each of them runs after all, and once; and nothing else is taken for lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import kombu
import pytest
import redis

from mcp_celery import Settings, TaskConfig
from mcp_celery.broker.queue import MOST_UNPUBLISHED
from mcp_celery.engine import TaskRecord, now_ms
from mcp_celery.engine.recovery import lost_jobs
from mcp_celery.logs import with_short_ids
from tests.integration.conftest import TOOLS, Starter, lines, settings_for, worker_environment
from tests.support.brokers import delete_queues
from tests.support.live import Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, ValkeyProcess, WorkerProcess, environment
from tests.support.programs import forked_command
from tests.support.servers import hasty, tools
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

HEARTBEAT_MS: Final = 300
PUBLISH_TIMEOUT_MS: Final = 1_000
LONG_ENOUGH_MS: Final = 15_000
"""In that time every job would have been taken for lost that looks like one."""

Purge = Callable[[LiveServer], object]


def named(request: pytest.FixtureRequest, pool: Pool) -> str:
    test = cast(pytest.Item, request.node).name
    name = test.partition("[")[0].removeprefix("test_").replace("_", "-")[:36].rstrip("-")
    return f"{name}-{pool}-{os.urandom(4).hex()}"


def quick(store: EmbeddedStoreContainer, namespace: str, **values: object) -> Settings:
    return settings_for(store, namespace, heartbeat_ms=HEARTBEAT_MS, publish_timeout_ms=PUBLISH_TIMEOUT_MS, **values)


@pytest.fixture
def broker(own: Starter) -> ValkeyProcess:
    """A broker of the test's own, which keeps nothing over a restart."""
    return own.valkey("broker")


@pytest.fixture
def on_redis(
    store: EmbeddedStoreContainer, broker: ValkeyProcess, request: pytest.FixtureRequest, pool: Pool
) -> Settings:
    return quick(store, named(request, pool), broker_url=broker.url)


@pytest.fixture
def on_rabbitmq(
    store: EmbeddedStoreContainer, rabbitmq_url: str, request: pytest.FixtureRequest, pool: Pool
) -> Generator[Settings]:
    settings = quick(store, named(request, pool), broker_url=rabbitmq_url)
    yield settings
    delete_queues(rabbitmq_url, f"mcp.{settings.namespace}")


@pytest.fixture
async def live(on_redis: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(tools.build, on_redis) as server:
        yield server


@contextmanager
def messages(live: LiveServer) -> Generator[redis.Redis]:
    """A client of the Redis that is the broker."""
    with redis.Redis.from_url(cast(str, live.settings.broker_url)) as client:
        yield client


def flush(live: LiveServer) -> None:
    with messages(live) as client:
        client.flushdb()


async def purge(live: LiveServer) -> None:
    """``celery purge``, as an operator enters it."""
    command = [*forked_command("celery"), "-A", "mcp_celery", "purge", "-f", "-Q", live.tasks.queue_name]
    purging = await asyncio.create_subprocess_exec(
        *command, env=environment(MCP_CELERY_SERVER=TOOLS, **worker_environment(live.settings))
    )
    assert await purging.wait() == 0


def purge_queue(live: LiveServer) -> None:
    with kombu.Connection(live.settings.celery_broker_url) as connection:
        kombu.Queue(live.tasks.queue_name, channel=connection.default_channel).purge()


def delete_queue(live: LiveServer) -> None:
    delete_queues(live.settings.celery_broker_url, live.tasks.queue_name)


async def has_run_once(live: LiveServer, record: TaskRecord, path: Path) -> None:
    ended = (await live.end_of(record)).record
    assert (ended.status, ended.attempt, ended.redeliveries) == ("completed", 1, 1)
    assert len(lines(path)) == 1


async def lose(live: LiveServer, lost: Purge) -> None:
    found = lost(live)
    if asyncio.iscoroutine(found):
        await found


async def what_waited_runs(live: LiveServer, own: Starter, pool: Pool, gate: Gate, folder: Path, lost: Purge) -> None:
    """Lose what waits behind a job that runs: that one ends as if nothing had been, and the others run."""
    own.worker(TOOLS, pool, live.settings, concurrency=1)
    held = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    waiting = {str(number): await live.submit("touch", {"path": str(folder / str(number))}) for number in range(4)}
    await lose(live, lost)
    gate.open()
    for name, record in waiting.items():
        await has_run_once(live, record, folder / name)
    ended = (await live.end_of(held)).record
    assert (ended.status, ended.redeliveries, len(gate.arrived())) == ("completed", 0, 1)
    with live.redis() as client:
        await eventually(lambda: not client.exists(live.keys.unclaimed, live.keys.due))


@pytest.mark.smoke
@pytest.mark.shows("M12", "C5")
async def test_a_job_that_a_flush_deleted_runs(
    live: LiveServer, own: Starter, pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    await what_waited_runs(live, own, pool, gate, tmp_path, flush)


async def test_a_job_that_celery_purge_deleted_runs(
    live: LiveServer, own: Starter, pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    await what_waited_runs(live, own, pool, gate, tmp_path, purge)


async def test_a_job_runs_whose_broker_restarts_empty(
    live: LiveServer, own: Starter, broker: ValkeyProcess, pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    await what_waited_runs(live, own, pool, gate, tmp_path, lambda _: broker.restart())


@pytest.mark.parametrize("lost", [purge_queue, delete_queue])
async def test_a_job_that_rabbitmq_lost_runs(
    on_rabbitmq: Settings, own: Starter, pool: Pool, gate: Gate, tmp_path: Path, lost: Purge
) -> None:
    async with live_server(tools.build, on_rabbitmq) as live:
        await what_waited_runs(live, own, pool, gate, tmp_path, lost)


async def test_a_queue_that_is_deleted_while_no_worker_is_there_takes_jobs_again(
    on_rabbitmq: Settings, own: Starter, pool: Pool, tmp_path: Path
) -> None:
    async with live_server(tools.build, on_rabbitmq) as live:
        before = await live.submit("touch", {"path": str(tmp_path / "before")})
        delete_queue(live)
        after = await live.submit("touch", {"path": str(tmp_path / "after")})
        # While no worker is there, nothing shows which of the two is the one that waits.
        own.worker(TOOLS, pool, on_rabbitmq)
        await has_run_once(live, before, tmp_path / "before")
        ended = (await live.end_of(after)).record
        assert (ended.status, ended.redeliveries) == ("completed", 0)


async def test_a_job_that_is_lost_again_fails_with_that_reason(live: LiveServer) -> None:
    record = await live.submit("add", {"a": 1, "b": 1})
    flush(live)
    await live.becomes(record, lambda now: now.redeliveries == 1, "published again")
    with messages(live) as client:
        await eventually(lambda: client.llen(live.tasks.queue_name) == 1)
    flush(live)
    failed = (await live.end_of(record)).record
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.message.startswith("The broker lost the job")
    with messages(live) as client:
        assert not client.exists(live.tasks.queue_name)


async def test_a_late_message_of_a_job_that_was_published_again_does_not_run_it_twice(
    live: LiveServer, own: Starter, pool: Pool, tmp_path: Path
) -> None:
    record = await live.submit("touch", {"path": str(tmp_path / "ran")})
    with messages(live) as client:
        message: Any = client.rpop(live.tasks.queue_name)
        await live.becomes(record, lambda now: now.redeliveries == 1, "published again")
        await eventually(lambda: client.llen(live.tasks.queue_name) == 1)
        client.rpush(live.tasks.queue_name, message)
    worker = own.worker(TOOLS, pool, live.settings)
    await has_run_once(live, record, tmp_path / "ran")
    await eventually(lambda: f"job {with_short_ids(record.job_id)} does not run" in worker.logs())
    assert len(lines(tmp_path / "ran")) == 1


async def test_urgent_jobs_are_in_lists_of_their_own_and_wait_all_the_same(
    store: EmbeddedStoreContainer, broker: ValkeyProcess, request: pytest.FixtureRequest, pool: Pool
) -> None:
    settings = quick(store, named(request, pool), broker_url=broker.url)
    async with live_server(tools.build, settings, task_queue_max_priority=9) as live:
        waiting = await live.submit("add", {"a": 1, "b": 1}, config=TaskConfig(priority=9))
        lost = await live.submit("add", {"a": 1, "b": 1}, config=TaskConfig(queue=f"{live.tasks.queue_name}-more"))
        with messages(live) as client:
            client.delete(f"{live.tasks.queue_name}-more")
            # What is declared counts when a job is published again, and the tool declares no queue.
            assert client.llen(live.tasks.queue_name) == 0
        await long_enough(live)
        assert (await live.now(waiting)).redeliveries == 0
        assert (await live.now(lost)).status == "working"


async def long_enough(live: LiveServer) -> None:
    """Wait until everything would have been found that looks like a lost job, by the clock of the store."""
    began = time.monotonic()
    await eventually(lambda: (time.monotonic() - began) * 1000 > LONG_ENOUGH_MS, what="many sweeps")


async def test_a_full_queue_is_left_alone_however_slow_it_is(
    live: LiveServer, own: Starter, pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    own.worker(TOOLS, pool, live.settings, concurrency=1)
    held = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    waiting = [await live.submit("touch", {"path": str(tmp_path / "ran")}) for _ in range(5)]
    await long_enough(live)
    with messages(live) as client:
        assert client.llen(live.tasks.queue_name) == len(waiting)
    gate.open()
    for record in (held, *waiting):
        ended = (await live.end_of(record)).record
        assert (ended.status, ended.redeliveries) == ("completed", 0)
    assert len(lines(tmp_path / "ran")) == len(waiting)


async def test_a_job_is_lost_when_a_later_one_has_been_claimed_for_a_while(
    live: LiveServer, own: Starter, pool: Pool, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is never empty, so only a later job that a worker has shows that this one is gone."""
    # The worker may be the process that reaps.
    monkeypatch.setattr(lost_jobs, "LATER_CLAIMED_MS", hasty.LATER_CLAIMED_MS)
    monkeypatch.setattr(lost_jobs, "ORDER_MS", hasty.ORDER_MS)
    lost = await live.submit("touch", {"path": str(tmp_path / "lost")})
    flush(live)
    await eventually(lambda: now_ms() - lost.created_at_ms > 2 * hasty.ORDER_MS, what="a later time")
    held = await live.submit("hold", {"gate": str(gate)})
    behind = [await live.submit("touch", {"path": str(tmp_path / "behind")}) for _ in range(3)]
    own.worker("tests.support.servers.hasty:server", pool, live.settings, concurrency=1, env=hasty.HASTE)
    await live.becomes(lost, lambda now: now.redeliveries == 1, "published again")
    assert [(await live.now(record)).redeliveries for record in (held, *behind)] == [0, 0, 0, 0]
    with messages(live) as client:
        await eventually(lambda: client.llen(live.tasks.queue_name) == 4)
    gate.open()
    await has_run_once(live, lost, tmp_path / "lost")


async def test_a_setting_decides_where_the_length_of_a_queue_is_unknown(
    store: EmbeddedStoreContainer, broker: ValkeyProcess, request: pytest.FixtureRequest, pool: Pool
) -> None:
    settings = quick(store, named(request, pool), broker_url=broker.url, lost_after_ms=6_000)
    exchange = f"mcp.{settings.namespace}.routed"
    routes = {f"mcp.{settings.namespace}.*": {"exchange": exchange, "routing_key": "any"}}
    async with live_server(tools.build, settings, task_routes=routes) as live:
        with live.app.connection_for_write() as connection:
            target = kombu.Exchange(exchange)
            kombu.Queue(exchange, target, routing_key="any", channel=connection.default_channel).declare()
        record = await live.submit("add", {"a": 1, "b": 1})
        with messages(live) as client:
            client.delete(exchange)
            await live.becomes(record, lambda now: now.redeliveries == 1, "published again")
            await eventually(lambda: client.llen(exchange) == 1)
        assert (await live.now(record)).status == "working"


@pytest.mark.parametrize("pool", ["solo"], indirect=True)
async def test_messages_that_a_busy_worker_has_not_read_are_not_lost(
    on_rabbitmq: Settings, own: Starter, pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    """RabbitMQ has sent them to the worker's socket: the queue is empty, and no worker has claimed them."""
    async with live_server(tools.build, on_rabbitmq) as live:
        worker = own.worker(TOOLS, pool, on_rabbitmq, concurrency=None, flags=["--prefetch-multiplier=4"])
        held = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        waiting = [await live.submit("touch", {"path": str(tmp_path / "ran")}) for _ in range(3)]
        await eventually(lambda: not waits(live), what="the worker has got all messages")
        with live.redis() as client:
            await eventually(lambda: client.zcard(live.keys.unread) == 1)
            await long_enough(live)
            assert client.zcard(live.keys.unclaimed) == len(waiting)
        gate.open()
        for record in (held, *waiting):
            ended = (await live.end_of(record)).record
            assert (ended.status, ended.redeliveries) == ("completed", 0)
        assert len(lines(tmp_path / "ran")) == len(waiting)
        with live.redis() as client:
            await eventually(lambda: not client.exists(live.keys.unread), what="the worker has read all")
        assert worker.status == "running"


def waits(live: LiveServer) -> int:
    with kombu.Connection(live.settings.celery_broker_url) as connection:
        channel: Any = connection.default_channel
        return int(channel.queue_declare(live.tasks.queue_name, passive=True).message_count)


async def test_a_claim_that_the_store_did_not_take_is_repeated(
    own: Starter, own_store: EmbeddedStoreContainer, broker: ValkeyProcess, pool: Pool, gate: Gate, tmp_path: Path
) -> None:
    """A job that waits behind another one in its worker is not lost, though the queue is empty."""
    settings = quick(own_store, "late-claims", broker_url=broker.url, store_timeout_ms=1_500)
    async with live_server(tools.build, settings) as live:
        worker: WorkerProcess = own.worker(
            TOOLS, pool, settings, concurrency=1, flags=["--prefetch-multiplier=2"], level="INFO"
        )
        held = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        live.app.control.cancel_consumer(live.tasks.queue_name, destination=[worker.hostname], reply=True)
        waiting = await live.submit("touch", {"path": str(tmp_path / "ran")})
        own_store.crash()
        live.app.control.add_consumer(live.tasks.queue_name, destination=[worker.hostname])
        await eventually(lambda: "could not record the claim of job" in worker.logs())
        own_store.start()
        claimed = await live.becomes(waiting, lambda now: now.claim is not None, "claimed")
        assert claimed.started_at_ms is None
        gate.open()
        for record in (held, waiting):
            assert (await live.end_of(record)).record.redeliveries == 0
        assert len(lines(tmp_path / "ran")) == 1


async def test_few_jobs_wait_to_be_published_for_they_would_look_lost(
    own: Starter, store: EmbeddedStoreContainer, broker: ValkeyProcess, request: pytest.FixtureRequest, pool: Pool
) -> None:
    """More requests than the broker takes: those that have to wait wait before their tasks are created."""
    requests = 2 * MOST_UNPUBLISHED
    settings = quick(store, named(request, pool), broker_url=broker.url).model_copy(
        update={"publish_timeout_ms": 60_000, "max_redeliveries": 0}
    )
    async with live_server(tools.build, settings) as live:
        with live.redis() as client:
            broker.send(signal.SIGSTOP)
            try:
                creating = [asyncio.create_task(live.submit("add", {"a": 1, "b": 1})) for _ in range(requests)]
                await eventually(lambda: client.zcard(live.keys.unclaimed) >= MOST_UNPUBLISHED)
                # Requests that began later have been answered by the store meanwhile.
                for _ in range(20):
                    await live.engine.list(live.submission("add").caller)
                assert client.zcard(live.keys.unclaimed) == MOST_UNPUBLISHED
            finally:
                broker.send(signal.SIGCONT)
            created = await soon(asyncio.gather(*creating))
            assert client.zcard(live.keys.unclaimed) == requests
        own.worker(TOOLS, pool, settings)
        for record in created:
            assert (await live.end_of(record)).record.status == "completed"
