"""Publishing a canvas: over our own connection, with no result waited for, and never in the way of single jobs."""

from __future__ import annotations

import base64
import json
import signal
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group

from mcp_celery import TaskConfig
from mcp_celery.broker.queue import CeleryQueue
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine import ForeignPlan, ForeignWork, TaskRecord
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.exposed.tools import ExposedCanvas, Offer
from mcp_celery.redaction import HIDDEN
from tests.integration.conftest import Starter
from tests.integration.test_queue import record_of, submission
from tests.support.nodes import ValkeyProcess
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio


class Shop:
    """A broker of the test's own, an app whose jobs store no results, and a queue to publish them with."""

    def __init__(self, broker: ValkeyProcess, *, timeout_seconds: float) -> None:
        self.broker = broker
        self.redis: Any = redis.Redis.from_url(broker.url, decode_responses=True)
        url = celery_url(broker.url)
        self.app = Celery("shop", broker=url, backend=url, set_as_current=False)
        routes = {"shop.add": {"queue": "adding"}}
        self.app.conf.update(task_default_queue="shop", task_routes=routes, task_ignore_result=True)

        @self.app.task(name="shop.add", shared=False)
        def add(left: int, right: int = 0) -> int:
            return left + right

        @self.app.task(name="shop.total", shared=False, time_limit=30)
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        self.add: Any = add
        self.total: Any = total
        self.timeout_seconds = timeout_seconds
        self.queue = self.open_queue()

    def open_queue(self) -> CeleryQueue:
        """What publishes; whoever opens it closes it."""
        return CeleryQueue(self.app, namespace="shop", default_queue="mcp.shop", timeout_seconds=self.timeout_seconds)

    async def publish(self, signature: Any) -> TaskRecord:
        """Publish a task of these jobs."""
        tool = ExposedCanvas(
            Offer("build", "", TaskConfig(), None, None, ()), self.app, lambda: signature, terminate=False
        )
        return await self.publish_plan(await tool.plan({}, self.timeout_seconds))

    async def publish_plan(self, plan: ForeignPlan) -> TaskRecord:
        """Publish a task."""
        job = submission("build")
        record = replace(record_of(job), job_name=plan.job_name, work=plan.work)
        await self.queue.publish(record, replace(job, plan=plan, job_name=plan.job_name))
        return record

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """What waits in a queue, the oldest first."""
        return [json.loads(one) for one in reversed(self.redis.lrange(queue, 0, -1))]

    def subscriptions(self) -> list[str]:
        """What connections of Celery's listen to."""
        return self.redis.pubsub_channels()


@pytest.fixture
async def shop(own: Starter) -> AsyncGenerator[Shop]:
    shop = Shop(own.valkey(), timeout_seconds=0.5)
    yield shop
    await shop.queue.aclose()
    shop.redis.close()
    shop.app.close()


async def test_no_result_is_waited_for(shop: Shop) -> None:
    add, total = shop.add, shop.total
    for made in (
        chain(add.s(1, 2), add.s(3)),
        group(add.s(1), add.s(2)),
        chord([add.s(number) for number in range(10)], total.s()),
        chain(group(add.s(1), add.s(2)), total.s(), add.s(1)),
    ):
        await shop.publish(made)
        assert shop.subscriptions() == []


@pytest.mark.smoke
async def test_every_part_stores_its_result_and_shows_no_argument(shop: Shop) -> None:
    await shop.publish(chord([chain(shop.add.s(1, 2), shop.add.s(3)), shop.add.s(4)], shop.total.s()))
    begun = shop.messages("adding")
    for headers in (message["headers"] for message in begun):
        assert headers["ignore_result"] is False
        assert headers["argsrepr"] == headers["kwargsrepr"] == HIDDEN
    (later,) = [one for message in begun for one in json.loads(base64.b64decode(message["body"]))[2]["chain"] or ()]
    body = later["options"]["chord"]
    for options in (later["options"], body["options"]):
        assert options["ignore_result"] is False
        assert options.keys().isdisjoint({"retry", "timeout", "confirm_timeout"})


async def test_a_job_is_published_as_its_app_and_its_task_declare(shop: Shop) -> None:
    record = await shop.publish(group(shop.add.s(1), shop.add.s(2).set(queue="other"), shop.total.s([3])))
    assert [one["headers"]["id"] for one in shop.messages("adding")] == [record.job_ids[0]]
    assert [one["headers"]["id"] for one in shop.messages("other")] == [record.job_ids[1]]
    assert [one["headers"]["timelimit"] for one in shop.messages("shop")] == [[30, None]]


async def test_a_thousand_jobs_may_take_longer_than_one(shop: Shop) -> None:
    await shop.publish(chord([shop.add.s(number) for number in range(999)], shop.total.s()))
    assert shop.redis.llen("adding") == 999


@pytest.mark.smoke
async def test_a_canvas_holds_up_nothing_else_and_is_revoked_after_it(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Its publishing hangs, and ends after the request was refused."""
    may_end = threading.Event()

    def publish(_record: TaskRecord, producer: Any) -> None:
        may_end.wait(60)
        producer.publish({}, routing_key="adding", serializer="json")

    job = submission("build")
    with shop.redis.pubsub() as told:
        told.subscribe("/0.celery.pidbox")
        await eventually(told.get_message)
        try:
            with pytest.raises(QueueUnavailableError):
                await shop.publish_plan(ForeignPlan("shop.add", ForeignWork(2), publish))
            await shop.queue.publish(record_of(job), job)
            await shop.queue.revoke("first", "second")
            await shop.queue.revoke("single")
            assert "could not revoke first on the workers in time" in caplog.text
            heard: list[str] = []

            def is_told(job_id: str) -> bool:
                if found := told.get_message(ignore_subscribe_messages=True):
                    heard.append(base64.b64decode(json.loads(found["data"])["body"]).decode())
                return any(f'"{job_id}"' in one for one in heard)

            await eventually(lambda: is_told("single"))
            assert not is_told("second")
        finally:
            may_end.set()
        await eventually(lambda: is_told("second"))
        assert shop.redis.llen("adding") == 1


@pytest.mark.smoke
async def test_a_broker_that_does_not_answer_is_not_waited_for(shop: Shop) -> None:
    await shop.publish(group(shop.add.s(1), shop.add.s(2)))
    shop.broker.send(signal.SIGSTOP)
    try:
        with pytest.raises(QueueUnavailableError):
            await shop.publish(group(shop.add.s(1), shop.add.s(2)))
        await soon(shop.queue.revoke("first", "second"))
        await soon(shop.queue.aclose())
        shop.queue = shop.open_queue()
    finally:
        shop.broker.send(signal.SIGCONT)


async def test_the_end_does_not_wait_for_what_hangs(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    may_end = threading.Event()

    def publish(_record: TaskRecord, _producer: Any) -> None:
        may_end.wait(60)

    try:
        with pytest.raises(QueueUnavailableError):
            await shop.publish_plan(ForeignPlan("shop.add", ForeignWork(2), publish))
        await soon(shop.queue.revoke("first", "second"))
        await soon(shop.queue.aclose())
    finally:
        may_end.set()
    assert "could not send 1 revokes to the workers" in caplog.text
    assert "stopped waiting for the broker (MCP_CELERY_BROKER_URL), which does not answer" in caplog.text
    shop.queue = shop.open_queue()


async def test_a_canvas_after_a_restart_of_the_broker_needs_no_second_try(shop: Shop) -> None:
    await shop.publish(group(shop.add.s(1), shop.add.s(2)))
    shop.broker.restart()
    await shop.publish(group(shop.add.s(1), shop.add.s(2)))
    assert shop.redis.llen("adding") == 2
