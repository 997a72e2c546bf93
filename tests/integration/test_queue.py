"""Publishing jobs: where they go, what their message says, and that the host's app stays as it was."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import kombu
import pytest
import redis
from celery import Celery, signals

from mcp_celery import Settings, TaskConfig, TaskContextSnapshot
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.engine import Caller, QueueMessage, Submission, TaskRecord, now_ms
from mcp_celery.errors import MessageRefusedError, QueueUnavailableError
from mcp_celery.redaction import HIDDEN
from mcp_celery.server.connections import backend_of
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


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("start_before_ms", "expires"), [(1_900_000_000_500, "2030-03-17T17:46:40.500000+00:00"), (None, None)]
)
async def test_a_message_expires_when_its_record_says(
    broker: redis.Redis, shop: Settings, start_before_ms: int | None, expires: str | None
) -> None:
    """A job that had begun in time, and is published again, has no such time any more."""
    with host_app(shop) as app:
        await publish(app, submission("plain", expires=60), start_before_ms=start_before_ms)
    assert message(broker, "mcp.shop")["headers"]["expires"] == expires


async def test_a_record_names_its_jobs(broker: redis.Redis, shop: Settings) -> None:
    with host_app(shop) as app:
        await publish(app, submission("plain"), job_name="elsewhere.plain")
    assert message(broker, "mcp.shop")["headers"]["task"] == "elsewhere.plain"


async def test_the_message_has_the_priority_of_its_job(broker: redis.Redis, shop: Settings) -> None:
    with host_app(shop) as app:
        await publish(app, submission("plain", priority=3))
    assert waiting(broker) == {URGENT: 1}


# Messages that the store puts into the queue, where it and the broker are one database.


@asynccontextmanager
async def queue_of(app: Celery, settings: Settings) -> AsyncGenerator[CeleryQueue]:
    backend = backend_of(settings)
    queue = CeleryQueue(
        app,
        namespace="shop",
        default_queue="mcp.shop",
        timeout_seconds=10,
        max_length=5,
        holds_queues_at=partial(backend.holds_queues_at, namespace="shop"),
    )
    try:
        yield queue
    finally:
        await queue.aclose()


def message_for_store(queue: CeleryQueue, job: Submission) -> QueueMessage | None:
    with queue.message_of(record_of(job), job) as message:
        return message


@pytest.mark.smoke
@pytest.mark.parametrize("prefix", ["", "app:"], ids=["no-prefix", "global_keyprefix"])
async def test_the_store_gets_the_message_that_kombu_would_send(
    broker: redis.Redis, shop: Settings, prefix: str
) -> None:
    job = submission("plain", show_arguments=["path"], queue="by-component")
    with host_app(shop, broker_transport_options={"global_keyprefix": prefix}) as app:
        async with queue_of(app, shop) as queue:
            assert message_for_store(queue, job) is None  # the first one makes the queue known to the broker
            await queue.publish(record_of(job), job)
            written = message_for_store(queue, job)
            assert message_for_store(queue, submission("another", queue="by-component")) is None
    assert written is not None
    key = f"{prefix}by-component"
    sent = json.loads(cast("list[str]", broker.lrange(key, 0, 0))[0])
    if prefix:
        broker.delete(key, f"{prefix}_kombu.binding.by-component")
    assert (written.queue, written.most) == (key, 5)
    assert written.lanes == (key, *(f"{key}\x06\x16{priority}" for priority in (3, 6, 9)))
    found = json.loads(written.payload)
    for message in (sent, found):
        message["properties"].pop("delivery_tag")
        message["headers"].pop("mcp_celery_available_at")
    assert found == sent


def _see(**_: Any) -> None:
    """Sees that a message is published."""


def _route(*_: Any, **__: Any) -> dict[str, str]:
    return {"queue": "mcp.shop"}


@pytest.mark.parametrize(
    ("options", "conf"),
    [
        ({"priority": 3}, {}),
        ({}, {"task_routes": (_route,), "task_queues": [kombu.Queue("mcp.shop")]}),
        ({}, {"task_queues": [kombu.Queue("mcp.shop", expires=60)]}),
        ({}, {"task_queues": [kombu.Queue("mcp.shop", kombu.Exchange("topics", "topic"), "mcp.#")]}),
        ({}, {"task_send_sent_event": True}),
    ],
    ids=["priority", "function-as-route", "expiring-queue", "exchange", "sent-event"],
)
async def test_the_store_gets_no_message_that_is_more_than_a_push_to_its_queue(
    broker: redis.Redis, shop: Settings, options: dict[str, Any], conf: dict[str, Any]
) -> None:
    job = submission("plain", **options)
    with host_app(shop, **conf) as app:
        async with queue_of(app, shop) as queue:
            await queue.publish(record_of(job), job)
            assert message_for_store(queue, job) is None
    broker.delete("_kombu.binding.topics")


async def test_the_store_gets_no_message_of_another_broker(
    broker: redis.Redis, shop: Settings, store: EmbeddedStoreContainer
) -> None:
    job = submission("plain")
    with host_app(shop, broker_url=shop.celery_broker_url.replace("virtual_host=0", "virtual_host=1")) as app:
        async with queue_of(app, shop) as queue:
            await queue.publish(record_of(job), job)
            assert message_for_store(queue, job) is None
    with redis.Redis.from_url(store.url, db=1) as client:
        client.flushdb()


async def test_receivers_of_publish_signals_see_every_job(broker: redis.Redis, shop: Settings) -> None:
    job = submission("plain")
    with host_app(shop) as app:
        async with queue_of(app, shop) as queue:
            await queue.publish(record_of(job), job)
            assert message_for_store(queue, job) is not None
            signals.before_task_publish.connect(_see)
            try:
                assert message_for_store(queue, job) is None
            finally:
                signals.before_task_publish.disconnect(_see)
            assert message_for_store(queue, job) is not None


async def test_receivers_of_publish_signals_see_each_job_once(broker: redis.Redis, shop: Settings) -> None:
    job, seen = submission("plain"), list[str]()

    def see(sender: str, **_: Any) -> None:
        seen.append(sender)

    watched = (signals.before_task_publish, signals.after_task_publish)
    with host_app(shop) as app:
        async with queue_of(app, shop) as queue:
            for signal in watched:
                signal.connect(see)
            try:
                await queue.publish(record_of(job), job)
            finally:
                for signal in watched:
                    signal.disconnect(see)
            assert len(seen) == len(watched)
            await queue.publish(record_of(job), job)
            assert message_for_store(queue, job) is not None


async def test_after_a_refusal_of_the_store_jobs_go_through_the_broker(
    broker: redis.Redis, shop: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    job = submission("plain")
    with caplog.at_level("INFO"), host_app(shop) as app:
        async with queue_of(app, shop) as queue:
            await queue.publish(record_of(job), job)
            with pytest.raises(MessageRefusedError), queue.message_of(record_of(job), job):
                raise MessageRefusedError("NOPERM")
            assert message_for_store(queue, job) is None
    assert "publishing jobs over connections to the broker, not together with their records: NOPERM" in caplog.text


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


async def test_jobs_after_a_long_absence_of_the_broker_do_not_wait_for_kombus_pauses(
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
