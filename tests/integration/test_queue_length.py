"""``MCP_CELERY_MAX_QUEUE_LENGTH`` over Redis and RabbitMQ, with no worker: what is submitted waits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from typing import Any, cast

import kombu
import pytest
from celery import Celery

from mcp_celery import Settings, TaskConfig
from mcp_celery.engine import TaskRecord
from mcp_celery.errors import QueueFullError, QueueUnavailableError
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import delete_queues
from tests.support.live import LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer
from tests.support.servers import anywhere
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

MOST = 3
ARGUMENTS = {"a": 1, "b": 2}
NO_EFFECT = "MCP_CELERY_MAX_QUEUE_LENGTH has no effect on some jobs"


@pytest.fixture(params=["redis", "rabbitmq"])
def crowded(request: pytest.FixtureRequest, store: EmbeddedStoreContainer) -> Generator[Settings]:
    """Settings with a limit, and a queue that no other test has."""
    broker = request.getfixturevalue("rabbitmq_url") if request.param == "rabbitmq" else store.url
    settings = settings_for(store, f"crowd-{uuid.uuid4().hex[:8]}", broker_url=broker, max_queue_length=MOST)
    yield settings
    delete_queues(settings.celery_broker_url, *(f"mcp.{settings.namespace}{part}" for part in ("", "-more")))


@pytest.fixture
async def live(crowded: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(anywhere.build, crowded) as server:
        yield server


def take(live: LiveServer) -> None:
    """Take a message off the server's queue, as a worker does."""
    with live.app.connection_for_read() as connection, connection.channel() as channel:
        message = kombu.Queue(live.tasks.queue_name)(channel).get(no_ack=True)
        assert message is not None


async def submit(live: LiveServer) -> TaskRecord | None:
    """Submit a task, if the queue takes it."""
    try:
        return await live.submit("add", ARGUMENTS)
    except QueueFullError:
        return None


def records(live: LiveServer) -> int:
    with live.redis() as client:
        return int(cast(Any, client).zcard(live.keys.expiry))


@pytest.mark.smoke
@pytest.mark.shows("C15")
async def test_above_the_limit_tasks_are_refused_until_a_worker_takes_one(
    live: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(MOST):
        assert await submit(live)
    with pytest.raises(QueueFullError, match=r"as many tasks wait for a worker as this server allows \(3\)"):
        await live.submit("add", ARGUMENTS)
    assert records(live) == MOST
    take(live)
    assert await eventually(lambda: submit(live), what="room for one more")
    assert not await submit(live)
    assert NO_EFFECT not in caplog.text


async def test_of_many_at_once_no_more_are_made_than_may_wait(live: LiveServer) -> None:
    made = await asyncio.gather(*(submit(live) for _ in range(40)))
    assert len([one for one in made if one]) == records(live) == MOST


async def test_another_server_sees_that_the_queue_is_full(live: LiveServer, crowded: Settings) -> None:
    for _ in range(MOST):
        assert await submit(live)
    async with live_server(anywhere.build, crowded) as replica:
        assert not await submit(replica)


async def test_servers_that_fill_a_queue_of_the_store_together_leave_nothing_above_the_limit(
    store: EmbeddedStoreContainer,
) -> None:
    settings = settings_for(store, f"crowd-{uuid.uuid4().hex[:8]}", max_queue_length=MOST + 2)
    async with live_server(anywhere.build, settings) as one, live_server(anywhere.build, settings) as other:
        for server in (one, other):
            assert await submit(server)
        made = await asyncio.gather(*(submit(server) for server in (one, other) for _ in range(20)))
        assert len([record for record in made if record]) == MOST
        assert records(one) == MOST + 2
    delete_queues(settings.celery_broker_url, f"mcp.{settings.namespace}")


async def test_each_queue_has_its_own_length(live: LiveServer) -> None:
    for _ in range(MOST):
        assert await submit(live)
    elsewhere = TaskConfig(queue=f"{live.tasks.queue_name}-more")
    await live.submit("add", ARGUMENTS, config=elsewhere)
    assert not await submit(live)


async def test_urgent_jobs_count_as_waiting_too(store: EmbeddedStoreContainer, crowded: Settings) -> None:
    """In Redis they are in lists of their own."""
    async with live_server(anywhere.build, crowded, task_queue_max_priority=9) as live:
        for priority in (0, 3, 9):
            await live.submit("add", ARGUMENTS, config=TaskConfig(priority=priority))
        assert not await submit(live)


async def test_a_queue_that_is_emptied_quickly_refuses_no_caller(live: LiveServer) -> None:
    for _ in range(4 * MOST):
        assert await submit(live)
        take(live)


@pytest.mark.smoke
async def test_a_broker_that_is_gone_is_reported_and_asked_again_when_it_is_back(
    own: Starter, store: EmbeddedStoreContainer
) -> None:
    node = own.valkey("broker")
    settings = settings_for(store, "crowd-gone", broker_url=node.url, max_queue_length=1)
    async with live_server(anywhere.build, settings) as live:
        assert await submit(live)
        assert not await submit(live)
        node.stop()
        with pytest.raises(QueueUnavailableError):
            await eventually(lambda: submit(live))
        assert records(live) == 1
        node.start()
        node.ready()
        assert await eventually(lambda: submit(live))  # it kept nothing
        assert not await submit(live)


@pytest.mark.smoke
async def test_jobs_of_an_unknown_queue_are_accepted_and_the_log_says_so_once(
    store: EmbeddedStoreContainer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(store, f"crowd-{uuid.uuid4().hex[:8]}", max_queue_length=1)
    name = f"mcp.{settings.namespace}.routed"
    routes = {f"mcp.{settings.namespace}.*": {"exchange": name, "routing_key": "any"}}
    async with AsyncExitStack() as stack:
        stack.callback(delete_queues, settings.celery_broker_url, name)
        live = await stack.enter_async_context(live_server(anywhere.build, settings, task_routes=routes))
        bind(live.app, name)
        for _ in range(3):
            assert await submit(live)
    assert caplog.text.count(NO_EFFECT) == 1


def bind(app: Celery, name: str) -> None:
    with app.connection_for_write() as connection:
        kombu.Queue(name, kombu.Exchange(name), routing_key="any", channel=connection.default_channel).declare()
