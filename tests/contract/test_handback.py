"""Handing jobs back, over memory and a real Redis: which are, when, and what is left of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    ELICIT,
    Asking,
    Change,
    Claim,
    HandBack,
    HandedBack,
    NextLeg,
    OtherVersionError,
    Question,
    Start,
    TaskRecord,
    now_ms,
)
from mcp_celery.engine.handback import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, MAX_PAUSES_MS, WAITING
from mcp_celery.engine.recovery.model import PUBLISHING_MS, RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.recovery.worker_lease import WorkerLife
from mcp_celery.errors import StoredDataError
from mcp_celery.keys import TaskType, celery_job_id
from mcp_celery.testing import MemoryTaskQueue
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

OLD, NEW, THIRD = "celery@old/1", "celery@new/2", "celery@third/3"
FINGERPRINT, OTHER = "5ca1ab1e0000", "2-0ddba11f0000"
LEASE_MS = 60_000
MOST = 3
POLICY = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)
QUESTION = Question("1.name", ELICIT, {})


async def created(world: World, **values: object) -> TaskRecord:
    """A task whose server has the fingerprint; the new worker advertises it."""
    record = replace(a_record(), **{"fingerprint": FINGERPRINT, **values})  # pyright: ignore[reportArgumentType]
    await world.store.create(record, SNAPSHOT)
    await world.recovery().beat(OLD, LEASE_MS, {OTHER: "tool:build_report"})
    await world.recovery().beat(NEW, LEASE_MS, {FINGERPRINT: "tool:build_report"})
    return record


def delivery(record: TaskRecord, **values: object) -> HandBack:
    default = HandBack(attempt=record.attempt, retries=0, worker=OLD, key=record.key, most=MOST, share=1)
    return replace(default, **values)  # pyright: ignore[reportArgumentType]


async def now(world: World, record: TaskRecord) -> TaskRecord:
    stored = await world.store.load(record.ref)
    assert stored is not None
    return stored.record


async def handed_back(world: World, record: TaskRecord, **values: object) -> HandedBack:
    """Hand the current attempt back."""
    return await world.store.hand_back(record.ref, delivery(await now(world, record), **values))


async def starts(world: World, record: TaskRecord, fingerprint: str | None, *, attempt: int = 1) -> bool:
    started = await world.store.start(
        record.ref, Start(attempt=attempt, retries=0, at_ms=1, worker=OLD, key=record.key, fingerprint=fingerprint)
    )
    return started is not None


class TestStart:
    async def test_a_worker_with_the_servers_version_starts_the_job(self, world: World) -> None:
        record = await created(world)
        assert await starts(world, record, FINGERPRINT)

    @pytest.mark.parametrize("fingerprint", [OTHER, ""])
    async def test_a_worker_with_another_version_or_none_does_not_start_the_job(
        self, world: World, fingerprint: str
    ) -> None:
        record = await created(world)
        for _ in range(2):
            with pytest.raises(OtherVersionError) as refused:
                await starts(world, record, fingerprint)
            assert refused.value.fingerprint == FINGERPRINT
        assert await now(world, record) == record
        assert await starts(world, record, FINGERPRINT)

    async def test_without_a_required_version_any_worker_starts_the_job(self, world: World) -> None:
        assert await starts(world, await created(world), None)

    async def test_a_task_of_a_server_without_a_version_starts_on_any_worker(self, world: World) -> None:
        assert await starts(world, await created(world, fingerprint=None), OTHER)

    async def test_a_delivery_that_must_not_start_is_not_reported_as_another_version(self, world: World) -> None:
        record = await created(world)
        assert not await starts(world, record, OTHER, attempt=2)
        assert await world.store.change(record.ref, Change(to="cancelled"))
        assert not await starts(world, record, OTHER)

    async def test_the_record_says_which_version_and_what_its_messages_get(self, world: World) -> None:
        options = {"queue": "gpu", "priority": 3, "expires": 60.5}
        record = await created(world, options=options)
        found = await now(world, record)
        assert (found.fingerprint, found.options) == (FINGERPRINT, options)


class TestHandingBack:
    async def test_the_next_attempt_counts_and_is_due(self, world: World) -> None:
        record = await created(world)
        assert world.ledger.claim(record.ref, attempt=1, claim=Claim(OLD, now_ms()))
        told = world.told(record.ref)
        assert await handed_back(world, record) == HandedBack("handed back", FIRST_PAUSE_MS)
        found = await now(world, record)
        assert (found.attempt, found.claim, found.status, found.status_message) == (2, None, "working", WAITING)
        assert found.redeliveries == 0
        assert list(await world.recovery().claimed(OLD)) == []
        assert world.is_due(record.ref)
        assert world.told(record.ref) == told + 1
        last = world.transitions[-1]
        assert (last.cause, last.attempt, last.before, last.after) == ("handed_back", 2, "working", "working")
        assert not await starts(world, record, FINGERPRINT), "the earlier delivery does not count any more"
        assert await starts(world, record, FINGERPRINT, attempt=2)

    async def test_the_blocking_store_hands_back_in_the_same_way(self, world: World) -> None:
        record = await created(world)
        assert world.ledger.hand_back(record.ref, delivery(record)) == HandedBack("handed back", FIRST_PAUSE_MS)
        assert (await now(world, record)).attempt == 2

    async def test_the_pause_grows_and_hand_backs_are_reported_once(self, world: World) -> None:
        record = await created(world)
        pauses = [(await handed_back(world, record, most=9)).pause_ms for _ in range(6)]
        assert pauses == [100, 200, 400, 800, LONGEST_PAUSE_MS, LONGEST_PAUSE_MS]
        found = await now(world, record)
        assert (found.attempt, found.revision) == (7, record.revision + 1)

    async def test_a_part_of_the_pause_is_left_to_chance(self, world: World) -> None:
        record = await created(world)
        assert (await handed_back(world, record, share=0.5)).pause_ms == FIRST_PAUSE_MS // 2
        shares = [HandBack(attempt=1, retries=0, worker=OLD, key=record.key, most=MOST).share for _ in range(50)]
        assert all(0.5 <= share <= 1 for share in shares)
        assert len(set(shares)) > 1

    async def test_only_another_live_worker_counts_that_advertises_the_version(self, world: World) -> None:
        record, recovery = await created(world), world.recovery()
        nowhere = HandedBack("nowhere")
        await recovery.beat(NEW, LEASE_MS, {OTHER: "tool:build_report"})
        assert await handed_back(world, record) == nowhere
        await recovery.beat(OLD, LEASE_MS, {FINGERPRINT: "tool:build_report"})
        assert await handed_back(world, record) == nowhere, "this worker itself"
        await recovery.beat(NEW, LEASE_MS, {FINGERPRINT: "tool:build_report"})
        await recovery.beat(NEW, LEASE_MS)
        assert await handed_back(world, record) == nowhere, "it takes no jobs any more"
        await recovery.beat(NEW, 0, {FINGERPRINT: "tool:build_report"})
        assert await handed_back(world, record) == nowhere, "it is dead"
        await recovery.beat(NEW, LEASE_MS, {FINGERPRINT: "tool:build_report"})
        await recovery.bury(NEW)
        assert await handed_back(world, record) == nowhere, "it has stopped"
        assert await now(world, record) == record
        await recovery.beat(THIRD, LEASE_MS, {OTHER: "prompt:plan", FINGERPRINT: "tool:build_report"})
        assert (await handed_back(world, record)).verdict == "handed back"

    async def test_a_worker_may_have_thousands_of_components(self, world: World) -> None:
        await world.recovery().bury(NEW)
        many = {f"{number:012d}": f"tool:{number}" for number in range(5_001)}
        await world.recovery().beat(THIRD, LEASE_MS, many)
        for number in (0, 499, 500, 4_999, 5_000):
            record = await created(world, fingerprint=f"{number:012d}")
            assert (await handed_back(world, record)).verdict == "handed back", number

    async def test_a_task_of_a_server_that_does_not_say_its_version_is_not_handed_back(self, world: World) -> None:
        record = await created(world, fingerprint=None)
        assert await handed_back(world, record) == HandedBack("nowhere")

    async def test_a_job_that_should_have_started_by_now_is_not_handed_back(self, world: World) -> None:
        late = await created(world, start_before_ms=now_ms() - 1)
        assert await handed_back(world, late) == HandedBack("nowhere")
        in_time = await created(world, start_before_ms=now_ms() + 60_000)
        assert (await handed_back(world, in_time)).verdict == "handed back"

    async def test_a_job_is_handed_back_no_more_often_than_the_setting_allows(self, world: World) -> None:
        record = await created(world)
        verdicts = [(await handed_back(world, record)).verdict for _ in range(MOST + 1)]
        assert verdicts == ["handed back"] * MOST + ["too often"]
        assert (await now(world, record)).attempt == MOST + 1

    async def test_a_job_is_handed_back_no_longer_than_the_pauses_may_last(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = await created(world)
        assert MAX_PAUSES_MS == 60_000
        for module in ("store.commands", "testing.recovery"):
            monkeypatch.setattr(f"mcp_celery.{module}.MAX_PAUSES_MS", 3 * FIRST_PAUSE_MS)
        found = [await handed_back(world, record, most=9) for _ in range(3)]
        assert found == [
            HandedBack("handed back", FIRST_PAUSE_MS),
            HandedBack("handed back", 2 * FIRST_PAUSE_MS),
            HandedBack("too often"),
        ]


class TestSuperseded:
    @pytest.mark.parametrize("values", [{"attempt": 2}, {"key": "anon:another:tool:build_report"}])
    async def test_a_delivery_that_does_not_count_is_dropped(self, world: World, values: dict[str, object]) -> None:
        record = await created(world)
        assert await handed_back(world, record, **values) == HandedBack("superseded")
        assert await now(world, record) == record

    async def test_a_task_that_is_gone_or_has_ended_is_left_alone(self, world: World) -> None:
        record = await created(world)
        unknown = replace(record, task_id=a_record().task_id)
        assert await world.store.hand_back(unknown.ref, delivery(unknown)) == HandedBack("superseded")
        assert await world.store.change(record.ref, Change(to="cancelled"))
        assert await handed_back(world, record) == HandedBack("superseded")
        assert (await now(world, record)).status == "cancelled"

    async def test_a_job_that_another_delivery_started_continues(self, world: World) -> None:
        record = await created(world)
        assert await starts(world, record, FINGERPRINT)
        before = await now(world, record)
        assert await handed_back(world, record) == HandedBack("superseded")
        assert await now(world, record) == before

    async def test_a_retry_that_has_not_started_is_handed_back(self, world: World) -> None:
        record = await created(world)
        assert await starts(world, record, FINGERPRINT)
        assert await world.store.change(record.ref, Change(to="working", retries=1, retry_at_ms=5))
        assert (await handed_back(world, record, retries=1)).verdict == "handed back"
        found = await now(world, record)
        assert (found.attempt, found.retries, found.retry_at_ms) == (2, 1, 5)


class TestWhatComesAfter:
    async def test_a_claim_of_another_delivery_is_taken_away(self, world: World) -> None:
        record = await created(world)
        assert world.ledger.claim(record.ref, attempt=1, claim=Claim(THIRD, now_ms()))
        assert (await handed_back(world, record)).verdict == "handed back"
        assert list(await world.recovery().claimed(THIRD)) == []

    async def test_a_question_that_an_earlier_body_left_behind_goes(self, world: World) -> None:
        record = await created(world)
        assert await starts(world, record, FINGERPRINT)
        assert await world.store.ask(record.ref, QUESTION, Asking(attempt=1, at_ms=1))
        assert await world.store.change(record.ref, Change(to="working", retries=1))
        assert (await now(world, record)).status == "input_required"
        assert (await handed_back(world, record, retries=1)).verdict == "handed back"
        stored = await world.store.load(record.ref)
        assert stored is not None
        assert (stored.record.status, list(stored.questions)) == ("working", [])
        # Asked again by the next attempt, it is not answered yet.
        assert await world.store.ask(record.ref, Question("2.name", ELICIT, {}), Asking(attempt=2, at_ms=1))
        stored = await world.store.load(record.ref)
        assert stored is not None
        assert [one.key for one in stored.questions] == ["2.name"]

    async def test_a_task_that_waits_for_answers_has_no_job_to_hand_back(self, world: World) -> None:
        record = await created(world)
        assert await starts(world, record, FINGERPRINT)
        leg = NextLeg(leg=2, job_id=celery_job_id(record.key, 2), request_state=None)
        assert await world.store.park(record.ref, [QUESTION], Asking(attempt=1, at_ms=1), leg)
        assert await handed_back(world, record) == HandedBack("superseded")

    async def test_the_next_leg_may_be_handed_back_as_often_as_the_first(self, world: World) -> None:
        record = await created(world)
        for _ in range(MOST):
            await handed_back(world, record)
        assert await starts(world, record, FINGERPRINT, attempt=MOST + 1)
        leg = NextLeg(leg=2, job_id=celery_job_id(record.key, 2), request_state=None)
        assert await world.store.park(record.ref, [QUESTION], Asking(attempt=MOST + 1, at_ms=1), leg)
        assert await world.store.answer(record.ref, {QUESTION.key: {}}, at_ms=1, start_before_ms=None)
        assert (await handed_back(world, record)).verdict == "handed back"

    async def test_a_job_whose_worker_has_died_may_be_handed_back_as_often(self, world: World) -> None:
        record = await created(world)
        for _ in range(MOST):
            await handed_back(world, record)
        await world.recovery().beat(THIRD, 0)
        assert world.ledger.claim(record.ref, attempt=MOST + 1, claim=Claim(THIRD, now_ms()))
        assert await world.recovery().recover(record.key, THIRD, "died", POLICY) == "again"
        assert (await handed_back(world, record)).verdict == "handed back"


class Process:
    """A worker of the old version, as far as recovery sees it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue = MemoryTaskQueue()
        self.store = world.recovery()
        self.reaper = Reaper(
            store=self.store,
            tasks=world.store,
            queue=self.queue,
            results=NoBin(),
            declared=unknown_here,
            policy=POLICY,
        )
        self.life = WorkerLife(OLD, store=self.store, tasks=world.store, reaper=self.reaper, policy=POLICY)

    @property
    def published(self) -> list[tuple[str, int]]:
        return [(record.task_id, record.attempt) for record, _ in self.queue.published]


class NoBin:
    """A result backend in which nothing is."""

    async def forget(self, job_ids: object) -> None:
        """Nothing is there."""


async def unknown_here(_: TaskType, component: str) -> tuple[str, TaskConfig]:
    """What a process knows of a component that its version of the server does not have."""
    return component, TaskConfig(queue="unlike the server's", expires=1)


@asynccontextmanager
async def reaping(process: Process) -> AsyncGenerator[None]:
    task = asyncio.create_task(process.reaper.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestPublishing:
    async def test_the_worker_publishes_it_after_the_pause(self, world: World) -> None:
        process = Process(world)
        record = await created(world, declared_as="report://{year}", options={"queue": "gpu"})
        handed = await handed_back(world, record)
        await process.life.publish_later(record.key, handed.pause_ms)
        assert process.published == [(record.task_id, 2)]
        assert not world.is_due(record.ref)

    async def test_a_worker_without_the_component_publishes_the_job_as_its_server_would(self, world: World) -> None:
        process = Process(world)
        record = await created(world, declared_as="report://{year}", options={"queue": "gpu", "priority": 4})
        await handed_back(world, record)
        await process.life.publish_later(record.key, 0)
        ((_, submission),) = process.queue.published
        assert submission.declared_as == "report://{year}"
        assert submission.config.message_options() == {"queue": "gpu", "priority": 4}

    async def test_a_task_of_0_1_0_is_published_as_this_process_declares_it(self, world: World) -> None:
        process = Process(world)
        record = await created(world, fingerprint=None)
        await process.store.beat(THIRD, 0)
        assert world.ledger.claim(record.ref, attempt=1, claim=Claim(THIRD, now_ms()))
        assert await process.store.recover(record.key, THIRD, "died", POLICY) == "again"
        await process.reaper.publish_due(record.key)
        ((_, submission),) = process.queue.published
        assert submission.config.message_options() == {"queue": "unlike the server's", "expires": 1}

    async def test_the_reaper_publishes_the_job_of_a_worker_that_has_died(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, record = Process(world), await created(world)
        await handed_back(world, record)
        async with reaping(process):
            await asyncio.sleep(3 * FIRST_PAUSE_MS / 1000)
            assert process.published == [], "its worker has the time to publish it"
            assert PUBLISHING_MS <= MAX_PAUSES_MS / 3
            for package in ("store", "testing"):
                monkeypatch.setattr(f"mcp_celery.{package}.recovery.PUBLISHING_MS", 0)
            await eventually(lambda: process.published == [(record.task_id, 2)])

    async def test_a_broker_that_does_not_take_it_leaves_it_due(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await handed_back(world, record)
        process.queue.fail()
        await process.life.publish_later(record.key, 0)
        assert process.published == []
        assert world.is_due(record.ref)

    async def test_a_job_that_was_handed_back_late_is_published_too(self, world: World) -> None:
        process, record, seen = Process(world), await created(world), list[HandedBack]()
        await process.life.hand_back(record.ref, delivery(record), seen.append)
        assert [one.verdict for one in seen] == ["handed back"]
        assert process.published == [(record.task_id, 2)]
        await process.life.hand_back(record.ref, delivery(record), seen.append)
        assert [one.verdict for one in seen] == ["handed back", "superseded"]
        assert process.published == [(record.task_id, 2)]


async def test_what_a_worker_advertises_ends_with_its_lease(in_redis: RedisWorld) -> None:
    recovery, key = in_redis.recovery(), in_redis.keys.components(NEW)
    await recovery.beat(NEW, LEASE_MS, {FINGERPRINT: "tool:build_report"})
    assert in_redis.client.hgetall(key) == {FINGERPRINT.encode(): b"tool:build_report"}
    assert 0 < in_redis.client.pttl(key) <= LEASE_MS
    await recovery.beat(NEW, LEASE_MS, {OTHER: "tool:build_report"})
    assert in_redis.client.hkeys(key) == [OTHER.encode()]
    await recovery.bury(NEW)
    assert not in_redis.client.exists(key)


async def test_a_key_of_another_type_instead_of_a_workers_versions_causes_no_error(in_redis: RedisWorld) -> None:
    record = await created(in_redis)
    in_redis.client.set(in_redis.keys.components(OLD), "no hash", px=LEASE_MS)
    in_redis.client.set(in_redis.keys.components(THIRD), "no hash", px=LEASE_MS)
    await in_redis.recovery().beat(THIRD, LEASE_MS, {OTHER: "tool:build_report"})
    in_redis.client.set(in_redis.keys.components(THIRD), "no hash", px=LEASE_MS)
    assert (await handed_back(in_redis, record)).verdict == "handed back"


async def test_a_heartbeat_that_has_ended_counts_for_nothing(in_redis: RedisWorld) -> None:
    record = await created(in_redis)
    in_redis.client.zadd(in_redis.keys.workers, {NEW: 1})
    assert in_redis.client.exists(in_redis.keys.components(NEW))
    assert await handed_back(in_redis, record) == HandedBack("nowhere")


@pytest.mark.parametrize("field", ["handbacks", "handback_pauses_ms", "start_before_ms"])
async def test_a_damaged_record_is_no_outage(in_redis: RedisWorld, field: str) -> None:
    record = await created(in_redis)
    in_redis.client.hset(in_redis.keys.record(record.scope, record.task_id), field, "x")
    with pytest.raises(StoredDataError):
        await in_redis.store.hand_back(record.ref, delivery(record))
    with pytest.raises(StoredDataError):
        in_redis.ledger.hand_back(record.ref, delivery(record))
