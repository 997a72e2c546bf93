"""Connections that networks reset, or forget without a word: what that costs, and what is done twice."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import kombu
import pytest
from celery import Celery

from mcp_celery import Settings
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.broker.results import CeleryResults
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine import ForeignWork, StoredResult, TaskView
from mcp_celery.errors import QueueUnavailableError, StoreUnavailableError
from tests.integration.conftest import Starter, settings_for
from tests.integration.test_queue import record_of, submission
from tests.support.deployment import deployed
from tests.support.live import Gate, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.proxy import Proxy
from tests.support.servers import anywhere
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.anywhere:server"
TIMEOUT_SECONDS: Final = 1.0
NEVER_IDLE: Final = 600.0
T = TypeVar("T")


@pytest.fixture
def broker() -> str:
    """Which broker a test uses."""
    return "redis"


@dataclass
class Publishing:
    """A queue behind a proxy, and what has arrived in it."""

    queue: CeleryQueue
    proxy: Proxy
    broker_url: str
    name: str
    work: dict[str, Any]

    async def publish(self) -> None:
        job = submission("plain")
        await soon(self.queue.publish(replace(record_of(job), **self.work), job))

    def arrived(self) -> int:
        with kombu.Connection(self.broker_url) as connection:
            channel: Any = connection.channel()
            return channel.queue_declare(self.name, passive=True).message_count


@pytest.fixture
def kind() -> str:
    """Whose job it is: of a component (``own``), or of somebody else (``foreign``)."""
    return "own"


@pytest.fixture
def idle_seconds() -> float:
    return NEVER_IDLE


@pytest.fixture
async def publishing(
    request: pytest.FixtureRequest, store: EmbeddedStoreContainer, broker: str, kind: str, idle_seconds: float
) -> AsyncGenerator[Publishing]:
    url = store.url if broker == "redis" else request.getfixturevalue("rabbitmq_url")
    name = f"broken-{os.urandom(4).hex()}"
    with Proxy.before(url) as proxy:
        through = f"amqp://guest:guest@127.0.0.1:{proxy.port}//" if broker == "rabbitmq" else proxy.redis_url
        app = Celery("broken", broker=through, backend="cache+memory://", set_as_current=False)
        # Somebody's own setting, with which redis-py would send any command twice.
        app.conf.broker_transport_options = {"retry_on_timeout": True} if broker == "redis" else {}
        queue = CeleryQueue(
            app, namespace="shop", default_queue=name, timeout_seconds=TIMEOUT_SECONDS, idle_seconds=idle_seconds
        )
        work = {"work": ForeignWork()} if kind == "foreign" else {}
        try:
            yield Publishing(queue, proxy, celery_url(url), name, work)
        finally:
            await soon(queue.aclose())
            app.close()
    with kombu.Connection(celery_url(url)) as connection:
        channel: Any = connection.channel()
        channel.queue_delete(name)


on_each_broker = pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
of_each_kind = pytest.mark.parametrize("kind", ["own", "foreign"])


@pytest.mark.smoke
@on_each_broker
@of_each_kind
async def test_a_publishers_connection_that_was_reset_while_idle_costs_no_request(publishing: Publishing) -> None:
    for number in (1, 2, 3):
        await publishing.publish()
        assert publishing.arrived() == number
        assert publishing.proxy.reset() >= 1


@on_each_broker
async def test_a_job_of_ours_is_published_again_when_the_brokers_answer_is_lost(publishing: Publishing) -> None:
    """It may wait twice, and its record grants it one start."""
    await publishing.publish()
    publishing.proxy.lose_next_answer()
    await publishing.publish()
    assert publishing.arrived() == 3


@on_each_broker
@pytest.mark.parametrize("kind", ["foreign"])
async def test_a_job_of_another_publisher_is_never_published_again(publishing: Publishing) -> None:
    await publishing.publish()
    publishing.proxy.lose_next_answer()
    with pytest.raises(QueueUnavailableError):
        await publishing.publish()
    assert publishing.arrived() == 2
    # The next request finds a new connection.
    await publishing.publish()
    assert publishing.arrived() == 3


@on_each_broker
@of_each_kind
async def test_a_publishers_connection_that_a_firewall_has_forgotten_costs_one_time_out(publishing: Publishing) -> None:
    await publishing.publish()
    assert publishing.proxy.stall() >= 1
    with pytest.raises(QueueUnavailableError):
        await publishing.publish()
    await publishing.publish()
    assert publishing.arrived() == 2


@on_each_broker
@of_each_kind
@pytest.mark.parametrize("idle_seconds", [0.5])
async def test_an_idle_connection_that_a_firewall_has_forgotten_costs_nothing(
    publishing: Publishing, broker: str
) -> None:
    for number in (1, 2):
        await publishing.publish()
        assert publishing.arrived() == number
        assert publishing.proxy.stall() >= 1
        for _ in range(2):
            if broker == "redis" and number == 1:
                # It has a connection of its own, which says nothing of the one that publishes.
                assert await publishing.queue.length(publishing.name) == 1
            await asyncio.sleep(0.3)


@asynccontextmanager
async def results_through(proxy: Proxy, idle_seconds: float) -> AsyncGenerator[tuple[CeleryResults, str]]:
    """Results read through a proxy, and the id of a job that has one; the app is somebody's own."""
    app = Celery("broken", broker="memory://", backend=proxy.redis_url, set_as_current=False)
    app.conf.result_backend_transport_options = {"global_keyprefix": f"broken-{os.urandom(4).hex()}"}
    backend: Any = app.backend
    results = CeleryResults(app, timeout_seconds=TIMEOUT_SECONDS, idle_seconds=idle_seconds)
    backend.store_result("job", 3, "SUCCESS")
    try:
        yield results, "job"
    finally:
        await results.forget(["job"])
        results.close()
        backend.client.close()
        app.close()


async def test_the_result_backend_recovers_from_forgotten_connections_within_one_time_out(
    store: EmbeddedStoreContainer,
) -> None:
    """Also where as many reads wait as there are threads. Celery's own connections would hang for two minutes."""
    found = StoredResult("SUCCESS", 3)
    with Proxy.before(store.url) as proxy:
        async with results_through(proxy, NEVER_IDLE) as (results, job):
            assert await asyncio.gather(*(soon(results.read(job)) for _ in range(16))) == [found] * 16
            assert proxy.reset() >= 1
            assert await soon(results.read(job)) == found
            await asyncio.gather(*(soon(results.read(job)) for _ in range(16)))
            assert proxy.stall() >= 1
            await asyncio.gather(*(soon(results.read(job)) for _ in range(16)))
            assert await eventually(lambda: results.read(job)) == found
            assert await asyncio.gather(*(soon(results.read(job)) for _ in range(16))) == [found] * 16
        async with results_through(proxy, 0.0) as (results, job):
            assert await soon(results.read(job)) == found
            assert proxy.stall() >= 1
            assert await soon(results.read(job)) == found
            assert await soon(results.read_many([job])) == {job: found}


@pytest.fixture
def forgetful(store: EmbeddedStoreContainer, pool: Pool, proxy: Proxy) -> Settings:
    """Records, push and results go through the proxy, and the broker does not."""
    name = f"forgetful-{pool}-{os.urandom(4).hex()}"
    quick: dict[str, Any] = {"store_timeout_ms": 1_500, "heartbeat_ms": 1_000, "idle_connection_ms": 2_000}
    return settings_for(store, name, broker_url=store.url, **quick).model_copy(update={"redis_url": proxy.redis_url})


@pytest.fixture
def proxy(store: EmbeddedStoreContainer) -> Generator[Proxy]:
    with Proxy.before(store.url) as proxy:
        yield proxy


async def answered(request: Callable[[], Awaitable[T]]) -> T:
    """What a client gets that repeats its request upon -32603."""
    answers: list[T] = []

    async def tried() -> bool:
        with suppress(StoreUnavailableError):
            answers.append(await request())
        return bool(answers)

    await eventually(tried)
    return answers[0]


@pytest.mark.shows("C11")
async def test_a_running_job_and_its_follower_survive_that_all_connections_are_forgotten(
    forgetful: Settings, own: Starter, pool: Pool, proxy: Proxy, gate: Gate
) -> None:
    async with live_server(anywhere.build, forgetful) as live:
        own.worker(SERVER, pool, forgetful)
        record = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()

        async def end() -> TaskView:
            return await live.end_of(record)

        following = asyncio.create_task(answered(end))
        await eventually(lambda: proxy.accepted >= 4)
        assert proxy.stall() >= 4
        gate.open()
        ended = (await following).record
        assert (ended.status, ended.attempt) == ("completed", 1)
        after = await answered(lambda: live.submit("add", {"a": 1, "b": 2}))
        assert (await answered(lambda: live.end_of(after))).record.status == "completed"


@pytest.mark.shows("C11")
async def test_the_worker_of_another_app_survives_forgotten_connections_too(
    store: EmbeddedStoreContainer, pool: Pool, proxy: Proxy
) -> None:
    name = f"forgetful-host-{os.urandom(2).hex()}"
    settings = {
        "HOST_NAME": name,
        "HOST_BROKER": celery_url(store.url),
        "HOST_BACKEND": celery_url(proxy.redis_url),
        "HOST_CONF": json.dumps({"worker_consumer": "mcp_celery.worker.consumer:Consumer"}),
        "MCP_CELERY_NAMESPACE": "",
        "MCP_CELERY_STORE_TIMEOUT_MS": "1500",
        "MCP_CELERY_HEARTBEAT_MS": "1000",
        "MCP_CELERY_IDLE_CONNECTION_MS": "500",
        "C_FORCE_ROOT": "1",
    }
    app = "tests.support.host"
    with (
        deployed(proxy.redis_url, name, spec=f"{app}.mcp:server", settings=settings, app=app) as found,
        found.worker(pool, concurrency=1),
    ):
        async with Wire(found.serve()) as wire:
            for _ in range(2):
                task = (await wire.create("add", a=1, b=1))["taskId"]
                assert (await follow(wire, task))[-1]["status"] == "completed"
                assert proxy.stall() >= 2
                await asyncio.sleep(1)  # longer than a connection may be idle


@pytest.mark.shows("C11")
async def test_a_worker_whose_connection_to_the_broker_is_forgotten_takes_jobs_again(
    store: EmbeddedStoreContainer, own: Starter, pool: Pool, proxy: Proxy, tmp_path: Path
) -> None:
    name = f"deaf-{pool}-{os.urandom(4).hex()}"
    options = "?socket_timeout=2&health_check_interval=1"
    # Redis gives a job to a connection that is forgotten; again, where the worker connects anew after the next one.
    settings = settings_for(store, name, broker_url=store.url, heartbeat_ms=1_000, max_redeliveries=10)
    deaf = settings.model_copy(update={"broker_url": proxy.redis_url + options})
    async with live_server(anywhere.build, settings) as live:
        own.worker(SERVER, pool, deaf)
        assert (await live.run("touch", {"path": str(tmp_path / "ran")})).record.status == "completed"
        assert proxy.stall() >= 1
        assert (await live.run("touch", {"path": str(tmp_path / "ran")})).record.status == "completed"
        assert (tmp_path / "ran").read_text().split() == ["ran", "ran"]


@pytest.mark.long
async def test_at_the_default_settings_a_minute_of_silence_costs_no_request(store: EmbeddedStoreContainer) -> None:
    with Proxy.before(store.url) as proxy:
        settings = settings_for(store, f"silent-{os.urandom(4).hex()}").model_copy(
            update={"redis_url": proxy.redis_url}
        )
        async with live_server(anywhere.build, settings) as live:
            await live.submit("add", {"a": 1, "b": 2})
            # The server's own background work uses some of the connections all the time; those are replaced likewise.
            proxy.stall()
            await asyncio.sleep(75)
            record = await live.submit("add", {"a": 1, "b": 2})
            assert (await soon(live.now(record))).status == "working"
