"""A job's end with its result, which are one step."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from mcp_celery.engine import (
    ELICIT,
    Asking,
    Change,
    Claim,
    EncodedResult,
    JobOutcome,
    NextLeg,
    Question,
    StoredResult,
    TaskRecord,
    TaskRef,
    success,
)
from mcp_celery.store.inspection import RedisInspection
from tests.support.worlds import SNAPSHOT, TIMEOUT_SECONDS, RedisWorld, World, a_record, open_tasks

pytestmark = pytest.mark.anyio

DONE = replace(success(JobOutcome({"content": []}, "done")), attempt=1)
PAYLOAD = '["SUCCESS", {"content": []}]'
STORED = StoredResult("SUCCESS", {"content": []})
WORKER = "celery@host/1"


class Finishing:
    """A task whose job is about to end, told by the store or by the ledger."""

    def __init__(self, world: World, record: TaskRecord, teller: str) -> None:
        self.world, self.record, self._teller = world, record, teller
        prefix = world.prefix if isinstance(world, RedisWorld) else "memory"
        self.result = EncodedResult(f"{prefix}:result:{record.job_id}", PAYLOAD)

    async def finish(self, change: Change = DONE, ref: TaskRef | None = None) -> bool:
        if self._teller == "store":
            return await self.world.store.finish(ref or self.record.ref, change, self.result)
        return await asyncio.to_thread(self.world.ledger.finish, ref or self.record.ref, change, self.result)

    async def now(self) -> TaskRecord:
        stored = await self.world.store.load(self.record.ref)
        assert stored is not None
        return stored.record

    async def stored(self) -> StoredResult | None:
        stored = await self.world.store.load(self.record.ref)
        return None if stored is None else stored.result


@pytest.fixture(params=["store", "ledger"])
async def job(world: World, request: pytest.FixtureRequest) -> Finishing:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    return Finishing(world, record, request.param)


@pytest.fixture(params=["store", "ledger"])
async def job_in_redis(in_redis: RedisWorld, request: pytest.FixtureRequest) -> Finishing:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT)
    return Finishing(in_redis, record, request.param)


async def test_an_ended_tasks_record_names_nothing_that_is_gone(in_redis: RedisWorld) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT, open_tasks("r", 1))
    client, key = in_redis.client, in_redis.keys.record(record.scope, record.task_id)
    assert None not in client.hmget(key, ["snapshot_key", "counted_in"])
    assert await Finishing(in_redis, record, "store").finish()
    assert client.hmget(key, ["snapshot_key", "counted_in"]) == [None, None]


async def test_the_result_is_stored_for_as_long_as_the_record_and_the_task_has_ended(job: Finishing) -> None:
    assert await job.finish()
    assert await job.stored() == STORED
    if isinstance(job.world, RedisWorld):
        assert job.world.client.get(job.result.key) == PAYLOAD.encode()
        left: Any = job.world.client.pttl(job.result.key)
        assert 0 < left <= job.record.ttl_ms
    ended = await job.now()
    assert (ended.status, ended.status_message, ended.revision) == ("completed", "done", 2)
    assert job.world.told(job.record.ref) == 1
    assert await job.world.store.snapshot(job.record.ref) is None


class TestTheReaperNeedNotLookAtATaskThatEndedBesideItsResult:
    async def test_it_changes_the_index(self, in_redis: RedisWorld) -> None:
        record, keys = await self.ended(in_redis), in_redis.keys
        assert in_redis.client.zscore(keys.expiry, record.key) is None
        assert in_redis.client.zscore(keys.ended, record.key) == record.expires_at_ms
        assert not in_redis.client.hexists(keys.remembered, record.key)

    async def test_one_with_results_of_earlier_legs_does_not(self, in_redis: RedisWorld) -> None:
        record, keys = a_record(), in_redis.keys
        await in_redis.store.create(record, SNAPSHOT)
        leg = NextLeg(leg=2, job_id="", request_state=None)
        assert await in_redis.store.park(record.ref, [], Asking(attempt=1, at_ms=1), leg)
        assert await Finishing(in_redis, record, "store").finish(replace(DONE, attempt=2))
        assert in_redis.client.zscore(keys.expiry, record.key) == record.expires_at_ms
        assert in_redis.client.hexists(keys.remembered, record.key)
        assert not in_redis.client.exists(keys.ended)

    async def test_operators_find_it(self, in_redis: RedisWorld) -> None:
        ended, working = await self.ended(in_redis), a_record()
        await in_redis.store.create(working, SNAPSHOT)
        inspection = RedisInspection(in_redis.store)
        assert {task.record.key async for page in inspection.pages() for task in page} == {ended.key, working.key}
        assert await inspection.number() == 2
        assert await inspection.find(ended.task_id[:10], most=2) == [ended.key]

    async def test_each_task_is_listed_once_whatever_ends_meanwhile(
        self, in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.store.inspection.PAGE", 2)
        first = a_record()
        together = [replace(a_record(), created_at_ms=first.created_at_ms) for _ in range(5)]
        records = {record.key: record for record in (first, *together, a_record(ttl_ms=9_000))}
        for record in records.values():
            await in_redis.store.create(record, SNAPSHOT)
        listed: list[str] = []
        async for page in RedisInspection(in_redis.store).pages():
            listed += [task.record.key for task in page]
            rest = [key for key in records if key not in listed]
            for key in {listed[-1], *rest[:1]}:
                await Finishing(in_redis, records[key], "store").finish()
        assert sorted(listed) == sorted(records)

    async def test_it_can_go_before_its_time(self, in_redis: RedisWorld) -> None:
        record, keys = await self.ended(in_redis), in_redis.keys
        await in_redis.store.retire(record.ref, record.created_at_ms + 5_000)
        assert in_redis.client.zscore(keys.ended, record.key) == record.created_at_ms + 5_000
        assert in_redis.client.zscore(keys.expiry, record.key) is None

    @staticmethod
    async def ended(world: RedisWorld) -> TaskRecord:
        record = a_record()
        await world.store.create(record, SNAPSHOT)
        assert await Finishing(world, record, "store").finish()
        return record


async def test_a_subscriber_of_the_result_is_notified(job_in_redis: Finishing, in_redis: RedisWorld) -> None:
    job = job_in_redis
    pubsub: Any = in_redis.client.pubsub()
    with pubsub as waiting:
        waiting.subscribe(job.result.key)
        assert waiting.get_message(timeout=TIMEOUT_SECONDS)
        assert await job.finish()
        message: Any = waiting.get_message(timeout=TIMEOUT_SECONDS)
    assert message["data"] == PAYLOAD.encode()


@pytest.mark.parametrize("why", ["another attempt", "the end"])
async def test_a_result_that_comes_too_late_is_not_stored(job: Finishing, why: str) -> None:
    if why == "the end":
        assert await job.world.store.change(job.record.ref, Change(to="cancelled"))
    before, told = await job.now(), job.world.told(job.record.ref)
    assert not await job.finish(replace(DONE, attempt=2) if why == "another attempt" else DONE)
    assert await job.stored() is None
    assert await job.now() == before
    assert job.world.told(job.record.ref) == told


async def test_a_task_that_is_gone_has_no_result(job: Finishing) -> None:
    assert not await job.finish(ref=TaskRef(None, "no-such-task"))
    assert await job.stored() is None


async def test_the_end_takes_questions_answers_and_the_claim_away(job: Finishing) -> None:
    world, ref = job.world, job.record.ref
    assert world.ledger.claim(ref, attempt=1, claim=Claim(WORKER, 1))
    for key in ("one", "two"):
        assert await world.store.ask(ref, Question(key, ELICIT, {}), Asking(attempt=1, at_ms=1))
    assert await world.store.answer(ref, {"one": {}}, at_ms=1, start_before_ms=None)
    assert list(await world.recovery().claimed(WORKER)) == [job.record.key]
    if not isinstance(world, RedisWorld):
        assert await job.finish()
    else:
        names = [world.keys.questions(*_place(ref)), world.keys.answers(*_place(ref)), world.keys.claims(WORKER)]
        assert world.client.exists(*names) == 3
        assert await job.finish()
        assert world.client.exists(*names) == 0
    stored = await world.store.load(ref)
    assert stored is not None
    assert list(stored.questions) == []
    assert list(await world.recovery().claimed(WORKER)) == []


def _place(ref: TaskRef) -> tuple[str | None, str]:
    return ref.scope, ref.task_id
