"""What a sweep finds in Redis, at times that are minutes apart, so that no test depends on how fast it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mcp_celery.engine import OWN_WORK, Asking, Change, Claim, ForeignWork, NextLeg, Question, TaskRecord, Work, now_ms
from mcp_celery.engine.recovery.model import Expiring, RecoveryPolicy, Sweep
from mcp_celery.keys import Hidden
from mcp_celery.store.keys import INDEX_LIFETIME_MS
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000
POLICY = RecoveryPolicy(heartbeat_ms=100_000, max_redeliveries=1)
"""With a lease of five minutes."""


async def swept(world: World) -> Sweep:
    found = await world.recovery().sweep("me", POLICY)
    assert found is not None
    return found


def put(world: RedisWorld, index: str, **minutes_from_now: int) -> None:
    """Add members to an index, at so many minutes from now."""
    client: Any = world.client
    client.zadd(index, {name: now_ms() + MINUTE_MS * minutes for name, minutes in minutes_from_now.items()})
    client.pexpire(index, INDEX_LIFETIME_MS)


async def created(world: World, *, minutes: int, work: Work = OWN_WORK) -> TaskRecord:
    record = replace(a_record(ttl_ms=minutes * MINUTE_MS), work=work)
    await world.store.create(record, SNAPSHOT)
    return record


async def test_workers_are_dead_whose_heartbeat_has_ended(in_redis: RedisWorld) -> None:
    put(in_redis, in_redis.keys.workers, dead=-1, alive=1)
    assert list((await swept(in_redis)).dead) == ["dead"]


async def test_a_heartbeat_holds_for_its_own_lease(in_redis: RedisWorld) -> None:
    await in_redis.recovery().beat("worker", 5 * MINUTE_MS)
    assert list((await swept(in_redis)).dead) == []
    ends: Any = in_redis.client.zscore(in_redis.keys.workers, "worker")
    assert 4 * MINUTE_MS < ends - now_ms() <= 5 * MINUTE_MS


async def test_a_job_is_due_when_the_grace_period_of_its_publisher_has_passed(in_redis: RedisWorld) -> None:
    long_ago, now = a_record().key, a_record().key
    put(in_redis, in_redis.keys.due, **{long_ago: -1, now: 0})
    assert list((await swept(in_redis)).due) == [long_ago]


async def test_a_sweep_returns_tasks_that_expire_within_a_lease_or_have_expired(in_redis: RedisWorld) -> None:
    soon, later = await created(in_redis, minutes=3), await created(in_redis, minutes=7)
    gone = [a_record().key for _ in range(2)]
    put(in_redis, in_redis.keys.expiry, **{gone[0]: -3, gone[1]: -7})
    left = {one.key: round(one.left_ms / MINUTE_MS) for one in (await swept(in_redis)).expiring}
    assert left == {gone[1]: -7, gone[0]: -3, soon.key: 3}
    assert later.key not in left


async def test_a_sweep_takes_what_has_expired_off_the_index_of_ended_tasks(
    in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_celery.store.recovery.TRIMMED", 2)
    put(in_redis, in_redis.keys.ended, one=-3, two=-2, three=-1, four=3)
    assert list((await swept(in_redis)).expiring) == []
    assert in_redis.client.zrange(in_redis.keys.ended, 0, -1) == [b"three", b"four"]
    for _ in range(2):
        await swept(in_redis)
        assert in_redis.client.zrange(in_redis.keys.ended, 0, -1) == [b"four"]


async def test_a_sweep_says_of_an_expiring_task_whether_its_job_is_open(world: World) -> None:
    record = await created(world, minutes=3)
    (found,) = (await swept(world)).expiring
    assert (found.key, found.leg, found.is_open, found.worker) == (record.key, 1, True, None)


async def test_a_task_that_expired_before_any_sweep_saw_it_is_known_as_well(in_redis: RedisWorld) -> None:
    world, work = in_redis, ForeignWork(parts=2, gathered=1, may_terminate=True)
    exposed, ended, continued, claimed = tasks = [
        await created(world, minutes=3, work=one) for one in (work, OWN_WORK, OWN_WORK, OWN_WORK)
    ]
    assert await world.store.change(ended.ref, Change(to="cancelled", at_ms=now_ms()))
    question, leg = Question("!1:q", "roots/list", {}), NextLeg(leg=2, job_id="", request_state=None)
    assert await world.store.park(continued.ref, [question], Asking(attempt=1, at_ms=now_ms()), leg)
    assert world.ledger.claim(claimed.ref, attempt=1, claim=Claim("w1", now_ms()))
    world.client.delete(*(world.keys.record(one.scope, one.task_id) for one in tasks))
    found = (await swept(world)).expiring
    assert {one.key: replace(one, left_ms=0) for one in found} == {
        exposed.key: Expiring(exposed.key, 0, status="working", work=work),
        ended.key: Expiring(ended.key, 0, status="cancelled"),
        continued.key: Expiring(continued.key, 0, leg=2, status="input_required", attempt=2),
        claimed.key: Expiring(claimed.key, 0, status="working", worker="w1"),
    }
    await world.recovery().forget(found)
    assert not world.client.exists(world.keys.remembered, world.keys.expiry, world.keys.claims("w1"))


async def test_whether_the_jobs_of_an_expired_task_hide_its_id_is_known(world: World) -> None:
    record = replace(a_record(ttl_ms=3 * MINUTE_MS, scope=None), hidden=Hidden.TASK_ID)
    await world.store.create(record, SNAPSHOT)
    (found,) = (await swept(world)).expiring
    assert (found.hidden, found.job_ids) == (Hidden.TASK_ID, [record.job_id])


async def test_what_the_previous_release_kept_of_a_task_is_read(in_redis: RedisWorld) -> None:
    record = await created(in_redis, minutes=3)
    in_redis.client.hset(in_redis.keys.remembered, record.key, "[2,true,false,false]")
    (found,) = (await swept(in_redis)).expiring
    assert replace(found, left_ms=0) == Expiring(record.key, 0, leg=2, status="working")


async def test_what_0_1_0_kept_of_a_task_that_expires_is_read(in_redis: RedisWorld) -> None:
    record = await created(in_redis, minutes=3, work=ForeignWork(parts=2))
    in_redis.client.delete(in_redis.keys.remembered)
    (found,) = (await swept(in_redis)).expiring
    assert replace(found, left_ms=0) == Expiring(record.key, 0, status="working", work=ForeignWork(parts=2))


async def test_an_election_ends_with_a_lease(in_redis: RedisWorld) -> None:
    await swept(in_redis)
    left: Any = in_redis.client.pttl(in_redis.keys.reaper)
    assert 4 * MINUTE_MS < left <= 5 * MINUTE_MS
    assert await in_redis.recovery().sweep("another", POLICY) is None
    await swept(in_redis)
