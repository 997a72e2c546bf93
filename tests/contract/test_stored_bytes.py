"""How many bytes are kept for a requestor: requests of open tasks, records, results. Over memory and Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
import redis
from mcp_types.version import LATEST_HANDSHAKE_VERSION
from redis.exceptions import NoPermissionError

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    RECORD_BYTES,
    Asking,
    Change,
    EncodedResult,
    Extension,
    JobOutcome,
    Question,
    Quota,
    TaskEngine,
    TaskRecord,
    now_ms,
    success,
)
from mcp_celery.errors import (
    INVALID_PARAMS,
    LIMIT_EXCEEDED,
    ArgumentsTooLargeError,
    StoreUnavailableError,
    TooManyBytesError,
)
from mcp_celery.store import StoreMemory
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, LIMITS, RedisWorld, Watchful, World, a_record, a_submission

pytestmark = pytest.mark.anyio

REQUEST_BYTES: Final = 10_000
BIG: Final = TaskContextSnapshot(protocol_version="2026-07-28", params={"arguments": {"text": "x" * REQUEST_BYTES}})
TWO: Final = Quota("alice", bytes=2 * REQUEST_BYTES + 3 * RECORD_BYTES + 500)
"""Room for two big requests."""


async def keep(world: World, quota: Quota = TWO, **values: Any) -> TaskRecord:
    record = a_record(**values)
    await world.store.create(record, BIG, quota)
    return record


async def is_full(world: World, quota: Quota = TWO) -> bool:
    """Whether there is no room for one more; leaves it as it was."""
    try:
        record = await keep(world, quota)
    except TooManyBytesError:
        return True
    await world.store.delete(record.ref)
    return False


async def test_above_the_limit_nothing_is_created_and_the_error_says_when_it_may_be(world: World) -> None:
    await keep(world, ttl_ms=30_000)
    await keep(world)
    with pytest.raises(TooManyBytesError) as refusal:
        await keep(world)
    assert refusal.value.code == LIMIT_EXCEEDED
    data: Any = refusal.value.data
    assert 20_000 < data.pop("retryAfterMs") <= 30_000
    assert data == {"limit": "stored_bytes", "most": TWO.bytes}


async def test_a_request_above_the_limit_by_itself_is_refused(world: World) -> None:
    assert await is_full(world, Quota("alice", bytes=REQUEST_BYTES))


async def test_another_requestor_has_a_limit_of_its_own(world: World) -> None:
    for requestor in ("alice", "bob"):
        quota = replace(TWO, requestor=requestor)
        assert [await is_full(world, quota), await keep(world, quota), await keep(world, quota)][0] is False
        assert await is_full(world, quota)


async def test_the_request_of_a_task_that_has_ended_counts_no_more(world: World) -> None:
    first, _ = await keep(world), await keep(world)
    assert await is_full(world)
    await world.store.change(first.ref, Change(to="cancelled"))
    assert not await is_full(world)


async def test_tasks_that_were_taken_back_or_have_expired_count_no_more(world: World) -> None:
    first, _ = await keep(world), await keep(world, ttl_ms=1_000)
    assert await is_full(world)
    assert await world.store.delete(first.ref)
    assert not await is_full(world)
    await keep(world)
    assert await is_full(world)
    await eventually(lambda: _has_room(world), what="the task has expired")


async def _has_room(world: World) -> bool:
    return not await is_full(world)


async def test_the_bytes_of_records_count_too(world: World) -> None:
    for _ in range(9):
        record = await keep(world, replace(TWO, bytes=1_000_000))
        await world.store.change(record.ref, Change(to="failed"))
    assert await is_full(world, Quota("alice", bytes=9 * RECORD_BYTES + REQUEST_BYTES))
    assert not await is_full(world, Quota("alice", bytes=11 * RECORD_BYTES + REQUEST_BYTES))


class TestInRedis:
    async def test_a_result_counts_until_its_task_expires(self, in_redis: RedisWorld) -> None:
        record = await keep(in_redis)
        change = replace(success(JobOutcome({"content": []})), attempt=1)
        result = EncodedResult(f"{in_redis.prefix}:result", "r" * 2 * REQUEST_BYTES)
        assert await in_redis.store.finish(record.ref, change, result)
        assert await is_full(in_redis)

    async def test_a_creation_that_is_asked_for_twice_counts_once(self, in_redis: RedisWorld) -> None:
        """As redis-py does when the connection breaks before the answer."""
        record = a_record()
        for _ in range(2):
            await in_redis.store.create(record, BIG, TWO)
        assert not await is_full(in_redis)

    async def test_a_task_counts_until_it_expires(self, in_redis: RedisWorld) -> None:
        await keep(in_redis)
        brief = await keep(in_redis, ttl_ms=1_000)
        until = Extension(until_ms=now_ms() + 50_000, max_ttl_ms=60_000)
        assert await in_redis.store.ask(
            brief.ref, Question("k", "roots/list", {}), Asking(attempt=1, at_ms=now_ms(), extension=until)
        )
        await eventually(lambda: now_ms() > brief.expires_at_ms)
        assert await is_full(in_redis)

    async def test_the_counted_bytes_are_right_and_gone_with_the_last_task(self, in_redis: RedisWorld) -> None:
        index = in_redis.keys.counted("stored", "alice")
        for ttl_ms in (50_000, 90_000):
            record = await keep(in_redis, ttl_ms=ttl_ms)
            for key in (index, f"{index}:bytes"):
                left: Any = in_redis.client.pttl(key)
                assert ttl_ms - 10_000 < left <= ttl_ms + 1_000
        await in_redis.store.change(record.ref, Change(to="failed"))
        sizes: Any = in_redis.client.hgetall(f"{index}:bytes")
        total = int(sizes.pop(b""))
        assert total == sum(map(int, sizes.values()))
        assert int(sizes[record.key.encode()]) == RECORD_BYTES

    async def test_a_refused_task_leaves_no_key(self, in_redis: RedisWorld) -> None:
        await keep(in_redis)
        await keep(in_redis)
        before = in_redis.keys_left()
        assert await is_full(in_redis)
        assert in_redis.keys_left() == before


class TestArguments:
    async def test_a_request_that_is_too_large_becomes_no_task(self, world: World, queue: Watchful) -> None:
        limits = replace(LIMITS, max_argument_bytes=200)
        engine = TaskEngine(
            store=world.store,
            queue=queue,
            bus=world.bus,
            results=world.results,
            limits=limits,
            answer_version=LATEST_HANDSHAKE_VERSION,
        )
        for big in (BIG, replace(BIG, params={}, meta={"junk": "x" * 200})):
            with pytest.raises(ArgumentsTooLargeError) as refusal:
                await engine.submit(replace(a_submission(), snapshot=big))
            assert refusal.value.code == INVALID_PARAMS
            assert "this server takes 200 (MCP_CELERY_MAX_ARGUMENT_BYTES)" in str(refusal.value)
        assert (await engine.list(ALICE)).records == []


class Redis:
    """Says how full it is."""

    def __init__(self, used: int, most: int = 1_000) -> None:
        self.info: dict[str, Any] = {"maxmemory": most, "used_memory": used}
        self.looks = 0
        self.now = 100.0
        self.memory = StoreMemory(90, clock=lambda: self.now)

    async def look(self) -> dict[str, Any]:
        self.looks += 1
        return self.info

    async def has_room(self, size: int) -> bool:
        return await self.memory.has_room(size, self.look)


class TestMemory:
    async def test_tasks_accepted_between_two_measurements_count(self) -> None:
        store = Redis(used=400)
        assert [await store.has_room(200) for _ in range(4)] == [True, True, False, False]
        assert store.looks == 1
        store.now += 1.0
        store.info["used_memory"] = 0
        assert await store.has_room(900)
        assert not await store.has_room(1)
        assert store.looks == 2

    async def test_a_full_store_is_measured_again_soon(self) -> None:
        store = Redis(used=950)
        assert not await store.has_room(1)
        store.info["used_memory"] = 100
        store.now += 0.2
        assert await store.has_room(1)

    async def test_without_maxmemory_there_is_always_room(self) -> None:
        store = Redis(used=10**12, most=0)
        assert await store.has_room(10**9)

    async def test_a_store_that_refuses_to_say_is_asked_once(self, caplog: pytest.LogCaptureFixture) -> None:
        store = Redis(used=0)

        async def refuse() -> dict[str, Any]:
            store.looks += 1
            raise StoreUnavailableError from NoPermissionError("no permissions")

        for _ in range(3):
            assert await store.memory.has_room(10**9, refuse)
        assert store.looks == 1
        assert "MCP_CELERY_MAX_STORE_MEMORY_PERCENT has no effect" in caplog.text

    async def test_an_outage_while_measuring_is_reported_as_one(self) -> None:
        async def fail() -> dict[str, Any]:
            raise StoreUnavailableError from redis.ConnectionError()

        with pytest.raises(StoreUnavailableError):
            await StoreMemory(90).has_room(1, fail)
