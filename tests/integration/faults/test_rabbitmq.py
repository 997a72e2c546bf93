"""RabbitMQ refuses, dies, hangs, or takes a job that lasts too long for lost: tasks are made whole or not at all."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Generator, Iterable
from typing import Final, cast

import kombu
import pytest

from mcp_celery import Settings
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.logs import with_short_ids
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import RabbitProcess
from tests.support.live import Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, NodeError, Pool, WorkerProcess, short_folder
from tests.support.servers import anywhere
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.anywhere:server"
CONSUMER_TIMEOUT_MS: Final = 3_000
PATIENCE_SECONDS: Final = 60.0


@pytest.fixture(scope="module")
def broker() -> Generator[RabbitProcess]:
    """A RabbitMQ that may be killed, and soon takes a message that is not acknowledged for lost."""
    with short_folder() as folder:
        try:
            node = RabbitProcess(folder, settings=f"consumer_timeout = {CONSUMER_TIMEOUT_MS}", ticks_ms=500)
        except NodeError as missing:
            pytest.skip(str(missing))
        try:
            node.start()
            node.ready()
            yield node
        finally:
            node.teardown()


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own, and so a queue."""
    test = cast(pytest.Item, request.node).name
    return test.removeprefix("test_").replace("[", "-").rstrip("]").replace("_", "-")[-60:].lstrip("-")


@pytest.fixture
def settings(store: EmbeddedStoreContainer, broker: RabbitProcess, namespace: str) -> Settings:
    return settings_for(
        store, namespace, broker_url=broker.url, store_timeout_ms=1_500, publish_timeout_ms=1_500, heartbeat_ms=1_000
    )


@pytest.fixture
async def live(settings: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(anywhere.build, settings) as server:
        yield server


@pytest.fixture
def worker(shared: Starter, pool: Pool, settings: Settings) -> Generator[WorkerProcess]:
    """A worker of the test's own; the broker that the test may start anew belongs to all."""
    worker = shared.worker(SERVER, pool, settings)
    yield worker
    worker.teardown()


def keys_of(live: LiveServer) -> list[str]:
    with live.redis() as client:
        found = cast("Iterable[str]", client.scan_iter(match=f"*{live.tasks.namespace}:task*"))
        # A task that was taken back leaves a mark for a minute: its creation may still be on its way.
        return sorted(key for key in found if not key.endswith(":deleted"))


async def taken(live: LiveServer) -> bool:
    try:
        await live.submit("add", {"a": 1, "b": 1})
    except QueueUnavailableError:
        return False
    return True


async def test_a_job_that_lasts_longer_than_the_consumer_timeout_runs_once_and_ends_well(
    live: LiveServer, worker: WorkerProcess, gate: Gate
) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    await eventually(
        lambda: f"job {with_short_ids(record.job_id)} does not run" in worker.logs(),
        what="delivered again",
        seconds=PATIENCE_SECONDS,
    )
    assert "PRECONDITION_FAILED" in worker.logs()
    assert (await live.now(record)).status == "working"
    gate.open()
    assert (await live.end_of(record)).record.status == "completed"
    assert await live.text_of("add", {"a": 2, "b": 2}) == "4"
    assert (worker.status, len(gate.arrived())) == ("running", 1)


async def test_a_job_that_runs_while_the_broker_is_killed_completes_and_its_worker_continues(
    live: LiveServer, broker: RabbitProcess, worker: WorkerProcess, gate: Gate
) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    broker.kill()
    await eventually(lambda: "Connection to broker lost" in worker.logs(), seconds=PATIENCE_SECONDS)
    broker.start()
    broker.ready()
    gate.open()
    assert (await live.end_of(record)).record.status == "completed"
    await eventually(lambda: worker.logs().count("Connected to") == 2, seconds=PATIENCE_SECONDS)
    assert await live.text_of("add", {"a": 2, "b": 2}) == "4"
    assert (worker.status, len(gate.arrived())) == ("running", 1)


@pytest.mark.shows("M9")
async def test_a_broker_that_is_dead_makes_no_task_and_is_used_again(live: LiveServer, broker: RabbitProcess) -> None:
    assert await taken(live)
    before = keys_of(live)
    broker.kill()
    try:
        for _ in range(2):
            with pytest.raises(QueueUnavailableError, match="no task was created"):
                await soon(live.submit("add", {"a": 1, "b": 1}))
            await eventually(lambda: keys_of(live) == before, what="nothing is left of the task")
    finally:
        broker.start()
        broker.ready()
    await eventually(lambda: taken(live), seconds=PATIENCE_SECONDS)


@pytest.mark.shows("M9")
async def test_a_broker_that_hangs_makes_no_task_and_is_used_again(live: LiveServer, broker: RabbitProcess) -> None:
    assert await taken(live)
    before = keys_of(live)
    broker.send(signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(QueueUnavailableError, match="no task was created"):
                await soon(live.submit("add", {"a": 1, "b": 1}))
            # A request is answered before its record is taken back.
            await eventually(lambda: keys_of(live) == before, what="nothing is left of the task")
    finally:
        broker.send(signal.SIGCONT)
    await eventually(lambda: taken(live), seconds=PATIENCE_SECONDS)


@pytest.mark.shows("M9")
async def test_a_message_that_the_broker_does_not_confirm_is_no_task(settings: Settings, broker: RabbitProcess) -> None:
    """A full queue refuses; without publisher confirms nobody would hear of it."""
    queue = f"mcp.{settings.namespace}"
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queues = [kombu.Queue(queue, kombu.Exchange(queue), routing_key=queue, queue_arguments=full)]
    async with live_server(anywhere.build, settings, task_queues=queues) as live:
        await live.submit("add", {"a": 1, "b": 1})
        before = keys_of(live)
        with pytest.raises(QueueUnavailableError, match="no task was created"):
            await soon(live.submit("add", {"a": 2, "b": 2}))
        assert keys_of(live) == before
        with kombu.Connection(broker.url) as connection:
            queues[0].bind(connection.default_channel).purge()
        assert await taken(live)
