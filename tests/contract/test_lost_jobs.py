"""What the store knows of jobs that no worker has claimed, and what it does when the broker has lost one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from mcp_celery.engine import (
    ELICIT,
    Asking,
    Change,
    Claim,
    EncodedResult,
    ForeignWork,
    HandBack,
    JobOutcome,
    NextLeg,
    Question,
    Start,
    TaskRecord,
    now_ms,
)
from mcp_celery.engine.recovery.model import PublishedJob, RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.keys import celery_job_id
from mcp_celery.testing import MemoryTaskQueue
from tests.contract.test_recovery import Bin, declared
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

POLICY: Final = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1, publish_timeout_ms=-1_000)
"""What is unclaimed is found at once."""
WORKER: Final = "celery@host/1"
SECOND: Final = "celery@host/2"
QUESTION: Final = Question("1.name", ELICIT, {})
LOST: Final = "Trying again: the broker has lost the job"


async def created(world: World, **values: object) -> TaskRecord:
    record = replace(a_record(), **values)  # pyright: ignore[reportArgumentType]
    await world.store.create(record, SNAPSHOT)
    return record


async def now(world: World, record: TaskRecord) -> TaskRecord:
    stored = await world.store.load(record.ref)
    assert stored is not None
    return stored.record


async def unclaimed(world: World) -> list[PublishedJob]:
    found = await world.recovery().sweep("reaper", POLICY)
    assert found is not None
    return list(found.unclaimed)


async def is_unclaimed(world: World, record: TaskRecord) -> bool:
    return record.key in {job.key for job in await unclaimed(world)}


async def the_unclaimed(world: World) -> PublishedJob:
    (job,) = await unclaimed(world)
    return job


def claim(world: World, record: TaskRecord, worker: str = WORKER, *, attempt: int = 1, retries: int = 0) -> bool:
    return world.ledger.claim(record.ref, attempt=attempt, retries=retries, claim=Claim(worker, now_ms()))


async def start(world: World, record: TaskRecord, worker: str = WORKER, *, attempt: int = 1, retries: int = 0) -> bool:
    granted = await world.store.start(
        record.ref, Start(attempt=attempt, retries=retries, at_ms=now_ms(), worker=worker)
    )
    return granted is not None


class TestIndex:
    async def test_a_new_job_is_unclaimed_until_a_worker_has_it(self, world: World) -> None:
        before = now_ms()
        record = await created(world)
        job = await the_unclaimed(world)
        assert (job.key, job.job_name) == (record.key, None)
        assert before - 1 <= job.at_ms <= now_ms() + 1
        assert claim(world, record)
        assert await unclaimed(world) == []

    async def test_an_unclaimed_job_has_its_own_name_where_it_is_not_its_components(self, world: World) -> None:
        await created(world, job_name="mcp.shop.sell")
        for _ in range(2):
            assert (await the_unclaimed(world)).job_name == "mcp.shop.sell"

    async def test_only_jobs_that_have_waited_are_looked_at(self, world: World) -> None:
        await created(world)
        found = await world.recovery().sweep("reaper", RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1))
        assert found is not None
        assert found.unclaimed == []

    async def test_exposed_jobs_are_never_among_the_unclaimed(self, world: World) -> None:
        await created(world, work=ForeignWork())
        assert await unclaimed(world) == []

    @pytest.mark.parametrize("worker", [WORKER, ""])
    async def test_a_job_that_starts_is_no_longer_unclaimed(self, world: World, worker: str) -> None:
        record = await created(world)
        assert await start(world, record, worker)
        assert await unclaimed(world) == []

    async def test_a_claim_of_another_attempt_leaves_the_job_unclaimed(self, world: World) -> None:
        record = await created(world)
        assert not claim(world, record, attempt=2)
        assert not await start(world, record, attempt=2)
        assert await is_unclaimed(world, record)

    @pytest.mark.parametrize("change", [Change(to="cancelled"), Change(to="failed")])
    async def test_a_task_that_ends_leaves_no_unclaimed_job(self, world: World, change: Change) -> None:
        record = await created(world)
        assert await world.store.change(record.ref, change)
        assert await unclaimed(world) == []

    async def test_a_task_that_is_taken_back_leaves_no_unclaimed_job(self, world: World) -> None:
        record = await created(world)
        assert await world.store.delete(record.ref)
        assert await unclaimed(world) == []

    async def test_a_task_that_expires_leaves_no_unclaimed_job(self, world: World) -> None:
        record = await created(world, ttl_ms=20)

        async def is_gone() -> bool:
            return await world.store.load(record.ref) is None

        await eventually(is_gone)
        assert await unclaimed(world) == []

    async def test_an_unclaimed_job_that_expired_unseen_is_forgotten_with_the_rest(self, in_redis: RedisWorld) -> None:
        record = await created(in_redis, ttl_ms=20)
        recovery = in_redis.recovery()
        patient = RecoveryPolicy(heartbeat_ms=20_000, max_redeliveries=1)
        found = await recovery.sweep("reaper", patient)
        assert found is not None
        client: Any = in_redis.client
        assert client.zscore(in_redis.keys.unclaimed, record.key)
        await recovery.forget(found.expiring)
        assert not client.exists(in_redis.keys.unclaimed)

    async def test_a_job_that_is_handed_back_is_unclaimed_again_when_it_is_published(self, world: World) -> None:
        record, recovery = await created(world, fingerprint="f"), world.recovery()
        await recovery.beat(SECOND, 60_000, {"f": "tool:build_report"})
        handback = HandBack(attempt=1, retries=0, worker=WORKER, key=record.key, most=1)
        assert (await world.store.hand_back(record.ref, handback)).verdict == "handed back"
        assert await unclaimed(world) == []
        await world.store.published(record.ref, attempt=2)
        assert await is_unclaimed(world, record)

    async def test_an_unclaimed_job_has_the_options_that_it_was_published_with(self, world: World) -> None:
        await created(world, fingerprint="f", options={"queue": "slow", "priority": 5}, declared_as="t://{id}")
        for _ in range(2):
            job = await the_unclaimed(world)
            assert (job.declared_as, job.options) == ("t://{id}", (("priority", 5), ("queue", "slow")))

    async def test_a_task_with_a_result_leaves_no_unclaimed_job(self, world: World) -> None:
        record = await created(world)
        assert claim(world, record)
        assert await start(world, record)
        await world.store.finish(record.ref, Change(to="completed", attempt=1), EncodedResult("result", "{}"))
        assert await unclaimed(world) == []

    async def test_unclaimed_jobs_are_read_in_parts_the_oldest_first(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for package in ("store", "testing"):
            monkeypatch.setattr(f"mcp_celery.{package}.recovery.UNCLAIMED_BATCH", 2)
        records = [await created(world) for _ in range(5)]
        recovery, found = world.recovery(), list[str]()
        for skipped in (0, 2, 4, 6):
            swept = await recovery.sweep("reaper", POLICY, skipped)
            assert swept is not None
            found += [job.key for job in swept.unclaimed]
        assert sorted(found) == sorted(record.key for record in records)


class TestJobsThatComeAgain:
    async def test_a_retry_is_unclaimed_until_a_worker_has_it(self, world: World) -> None:
        record = await created(world)
        assert claim(world, record)
        assert await start(world, record)
        at_ms = now_ms() - 100
        assert await world.store.change(record.ref, Change(to="working", attempt=1, retries=1, at_ms=at_ms))
        assert (await the_unclaimed(world)).at_ms == at_ms
        assert claim(world, record, retries=1)
        assert await unclaimed(world) == []

    async def test_a_delayed_retry_is_unclaimed_when_its_time_has_come(self, world: World) -> None:
        record = await created(world)
        assert await start(world, record)
        soon = now_ms() + 60_000
        assert await world.store.change(record.ref, Change(to="working", retries=1, retry_at_ms=soon))
        assert await unclaimed(world) == []
        late = now_ms() - 10
        assert await world.store.change(record.ref, Change(to="working", retries=1, retry_at_ms=late))
        assert (await the_unclaimed(world)).at_ms == late

    async def test_a_retry_that_was_claimed_before_its_record_changed_is_claimed(self, world: World) -> None:
        record = await created(world)
        assert await start(world, record)
        assert claim(world, record, SECOND, retries=1)
        assert await world.store.change(record.ref, Change(to="working", retries=1))
        assert await unclaimed(world) == []

    async def test_an_unclaimed_retry_is_removed_when_its_task_ends(self, world: World) -> None:
        record = await created(world)
        assert await start(world, record)
        assert await world.store.change(record.ref, Change(to="working", retries=1))
        assert await world.store.change(record.ref, Change(to="cancelled"))
        assert await unclaimed(world) == []

    async def test_progress_makes_no_job_unclaimed(self, world: World) -> None:
        record = await created(world)
        assert await start(world, record)
        assert await world.store.change(record.ref, Change(to="working", status_message="half", attempt=1))
        assert await unclaimed(world) == []

    async def test_the_next_leg_is_unclaimed_when_it_is_published(self, world: World) -> None:
        record = await created(world)
        assert claim(world, record)
        assert await start(world, record)
        leg = NextLeg(leg=2, job_id=celery_job_id(record.key, 2), request_state=None)
        assert await world.store.park(record.ref, [QUESTION], Asking(attempt=1, at_ms=1), leg)
        assert await world.store.answer(record.ref, {QUESTION.key: {}}, at_ms=1, start_before_ms=None)
        assert await unclaimed(world) == []
        await world.store.published(record.ref, attempt=1)
        assert await unclaimed(world) == []
        await world.store.published(record.ref, attempt=2)
        assert await is_unclaimed(world, record)
        assert claim(world, record, attempt=2)
        await world.store.published(record.ref, attempt=2)
        assert await unclaimed(world) == []

    async def test_the_job_of_a_dead_worker_is_unclaimed_when_it_is_published(self, world: World) -> None:
        record, recovery = await created(world), world.recovery()
        await recovery.beat(WORKER, 0)
        assert claim(world, record)
        assert await recovery.recover(record.key, WORKER, "died", POLICY) == "again"
        assert await unclaimed(world) == []
        await world.store.published(record.ref, attempt=2)
        assert await is_unclaimed(world, record)


class TestVerdicts:
    async def test_a_lost_job_is_published_again_in_the_same_attempt(self, world: World) -> None:
        record = await created(world)
        job = await the_unclaimed(world)
        told = world.told(record.ref)
        assert await world.recovery().lost(job, POLICY) == "again"
        assert world.is_due(record.ref)
        assert await unclaimed(world) == []
        after = await now(world, record)
        assert (after.status, after.status_message, after.attempt, after.redeliveries) == ("working", LOST, 1, 1)
        assert world.told(record.ref) == told + 1
        assert [one.cause for one in world.transitions][-1] == "recovered"

    async def test_a_job_that_is_lost_again_fails(self, world: World) -> None:
        record, recovery = await created(world), world.recovery()
        assert await recovery.lost(await the_unclaimed(world), POLICY) == "again"
        await world.store.published(record.ref, attempt=1)
        assert await recovery.lost(await the_unclaimed(world), POLICY) == "failed"
        failed = await now(world, record)
        assert failed.error is not None
        assert failed.error.message == failed.status_message
        assert failed.error.message.startswith("The broker lost the job")
        assert "MCP_CELERY_MAX_REDELIVERIES" in failed.error.message
        assert await world.store.snapshot(record.ref) is None
        assert await unclaimed(world) == []
        assert [one.cause for one in world.transitions][-1] == "failed"

    async def test_a_lost_job_fails_at_once_where_no_job_may_be_published_again(self, world: World) -> None:
        record = await created(world)
        never = replace(POLICY, max_redeliveries=0)
        assert await world.recovery().lost(await the_unclaimed(world), never) == "failed"
        assert (await now(world, record)).status == "failed"

    async def test_a_worker_that_claimed_the_job_meanwhile_keeps_it(self, world: World) -> None:
        record = await created(world)
        job = await the_unclaimed(world)
        assert claim(world, record)
        before = await now(world, record)
        assert await world.recovery().lost(job, POLICY) == "nothing"
        assert await now(world, record) == before

    async def test_a_worker_of_an_earlier_release_that_leaves_the_job_unclaimed_keeps_it(
        self, in_redis: RedisWorld
    ) -> None:
        record = await created(in_redis)
        job = await the_unclaimed(in_redis)
        assert claim(in_redis, record)
        client: Any = in_redis.client
        client.zadd(in_redis.keys.unclaimed, {record.key: job.at_ms})
        client.pexpire(in_redis.keys.unclaimed, 60_000)
        assert await in_redis.recovery().lost(job, POLICY) == "nothing"
        assert not client.exists(in_redis.keys.unclaimed)
        assert not in_redis.is_due(record.ref)

    @pytest.mark.parametrize("options", ["[", '{"queue": ["a"]}', "7"])
    async def test_a_record_that_cannot_be_read_is_left_out(
        self, in_redis: RedisWorld, options: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        damaged, record = await created(in_redis, fingerprint="f"), await created(in_redis)
        in_redis.client.hset(in_redis.keys.record(damaged.scope, damaged.task_id), "options", options)
        assert [job.key for job in await unclaimed(in_redis)] == [record.key]
        assert "its record cannot be read, or is another task's" in caplog.text

    async def test_a_job_that_was_published_since_is_not_lost(self, world: World) -> None:
        record = await created(world)
        job = await the_unclaimed(world)
        assert await world.recovery().lost(replace(job, at_ms=job.at_ms - 1), POLICY) == "nothing"
        assert await is_unclaimed(world, record)

    @pytest.mark.parametrize("end", ["cancelled", "gone"])
    async def test_a_task_that_has_ended_is_left_alone(self, world: World, end: str) -> None:
        record = await created(world)
        job = await the_unclaimed(world)
        if end == "gone":
            assert await world.store.delete(record.ref)
        else:
            assert await world.store.change(record.ref, Change(to="cancelled"))
        assert await world.recovery().lost(job, POLICY) == "nothing"
        assert not world.is_due(record.ref)

    async def test_a_lost_retry_runs_again_and_no_worker_before_it_has_it(self, world: World) -> None:
        record, recovery = await created(world), world.recovery()
        assert claim(world, record)
        assert await start(world, record)
        assert await world.store.change(record.ref, Change(to="working", retries=1, retry_at_ms=now_ms() - 1))
        assert await recovery.lost(await the_unclaimed(world), POLICY) == "again"
        assert list(await recovery.claimed(WORKER)) == []
        after = await now(world, record)
        assert (after.retries, after.claim, after.attempt) == (1, None, 1)
        await world.store.published(record.ref, attempt=1)
        assert not await start(world, record, retries=0)
        assert await start(world, record, SECOND, retries=1)

    async def test_however_many_messages_there_are_the_body_starts_once(self, world: World) -> None:
        record = await created(world)
        assert await world.recovery().lost(await the_unclaimed(world), POLICY) == "again"
        await world.store.published(record.ref, attempt=1)
        assert claim(world, record, WORKER)  # the old message was there after all
        assert claim(world, record, SECOND)
        assert await start(world, record, WORKER)
        assert not await start(world, record, SECOND)
        assert not claim(world, record, SECOND)
        after = await now(world, record)
        assert after.claim is not None
        assert after.claim.worker == WORKER

    async def test_the_result_of_an_old_message_is_kept(self, world: World) -> None:
        """The old message brings the job, which ends before the reaper has published it again."""
        record = await created(world)
        assert await world.recovery().lost(await the_unclaimed(world), POLICY) == "again"
        assert await start(world, record)
        outcome = JobOutcome({"content": []})
        world.put_result(record.job_id, "SUCCESS", outcome)
        assert await world.store.change(record.ref, Change(to="completed", attempt=1))
        queue, bin_ = MemoryTaskQueue(), Bin()
        reaper = Reaper(
            store=world.recovery(), tasks=world.store, queue=queue, results=bin_, declared=declared, policy=POLICY
        )
        await reaper._publish_due([record.key])  # pyright: ignore[reportPrivateUsage]
        assert (queue.published, bin_.forgotten) == ([], [])
        assert not world.is_due(record.ref)


class TestSamples:
    async def test_jobs_of_live_workers_are_seen(self, world: World) -> None:
        recovery = world.recovery()
        await recovery.beat(SECOND, 0)
        mine, theirs = await created(world), await created(world, job_name="mcp.shop.sell")
        assert claim(world, mine, WORKER)
        assert claim(world, theirs, SECOND)
        await recovery.beat(WORKER, 60_000)
        assert list(await recovery.some_claimed()) == [PublishedJob(mine.key, mine.created_at_ms)]
        await recovery.beat(SECOND, 60_000)
        assert {(job.key, job.job_name) for job in await recovery.some_claimed()} == {
            (mine.key, None),
            (theirs.key, "mcp.shop.sell"),
        }

    async def test_jobs_of_ended_tasks_are_not_among_the_claimed(self, world: World) -> None:
        recovery, record = world.recovery(), await created(world)
        assert claim(world, record)
        await recovery.beat(WORKER, 60_000)
        assert await world.store.change(record.ref, Change(to="cancelled"))
        assert list(await recovery.some_claimed()) == []


class TestUnreadMessages:
    async def since(self, world: World) -> int | None:
        found = await world.recovery().sweep("reaper", POLICY)
        assert found is not None
        return None if found.unread_since_ms is None else found.unread_since_ms - found.at_ms

    async def test_the_longest_time_without_reading_counts(self, world: World) -> None:
        recovery = world.recovery()
        await recovery.beat("reads", 60_000)
        assert await self.since(world) is None
        await recovery.beat(WORKER, 60_000, unread_ms=5_000)
        await recovery.beat(SECOND, 60_000, unread_ms=30_000)
        since = await self.since(world)
        assert since is not None
        assert -31_000 < since <= -30_000
        await recovery.beat(SECOND, 60_000)
        since = await self.since(world)
        assert since is not None
        assert -10_000 < since <= -5_000

    async def test_a_worker_that_is_gone_has_no_unread_messages(self, world: World) -> None:
        recovery = world.recovery()
        await recovery.beat(WORKER, 60_000, unread_ms=5_000)
        await recovery.bury(WORKER)
        assert await self.since(world) is None

    async def test_a_worker_that_an_earlier_release_removed_has_no_unread_messages(self, in_redis: RedisWorld) -> None:
        await in_redis.recovery().beat(WORKER, 60_000, unread_ms=5_000)
        client: Any = in_redis.client
        client.zrem(in_redis.keys.workers, WORKER)
        await self.since(in_redis)
        assert await self.since(in_redis) is None


class TestReaper:
    async def test_a_purged_job_is_published_again_once_and_then_fails(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.model.CLAIMING_MS", 20)
        quick = replace(POLICY, heartbeat_ms=1)
        queue = MemoryTaskQueue()
        queue.lengths["declared"] = 0
        reaper = Reaper(
            store=world.recovery(), tasks=world.store, queue=queue, results=Bin(), declared=declared, policy=quick
        )
        records = [await created(world) for _ in range(3)]
        running, exposed = await created(world), await created(world, work=ForeignWork())
        assert await start(world, running)

        async def swept_until(ids: list[str]) -> None:
            async def has_published() -> bool:
                await reaper.sweep()
                return sorted(record.task_id for record, _ in queue.published) == sorted(ids)

            await eventually(has_published)

        await swept_until([record.task_id for record in records])
        assert claim(world, records[0])

        async def have_failed() -> bool:
            await reaper.sweep()
            return all([(await now(world, record)).status == "failed" for record in records[1:]])

        await eventually(have_failed)
        assert len(queue.published) == 3
        for record in (records[0], running, exposed):
            assert (await now(world, record)).status == "working"
        await reaper.resign()
