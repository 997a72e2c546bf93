"""What the reaper does, over memory and a real Redis, with heartbeats of a few milliseconds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    ELICIT,
    Asking,
    Change,
    Changed,
    Claim,
    HandBack,
    NextLeg,
    Question,
    Start,
    TaskRecord,
    TaskRef,
    TaskStatus,
    now_ms,
)
from mcp_celery.engine.recovery.model import RecoveryPolicy, StoreCounts, Sweep, Verdict
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.recovery.worker_lease import WorkerLife
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.keys import TaskType, celery_job_id
from mcp_celery.store.inspection import RedisInspection
from mcp_celery.testing import MemoryTaskQueue
from tests.support.waiting import PATIENCE_SECONDS, eventually, soon
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

POLICY = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)
WORKER = "celery@host/1"
SECOND = "celery@host/2"
QUESTION = Question("1.name", ELICIT, {})


class Bin:
    """A result backend that notes what it is told to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def forget(self, job_ids: Sequence[str]) -> None:
        self.forgotten += job_ids


class Process:
    """A process that may reap."""

    def __init__(self, world: World, policy: RecoveryPolicy = POLICY) -> None:
        self.store = world.recovery()
        self.queue = MemoryTaskQueue()
        self.results = Bin()
        self.reaper = Reaper(
            store=self.store,
            tasks=world.store,
            queue=self.queue,
            results=self.results,
            declared=declared,
            policy=policy,
        )
        self.life = WorkerLife(WORKER, store=self.store, tasks=world.store, reaper=self.reaper, policy=policy)

    @property
    def published(self) -> list[tuple[str, int]]:
        return [(record.task_id, record.attempt) for record, _ in self.queue.published]


async def declared(_: TaskType, component: str) -> tuple[str, TaskConfig]:
    return component, TaskConfig(queue="declared")


def publishing_within(monkeypatch: pytest.MonkeyPatch, grace_ms: int) -> None:
    """Let due jobs be published by the reaper after this time."""
    for package in ("store", "testing"):
        monkeypatch.setattr(f"mcp_celery.{package}.recovery.PUBLISHING_MS", grace_ms)


@asynccontextmanager
async def running(process: Process) -> AsyncGenerator[None]:
    task = asyncio.create_task(process.reaper.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def created(world: World, **values: object) -> TaskRecord:
    record = replace(a_record(), **values)  # pyright: ignore[reportArgumentType]
    await world.store.create(record, SNAPSHOT)
    return record


async def now(world: World, record: TaskRecord) -> TaskRecord:
    stored = await world.store.load(record.ref)
    assert stored is not None
    return stored.record


async def failure_of(world: World, record: TaskRecord) -> TaskRecord:
    """The record, once it has failed."""

    async def failed() -> bool:
        return (await now(world, record)).status == "failed"

    await eventually(failed)
    return await now(world, record)


def claim(world: World, record: TaskRecord, worker: str = WORKER, *, attempt: int = 1, retries: int = 0) -> bool:
    return world.ledger.claim(record.ref, attempt=attempt, retries=retries, claim=Claim(worker, now_ms()))


async def begun(world: World, record: TaskRecord, worker: str = WORKER, *, attempt: int = 1) -> None:
    assert claim(world, record, worker, attempt=attempt)
    assert await world.store.start(record.ref, Start(attempt=attempt, retries=0, at_ms=1, worker=worker))


async def parked(world: World, record: TaskRecord) -> None:
    """A task whose job has ended with a question."""
    await begun(world, record)
    leg = NextLeg(leg=2, job_id=celery_job_id(record.key, 2), request_state=None)
    assert await world.store.park(record.ref, [QUESTION], Asking(attempt=1, at_ms=1), leg)


async def dead(process: Process, worker: str = WORKER) -> None:
    """A worker that has beaten once, and never again."""
    await process.store.beat(worker, 0)


async def test_open_tasks_and_live_workers_are_counted(world: World) -> None:
    process = Process(world)
    await process.store.beat(WORKER, 60_000)
    await dead(process, SECOND)
    assert await process.store.counts() == StoreCounts(
        queued=0, claimed=0, due=0, exposed=0, workers=1, webhooks=0, waiting=0
    )
    first, second, third = [await created(world) for _ in range(3)]
    assert claim(world, first)
    assert claim(world, second, SECOND)
    assert (await process.store.counts()) == StoreCounts(
        queued=1, claimed=2, due=0, exposed=0, workers=1, webhooks=0, waiting=0
    )
    assert await process.store.recover(second.key, SECOND, "died", POLICY) == "again"
    await world.store.change(first.ref, Change(to="completed"))
    await world.store.change(third.ref, Change(to="cancelled"))
    assert await process.store.counts() == StoreCounts(
        queued=0, claimed=0, due=1, exposed=0, workers=1, webhooks=0, waiting=0
    )


class TestQuestions:
    async def test_questions_that_a_dead_worker_awaited_are_removed(self, world: World) -> None:
        process, record = Process(world), await created(world, idempotent=True)
        await begun(world, record)
        assert await world.store.ask(record.ref, QUESTION, Asking(attempt=1, at_ms=1))
        await dead(process)
        async with running(process):
            await eventually(lambda: process.published == [(record.task_id, 2)])
        stored = await world.store.load(record.ref)
        assert stored is not None
        assert (stored.record.status, list(stored.questions)) == ("working", [])
        late = await world.store.answer(record.ref, {QUESTION.key: {}}, at_ms=1, start_before_ms=None)
        assert late is not None
        assert not late.changed.accepted
        assert not await world.store.ask(record.ref, QUESTION, Asking(attempt=1, at_ms=1))

    async def test_a_task_that_fails_with_its_worker_leaves_neither_questions_nor_answers(
        self, in_redis: RedisWorld
    ) -> None:
        process, record = Process(in_redis), await created(in_redis)
        await dead(process)
        await begun(in_redis, record)
        for key in ("one", "two"):
            assert await in_redis.store.ask(record.ref, Question(key, ELICIT, {}), Asking(attempt=1, at_ms=1))
        assert await in_redis.store.answer(record.ref, {"one": {}}, at_ms=1, start_before_ms=None)
        keys = in_redis.keys
        names = [name(record.scope, record.task_id) for name in (keys.questions, keys.answers)]
        assert in_redis.client.exists(*names) == 2
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "failed"
        assert in_redis.client.exists(*names) == 0

    async def test_questions_that_a_dead_worker_returned_stay_open(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await parked(world, record)
        await dead(process)
        before = await now(world, record)
        assert await process.reaper.sweep() is False
        assert list(await process.store.claimed(WORKER)) == []
        async with running(process):
            await eventually(lambda: self._is_buried(process))
        assert await now(world, record) == before
        assert process.published == []

    @staticmethod
    async def _is_buried(process: Process) -> bool:
        found = await process.store.sweep(process.reaper._id, POLICY)  # pyright: ignore[reportPrivateUsage]
        return found is not None and not found.dead

    async def test_the_reaper_publishes_a_leg_that_was_not_published(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, record = Process(world), await created(world)
        await parked(world, record)
        answered = await world.store.answer(record.ref, {QUESTION.key: {}}, at_ms=1, start_before_ms=None)
        assert answered is not None
        assert answered.is_due
        assert await process.reaper.sweep() is False
        assert process.published == [], "whoever took the answer has the time to publish"
        publishing_within(monkeypatch, -1)
        process.queue.fail()
        await process.reaper.sweep()
        process.queue.recover()
        await process.reaper.sweep()
        await process.reaper.sweep()
        assert process.published == [(record.task_id, 2)]
        assert process.queue.published[0][0].job_id == f"{record.job_id}!2"
        assert not world.is_due(record.ref)


class TestDeaths:
    async def test_a_job_that_had_not_begun_is_published_again(self, world: World) -> None:
        process, record = Process(world), await created(world)
        assert claim(world, record)
        await dead(process)
        async with running(process):
            await eventually(lambda: process.published == [(record.task_id, 2)])
        found = await now(world, record)
        assert (found.status, found.attempt, found.redeliveries, found.claim) == ("working", 2, 1, None)
        assert found.status_message == "Trying again: the worker that had the job has died"
        ((_, submission),) = process.queue.published
        assert (submission.snapshot, submission.config.queue) == (SNAPSHOT, "declared")
        assert process.results.forgotten == [record.job_id]

    async def test_a_job_that_had_begun_fails(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await begun(world, record)
        await dead(process)
        async with running(process):
            found = await failure_of(world, record)
        assert found.error is not None
        assert "may have had effects" in found.error.message
        assert process.published == []
        assert world.told(record.ref) == 1

    async def test_an_idempotent_job_is_published_again_up_to_the_limit(self, world: World) -> None:
        process, record = Process(world), await created(world, idempotent=True)
        async with running(process):
            for attempt, worker in ((1, WORKER), (2, SECOND)):
                await begun(world, record, worker, attempt=attempt)
                await dead(process, worker)
                if attempt == 1:
                    await eventually(lambda: process.published == [(record.task_id, 2)])
            found = await failure_of(world, record)
        assert found.error is not None
        assert "too often" in found.error.message
        assert found.attempt == 2

    @pytest.mark.parametrize("was_in_time", [True, False])
    async def test_the_next_attempt_is_too_late_only_if_the_first_had_not_begun(
        self, world: World, was_in_time: bool
    ) -> None:
        until = now_ms() + 60_000
        process, record = Process(world), await created(world, idempotent=True, start_before_ms=until)
        assert claim(world, record)
        if was_in_time:
            assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, worker=WORKER))
        await dead(process)
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "again"
        assert (await now(world, record)).start_before_ms == (None if was_in_time else until)

    async def test_nothing_is_published_again_where_that_is_forbidden(self, world: World) -> None:
        process, record = Process(world, replace(POLICY, max_redeliveries=0)), await created(world)
        assert claim(world, record)
        await dead(process)
        async with running(process):
            await failure_of(world, record)
        assert process.published == []

    async def test_a_worker_that_sends_heartbeats_keeps_its_jobs(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await begun(world, record)
        beating = asyncio.create_task(process.life.run())
        try:
            async with running(process):
                other = await created(world)
                assert claim(world, other, SECOND)
                await dead(process, SECOND)
                await eventually(lambda: process.published == [(other.task_id, 2)])
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        assert (await now(world, record)).status == "working"

    async def test_a_worker_that_sends_a_heartbeat_after_it_was_found_dead_keeps_its_jobs(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await begun(world, record)
        await process.store.beat(WORKER, 60_000)
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "alive"
        assert list(await process.store.claimed(WORKER)) == [record.key]

    async def test_only_a_worker_that_stops_is_forgotten_while_its_heartbeat_holds(self, world: World) -> None:
        recovery = world.recovery()
        await recovery.beat(WORKER, 60_000, {"f": "tool:build_report"}, slots=1)
        assert not await recovery.bury(WORKER, died=True)
        assert (await recovery.counts()).workers == 1
        record = await created(world, fingerprint="f")
        back = HandBack(attempt=1, retries=0, worker=SECOND, key=record.key, most=1)
        assert (await world.store.hand_back(record.ref, back)).verdict == "handed back", "it is still known what it has"
        assert await recovery.bury(WORKER)
        assert (await recovery.counts()).workers == 0
        await dead(Process(world), SECOND)
        assert await recovery.bury(SECOND, died=True)
        found = await recovery.sweep("r", POLICY)
        assert found is not None
        assert found.dead == []

    @pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
    async def test_an_ended_task_belongs_to_no_worker(self, world: World, status: TaskStatus) -> None:
        process, record = Process(world), await created(world)
        await begun(world, record)
        assert await world.store.change(record.ref, Change(to=status))
        assert list(await process.store.claimed(WORKER)) == []

    @pytest.mark.parametrize("how", ["claim", "start"])
    async def test_a_worker_that_was_forgotten_and_takes_a_job_is_found_when_it_dies(
        self, world: World, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        process, record = Process(world), await created(world)
        await process.store.beat(WORKER, 0)
        assert await process.store.bury(WORKER, died=True)
        for module in ("store.commands", "testing.ledger"):
            monkeypatch.setattr(f"mcp_celery.{module}.CLAIM_HOLDS_MS", 0)
        if how == "claim":
            assert claim(world, record)
        else:
            assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, worker=WORKER))
        found = await process.store.sweep("r", POLICY)
        assert found is not None
        assert found.dead == [WORKER]
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == (
            "again" if how == "claim" else "failed"
        )
        assert await process.store.bury(WORKER, died=True)

    async def test_a_worker_that_was_forgotten_and_takes_a_job_has_the_time_to_send_a_heartbeat(
        self, world: World
    ) -> None:
        process, record = Process(world), await created(world)
        await begun(world, record)
        found = await process.store.sweep("r", POLICY)
        assert found is not None
        assert found.dead == []
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "alive"
        await dead(process)
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "failed"

    async def test_a_claim_changes_no_heartbeat(self, world: World) -> None:
        process = Process(world)
        first, second = [await created(world) for _ in range(2)]
        await process.store.beat(WORKER, 60_000)
        await dead(process, SECOND)
        assert claim(world, first)
        assert claim(world, second, SECOND)
        found = await process.store.sweep("r", POLICY)
        assert found is not None
        assert found.dead == [SECOND]

    async def test_a_job_without_a_worker_makes_none_known(self, world: World) -> None:
        process, record = Process(world), await created(world)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        assert (await process.store.counts()).workers == 0

    @pytest.mark.parametrize("died", [False, True])
    async def test_a_worker_with_a_claim_that_was_noted_late_is_not_forgotten(self, world: World, died: bool) -> None:
        process, record = Process(world), await created(world)
        await process.store.beat(WORKER, 0 if died else 60_000)
        assert list(await process.store.claimed(WORKER)) == []
        assert claim(world, record)
        assert not await process.store.bury(WORKER, died=died)
        found = await process.store.sweep("r", POLICY)
        assert found is not None
        assert found.dead == [WORKER]
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "again"
        assert await process.store.bury(WORKER, died=died)

    async def test_a_job_that_another_worker_has_claimed_stays_with_it(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await dead(process)
        assert claim(world, record)
        await begun(world, record, SECOND)
        assert list(await process.store.claimed(WORKER)) == []
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "nothing"

    async def test_a_retry_that_the_broker_holds_is_left_there(self, world: World) -> None:
        process, record = Process(world), await created(world)
        await dead(process)
        await dead(process, SECOND)
        await begun(world, record)
        assert await world.store.change(record.ref, Change(to="working", retries=1))
        assert await process.store.recover(record.key, WORKER, "died", POLICY) == "nothing"
        assert claim(world, record, SECOND, retries=1)
        assert await process.store.recover(record.key, SECOND, "died", POLICY) == "again"
        assert (await now(world, record)).retries == 1

    async def test_jobs_that_a_stopped_worker_had_not_begun_are_left_to_the_broker_for_a_while(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = Process(world)
        received, started = await created(world), await created(world)
        assert claim(world, received)
        await begun(world, started)
        await process.life.end()
        assert (await now(world, received)) == received
        assert (await now(world, started)).status == "failed"
        assert await world.store.snapshot(started.ref) is None
        await process.reaper.sweep()
        assert process.published == []
        publishing_within(monkeypatch, 0)
        await process.reaper.sweep()
        assert process.published == [(received.task_id, 1)]

    async def test_the_reaper_finds_what_a_stopped_worker_had_when_the_store_failed_meanwhile(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, successor = Process(world), Process(world)
        started = [await created(world) for _ in range(2)]
        for record in started:
            await begun(world, record)
        await process.store.beat(WORKER, 0)
        recover, asked = process.store.recover, list[str]()

        async def recover_one(key: str, *about: Any, **when: Any) -> Verdict:
            asked.append(key)
            if len(asked) > 1:
                raise StoreUnavailableError
            return await recover(key, *about, **when)

        monkeypatch.setattr(process.store, "recover", recover_one)
        await process.life.end()
        assert len(asked) == 2
        async with running(successor):
            for record in started:
                await failure_of(world, record)

    async def test_no_job_is_published_that_a_worker_has_received_since(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publishing_within(monkeypatch, 0)
        process, received = Process(world), await created(world)
        assert claim(world, received)
        await process.life.end()
        assert claim(world, received, SECOND)
        await process.reaper.sweep()
        assert process.published == []
        assert not world.is_due(received.ref)

    async def test_a_lost_connection_releases_jobs_that_were_claimed_before_and_had_not_begun(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publishing_within(monkeypatch, 0)
        process = Process(world)
        received, started, later = [await created(world) for _ in range(3)]
        assert claim(world, received)
        await begun(world, started)
        lost_at = now_ms() + 1
        assert world.ledger.claim(later.ref, attempt=1, claim=Claim(WORKER, lost_at))
        await process.store.beat(WORKER, 60_000)
        await process.life.take_back(lost_at)
        await process.reaper.sweep()
        assert process.published == [(received.task_id, 1)]
        assert set(await process.store.claimed(WORKER)) == {started.key, later.key}

    async def test_a_claim_that_waits_for_the_store_is_dropped_with_the_lost_connection(self, world: World) -> None:
        process = Process(world)
        before, after = [await created(world) for _ in range(2)]
        lost_at = now_ms()
        tried = dict[str, int]()

        def claims(record: TaskRecord, at_ms: int) -> Awaitable[None]:
            def once_more() -> None:
                tried[record.key] = tried.get(record.key, 0) + 1
                if tried[record.key] == 1:
                    raise StoreUnavailableError
                assert world.ledger.claim(record.ref, attempt=1, claim=Claim(WORKER, at_ms))

            return asyncio.ensure_future(process.life.claim(once_more, at_ms))

        waiting = [claims(before, lost_at - 1), claims(after, lost_at)]
        await eventually(lambda: len(tried) == 2)
        await process.life.take_back(lost_at)
        await soon(asyncio.gather(*waiting))
        assert tried == {before.key: 1, after.key: 2}
        assert list(await process.store.claimed(WORKER)) == [after.key]
        assert (await process.store.counts()).queued == 1

    async def test_a_claim_that_reaches_the_store_late_is_taken_back_with_the_lost_connection(
        self, world: World
    ) -> None:
        process, record = Process(world), await created(world)
        asked, answers = threading.Event(), threading.Event()

        def late() -> None:
            asked.set()
            assert answers.wait(PATIENCE_SECONDS)
            assert claim(world, record)

        claiming = asyncio.ensure_future(process.life.claim(late, now_ms()))
        await eventually(asked.is_set)
        taking_back = asyncio.ensure_future(process.life.take_back(now_ms() + 60_000))
        await asyncio.sleep(0)
        answers.set()
        await soon(asyncio.gather(claiming, taking_back))
        assert not await process.store.claimed(WORKER)
        assert world.is_due(record.ref)


class TestPublishing:
    async def test_a_broker_that_does_not_take_a_job_is_tried_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publishing_within(monkeypatch, 0)
        process, record = Process(world), await created(world)
        assert claim(world, record)
        await dead(process)
        process.queue.fail()
        async with running(process):
            await eventually(lambda: self._attempt(world, record, 2))
            assert process.published == []
            process.queue.recover()
            await eventually(lambda: process.published == [(record.task_id, 2)])
            await eventually(lambda: not world.is_due(record.ref))

    async def test_a_job_that_is_too_late_and_put_back_into_the_queue_meanwhile_stays_due(
        self, in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publishing_within(monkeypatch, 0)
        process, record = Process(in_redis), await created(in_redis, start_before_ms=1)
        assert claim(in_redis, record)
        assert await process.store.recover(record.key, WORKER, "stopped", POLICY) == "nothing"
        expire = in_redis.store.change

        async def too_late(ref: TaskRef, change: Change) -> Changed | None:
            assert await RedisInspection(in_redis.store).requeue(record, force=False) == "again"
            return await expire(ref, change)

        monkeypatch.setattr(in_redis.store, "change", too_late)
        await process.reaper.sweep()
        assert process.published == []
        assert in_redis.is_due(record.ref)
        await process.reaper.sweep()
        assert process.published == [(record.task_id, 2)]

    async def test_a_job_that_is_too_late_and_has_begun_meanwhile_goes_on(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publishing_within(monkeypatch, 0)
        process, record = Process(world), await created(world, start_before_ms=1)
        assert claim(world, record)
        assert await process.store.recover(record.key, WORKER, "stopped", POLICY) == "nothing"
        expire = world.store.change

        async def too_late(ref: TaskRef, change: Change) -> Changed | None:
            await begun(world, record, SECOND)
            return await expire(ref, change)

        monkeypatch.setattr(world.store, "change", too_late)
        await process.reaper.sweep()
        assert (await now(world, record)).status == "working"
        assert process.published == []

    async def test_a_job_that_is_too_late_is_due_no_longer(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        publishing_within(monkeypatch, 0)
        process, record = Process(world), await created(world, start_before_ms=1)
        assert claim(world, record)
        assert await process.store.recover(record.key, WORKER, "stopped", POLICY) == "nothing"
        await process.reaper.sweep()
        assert (await now(world, record)).status == "failed"
        counts = await process.store.counts()
        assert (counts.due, counts.queued) == (0, 0)
        assert process.published == []

    async def test_the_next_reaper_publishes_due_jobs(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        publishing_within(monkeypatch, 0)
        record, successor = await created(world), Process(world)
        await dead(successor)
        assert claim(world, record)
        assert await successor.store.recover(record.key, WORKER, "died", POLICY) == "again"
        async with running(successor):
            await eventually(lambda: successor.published == [(record.task_id, 2)])

    async def test_a_job_whose_request_cannot_be_read_fails(self, in_redis: RedisWorld) -> None:
        process, record = Process(in_redis), await created(in_redis)
        assert claim(in_redis, record)
        in_redis.client.set(in_redis.keys.snapshot(record.scope, record.task_id), "garbage", ex=60)
        await dead(process)
        async with running(process):
            found = await failure_of(in_redis, record)
        assert found.status_message == "The request's context cannot be restored, so the job cannot run"
        assert process.published == []

    @staticmethod
    async def _attempt(world: World, record: TaskRecord, attempt: int) -> bool:
        return (await now(world, record)).attempt == attempt


class TestElection:
    async def test_one_process_at_a_time_is_the_reaper(self, world: World) -> None:
        first, second = Process(world), Process(world)
        assert await first.store.sweep("first", POLICY) is not None
        assert await second.store.sweep("second", POLICY) is None
        await second.store.resign("second")
        assert await second.store.sweep("second", POLICY) is None
        await first.store.resign("first")
        assert await second.store.sweep("second", POLICY) is not None

    async def test_another_process_becomes_the_reaper_when_the_first_is_gone(self, world: World) -> None:
        first, second = Process(world), Process(world)
        assert await first.store.sweep("first", POLICY) is not None

        async def elected() -> bool:
            return await second.store.sweep("second", POLICY) is not None

        await eventually(elected)

    async def test_after_an_outage_no_worker_counts_as_dead_for_one_lease(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, record = Process(world), await created(world)
        assert claim(world, record)
        await dead(process)
        time = 1_000.0
        monkeypatch.setattr(Reaper, "_now", staticmethod(lambda: time))
        lease = POLICY.lease_ms / 1000
        await process.reaper.sweep()
        time += lease / 2
        await process.reaper.sweep()
        assert process.published == []
        time += lease
        await process.reaper.sweep()
        assert process.published == [(record.task_id, 2)]

    async def test_an_outage_of_the_store_begins_that_lease_anew(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, record = Process(world), await created(world)
        failing = True

        sweep = process.store.sweep

        async def swept(reaper: str, policy: RecoveryPolicy, skipped: int = 0) -> Sweep | None:
            if failing:
                raise StoreUnavailableError
            return await sweep(reaper, policy, skipped)

        monkeypatch.setattr(process.store, "sweep", swept)
        process.reaper._trusts_deaths_at = 0.0  # pyright: ignore[reportPrivateUsage]
        assert claim(world, record)
        await dead(process)
        async with running(process):
            await eventually(lambda: process.reaper._trusts_deaths_at is None)  # pyright: ignore[reportPrivateUsage]
            failing = False
            await eventually(lambda: process.published == [(record.task_id, 2)])


class TestExpiry:
    async def test_a_task_that_outlives_its_ttl_is_revoked_and_its_result_forgotten(self, world: World) -> None:
        process = Process(world, RecoveryPolicy(heartbeat_ms=400, max_redeliveries=1))
        record = await created(world, ttl_ms=1_000)
        assert claim(world, record)
        async with running(process):
            await eventually(lambda: process.queue.revoked == [record.job_id])
            await eventually(lambda: process.results.forgotten == [record.job_id])
        assert await world.store.load(record.ref) is None

    async def test_a_task_that_ends_or_gets_a_worker_just_before_it_expires_is_known_so(self, world: World) -> None:
        process = Process(world, RecoveryPolicy(heartbeat_ms=400, max_redeliveries=1))
        cancelled, claimed = [await created(world, ttl_ms=1_000) for _ in range(2)]
        assert await process.reaper.sweep() is False
        assert await world.store.change(cancelled.ref, Change(to="cancelled"))
        assert claim(world, claimed)

        async def is_over() -> bool:
            return await world.store.present([cancelled.ref, claimed.ref]) == []

        async def is_forgotten() -> bool:
            assert set(process.queue.revoked) <= {claimed.job_id}
            return process.results.forgotten != [] and not await process.store.claimed(WORKER)

        await eventually(is_over)
        async with running(process):
            await eventually(is_forgotten)
        assert process.queue.revoked == [claimed.job_id]

    async def test_only_the_result_of_an_expired_task_that_had_ended_is_forgotten(self, world: World) -> None:
        process = Process(world)
        record = await created(world, ttl_ms=1_000)
        assert await world.store.change(record.ref, Change(to="completed"))
        async with running(process):
            await eventually(lambda: process.results.forgotten == [record.job_id])
        assert process.queue.revoked == []

    async def test_more_expired_tasks_than_a_batch_are_handled_at_once(
        self, in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.store.recovery.BATCH", 2)
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.BATCH", 2)
        process = Process(in_redis, RecoveryPolicy(heartbeat_ms=100, max_redeliveries=1))
        for _ in range(5):
            await created(in_redis, ttl_ms=1)
        await eventually(lambda: in_redis.client.zcount(in_redis.keys.expiry, "-inf", now_ms() - 300) == 5)
        async with running(process):
            await eventually(lambda: in_redis.client.zcard(in_redis.keys.expiry) == 0)
        assert len(process.results.forgotten) == 5
