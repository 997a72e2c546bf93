"""The store or the broker goes away: an error in time, nothing half-made, and work again as soon as it is back."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from mcp_celery import Settings
from mcp_celery.engine import RpcError
from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.errors import INTERNAL_ERROR, QueueUnavailableError, StoreUnavailableError
from tests.integration.conftest import TOOLS, Starter, lines, settings_for
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.servers import policy, tools
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio


def keys_of(live: LiveServer) -> list[str]:
    with live.redis() as client:
        found = cast("Iterable[str]", client.scan_iter(match=f"*{live.tasks.namespace}:task*"))
        # A task that was taken back leaves a mark for a minute: its creation may still be on its way.
        return sorted(key for key in found if not key.endswith(":deleted"))


def unacknowledged(live: LiveServer) -> int:
    """How many messages kombu keeps for workers that hold them."""
    with live.redis() as client:
        return client.hlen("unacked")


def impatient(settings: Settings) -> Settings:
    """Settings of a server that gives up sooner than the tests do."""
    return settings.model_copy(update={"store_timeout_ms": 1_000, "publish_timeout_ms": 1_000})


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_the_next_job_works_after_a_restart_of_the_store(
    own: Starter, own_store: EmbeddedStoreContainer, pool: Pool
) -> None:
    settings = settings_for(own_store, "restart")
    own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        before = await live.submit("add", {"a": 1, "b": 1})
        assert (await live.end_of(before)).record.status == "completed"
        for number in range(2):
            await eventually(lambda: not unacknowledged(live), what="the message is acknowledged")
            own_store.restart()
            assert await live.text_of("add", {"a": number, "b": number}) == str(2 * number)
        view = await live.engine.get(ANYONE, before.task_id)
        assert view.result is not None
        assert view.result["content"][0]["text"] == "2"


@pytest.mark.each_pool
async def test_a_job_that_runs_while_the_broker_restarts_completes_and_its_worker_continues(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, gate: Gate
) -> None:
    broker = own.valkey("broker")
    settings = settings_for(store, f"running-{pool}", broker_url=broker.url)
    worker = own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        held = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        broker.stop()
        await eventually(lambda: "Connection to broker lost" in worker.logs())
        broker.start()
        broker.ready()
        gate.open()
        assert (await live.end_of(held)).record.status == "completed"
        await eventually(lambda: worker.status == "exited" or worker.logs().count("Connected to") == 2)
        assert worker.status == "running"
        assert await live.text_of("add", {"a": 2, "b": 2}) == "4"


async def test_a_broker_that_is_gone_makes_no_task_and_is_used_again_when_it_is_back(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool
) -> None:
    broker = own.valkey("broker")
    settings = impatient(settings_for(store, f"broker-{pool}", broker_url=broker.url))
    own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
        before = keys_of(live)

        broker.stop()
        with pytest.raises(QueueUnavailableError, match="no task was created"):
            await soon(live.engine.submit(live.submission("add", {"a": 1, "b": 1})))
        assert keys_of(live) == before

        broker.start()
        broker.ready()
        assert await live.text_of("add", {"a": 2, "b": 2}) == "4"


async def test_a_broker_that_hangs_makes_no_task_and_is_used_again_when_it_goes_on(
    own: Starter, store: EmbeddedStoreContainer
) -> None:
    broker = own.valkey("broker")
    settings = impatient(settings_for(store, "hanging-broker", broker_url=broker.url))
    async with live_server(tools.build, settings) as live:
        await live.submit("add", {"a": 1, "b": 1})
        before = keys_of(live)

        broker.send(signal.SIGSTOP)
        try:
            for _ in range(2):
                with pytest.raises(QueueUnavailableError):
                    await soon(live.engine.submit(live.submission("add", {"a": 1, "b": 1})))
                assert keys_of(live) == before
        finally:
            broker.send(signal.SIGCONT)

        async def taken() -> bool:
            try:
                await live.engine.submit(live.submission("add", {"a": 2, "b": 2}))
            except QueueUnavailableError:
                return False
            return True

        await eventually(taken)
        assert len(keys_of(live)) == len(before) + 2  # a record and its snapshot


@pytest.mark.smoke
async def test_a_store_that_is_gone_answers_with_an_error_and_is_used_again_when_it_is_back(
    own: Starter, own_store: EmbeddedStoreContainer
) -> None:
    broker = own.valkey("broker")
    settings = impatient(settings_for(own_store, "no-store", broker_url=broker.url))
    async with live_server(tools.build, settings) as live:
        record = await live.submit("add", {"a": 1, "b": 1})

        own_store.stop()
        with pytest.raises(StoreUnavailableError, match="try again later"):
            await soon(live.engine.submit(live.submission("add", {"a": 1, "b": 1})))
        with pytest.raises(StoreUnavailableError):
            await soon(live.engine.get(ANYONE, record.task_id))
        with pytest.raises(StoreUnavailableError):
            await soon(live.engine.cancel(ANYONE, record.task_id))

        own_store.start()
        assert (await live.now(record)).status == "working"
        await live.submit("add", {"a": 2, "b": 2})


async def test_a_job_that_cannot_be_tried_again_says_that_the_broker_is_unavailable(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path
) -> None:
    broker = own.valkey("broker")
    settings = settings_for(store, f"retries-{pool}", broker_url=broker.url)
    worker = own.worker("tests.support.servers.policy:server", pool, settings)
    tried, until = tmp_path / "tried", tmp_path / "until"
    async with live_server(policy.build, settings) as live:
        record = await live.submit("fails_later", {"path": str(tried), "until": str(until)})
        await eventually(tried.exists, what="the job runs")
        broker.stop()
        await eventually(lambda: "Connection to broker lost" in worker.logs())
        until.touch()
        await eventually(lambda: "reject requeue=False" in worker.logs(), what="the job is not tried again")
        broker.start()
        broker.ready()
        failed = (await live.end_of(record)).record
        assert failed.error == RpcError(INTERNAL_ERROR, FAILURE_REASONS["OperationalError"])


async def test_a_broker_that_hangs_holds_only_the_job_that_is_to_be_tried_again(
    own: Starter, store: EmbeddedStoreContainer, tmp_path: Path
) -> None:
    broker = own.valkey("broker")
    settings = settings_for(store, "hanging-retry", broker_url=broker.url)
    worker = own.worker("tests.support.servers.policy:server", "asyncio", settings)
    failing, going = tmp_path / "failing", tmp_path / "going"
    fail, go = tmp_path / "fail", tmp_path / "go"
    async with live_server(policy.build, settings) as live:
        retried = await live.submit("fails_later", {"path": str(failing), "until": str(fail)})
        other = await live.submit("comes_back", {"path": str(going), "failures": 0, "until": str(go)})
        await eventually(lambda: failing.exists() and going.exists(), what="both jobs run")
        broker.send(signal.SIGSTOP)
        try:
            fail.touch()
            await eventually(lambda: "is tried again in 0 s" in worker.logs(), what="the job is to be tried again")
            go.touch()
            assert (await soon(live.end_of(other), seconds=20)).record.status == "completed"
        finally:
            broker.send(signal.SIGCONT)
        assert (await live.end_of(retried)).record.is_error
        assert len(lines(failing)) == 4
