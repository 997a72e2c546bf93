"""How much a requestor may ask: open tasks, a place in the queue, look-ups that fail. Over memory and Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final, cast

import pytest

from mcp_celery import audit
from mcp_celery.common.rates import Rate
from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    Asking,
    Caller,
    Change,
    Claim,
    EncodedResult,
    Extension,
    Idempotency,
    JobOutcome,
    NextLeg,
    Question,
    Quota,
    StoredTask,
    TaskEngine,
    TaskHints,
    TaskRecord,
    TaskRef,
    TaskWatch,
    now_ms,
    success,
)
from mcp_celery.engine.pending import PendingRequests
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.streams import OpenStreams
from mcp_celery.errors import (
    LIMIT_EXCEEDED,
    QueueFullError,
    QueueUnavailableError,
    ServerBusyError,
    TaskNotFoundError,
    TooManyCreationsError,
    TooManyLookupsError,
    TooManyStreamsError,
    TooManyTasksError,
)
from mcp_celery.store import RedisRecovery
from mcp_celery.store.records import LOADED_TOGETHER
from tests.support.waiting import eventually
from tests.support.worlds import (
    ALICE,
    LIMITS,
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

ME: Final = replace(ALICE, requestor="alice")
YOU: Final = Caller("client-a|bob", ALICE.issuer, requestor="bob")
ONE: Final = open_tasks("alice", 1)
POLICY: Final = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)


async def keep(world: World, quota: Quota | None = ONE, **values: Any) -> TaskRecord | None:
    """Create a task, if the quota lets it."""
    record = a_record(**values)
    try:
        await world.store.create(record, SNAPSHOT, quota)
    except TooManyTasksError:
        return None
    return record


async def is_free(world: World, quota: Quota = ONE) -> bool:
    """Whether there is room for one more; leaves it as it was."""
    record = await keep(world, quota)
    return record is not None and await world.store.delete(record.ref)


class TestRates:
    async def test_of_a_hundred_at_once_on_all_replicas_no_more_are_created_than_may_be(
        self, world: World, queue: Watchful
    ) -> None:
        servers = [engine_of(world, queue, create_rate=Rate(7, 60_000)) for _ in range(3)]
        made = await asyncio.gather(
            *(servers[number % 3].submit(a_submission(ME)) for number in range(100)), return_exceptions=True
        )
        refused = [one for one in made if isinstance(one, TooManyCreationsError)]
        assert (len(refused), len(queue.published)) == (93, 7)
        assert {str(one).partition(";")[0] for one in refused} == {
            "You have created as many tasks as this server allows (7 in 60 s)"
        }
        for one in refused:
            data = cast("dict[str, Any]", one.data)
            assert (one.code, data["limit"], data["most"]) == (LIMIT_EXCEEDED, "creation_rate", 7)
            assert 0 < data["retryAfterMs"] <= 60_000
        await servers[0].submit(a_submission(YOU))
        for _ in range(9):
            await servers[0].submit(a_submission(ALICE))  # whom nobody counts

    async def test_the_error_says_when_the_next_task_may_be_created(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, create_rate=Rate(2, 200))
        began = now_ms()
        for _ in range(7):
            try:
                await engine.submit(a_submission(ME))
            except TooManyCreationsError as error:
                await asyncio.sleep(cast("dict[str, Any]", error.data)["retryAfterMs"] / 1000)
                await engine.submit(a_submission(ME))
        assert now_ms() - began >= 600

    async def test_a_component_has_a_rate_of_its_own(self, world: World, queue: Watchful) -> None:
        engine, config = engine_of(world, queue), TaskConfig(rate_limit_per_caller="1/h")
        first = a_submission(ME, config=config)
        await engine.submit(first)
        with pytest.raises(TooManyCreationsError):
            await engine.submit(first)
        await engine.submit(replace(first, component="another"))
        await engine.submit(replace(first, caller=YOU))
        with pytest.raises(TooManyCreationsError):
            await engine.submit(replace(first, component="another"))

    async def test_neither_repeats_nor_what_is_refused_counts(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, create_rate=Rate(2, 60_000), max_open_tasks=1)
        once = replace(a_submission(ME), idempotency=Idempotency("k" * 64, "r" * 64))
        first = await engine.submit(once)
        assert [(await engine.submit(once)).task_id for _ in range(3)] == [first.task_id] * 3
        for _ in range(3):
            with pytest.raises(TooManyTasksError):
                await engine.submit(a_submission(ME))
        await world.store.change(first.ref, Change(to="completed"))
        await engine.submit(a_submission(ME))
        with pytest.raises(TooManyTasksError):
            await engine.submit(a_submission(ME))


class TestOpenTasks:
    async def test_of_a_hundred_at_once_no_more_are_created_than_may_be(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_open_tasks=7)
        made = await asyncio.gather(*(engine.submit(a_submission(ME)) for _ in range(100)), return_exceptions=True)
        refused = [one for one in made if isinstance(one, TooManyTasksError)]
        assert len(refused) == 93
        assert len(queue.published) == 7
        assert len((await engine.list(ME)).records) == 7

    async def test_the_error_says_how_many_and_what_to_do(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_open_tasks=2)
        for _ in range(2):
            await engine.submit(a_submission(ME))
        with pytest.raises(TooManyTasksError) as refusal:
            await engine.submit(a_submission(ME))
        assert str(refusal.value) == (
            "You have as many open tasks as this server allows (2); wait for one to end, or cancel one"
        )
        assert refusal.value.code == LIMIT_EXCEEDED
        assert refusal.value.data == {"limit": "open_tasks", "most": 2}

    async def test_one_requestor_takes_no_room_from_another(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_open_tasks=1)
        for caller in (ME, YOU, replace(ME, requestor="alice elsewhere")):
            await engine.submit(a_submission(caller))
            with pytest.raises(TooManyTasksError):
                await engine.submit(a_submission(caller))

    async def test_an_uncounted_requestor_may_have_any_number_of_tasks(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_open_tasks=1)
        for _ in range(3):
            await engine.submit(a_submission(ALICE))

    @pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
    @pytest.mark.parametrize("teller", ["store", "ledger"])
    async def test_every_end_makes_room(self, world: World, status: Any, teller: str) -> None:
        record = await keep(world)
        assert record is not None
        assert not await is_free(world)
        if teller == "store":
            await world.store.change(record.ref, Change(to=status))
        else:
            world.ledger.change(record.ref, Change(to=status))
        assert await is_free(world)

    async def test_a_repeated_end_makes_room_once(self, world: World) -> None:
        record = await keep(world, open_tasks("alice", 2))
        assert record is not None
        assert await keep(world, open_tasks("alice", 2))
        for status in ("completed", "failed", "cancelled"):
            await world.store.change(record.ref, Change(to=status))
        assert await keep(world, open_tasks("alice", 2))
        assert not await is_free(world, open_tasks("alice", 2))

    @pytest.mark.parametrize("status", ["working", "input_required"])
    async def test_a_task_that_continues_keeps_its_place(self, world: World, status: Any) -> None:
        record = await keep(world)
        assert record is not None
        await world.store.change(record.ref, Change(to=status, status_message="still here"))
        assert not await is_free(world)

    async def test_a_task_keeps_its_place_between_its_jobs(self, world: World) -> None:
        record = await keep(world)
        assert record is not None
        question, asking = Question("k", "roots/list", {}), Asking(attempt=1, at_ms=now_ms())
        assert await world.store.park(
            record.ref, [question], asking, NextLeg(leg=2, job_id="job!2", request_state=None)
        )
        assert not await is_free(world)

    async def test_a_task_that_is_taken_back_makes_room(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_open_tasks=1)
        queue.fail()
        with pytest.raises(QueueUnavailableError):
            await engine.submit(a_submission(ME))
        queue.recover()
        await engine.submit(a_submission(ME))

    async def test_an_expired_task_makes_room_without_a_report(self, world: World) -> None:
        assert await keep(world, open_tasks("alice", 2))
        assert await keep(world, open_tasks("alice", 2), ttl_ms=1_000)
        assert not await is_free(world, open_tasks("alice", 2))
        await eventually(lambda: is_free(world, open_tasks("alice", 2)))
        assert not await is_free(world)

    async def test_a_task_whose_ttl_is_extended_keeps_its_place_for_as_long(self, world: World) -> None:
        brief = await keep(world, ttl_ms=1_000)
        assert brief is not None
        question = Question("k", "roots/list", {})
        lifetime = Extension(until_ms=now_ms() + 60_000, max_ttl_ms=60_000)
        assert await world.store.ask(brief.ref, question, Asking(attempt=1, at_ms=now_ms(), extension=lifetime))
        await eventually(lambda: now_ms() > brief.expires_at_ms)
        assert await world.store.load(brief.ref)
        assert not await is_free(world)

    async def test_an_open_task_that_goes_early_makes_room_then(self, world: World) -> None:
        assert await keep(world, open_tasks("alice", 2))
        record = await keep(world, open_tasks("alice", 2))
        assert record is not None
        await world.store.retire(record.ref, now_ms() + 50_000)
        assert not await is_free(world, open_tasks("alice", 2))
        await world.store.retire(record.ref, now_ms() + 60)
        await eventually(lambda: is_free(world, open_tasks("alice", 2)))

    async def test_a_job_that_ends_with_its_result_makes_room(self, in_redis: RedisWorld) -> None:
        record = await keep(in_redis)
        assert record is not None
        change = replace(success(JobOutcome({"content": []})), attempt=1)
        assert await in_redis.store.finish(record.ref, change, EncodedResult(f"{in_redis.prefix}:result", "{}"))
        assert await is_free(in_redis)

    async def test_a_job_that_fails_with_its_worker_makes_room(self, in_redis: RedisWorld) -> None:
        record = await keep(in_redis)
        assert record is not None
        recovery = RedisRecovery(in_redis.store)
        await recovery.beat("worker", 0)
        for verdict in ("again", "failed"):
            assert not await is_free(in_redis)
            attempt = 2 if verdict == "failed" else 1
            assert in_redis.ledger.claim(record.ref, attempt=attempt, claim=Claim("worker", 1))
            assert await recovery.recover(record.key, "worker", "died", POLICY) == verdict
        assert await is_free(in_redis)

    async def test_a_creation_that_is_asked_for_twice_counts_once(self, in_redis: RedisWorld) -> None:
        """As redis-py does when the connection breaks before the answer."""
        record = a_record()
        for _ in range(2):
            await in_redis.store.create(record, SNAPSHOT, ONE)
        await in_redis.store.change(record.ref, Change(to="completed"))
        assert await is_free(in_redis)

    async def test_a_counter_lives_no_longer_than_its_tasks(self, in_redis: RedisWorld) -> None:
        key = in_redis.keys.counted("open", "alice")
        for ttl_ms, expected_ms in ((50_000, 50_000), (90_000, 90_000), (10_000, 90_000)):
            assert await keep(in_redis, open_tasks("alice", 9), ttl_ms=ttl_ms)
            assert expected_ms - 5_000 < in_redis.client.pttl(key) <= expected_ms

    async def test_a_refused_task_leaves_no_key(self, in_redis: RedisWorld) -> None:
        assert await keep(in_redis)
        before = in_redis.keys_left()
        assert not await keep(in_redis)
        assert in_redis.keys_left() == before

    async def test_without_a_limit_nothing_is_counted(self, in_redis: RedisWorld) -> None:
        record = await keep(in_redis, None)
        assert record is not None
        fields: Any = in_redis.client.hkeys(in_redis.keys.record(record.scope, record.task_id))
        assert b"counted_in" not in fields
        assert not [key for key in in_redis.keys_left() if b":open:" in key]


class TestTheQueue:
    async def test_a_full_queue_refuses_and_nothing_is_made(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue)
        queue.most = 3
        made = await asyncio.gather(*(engine.submit(a_submission(ME)) for _ in range(10)), return_exceptions=True)
        refused = [one for one in made if isinstance(one, QueueFullError)]
        assert len(refused) == 7
        assert len((await engine.list(ME)).records) == len(queue.published) == 3
        assert str(refused[0]) == (
            "The task queue is full: as many tasks wait for a worker as this server allows (3); "
            "no task was created, try again later"
        )
        assert refused[0].data == {"limit": "queue_length", "most": 3, "retryAfterMs": 1_000}

    async def test_a_place_that_was_not_used_is_free_again(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue)
        queue.most = 1
        queue.fail()
        with pytest.raises(QueueUnavailableError):
            await engine.submit(a_submission(ME))
        queue.recover()
        await engine.submit(a_submission(ME))


Look = Callable[[TaskEngine, Caller, str], Awaitable[object]]


def watching(engine: TaskEngine, caller: Caller, *task_ids: str) -> TaskWatch:
    return engine.watch(caller, list(task_ids))


async def listen(engine: TaskEngine, caller: Caller, *task_ids: str) -> list[str]:
    async with watching(engine, caller, *task_ids) as watch:
        return watch.accepted


LOOKS: dict[str, Look] = {
    "get": lambda engine, caller, task_id: engine.get(caller, task_id),
    "status": lambda engine, caller, task_id: engine.status(caller, task_id),
    "wait": lambda engine, caller, task_id: engine.wait(caller, task_id),
    "cancel": lambda engine, caller, task_id: engine.cancel(caller, task_id),
    "respond": lambda engine, caller, task_id: engine.respond(caller, task_id, {}),
}


class TestFailedLookups:
    @pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
    async def test_a_requestor_with_too_many_failed_lookups_is_refused_for_every_task(
        self, world: World, queue: Watchful, look: Look
    ) -> None:
        engine = engine_of(world, queue, max_failed_lookups=3)
        mine = (await engine.submit(a_submission(ME))).task_id
        for number in range(3):
            await engine.get(ME, mine)  # what succeeds does not count
            with pytest.raises(TaskNotFoundError):
                await look(engine, ME, f"no-such-task-{number}")
        for ask in LOOKS.values():
            for task_id in ("no-such-task", "not an id", mine):
                with pytest.raises(TooManyLookupsError):
                    await ask(engine, ME, task_id)
        with pytest.raises(TooManyLookupsError):
            await listen(engine, ME, mine)
        assert (await engine.find(ALICE, mine)).status == "working"

    async def test_the_error_says_when_to_ask_again(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_failed_lookups=1)
        with pytest.raises(TaskNotFoundError):
            await engine.get(ME, "no-such-task")
        with pytest.raises(TooManyLookupsError) as refusal:
            await engine.get(ME, "no-such-task")
        data: Any = refusal.value.data
        assert {**data, "retryAfterMs": 0} == {"limit": "failed_lookups", "most": 1, "retryAfterMs": 0}
        assert 0 < data["retryAfterMs"] <= 60_000
        assert str(refusal.value).startswith(
            "You have asked for tasks that are not there as often as this server allows in a minute (1); ask again in "
        )
        assert refusal.value.code == LIMIT_EXCEEDED

    async def test_a_refused_requestor_may_ask_again_when_the_window_has_passed(
        self, world: World, queue: Watchful
    ) -> None:
        engine = engine_of(world, queue, max_failed_lookups=1, lookup_window_ms=80)
        mine = (await engine.submit(a_submission(ME))).task_id
        with pytest.raises(TaskNotFoundError):
            await engine.get(ME, "no-such-task")

        async def answered() -> bool:
            try:
                return (await engine.get(ME, mine)).record.is_open
            except TooManyLookupsError:
                return False

        await eventually(answered)

    async def test_one_requestor_locks_out_no_other(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_failed_lookups=1)
        mine = (await engine.submit(a_submission(ME))).task_id
        for _ in range(3):
            with pytest.raises((TaskNotFoundError, TooManyLookupsError)):
                await engine.get(YOU, mine)  # a foreign task is not there either
        assert (await engine.get(ME, mine)).record.is_open

    async def test_a_requestor_that_others_share_is_refused_failures_only(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_failed_lookups=1)
        somebody = Caller(requestor="192.0.2.7", is_shared=True)
        mine = (await engine.submit(a_submission(somebody))).task_id
        with pytest.raises(TaskNotFoundError):
            await engine.get(somebody, "no-such-task")
        with pytest.raises(TooManyLookupsError):
            await engine.get(somebody, "no-such-task")
        assert await listen(engine, somebody, "no-such-task", mine) == [mine]
        with pytest.raises(TooManyLookupsError):
            await listen(engine, somebody, "no-such-task")
        with pytest.raises(TooManyLookupsError):
            await engine.wait(somebody, "no-such-task")
        assert (await engine.get(somebody, mine)).record.is_open

    async def test_a_subscription_counts_each_id_that_is_not_there(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_failed_lookups=3)
        mine = (await engine.submit(a_submission(ME))).task_id
        assert await listen(engine, ME, "not an id", "gone-1", "gone-2", mine) == [mine]
        assert await listen(engine, ME, "gone-3", mine) == [mine]
        with pytest.raises(TooManyLookupsError):
            await listen(engine, ME, mine)

    async def test_failed_lookups_are_counted_over_all_replicas(self, world: World, queue: Watchful) -> None:
        replicas = [engine_of(world, queue, max_failed_lookups=4) for _ in range(2)]
        for number in range(4):
            with pytest.raises(TaskNotFoundError):
                await replicas[number % 2].get(ME, f"no-such-task-{number}")
        with pytest.raises(TooManyLookupsError):
            await replicas[1].get(ME, "no-such-task")
        with pytest.raises(TaskNotFoundError):
            await replicas[0].get(ME, "no-such-task")
        with pytest.raises(TooManyLookupsError):
            await replicas[0].get(ME, "no-such-task")

    async def test_an_uncounted_requestor_has_no_limit_of_lookups(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue, max_failed_lookups=1)
        for _ in range(3):
            with pytest.raises(TaskNotFoundError):
                await engine.get(ALICE, "no-such-task")

    async def test_a_window_begins_with_the_first_and_is_not_lengthened(self, world: World) -> None:
        for number, total, window_ms in ((3, 3, 40_000), (7, 10, 90_000), (1, 11, 90_000)):
            counted = await world.store.count_failed_lookups("alice", number, window_ms=window_ms)
            assert counted.number == total
            assert 20_000 < counted.left_ms <= 40_000


class TestSubscriptions:
    async def test_missing_tasks_are_counted_before_any_subscription_or_read(
        self, world: World, queue: Watchful, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = engine_of(world, queue, max_failed_lookups=3)
        somebody = Caller(requestor="192.0.2.7", is_shared=True)
        subscribed: list[int] = []
        read: list[int] = []
        subscribe, load_many = world.bus.subscribe, world.store.load_many

        def subscribing(refs: Sequence[TaskRef]) -> AbstractAsyncContextManager[TaskHints]:
            subscribed.append(len(refs))
            return subscribe(refs)

        async def loading(refs: Sequence[TaskRef]) -> Sequence[StoredTask | None]:
            read.append(len(refs))
            return await load_many(refs)

        async def unused(ref: TaskRef) -> StoredTask | None:
            raise AssertionError(ref)

        mine = [(await engine.submit(a_submission(somebody))).task_id for _ in range(2)]
        monkeypatch.setattr(world.bus, "subscribe", subscribing)
        monkeypatch.setattr(world.store, "load_many", loading)
        monkeypatch.setattr(world.store, "load", unused)
        gone = [f"gone-{number}" for number in range(900)]
        assert await listen(engine, somebody, *gone, *mine) == mine
        assert (subscribed, read) == ([2], [2])
        for _ in range(2):
            with pytest.raises(TooManyLookupsError):
                await listen(engine, somebody, *gone)
        assert (subscribed, read) == ([2], [2])

    async def test_many_tasks_are_accepted_in_the_order_asked(self, world: World, queue: Watchful) -> None:
        engine = engine_of(world, queue)
        mine = [(await engine.submit(a_submission(ME))).task_id for _ in range(LOADED_TOGETHER + 1)]
        asked = [name for task_id in mine for name in (task_id, f"not-{task_id}")]
        assert await listen(engine, ME, *asked) == mine

    async def test_a_damaged_record_keeps_no_other_from_its_followers(
        self, in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = engine_of(in_redis, Watchful(in_redis.store))
        first, damaged, last = [(await engine.submit(a_submission(ME))).ref for _ in range(3)]
        key = in_redis.keys.record(damaged.scope, damaged.task_id)
        in_redis.client.hset(key, "attempt", "many")
        assert await listen(engine, ME, first.task_id, damaged.task_id, last.task_id) == [first.task_id, last.task_id]
        (line,) = [line for line in caplog.messages if key in line]
        assert line.startswith("left a task out of a read of several: ")


class TestStreams:
    def test_each_requestor_has_its_own_places_and_gets_them_back(self) -> None:
        streams = OpenStreams(replace(LIMITS, max_open_streams=2))
        with streams.place_for(ME):
            with streams.place_for(ME), streams.place_for(YOU):
                with pytest.raises(TooManyStreamsError) as refusal, streams.place_for(ME):
                    pytest.fail("one stream too many")
                assert refusal.value.data == {"limit": "open_streams", "most": 2}
                assert str(refusal.value) == (
                    "You have as many subscription streams open as this server allows (2); close one, or name more "
                    "tasks in one"
                )
            with streams.place_for(ME):
                pass

    def test_an_uncounted_requestor_may_have_any_number_of_streams(self) -> None:
        streams = OpenStreams(replace(LIMITS, max_open_streams=1))
        with streams.place_for(ALICE), streams.place_for(ALICE):
            pass
        unlimited = OpenStreams(LIMITS)
        with unlimited.place_for(ME), unlimited.place_for(ME):
            pass


class TestPendingRequests:
    def test_a_request_above_the_limit_is_refused_with_the_time_to_retry(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger=audit.LOGGER)
        now = 0.0
        pending = PendingRequests(replace(LIMITS, max_pending_requests=2), clock=lambda: now)
        with pending.place_for(ME):
            now = 3.0
            with pending.place_for(YOU):
                with pytest.raises(ServerBusyError) as refusal:
                    pending.place_for(ME)
                assert refusal.value.code == LIMIT_EXCEEDED
                assert refusal.value.data == {"limit": "pending_requests", "most": 2, "retryAfterMs": 3_000}
                assert str(refusal.value) == "The server is busy; nothing was done, try again later"
            with pending.place_for(ME):
                pass
        assert [line.partition(" ")[0] for line in caplog.messages] == ["event=task.limited"]

    @pytest.mark.parametrize(("waited", "told"), [(0.0, 250), (0.9, 900), (100.0, 10_000)])
    def test_the_time_to_retry_has_a_minimum_and_a_maximum(self, waited: float, told: int) -> None:
        now = 0.0
        pending = PendingRequests(replace(LIMITS, max_pending_requests=1), clock=lambda: now)
        with pending.place_for(ME):
            now = waited
            with pytest.raises(ServerBusyError) as refusal:
                pending.place_for(ME)
        assert refusal.value.data == {"limit": "pending_requests", "most": 1, "retryAfterMs": told}

    def test_a_place_that_is_left_is_free_at_once(self) -> None:
        pending = PendingRequests(replace(LIMITS, max_pending_requests=1))
        with pending.place_for(ME) as place:
            place.leave()
            with pending.place_for(YOU), pytest.raises(ServerBusyError):
                pending.place_for(ME)
        with pending.place_for(ME):
            pass

    def test_without_a_limit_no_request_is_refused(self) -> None:
        pending = PendingRequests(LIMITS)
        assert len([pending.place_for(ME) for _ in range(100)]) == 100
