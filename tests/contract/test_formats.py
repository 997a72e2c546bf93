"""A record that a later release wrote is refused, and stays where processes of that release find it."""

import asyncio
import logging
from dataclasses import replace

import pytest

from mcp_celery.common.formats import FORMAT
from mcp_celery.engine import ELICIT, Asking, ForeignWork, Question, TaskRecord
from mcp_celery.engine.followup_jobs import as_itself
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.errors import StoredDataError
from mcp_celery.store import RedisExposed, RedisRecovery
from mcp_celery.testing import MemoryTaskQueue, MemoryTaskResults
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

LATER = FORMAT + 1
REFUSED = f"the record has format {LATER}; this release reads formats up to {FORMAT}: upgrade it"


async def written_later(world: RedisWorld, record: TaskRecord) -> TaskRecord:
    """A task whose record a later release wrote."""
    await world.store.create(record, SNAPSHOT)
    world.client.hset(world.keys.record(record.scope, record.task_id), "format", LATER)
    return record


async def test_a_record_says_its_format(in_redis: RedisWorld) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT)
    key = in_redis.keys.record(record.scope, record.task_id)
    assert in_redis.client.hget(key, "format") == str(FORMAT).encode()
    in_redis.client.hdel(key, "format")  # as 0.1.0 wrote it
    stored = await in_redis.store.load(record.ref)
    assert stored is not None
    assert stored.record == record


async def test_a_record_of_a_later_format_is_not_read(in_redis: RedisWorld) -> None:
    record = await written_later(in_redis, a_record())
    with pytest.raises(StoredDataError, match="was written by a later release") as refused:
        await in_redis.store.load(record.ref)
    assert refused.value.fault == "newer"
    assert REFUSED in refused.value.reason


async def test_the_questions_of_a_record_of_a_later_format_stay(in_redis: RedisWorld) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT)
    assert await in_redis.store.ask(record.ref, Question("q", ELICIT, {}), Asking(attempt=1, at_ms=1))
    questions = in_redis.keys.questions(record.scope, record.task_id)
    in_redis.client.hset(questions, "of a later form", "2")
    in_redis.client.hset(in_redis.keys.record(record.scope, record.task_id), "format", LATER)
    assert await in_redis.store.load_many([record.ref]) == [None]
    assert in_redis.client.hlen(questions) == 2


async def test_a_record_of_a_later_format_stays_in_its_owners_list(
    in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    readable, later = a_record(), await written_later(in_redis, a_record())
    await in_redis.store.create(readable, SNAPSHOT)
    page = await in_redis.store.page(readable.owner, before=None, limit=10)
    assert [stored.record.task_id for stored in page] == [readable.task_id]
    assert REFUSED in caplog.text
    index = in_redis.keys.index(later.scope, later.issuer, later.session)
    assert index is not None
    assert in_redis.client.zcard(index) == 2


def reaper_of(world: RedisWorld, queue: MemoryTaskQueue) -> Reaper:
    return Reaper(
        store=RedisRecovery(world.store),
        tasks=world.store,
        queue=queue,
        results=MemoryTaskResults(),  # pyright: ignore[reportArgumentType] - none is forgotten
        declared=as_itself,
        policy=RecoveryPolicy(heartbeat_ms=10, max_redeliveries=1),
    )


async def test_an_abandoned_task_of_a_later_format_stays_for_processes_that_can_cancel_it(
    in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    record = await written_later(in_redis, replace(a_record(), abandon_after_ms=1))
    damaged = replace(a_record(), abandon_after_ms=1)
    await in_redis.store.create(damaged, SNAPSHOT)
    in_redis.client.hset(in_redis.keys.record(damaged.scope, damaged.task_id), "ttl_ms", "soon")
    reaper, recovery = reaper_of(in_redis, MemoryTaskQueue()), in_redis.recovery()

    async def has_looked() -> bool:
        await reaper.sweep()
        return REFUSED in caplog.text and await recovery.attended_until_ms(damaged.key) is None

    await eventually(has_looked, what="the reaper, which trusts deaths after a while, looks at both")
    await reaper.resign()
    assert await recovery.attended_until_ms(record.key) is not None


async def test_the_job_of_a_record_of_a_later_format_stays_due(
    in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    record = await written_later(in_redis, a_record())
    in_redis.client.zadd(in_redis.keys.due, {record.key: 1})
    in_redis.client.expire(in_redis.keys.due, 60)
    queue = MemoryTaskQueue()
    reaper = reaper_of(in_redis, queue)
    await reaper.sweep()
    await reaper.resign()
    assert in_redis.client.zscore(in_redis.keys.due, record.key) is not None
    assert REFUSED in caplog.text
    assert queue.published == []


async def test_the_foreign_jobs_of_a_record_of_a_later_format_stay_watched(
    in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    record = await written_later(in_redis, replace(a_record(), work=ForeignWork(parts=1)))
    await asyncio.sleep(0)
    found = await RedisExposed(in_redis.store).due(1_000, 10)
    assert (found.open, list(found.records)) == (1, [])
    assert in_redis.client.zscore(in_redis.keys.exposed, record.key) is not None
    with caplog.at_level(logging.ERROR):
        assert REFUSED in caplog.text
