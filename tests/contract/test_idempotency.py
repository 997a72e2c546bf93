"""Requests with an idempotency key: one task, however often and wherever they come. Over memory and Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final, cast

import pytest

from mcp_celery.engine import (
    Caller,
    Change,
    ForeignWork,
    Idempotency,
    Submission,
    TaskEngine,
    TaskRecord,
    idempotency_of,
    now_ms,
)
from mcp_celery.engine.recovery.model import PUBLISHING_MS
from mcp_celery.errors import (
    INVALID_PARAMS,
    IdempotencyKeyReusedError,
    InvalidIdempotencyKeyError,
    QueueUnavailableError,
    TooManyTasksError,
)
from tests.support.waiting import eventually, soon
from tests.support.worlds import (
    ALICE,
    SNAPSHOT,
    RedisWorld,
    Watchful,
    World,
    a_record,
    a_submission,
    engine_of,
    open_tasks,
)

pytestmark = pytest.mark.anyio

KEY: Final = "order 7"
RANDOM: Final = "AAAAAAAAAAAAAAAAAAAAA-"
ONCE: Final = Idempotency("k" * 64, "r" * 64)
BOB: Final = Caller("client-a|bob", ALICE.issuer)
ELSEWHERE: Final = replace(ALICE, issuer="https://other.example")


def keyed(caller: Caller = ALICE, key: object = KEY, **changes: Any) -> Submission:
    submission = replace(a_submission(caller), **changes)
    return replace(submission, idempotency=idempotency_of(key, submission))


def died_while_publishing(world: World, record: TaskRecord) -> None:
    """Let the request that has created a task have died a while ago."""
    past = now_ms() - PUBLISHING_MS
    if isinstance(world, RedisWorld):
        cast(Any, world.client).hset(world.keys.once(ONCE.name), "publishing", past)
    else:
        kept = cast(Any, world.ledger)._kept
        kept._once[kept.get(record.ref).once].publishing_ms = past


async def test_of_requests_that_race_on_all_replicas_one_makes_the_task(world: World, queue: Watchful) -> None:
    servers = [engine_of(world, queue) for _ in range(3)]
    made = await soon(asyncio.gather(*(servers[number % 3].submit(keyed()) for number in range(30))))
    assert len({record.task_id for record in made}) == 1
    assert len(queue.published) == 1
    assert [one.cause for one in world.transitions if one.cause == "submitted"] == ["submitted"]


async def test_the_key_finds_the_same_task_also_when_it_has_ended(
    world: World, queue: Watchful, engine: TaskEngine
) -> None:
    first = await engine.submit(keyed())
    await world.store.change(first.ref, Change(to="completed"))
    again = await engine.submit(keyed())
    assert (again.task_id, again.status) == (first.task_id, "completed")
    assert len(queue.published) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"snapshot": replace(SNAPSHOT, params={"name": "build_report", "arguments": {"year": 2027}})},
        {"component": "another"},
        {"task_type": "prompt"},
        {"ttl_ms": 5},
    ],
)
async def test_another_request_under_the_same_key_is_refused(engine: TaskEngine, changes: Any) -> None:
    await engine.submit(keyed())
    with pytest.raises(IdempotencyKeyReusedError, match="used for another request") as refusal:
        await engine.submit(keyed(**changes))
    assert refusal.value.code == INVALID_PARAMS
    assert len((await engine.list(ALICE)).records) == 1


async def test_request_ids_traces_and_the_order_of_arguments_do_not_make_another_request(engine: TaskEngine) -> None:
    other = replace(SNAPSHOT, request_id=9, progress_token=9, meta={"trace": "x"}, traceparent="y")
    arguments = {"arguments": {"year": 2026}, "name": "build_report"}  # in another order
    first = await engine.submit(keyed())
    again = await engine.submit(keyed(snapshot=replace(other, params=arguments)))
    assert again.task_id == first.task_id


async def test_the_same_key_of_another_caller_makes_another_task(engine: TaskEngine) -> None:
    sessions = [Caller(None, session=name, requestor=f"session {name}") for name in "ab"]
    callers = [ALICE, BOB, ELSEWHERE, *sessions]
    made = [await engine.submit(keyed(caller)) for caller in callers]
    assert len({record.task_id for record in made}) == len(callers)
    again = [await engine.submit(keyed(caller)) for caller in callers]
    assert [one.task_id for one in again] == [one.task_id for one in made]


@pytest.mark.parametrize("caller", [Caller(), Caller(requestor="an address", is_shared=True)])
async def test_keys_that_anonymous_callers_share_have_to_be_random(engine: TaskEngine, caller: Caller) -> None:
    for guessable in (KEY, RANDOM[1:], RANDOM + "."):
        with pytest.raises(InvalidIdempotencyKeyError, match="22 or more base64url characters") as refusal:
            keyed(caller, guessable)
        assert refusal.value.code == INVALID_PARAMS
        assert guessable not in str(refusal.value)
    first = await engine.submit(keyed(caller, RANDOM))
    assert (await engine.submit(keyed(caller, RANDOM))).task_id == first.task_id


@pytest.mark.parametrize("key", ["", 7, ["a"], "a\nb", "x" * 256, "\xe9"])
async def test_keys_of_another_form_are_refused(key: object) -> None:
    with pytest.raises(InvalidIdempotencyKeyError, match=r"mcp-celery/idempotency-key.*1 to 255 printable ASCII"):
        keyed(key=key)


async def test_a_task_that_is_there_is_no_task_too_many(world: World, queue: Watchful) -> None:
    caller = replace(ALICE, requestor="alice")
    engine = engine_of(world, queue, max_open_tasks=1, max_stored_bytes=3_000)
    first = await engine.submit(keyed(caller))
    with pytest.raises(TooManyTasksError):
        await engine_of(world, queue, max_open_tasks=1).submit(a_submission(caller))
    queue.most = 1  # no further job is taken
    assert (await engine.submit(keyed(caller))).task_id == first.task_id


async def test_a_creation_that_failed_leaves_its_key_free(queue: Watchful, engine: TaskEngine) -> None:
    queue.fail()
    with pytest.raises(QueueUnavailableError):
        await engine.submit(keyed())
    queue.recover()
    record = await engine.submit(keyed(ttl_ms=5_000))
    assert [one.task_id for one, _ in queue.published] == [record.task_id]


@pytest.mark.parametrize("is_published", [True, False])
async def test_a_repeat_waits_until_the_creation_is_published_or_failed(
    world: World, queue: Watchful, engine: TaskEngine, is_published: bool
) -> None:
    queue.hold()
    first = asyncio.create_task(engine.submit(keyed()))
    await eventually(lambda: bool(queue.asked), what="the job is being published")
    again = asyncio.create_task(engine_of(world, queue).submit(keyed()))
    await asyncio.sleep(0.1)
    assert not again.done()
    if is_published:
        queue.release()
        assert (await soon(again)).task_id == (await soon(first)).task_id
        assert len(queue.published) == 1
        return
    first.cancel()  # its client hangs up: the task is taken back
    await asyncio.gather(first, return_exceptions=True)
    queue.release()
    record = await soon(again)
    assert [one.task_id for one, _ in queue.published] == [record.task_id]


async def test_a_repeat_publishes_the_job_of_a_request_that_has_died(
    world: World, queue: Watchful, engine: TaskEngine
) -> None:
    record = a_record()
    assert await world.store.create(record, SNAPSHOT, None, ONCE) is None
    died_while_publishing(world, record)
    repeats = [replace(a_submission(), idempotency=ONCE) for _ in range(5)]
    made = await soon(asyncio.gather(*(engine.submit(one) for one in repeats)))
    assert {one.task_id for one in made} == {record.task_id}
    assert [one.task_id for one, _ in queue.published] == [record.task_id]
    # The creation comes too late to take it back: others have had the task as their answer.
    assert not await world.store.delete(record.ref)


async def test_one_repeat_at_a_time_publishes_the_job(world: World) -> None:
    record, first, second = (a_record() for _ in range(3))
    await world.store.create(record, SNAPSHOT, None, ONCE)
    died_while_publishing(world, record)
    found = [await world.store.earlier(one, ONCE) for one in (first, second, first)]
    assert [one and one.publication for one in found] == ["unpublished", "publishing", "unpublished"]


async def test_jobs_of_other_apps_are_not_published_twice(world: World) -> None:
    record, other = (replace(a_record(), work=ForeignWork()) for _ in range(2))
    await world.store.create(record, SNAPSHOT, None, ONCE)
    found = await world.store.earlier(other, ONCE)
    assert found is not None
    assert (found.task_id, found.publication) == (record.task_id, "publishing")
    died_while_publishing(world, record)
    found = await world.store.earlier(other, ONCE)
    assert found is not None
    assert found.publication == "published"


async def test_a_key_is_kept_for_as_long_as_its_task(world: World) -> None:
    deleted, brief, after = a_record(), a_record(), a_record()
    await world.store.create(deleted, SNAPSHOT, None, ONCE)
    assert await world.store.delete(deleted.ref)
    await world.store.create(brief, SNAPSHOT, None, ONCE)
    await world.store.published(brief.ref, attempt=1)
    await world.store.retire(brief.ref, now_ms() + 1_000)

    async def is_free() -> bool:
        return await world.store.earlier(after, ONCE) is None

    assert not await is_free()
    await eventually(is_free, what="the key has expired with its task")
    assert await world.store.create(after, SNAPSHOT, open_tasks("r", 1), ONCE) is None


async def test_a_key_goes_with_its_task(in_redis: RedisWorld) -> None:
    """A key that leads nowhere counts as free; it is no reason to keep it."""
    once, client = in_redis.keys.once(ONCE.name), cast(Any, in_redis.client)
    deleted, brief = a_record(), a_record()
    await in_redis.store.create(deleted, SNAPSHOT, None, ONCE)
    assert await in_redis.store.delete(deleted.ref)
    assert not client.exists(once)
    await in_redis.store.create(brief, SNAPSHOT, None, ONCE)
    await in_redis.store.retire(brief.ref, now_ms() + 20_000)
    assert 0 < client.pttl(once) <= 20_000


async def test_redis_holds_no_key_and_nothing_to_guess_a_request_by(in_redis: RedisWorld) -> None:
    client: Any = in_redis.client
    once = keyed().idempotency
    assert once is not None
    await in_redis.store.create(a_record(), SNAPSHOT, None, once)
    held = client.hgetall(in_redis.keys.once(once.name))
    assert KEY.encode() not in b"".join([*in_redis.keys_left(), *held.values()])
    another = keyed(key="order 8").idempotency
    assert another is not None
    assert another.request != once.request
