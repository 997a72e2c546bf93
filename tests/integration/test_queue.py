"""Publishing jobs: where they go, what their message says, and that the host's app stays as it was."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

import kombu
import pytest
import redis
from celery import Celery

from mcp_celery import Settings, TaskConfig, TaskContextSnapshot
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.engine import Caller, Submission, TaskRecord, now_ms
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.redaction import HIDDEN
from tests.integration.conftest import Starter, settings_for
from tests.support.live import REVISION, host_app
from tests.support.nodes import EmbeddedStoreContainer

pytestmark = pytest.mark.anyio

ROUTES = {"mcp.shop.tool.routed*": {"queue": "by-route"}}
URGENT = "mcp.shop\x06\x163"
"""Where kombu keeps the messages of priority 3 in Redis."""
QUEUES = ("by-component", "by-route", "mcp.shop", "celery", URGENT)


def submission(tool: str = "tool", **options: Any) -> Submission:
    return Submission(
        caller=Caller(),
        task_type="tool",
        component=tool,
        config=TaskConfig(**options),
        snapshot=TaskContextSnapshot(
            protocol_version=REVISION, params={"name": tool, "arguments": {"path": "/a", "note": "private"}}
        ),
    )


def record_of(submission: Submission, task_id: str = "task-1") -> TaskRecord:
    now = now_ms()
    return TaskRecord(
        task_id=task_id,
        scope=None,
        issuer=None,
        task_type="tool",
        component=submission.component,
        created_at_ms=now,
        updated_at_ms=now,
        ttl_ms=60_000,
        poll_interval_ms=1000,
    )


@pytest.fixture
def broker(store: EmbeddedStoreContainer) -> Generator[redis.Redis]:
    """The broker, in which nothing of these tests is left."""
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        yield client
        client.delete(*QUEUES, *(f"_kombu.binding.{queue}" for queue in QUEUES))


@pytest.fixture
def shop(store: EmbeddedStoreContainer) -> Settings:
    return settings_for(store, "shop")


async def publish(app: Celery, job: Submission, **of_record: Any) -> TaskRecord:
    queue = CeleryQueue(app, namespace="shop", default_queue="mcp.shop", timeout_seconds=10)
    record = replace(record_of(job), **of_record)
    try:
        await queue.publish(record, job)
    finally:
        await queue.aclose()
    return record


def waiting(broker: redis.Redis) -> dict[str, int]:
    """How many messages wait in each queue that has some."""
    found = {queue: broker.llen(queue) for queue in QUEUES}
    return {queue: count for queue, count in found.items() if count}


def message(broker: redis.Redis, queue: str) -> dict[str, Any]:
    return json.loads(cast("list[str]", broker.lrange(queue, 0, 0))[0])


@pytest.mark.smoke
@pytest.mark.parametrize("creates_missing", [True, False], ids=["open", "task_create_missing_queues=False"])
@pytest.mark.parametrize(
    ("tool", "options", "queue"),
    [
        ("routed", {"queue": "by-component"}, "by-component"),
        ("plain", {"queue": "by-component"}, "by-component"),
        ("routed", {}, "by-route"),
        ("plain", {}, "mcp.shop"),
    ],
    ids=["component-over-route", "component", "route", "default"],
)
async def test_a_job_goes_to_the_components_queue_else_by_route_else_to_the_servers_own(
    broker: redis.Redis, shop: Settings, tool: str, options: dict[str, Any], queue: str, creates_missing: bool
) -> None:
    conf: dict[str, Any] = {"task_routes": ROUTES, "task_create_missing_queues": creates_missing}
    if not creates_missing:
        conf["task_queues"] = [kombu.Queue("celery"), kombu.Queue("by-route")]
    with host_app(shop, **conf) as app:
        await publish(app, submission(tool, **options))
    assert waiting(broker) == {queue: 1}


async def test_the_hosts_app_is_as_it_was_after_a_job(broker: redis.Redis, shop: Settings) -> None:
    with host_app(shop, task_routes=ROUTES) as app:
        queues = dict(app.amqp.queues)
        conf = dict(app.conf)
        options = dict(app.connection_for_write().transport_options or {})
        await publish(app, submission("plain"))
        await publish(app, submission("plain", queue="by-component"))
        assert dict(app.conf) == conf
        assert dict(app.amqp.queues) == queues
        assert app.connection_for_write().transport_options == options


@pytest.mark.smoke
async def test_a_message_carries_the_job_id_and_hides_the_arguments(broker: redis.Redis, shop: Settings) -> None:
    job = submission("plain", show_arguments=["path"])
    with host_app(shop) as app:
        record = await publish(app, job)
    found = message(broker, "mcp.shop")
    headers = found["headers"]
    assert headers["id"] == record.job_id == "anon:task-1:tool:plain"
    assert found["properties"]["correlation_id"] == record.job_id
    assert headers["task"] == "mcp.shop.tool.plain"
    assert headers["argsrepr"] == "()"
    assert headers["kwargsrepr"] == f"{{'path': '/a', 'note': {HIDDEN}}}"
    assert headers["ignore_result"] is False
    assert found["content-type"] == "application/json"


async def test_a_record_names_its_jobs(broker: redis.Redis, shop: Settings) -> None:
    with host_app(shop) as app:
        await publish(app, submission("plain"), job_name="elsewhere.plain")
    assert message(broker, "mcp.shop")["headers"]["task"] == "elsewhere.plain"


async def test_a_jobs_priority_is_the_messages(broker: redis.Redis, shop: Settings) -> None:
    with host_app(shop) as app:
        await publish(app, submission("plain", priority=3))
    assert waiting(broker) == {URGENT: 1}


async def test_publishing_subscribes_to_nothing(broker: redis.Redis, shop: Settings) -> None:
    with host_app(shop) as app:
        queue = CeleryQueue(app, namespace="shop", default_queue="mcp.shop", timeout_seconds=10)
        job = submission("plain")
        await queue.publish(record_of(job), job)
        assert broker.pubsub_channels("celery-task-meta-*") == []
        await queue.aclose()


async def test_a_route_to_a_queue_that_the_host_does_not_have_is_refused(broker: redis.Redis, shop: Settings) -> None:
    with (
        host_app(shop, task_routes=ROUTES, task_create_missing_queues=False) as app,
        pytest.raises(QueueUnavailableError),
    ):
        await publish(app, submission("routed"))
    assert waiting(broker) == {}


@pytest.mark.smoke
async def test_jobs_after_a_restart_of_the_broker_need_no_second_try(
    own: Starter, store: EmbeddedStoreContainer
) -> None:
    node = own.valkey("broker")
    settings = settings_for(store, "shop", broker_url=node.url)
    with host_app(settings) as app:
        queue = CeleryQueue(app, namespace="shop", default_queue="mcp.shop", timeout_seconds=10)
        job = submission("plain")
        await queue.publish(record_of(job), job)
        node.restart()
        await queue.publish(record_of(job), job)
        with redis.Redis.from_url(node.url, decode_responses=True) as client:
            assert waiting(client) == {"mcp.shop": 1}
        await queue.aclose()


async def test_jobs_after_a_long_absence_of_the_broker_do_not_wait_for_the_publisher_to_wake_up(
    own: Starter, store: EmbeddedStoreContainer
) -> None:
    """kombu would sleep between its tries to connect, longer each time."""
    node = own.valkey("broker")
    settings = settings_for(store, "shop", broker_url=node.url)
    with host_app(settings) as app:
        queue = CeleryQueue(app, namespace="shop", default_queue="mcp.shop", timeout_seconds=1)
        job = submission("plain")
        await queue.publish(record_of(job), job)
        node.stop()
        for _ in range(3):
            with pytest.raises(QueueUnavailableError):
                await queue.publish(record_of(job), job)
        node.start()
        node.ready()
        await queue.publish(record_of(job), job)
        with redis.Redis.from_url(node.url, decode_responses=True) as client:
            assert waiting(client) == {"mcp.shop": 1}
        await queue.aclose()


@pytest.mark.smoke
async def test_a_revoke_without_a_broker_is_logged_and_not_raised(
    own: Starter, store: EmbeddedStoreContainer, caplog: pytest.LogCaptureFixture
) -> None:
    node = own.valkey("broker")
    settings = settings_for(store, "shop", broker_url=node.url)
    with host_app(settings) as app:
        queue = CeleryQueue(app, namespace="shop", default_queue="mcp.shop", timeout_seconds=2)
        job = submission("plain")
        await queue.publish(record_of(job), job)
        node.stop()
        await queue.revoke("anon:task-1:tool:plain")
        await queue.aclose()
    assert "could not revoke anon:task-1:tool:plain on the workers" in caplog.text
