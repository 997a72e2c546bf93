"""A job's message that the store puts into the broker's queue in one step with the record."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

import pytest

from mcp_celery.engine import Claim, EarlierTask, Idempotency, QueueMessage, Start, Submission, TaskRecord, now_ms
from mcp_celery.errors import MessageRefusedError, QueueFullError, StoreUnavailableError, TooManyTasksError
from mcp_celery.testing import MemoryTaskQueue
from tests.support.worlds import (
    ALICE,
    SNAPSHOT,
    MemoryWorld,
    RedisWorld,
    World,
    a_record,
    a_submission,
    engine_of,
    open_tasks,
)

pytestmark = pytest.mark.anyio

ONCE: Final = Idempotency("k" * 64, "r" * 64)
MESSAGE: Final = b'{"body": "\xc3\xa9"}'


def a_message(world: World, *, most: int | None = None) -> QueueMessage:
    name = queue_name(world)
    return QueueMessage(queue=name, payload=MESSAGE, lanes=(name, f"{name}:3"), most=most, retry_after_ms=7)


def queue_name(world: World) -> str:
    return f"{world.prefix}:queue" if isinstance(world, RedisWorld) else "queue"


@pytest.fixture(autouse=True)
def _emptied(world: World) -> Generator[None]:  # pyright: ignore[reportUnusedFunction] - a fixture
    """Leave no queue, which has no lifetime."""
    yield
    if isinstance(world, RedisWorld):
        world.client.delete(queue_name(world))


def waiting(world: World) -> list[Any]:
    """The messages in the queue."""
    if isinstance(world, RedisWorld):
        return cast("list[bytes]", world.client.lrange(queue_name(world), 0, -1))
    assert isinstance(world, MemoryWorld)
    return world.ledger.messages.get(queue_name(world), [])


async def test_a_creation_that_is_repeated_after_a_claim_puts_no_second_message_into_the_queue(world: World) -> None:
    record, message = a_record(), a_message(world)
    await world.store.create(record, SNAPSHOT, None, ONCE, message)
    assert waiting(world) == [MESSAGE]
    assert world.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))
    before = await world.store.load(record.ref)
    assert await world.store.create(record, SNAPSHOT, None, ONCE, message) is None
    assert waiting(world) == [MESSAGE]
    after = await world.store.load(record.ref)
    assert after == before
    assert after is not None
    assert after.record.claim is not None


async def test_a_job_whose_message_came_with_the_record_is_published(world: World) -> None:
    record = a_record()
    await world.store.create(record, SNAPSHOT, None, ONCE, a_message(world))
    found = await world.store.create(a_record(), SNAPSHOT, None, ONCE, a_message(world))
    assert isinstance(found, EarlierTask)
    assert (found.task_id, found.publication) == (record.task_id, "published")
    assert waiting(world) == [MESSAGE]


async def test_no_more_messages_wait_than_may_and_nothing_is_kept_above(world: World) -> None:
    full = a_message(world, most=2)
    await world.store.create(a_record(), SNAPSHOT, None, None, full)
    urgent = replace(full, queue=full.lanes[1])
    await world.store.create(a_record(), SNAPSHOT, None, None, urgent)
    refused = a_record()
    with pytest.raises(QueueFullError, match=r"\(2\)") as raised:
        await world.store.create(refused, SNAPSHOT, None, None, full)
    assert cast("dict[str, int]", raised.value.data)["retryAfterMs"] == 7
    assert await world.store.load(refused.ref) is None
    assert len(waiting(world)) == 1
    if isinstance(world, RedisWorld):
        world.client.delete(urgent.queue)


async def test_a_task_above_a_limit_leaves_no_message(world: World) -> None:
    quota = open_tasks("r", 1)
    await world.store.create(a_record(), SNAPSHOT, quota, None, a_message(world))
    with pytest.raises(TooManyTasksError):
        await world.store.create(a_record(), SNAPSHOT, quota, None, a_message(world))
    assert len(waiting(world)) == 1


async def test_a_task_that_was_taken_back_leaves_no_message_when_its_creation_arrives(in_redis: RedisWorld) -> None:
    record = a_record()
    await in_redis.store.delete(record.ref)
    await in_redis.store.create(record, SNAPSHOT, None, None, a_message(in_redis))
    assert not in_redis.client.exists(queue_name(in_redis))


@pytest.mark.parametrize("reason", ["another type", "no permission"])
async def test_nothing_is_kept_where_the_store_cannot_fill_the_queue(in_redis: RedisWorld, reason: str) -> None:
    record, message, client = a_record(), a_message(in_redis), cast(Any, in_redis.client)
    user = f"user-{in_redis.prefix}"
    store, url = in_redis.store, in_redis.url
    if reason == "another type":
        client.set(message.queue, "", px=60_000)
    else:
        client.execute_command("ACL", "SETUSER", user, "on", ">secret", f"~{in_redis.prefix}:contract:*", "&*", "+@all")
        url = url.replace("://", f"://{user}:secret@", 1)
    world = RedisWorld(url, prefix=in_redis.prefix)
    try:
        store = world.store
        with pytest.raises(MessageRefusedError):
            await store.create(record, SNAPSHOT, None, None, message)
        assert await store.load(record.ref) is None
        assert client.zscore(in_redis.keys.unclaimed, record.key) is None
    finally:
        await world.aclose()
        client.execute_command("ACL", "DELUSER", user)


class Together(MemoryTaskQueue):
    """A broker in the store's database."""

    def __init__(self, message: QueueMessage) -> None:
        super().__init__()
        self.message: QueueMessage | None = message
        self.asked: list[tuple[TaskRecord, Submission]] = []

    @contextmanager
    def message_of(self, record: TaskRecord, submission: Submission) -> Generator[QueueMessage | None]:
        self.asked.append((record, submission))
        try:
            yield self.message
        except MessageRefusedError:
            self.message = None
            raise


async def test_the_engine_publishes_no_job_whose_message_is_in_the_queue(world: World) -> None:
    queue = Together(a_message(world))
    record = await engine_of(world, queue).submit(replace(a_submission(), idempotency=ONCE))
    again = await engine_of(world, queue).submit(replace(a_submission(), idempotency=ONCE))
    assert again.task_id == record.task_id
    assert (queue.published, waiting(world)) == ([], [MESSAGE])


async def test_a_task_that_comes_with_its_message_is_kept_and_limited_like_any_other(world: World) -> None:
    queue = Together(a_message(world))
    engine = engine_of(world, queue, max_open_tasks=1)
    submission = a_submission(replace(ALICE, requestor="alice"))
    record = await engine.submit(submission)
    assert queue.asked == [(record, submission)]
    assert await world.store.snapshot(record.ref) == SNAPSHOT
    with pytest.raises(TooManyTasksError):
        await engine.submit(submission)
    assert waiting(world) == [MESSAGE]


async def test_the_engine_publishes_a_job_where_the_store_cannot_fill_the_queue(in_redis: RedisWorld) -> None:
    queue = Together(a_message(in_redis))
    in_redis.client.set(queue_name(in_redis), "", px=60_000)
    record = await engine_of(in_redis, queue).submit(a_submission())
    assert [one.task_id for one, _ in queue.published] == [record.task_id]


@pytest.mark.parametrize("is_begun", [False, True], ids=["taken back", "begun"])
async def test_a_creation_without_an_answer_is_taken_back_unless_its_job_has_begun(
    world: World, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    queue, create, made = Together(a_message(world)), world.store.create, list[TaskRecord]()

    async def create_without_answer(record: TaskRecord, *given: Any) -> None:
        made.append(record)
        await create(record, *given)
        if is_begun:
            await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms()))
        raise StoreUnavailableError

    monkeypatch.setattr(world.store, "create", create_without_answer)
    engine = engine_of(world, queue)
    if is_begun:
        assert (await engine.submit(a_submission())).task_id == made[0].task_id
    else:
        with pytest.raises(StoreUnavailableError):
            await engine.submit(a_submission())
    assert (await world.store.load(made[0].ref) is not None) == is_begun
