"""Webhooks: which changes make one, that each is kept until its receiver has it, and what it tells."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

import pytest
import standardwebhooks
from celery import Celery
from mcp.client import Client
from redis.exceptions import AuthenticationError, NoPermissionError

from mcp_celery import TaskServer
from mcp_celery.broker.own_jobs import OwnJobs
from mcp_celery.broker.webhook_jobs import ERROR_SECONDS, WebhookJobs
from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    MOVES,
    TERMINAL,
    Asking,
    Change,
    Claim,
    EncodedResult,
    NextLeg,
    Question,
    Start,
    TaskRecord,
    TaskStatus,
    Webhook,
    WebhookKind,
    now_ms,
)
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.webhook_dispatcher import WebhookDispatcher
from mcp_celery.engine.webhooks import MOST_WAITING
from mcp_celery.errors import ConfigurationError, QueueRefusedError, QueueUnavailableError
from mcp_celery.keys import TaskType
from mcp_celery.server.celery_tasks import check
from mcp_celery.server.keyring import snapshots_with
from mcp_celery.server.webhooks import Webhooks
from mcp_celery.settings import Settings
from mcp_celery.telemetry.instruments import WEBHOOK_ATTEMPTS, Attributes, Instrument
from mcp_celery.testing import MemoryBackend
from tests.support.leaks import no_eternal_keys
from tests.support.receiver import OLD_SECRET, SECRET, Receiver, receiving
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

POLICY: Final = RecoveryPolicy(heartbeat_ms=10, max_redeliveries=1)
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DEAD: Final = "http://127.0.0.1:1/in/s3cret"
"""A receiver that does not answer."""


async def created(world: World, kind: WebhookKind | None = "state", record: TaskRecord | None = None) -> TaskRecord:
    record = replace(record or a_record(), webhook=kind)
    await world.store.create(record, SNAPSHOT)
    return record


def asking(attempt: int = 1) -> Asking:
    return Asking(attempt=attempt, at_ms=now_ms())


async def kept(world: World) -> list[Webhook]:
    """The webhooks that are due, each taken."""
    outbox = world.outbox()
    taken = [await outbox.take(one, MINUTE_MS) for one in await outbox.due(100)]
    return sorted((one for one in taken if one is not None), key=lambda one: one.sequence)


@contextmanager
def measured() -> Generator[list[str]]:
    """Collect the outcomes of attempts that metrics count."""
    outcomes: list[str] = []

    def note(name: str, value: float, labels: Attributes) -> None:
        if name == WEBHOOK_ATTEMPTS.name:
            outcomes.extend([str(labels["outcome"])] * int(value))

    Instrument.forward_to(note)
    try:
        yield outcomes
    finally:
        Instrument.forward_to(None)


@pytest.mark.parametrize("target", [status for status in MOVES if status != "input_required"])
async def test_an_end_makes_one_webhook_and_no_other_move_does(world: World, target: TaskStatus) -> None:
    record = await created(world)
    assert world.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))
    await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    change = Change(to=target, attempt=1, status_message="secret")
    changed = await world.store.change(record.ref, change)
    await world.store.change(record.ref, change)  # the answer was lost, and the call is made again
    await world.store.retire(record.ref, now_ms() + MINUTE_MS // 2)
    assert (await world.recovery().counts()).webhooks == int(target in TERMINAL)
    found = await kept(world)
    if target not in TERMINAL:
        assert found == []
        return
    assert changed is not None
    (webhook,) = found
    assert (webhook.key, webhook.status, webhook.sequence) == (record.key, target, changed.record.revision)
    assert (webhook.created_at_ms, webhook.at_ms) == (record.created_at_ms, changed.record.updated_at_ms)
    assert (webhook.status_message, webhook.attempts) == (None, 0)


async def test_a_result_that_is_stored_with_its_task_makes_one_webhook(world: World) -> None:
    template = "reports://{year}"
    record = replace(a_record(component="reports://2026"), task_type="resource", declared_as=template)
    await created(world, record=record)
    change = Change(to="completed", attempt=1, is_error=True)
    assert await world.store.finish(record.ref, change, EncodedResult(f"{record.task_id}:result", '["SUCCESS", 1]'))
    (webhook,) = await kept(world)
    assert (webhook.status, webhook.is_error, webhook.declared_as) == ("completed", True, template)
    if isinstance(world, RedisWorld):
        world.client.delete(f"{record.task_id}:result")


async def test_each_wait_of_a_task_for_its_client_makes_one_webhook(world: World) -> None:
    record = await created(world)
    one, another = (Question(name, "roots/list", {}) for name in ("one", "another"))
    assert await world.store.ask(record.ref, one, asking())
    assert await world.store.ask(record.ref, another, asking())
    answers: Any = {"one": {"roots": []}, "another": {"roots": []}}
    await world.store.answer(record.ref, answers, at_ms=now_ms(), start_before_ms=None)
    leg = NextLeg(leg=2, job_id=f"{record.job_id}!2", request_state=None)
    assert await world.store.park(record.ref, [one], asking(), leg)
    await world.store.change(record.ref, Change(to="cancelled"))
    found = await kept(world)
    assert [webhook.status for webhook in found] == ["input_required", "input_required", "cancelled"]
    assert len({webhook.id for webhook in found}) == 3
    assert [webhook.sequence for webhook in found] == [2, 5, 6]


async def test_a_task_that_recovery_ends_makes_one_webhook(world: World) -> None:
    record = await created(world)
    assert world.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))
    await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    await world.recovery().beat("w1", 0)
    assert await world.recovery().recover(record.key, "w1", "died", POLICY) == "failed"
    assert [one.status for one in await kept(world)] == ["failed"]


async def test_a_task_without_webhooks_makes_no_webhook(world: World) -> None:
    record = await created(world, None)
    await world.store.change(record.ref, Change(to="completed"))
    assert await kept(world) == []


async def test_a_full_outbox_drops_webhooks_and_the_log_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    most = MOST_WAITING
    if isinstance(world, RedisWorld):
        later = now_ms() + MINUTE_MS
        world.client.zadd(world.keys.webhooks, {f"msg_{number:x}": later for number in range(most - 2)})
    else:
        most = 2
        monkeypatch.setattr("mcp_celery.testing.webhooks.MOST_WAITING", most)
        monkeypatch.setattr("mcp_celery.engine.webhook_dispatcher.MOST_WAITING", most)
    for _ in range(3):
        record = await created(world)
        await world.store.change(record.ref, Change(to="completed"))
    outbox = world.outbox()
    assert await outbox.waiting() == most

    async def deliver(webhook_id: str) -> None:
        del webhook_id

    await WebhookDispatcher(outbox, deliver).look()
    assert "dropping webhooks, since" in caplog.text


async def test_the_message_is_kept_only_where_contents_are_asked_for_and_the_webhook_outlives_its_task(
    world: World,
) -> None:
    record = await created(world, "contents")
    await world.store.change(record.ref, Change(to="failed", status_message="no such year"))
    await world.store.retire(record.ref, now_ms() + 1)

    async def is_gone() -> bool:
        return await world.store.load(record.ref) is None

    await eventually(is_gone, what="the task is forgotten")
    (webhook,) = await kept(world)
    assert webhook.status_message == "no such year"


async def test_a_sealed_message_is_sealed_in_the_webhook_too(store_url: str) -> None:
    world = RedisWorld(store_url, snapshots=snapshots_with(("k" * 32,), accept_unsealed=False))
    with no_eternal_keys(store_url, [world.prefix]):
        record = await created(world, "contents")
        await world.store.change(record.ref, Change(to="cancelled", status_message="the plan of the year"))
        (webhook_id,) = await world.outbox().due(10)
        stored = cast("dict[bytes, bytes]", world.client.hgetall(world.keys.webhook(webhook_id)))
        assert b"the plan" not in b"".join(stored.values())
        webhook = await world.outbox().take(webhook_id, MINUTE_MS)
        assert webhook is not None
        assert webhook.status_message == "the plan of the year"
        world.client.delete(*world.keys_left())
    await world.aclose()


async def test_one_process_at_a_time_delivers_a_webhook(world: World) -> None:
    record = await created(world)
    await world.store.change(record.ref, Change(to="completed"))
    outbox = world.outbox()
    (webhook_id,) = await outbox.due(10)
    assert await outbox.due(10) == [], "its job is being published"
    assert await outbox.take(webhook_id, 1) is not None

    async def is_due() -> bool:
        return list(await outbox.due(10)) == [webhook_id]

    await eventually(is_due, what="a worker that took it and died has it no more")
    assert await outbox.take(webhook_id, MINUTE_MS) is not None
    assert await outbox.take(webhook_id, MINUTE_MS) is None
    await outbox.postpone(webhook_id, 0, tried=True)
    await eventually(is_due, what="it is tried again")
    again = await outbox.take(webhook_id, MINUTE_MS)
    assert again is not None
    assert (again.id, again.attempts) == (webhook_id, 1)
    await outbox.settle(webhook_id)
    await outbox.postpone(webhook_id, 0, tried=True)
    assert await outbox.take(webhook_id, MINUTE_MS) is None
    assert await outbox.due(10) == []


async def test_a_broker_that_does_not_answer_loses_no_webhook(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_celery.engine.webhook_dispatcher.FIRST_PAUSE_MS", 0)
    for _ in range(3):
        record = await created(world)
        await world.store.change(record.ref, Change(to="completed"))
    published: list[str] = []
    answers = False

    async def publish(webhook_id: str) -> None:
        if published and not answers:
            raise QueueUnavailableError
        published.append(webhook_id)

    dispatcher = WebhookDispatcher(world.outbox(), publish)
    with pytest.raises(QueueUnavailableError):
        await dispatcher.look()
    answers = True
    await dispatcher.look()
    assert len(set(published)) == len(published) == 3


@pytest.fixture
async def jobs() -> AsyncGenerator[WebhookJobs]:
    """The jobs of webhooks, at a broker that is not there."""
    jobs = WebhookJobs(
        Celery("hooks", broker="redis://127.0.0.1:1/0", set_as_current=False),
        namespace="reports",
        default_queue="mcp.reports",
        queue=None,
        timeout_seconds=1,
        idle_seconds=60,
        is_app_default=False,
    )
    yield jobs
    await jobs.aclose()


async def publishing_twice(jobs: WebhookJobs, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Log lines about webhooks of two attempts that fail."""
    for _ in range(2):
        with pytest.raises(QueueUnavailableError):
            await jobs.publish("msg_1")
    return [(one.levelname, one.getMessage()) for one in caplog.records if "webhooks" in one.getMessage()]


async def test_a_lost_broker_of_webhooks_is_logged_once_until_it_answers(
    jobs: WebhookJobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ((level, text),) = await publishing_twice(jobs, caplog)
    assert (level, text) == ("WARNING", "the broker of the jobs that deliver webhooks failed: ConnectionError")

    def publish(*_: object) -> None: ...

    monkeypatch.setattr(OwnJobs, "publish_webhook", publish)
    await jobs.publish("msg_1")
    assert "webhooks answers again" in caplog.text


@pytest.mark.parametrize(("seconds", "lines"), [(ERROR_SECONDS, 1), (0.0, 2)])
@pytest.mark.parametrize(
    "refusal", [QueueRefusedError("other arguments"), NoPermissionError("no lpush"), AuthenticationError("no user")]
)
async def test_a_broker_that_refuses_the_jobs_of_webhooks_is_logged_as_an_error_now_and_then(
    jobs: WebhookJobs,
    refusal: Exception,
    seconds: float,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(OwnJobs, "publish_webhook", refuse)
    monkeypatch.setattr("mcp_celery.broker.webhook_jobs.ERROR_SECONDS", seconds)
    found = await publishing_twice(jobs, caplog)
    assert [level for level, _ in found] == ["ERROR"] * lines
    assert "webhooks wait, since the broker refuses the jobs that deliver them: " in found[0][1]
    assert (refusal.reason if isinstance(refusal, QueueRefusedError) else str(refusal)) in found[0][1]


# What becomes of a webhook at its receiver.


@pytest.fixture
def receiver() -> Generator[Receiver]:
    with receiving() as receiver:
        yield receiver


class Site:
    """The webhooks of a server over a world, and what its receiver is asked."""

    def __init__(self, world: World, receiver: str, *, config: TaskConfig | None = None, **settings: Any) -> None:
        self.world, self.outbox = world, world.outbox()
        self._config = config or TaskConfig()
        secrets = settings.pop("webhook_secrets", SECRET)
        loaded = Settings.load(webhook_url=receiver, webhook_secrets=secrets, **settings)
        self.webhooks = Webhooks(loaded, "reports", self._declared, world.outbox)

    async def _declared(self, _: TaskType, component: str) -> tuple[str, TaskConfig]:
        return component, self._config

    async def ended(self, status: TaskStatus = "completed", record: TaskRecord | None = None) -> TaskRecord:
        record = await created(self.world, self.webhooks.kind_of(self._config), record)
        await self.world.store.change(record.ref, Change(to=status, status_message="secret"))
        return record

    async def delivered(self) -> Sequence[str]:
        """Try what is due."""
        found = await self.outbox.due(100)
        for webhook_id in found:
            await self.webhooks.deliver(self.outbox, webhook_id)
        return found


async def test_a_webhook_is_signed_with_each_secret_and_has_no_contents(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(world, receiver.url, webhook_secrets=f"{SECRET},{OLD_SECRET}")
    record = await site.ended()
    with caplog.at_level(logging.INFO):
        (webhook_id,) = await site.delivered()
    (received,) = receiver.received
    payload = received.verified_with(SECRET)
    assert received.verified_with(OLD_SECRET) == payload
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        received.verified_with("whsec_" + "Q0ND" * 8)
    assert received.id == webhook_id
    assert payload["type"] == "task.completed"
    assert payload["timestamp"] == payload["data"]["lastUpdatedAt"]
    assert {name: value for name, value in payload["data"].items() if not name.endswith("At")} == {
        "namespace": "reports",
        "taskId": record.task_id,
        "scope": record.scope,
        "taskType": "tool",
        "component": "build_report",
        "status": "completed",
        "isError": False,
        "sequence": 2,
    }
    assert await site.delivered() == []
    assert f"delivered webhook {webhook_id}" in caplog.text
    assert "s3cret" not in caplog.text, "the path of a receiver may be a secret"


async def test_a_webhook_has_contents_only_where_configured_and_never_the_id_of_an_anonymous_task(
    world: World, receiver: Receiver
) -> None:
    site = Site(world, receiver.url, webhook_contents=True)
    record = await site.ended("failed", a_record(scope=None))
    await site.delivered()
    told = receiver.received[0].told
    assert told["statusMessage"] == "secret"
    assert (told["scope"], told["taskId"]) == (None, record.shown_id)
    assert record.task_id.encode() not in receiver.received[0].body


@pytest.mark.parametrize("status", [301, 503])
async def test_a_delivery_without_success_is_tried_again_and_redirects_are_not_followed(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("mcp_celery.engine.webhooks.FIRST_PAUSE_MS", 0)
    nothing: dict[str, str] = {}
    answers = [(status, {"location": receiver.url}), (200, nothing)]
    receiver.answer = lambda _: answers.pop(0)
    site = Site(world, receiver.url)
    await site.ended()
    with measured() as outcomes:
        for _ in range(3):
            await site.delivered()
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    assert outcomes == ["failed", "delivered"]


async def test_a_webhook_is_given_up_in_time_or_when_it_is_not_wanted(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    for status, line in ((500, "after 1 attempts: HTTP status 500"), (410, "does not want it")):
        receiver.answer = lambda _, status=status: (status, {})
        site = Site(world, receiver.url, webhook_retry_seconds=1)
        await site.ended()
        with measured() as outcomes:
            (webhook_id,) = await site.delivered()
        assert line in caplog.text
        assert outcomes == ["given_up"]
        assert await site.outbox.take(webhook_id, MINUTE_MS) is None


async def test_a_receiver_that_does_not_answer_is_asked_once_for_all_its_webhooks(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(world, DEAD)
    for _ in range(5):
        await site.ended()
    assert len(await site.delivered()) == 5
    assert caplog.text.count("could not deliver webhook") == 1
    assert "s3cret" not in caplog.text
    other = Site(world, receiver.url)
    await other.ended()
    await other.delivered()
    assert len(receiver.received) == 1, "another receiver waits for nothing"


async def test_every_webhook_of_a_receiver_that_does_not_answer_is_given_up_in_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(world, DEAD, webhook_retry_seconds=1)
    for _ in range(3):
        await site.ended()
    with measured() as outcomes:
        assert len(await site.delivered()) == 3
    assert outcomes == ["given_up"] * 3
    assert caplog.text.count("gave up webhook") == 3
    assert "s3cret" not in caplog.text
    assert await site.outbox.waiting() == 0


@pytest.mark.parametrize(
    ("age_ms", "at_least", "at_most"),
    [(0, MINUTE_MS // 2, MINUTE_MS), (12 * HOUR_MS, HOUR_MS, 2 * HOUR_MS), (24 * HOUR_MS - 50_000, 40_000, 50_000)],
)
async def test_a_webhook_of_a_receiver_that_does_not_answer_waits_longer_the_older_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, age_ms: int, at_least: int, at_most: int
) -> None:
    site = Site(world, DEAD)
    for _ in range(2):
        await site.ended()
    pauses: list[int] = []

    async def postpone(_: str, after_ms: int, *, tried: bool) -> None:
        if not tried:
            pauses.append(after_ms)

    monkeypatch.setattr(site.outbox, "postpone", postpone)
    monkeypatch.setattr("mcp_celery.server.webhooks.random.random", lambda: 1.0)
    monkeypatch.setattr("mcp_celery.server.webhooks.now_ms", lambda: now_ms() + age_ms)
    await site.delivered()
    (pause,) = pauses
    assert at_least <= pause <= at_most


async def test_a_component_chooses_its_receiver_or_none(world: World, receiver: Receiver) -> None:
    site = Site(world, "http://127.0.0.1:1/", config=TaskConfig(webhook=receiver.url))
    await site.ended()
    await site.delivered()
    assert len(receiver.received) == 1
    site = Site(world, receiver.url, config=TaskConfig(webhook=False))
    await site.ended()
    assert await site.delivered() == []


async def test_a_server_that_runs_its_jobs_itself_delivers_their_webhooks(receiver: Receiver) -> None:
    settings = Settings.load(webhook_url=receiver.url, webhook_secrets=SECRET)
    app = Celery("reports", broker="memory://", set_as_current=False)
    server = TaskServer("reports", settings=settings, backend=MemoryBackend(), celery=app)

    @server.tool(task=True)
    async def build_report(year: int) -> str:
        return f"the report of {year}"

    async with Client(server, extensions=[TasksClient()]) as client:
        task = await call_tool_task(client, "build_report", {"year": 2026})
        await task.result()
        await eventually(lambda: receiver.received, what="the webhook comes")
    assert receiver.received[0].verified_with(SECRET)["type"] == "task.completed"


async def test_a_receiver_whose_webhooks_nothing_signs_is_refused_at_start() -> None:
    server = TaskServer("reports", settings=Settings.load(), backend=MemoryBackend())

    @server.tool(task=TaskConfig(webhook="https://reports.example/s3cret"))
    async def build_report() -> str:
        return "the report"

    with pytest.raises(ConfigurationError, match=r"the tool 'build_report' names .*MCP_CELERY_WEBHOOK_SECRETS"):
        check(server)
    with pytest.raises(ConfigurationError, match=r"TaskConfig\(webhook=…\): expected http") as error:
        TaskConfig(webhook="reports.example/s3cret")
    assert "s3cret" not in str(error.value)


async def test_secrets_of_a_file_are_those_that_it_holds_now(
    world: World, receiver: Receiver, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"{OLD_SECRET}\n")
    site = Site(world, receiver.url, webhook_secrets=None, webhook_secrets_file=str(file))
    await site.ended()
    await site.delivered()
    file.write_text(f"{SECRET}\n{OLD_SECRET}\n")
    await site.ended()
    await site.delivered()
    old, new = receiver.received
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        old.verified_with(SECRET)
    assert new.verified_with(SECRET) == new.verified_with(OLD_SECRET)
    file.unlink()
    await site.ended()
    await site.delivered()
    assert len(receiver.received) == 2
    assert f"MCP_CELERY_WEBHOOK_SECRETS_FILE: cannot read {file}" in caplog.text
