"""Turns of callers, over memory and Redis: the broker has a few jobs, and other tasks go on caller by caller."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final, cast

import pytest

from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    ELICIT,
    Asking,
    Caller,
    Change,
    HeldBack,
    Idempotency,
    NextLeg,
    Question,
    QueueMessage,
    Quota,
    TaskRecord,
    now_ms,
)
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.turns import SMALLEST_WINDOW
from mcp_celery.keys import celery_job_id
from mcp_celery.operate.waiting import Surroundings, waiting_of
from mcp_celery.store.inspection import RedisInspection
from mcp_celery.testing import MemoryTaskQueue
from tests.support.one_server import WORKER, OneServer
from tests.support.reaping import publishing
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, RedisWorld, World, a_record, a_submission, engine_of

pytestmark = pytest.mark.anyio

A: Final = replace(ALICE, requestor="a")
B: Final = Caller("client-a|bob", ALICE.issuer, requestor="b")
C: Final = Caller("client-a|carol", ALICE.issuer, requestor="c")
OTHER: Final = "celery@other/1"
LEASE_MS: Final = 60_000
POLICY: Final = RecoveryPolicy(heartbeat_ms=20_000, max_redeliveries=1)
QUESTION: Final = Question("1.name", ELICIT, {})


class Hall(OneServer):
    """One server whose callers take turns, and the workers that start its jobs."""

    def __init__(self, world: World, **limits: Any) -> None:
        self.queue = MemoryTaskQueue()
        super().__init__(world, engine_of(world, self.queue, takes_turns=True, **limits))

    async def workers(self, slots: int, worker: str = WORKER) -> None:
        """A worker says how many jobs it can run at a time."""
        await self.world.recovery().beat(worker, LEASE_MS, slots=slots)

    async def submit(self, caller: Caller = A, config: TaskConfig | None = None, **values: Any) -> TaskRecord:
        return await self.create(caller, config or TaskConfig(), **values)

    async def several(self, number: int, caller: Caller = A, config: TaskConfig | None = None) -> list[TaskRecord]:
        return [await self.submit(caller, config) for _ in range(number)]

    async def waits(self, *records: TaskRecord) -> list[bool]:
        """Which of several tasks wait in the store."""
        return [(await self.now(record)).waits_in is not None for record in records]

    async def start(self, record: TaskRecord, *, retries: int = 0) -> bool:
        """Start the current attempt of a task's job, as a worker that has its message.

        Returns:
            False: it waits for a place of a limit.
        """
        await self.world.store.published(record.ref, attempt=(await self.now(record)).attempt)
        return await self.ahead_of(record, retries=retries) is None

    async def message(self, record: TaskRecord, caller: Caller = A) -> str | None:
        """What the owner of a task reads."""
        return (await self.engine.status(caller, record.task_id)).status_message


@pytest.fixture
def hall(world: World) -> Hall:
    return Hall(world)


class TestWindow:
    async def test_the_broker_gets_as_many_jobs_as_workers_can_take_soon(self, hall: Hall, world: World) -> None:
        await hall.workers(2)
        await hall.workers(2, OTHER)
        tasks = await hall.several(8)
        assert [record.task_id for record, _ in hall.queue.published] == [task.task_id for task in tasks[:5]]
        assert await hall.waits(*tasks) == [False] * 5 + [True] * 3
        last = await hall.now(tasks[7])
        assert (last.status, last.attempt, last.status_message) == ("working", 1, "Waiting for a free place (2 ahead)")
        assert tasks[7].status_message == last.status_message, "the answer to the creation says so"
        counts = await world.recovery().counts()
        assert (counts.queued, counts.waiting, counts.due) == (5, 3, 0)
        await hall.end(tasks[0])
        assert hall.due(tasks) == [5]
        assert await hall.message(tasks[7]) == "Waiting for a free place (1 ahead)"
        assert "place_granted" in {one.cause for one in world.transitions if one.ref == tasks[5].ref}
        assert (await hall.now(tasks[5])).status_message is None

    async def test_without_a_live_worker_a_few_jobs_are_with_the_broker(self, hall: Hall) -> None:
        tasks = await hall.several(SMALLEST_WINDOW + 1)
        assert await hall.waits(*tasks) == [False] * SMALLEST_WINDOW + [True]
        await hall.world.recovery().beat(WORKER, LEASE_MS)  # of an earlier release: it does not say how many
        assert hall.due(tasks) == []

    async def test_a_worker_that_comes_lets_tasks_go_on_and_one_that_goes_takes_its_places(
        self, hall: Hall, world: World
    ) -> None:
        await hall.workers(2)
        tasks = await hall.several(9)
        assert await hall.waits(*tasks) == [False] * 3 + [True] * 6
        await hall.workers(2, OTHER)
        assert hall.due(tasks) == [3, 4]
        await world.recovery().beat(OTHER, 0, slots=2)
        await world.recovery().sweep("r", POLICY)
        for task in tasks[:2]:
            await hall.end(task)
        assert hall.due(tasks) == [3, 4], "three jobs are still there, which one worker takes"
        await hall.end(tasks[2])
        assert hall.due(tasks) == [3, 4, 5]

    async def test_a_caller_without_limits_takes_no_turns(self, hall: Hall) -> None:
        await hall.workers(1)
        await hall.several(4)
        assert await hall.waits(await hall.submit(ALICE)) == [False]

    async def test_a_server_without_turns_holds_nothing_back(self, world: World) -> None:
        plain = engine_of(world, MemoryTaskQueue())
        tasks = [await plain.submit(a_submission(A)) for _ in range(SMALLEST_WINDOW + 2)]
        hall = Hall(world)
        assert await hall.waits(*tasks) == [False] * len(tasks)
        assert await hall.waits(await hall.submit()) == [False], "their jobs take no places of the window"


class TestTurns:
    async def test_callers_go_on_in_turn_whichever_came_first(self, hall: Hall) -> None:
        await hall.workers(4)
        first = await hall.several(5)
        a, b, c = await hall.several(6), await hall.several(2, B), await hall.several(1, C)
        waiting = [*a, *b, *c]
        assert await hall.waits(*waiting) == [True] * 9
        assert await hall.message(b[1], B) == "Waiting for a free place (1 ahead)", "of its own caller"
        order: list[int] = []
        running = list(first)
        while running:
            await hall.end(running.pop(0))
            for number in hall.due(waiting):
                order.append(number)
                await hall.start(waiting[number])
                running.append(waiting[number])
        assert order == [0, 6, 8, 1, 7, 2, 3, 4, 5]

    async def test_a_task_that_goes_on_while_it_is_read_is_shown_as_it_was_loaded(
        self, hall: Hall, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await hall.workers(1)
        running = await hall.several(2)
        waiting = await hall.submit()
        ahead = world.store.ahead

        async def goes_on_first(record: TaskRecord) -> int | None:
            await hall.end(running[0])
            return await ahead(record)

        monkeypatch.setattr(world.store, "ahead", goes_on_first)
        assert await hall.message(waiting) == "Waiting for a free place (0 ahead)"
        monkeypatch.undo()
        assert await hall.message(waiting) is None

    async def test_a_task_that_is_cancelled_takes_no_turn_and_its_caller_loses_none(self, hall: Hall) -> None:
        await hall.workers(1)
        running = await hall.several(2)
        a, b = await hall.several(3), await hall.several(3, B)
        await hall.engine.cancel(A, a[0].task_id)
        await hall.engine.cancel(B, b[1].task_id)
        for one in running:
            await hall.end(one)
        assert (hall.due(a), hall.due(b)) == ([1], [0])
        await hall.engine.cancel(A, a[1].task_id)
        assert await hall.waits(a[2], b[2]) == [False, True]
        await hall.engine.cancel(B, b[0].task_id)
        assert await hall.waits(b[2]) == [False]
        assert await hall.waits(*await hall.several(2)) == [True, True]

    async def test_a_caller_that_comes_back_has_its_turn_behind_those_that_waited(self, hall: Hall) -> None:
        await hall.workers(1)
        running = await hall.several(2)
        a, b = await hall.several(2), await hall.several(2, B)
        await hall.end(running[0])
        assert hall.due(a) == [0]
        (c,) = await hall.several(1, C)
        await hall.end(running[1])
        await hall.engine.cancel(A, a[1].task_id)
        assert await hall.waits(b[0], b[1], c) == [False, True, True]
        a += await hall.several(1)
        await hall.start(b[0])
        await hall.end(b[0])
        assert await hall.waits(c, b[1], a[2]) == [False, True, True]
        await hall.start(c)
        await hall.end(c)
        assert await hall.waits(b[1], a[2]) == [False, True]

    async def test_of_many_at_once_no_more_go_than_may_and_each_goes_once(self, hall: Hall, world: World) -> None:
        await hall.workers(4)
        made = await asyncio.gather(
            *(hall.engine.submit(a_submission(caller)) for caller in (A, B, C) for _ in range(8))
        )
        running = [one for one, waits in zip(made, await hall.waits(*made), strict=True) if not waits]
        assert len(running) == 5
        assert {record.task_id for record, _ in hall.queue.published} == {one.task_id for one in running}
        ended = 0
        while running:
            await asyncio.gather(*map(hall.start, running))
            await asyncio.gather(*map(hall.end, running))
            ended += len(running)
            running = [task for task in made if world.is_due(task.ref)]
            assert len(running) <= 5
        assert ended == len(made)
        assert len([one for one in world.transitions if one.cause == "place_granted"]) == len(made) - 5


class TestLeaving:
    async def test_a_task_that_waits_for_answers_leaves_and_its_next_job_has_a_turn(
        self, hall: Hall, world: World
    ) -> None:
        await hall.workers(1)
        asks, runs = await hall.several(2)
        b = await hall.several(3, B)
        assert await hall.start(asks)
        leg = NextLeg(leg=2, job_id=celery_job_id(asks.key, 2), request_state=None)
        assert await world.store.park(asks.ref, [QUESTION], Asking(attempt=1, at_ms=now_ms()), leg)
        assert hall.due(b) == [0]
        answered = await world.store.answer(asks.ref, {QUESTION.key: {}}, at_ms=now_ms(), start_before_ms=None)
        assert answered is not None
        assert not answered.is_due
        assert answered.changed.record.status_message == "Waiting for a free place (0 ahead)"
        await hall.end(runs)
        assert (hall.due(b), hall.due([asks])) == ([0, 1], [])
        await hall.end(b[0])
        assert hall.due([asks]) == [0]
        assert await hall.start(asks)

    async def test_an_answer_to_which_there_is_room_makes_the_next_job_due_at_once(
        self, hall: Hall, world: World
    ) -> None:
        await hall.workers(1)
        asks = await hall.submit()
        assert await hall.start(asks)
        leg = NextLeg(leg=2, job_id=celery_job_id(asks.key, 2), request_state=None)
        assert await world.store.park(asks.ref, [QUESTION], Asking(attempt=1, at_ms=now_ms()), leg)
        answered = await world.store.answer(asks.ref, {QUESTION.key: {}}, at_ms=now_ms(), start_before_ms=None)
        assert answered is not None
        assert answered.is_due
        assert await hall.waits(*await hall.several(2)) == [False, True], "the next job has one of two places"

    async def test_a_job_that_is_tried_again_leaves_and_is_there_when_it_starts(self, hall: Hall, world: World) -> None:
        await hall.workers(1)
        first, second = await hall.several(2)
        b = await hall.several(3, B)
        assert await hall.start(first)
        await world.store.change(first.ref, Change(to="working", attempt=1, retries=1, retry_at_ms=now_ms()))
        assert hall.due(b) == [0]
        assert await hall.start(first, retries=1)
        await hall.end(second)
        assert hall.due(b) == [0], "the retry and another job are there"
        await hall.end(first)
        assert hall.due(b) == [0, 1]

    async def test_a_task_that_waits_for_a_place_of_a_limit_leaves(self, hall: Hall) -> None:
        await hall.workers(2)
        one_at_a_time = TaskConfig(max_running=1)
        mine = await hall.several(3, config=one_at_a_time)
        yours = await hall.several(3, B)
        assert await hall.start(mine[0])
        assert not await hall.start(mine[1])
        assert hall.due(yours) == [0]
        assert not await hall.start(mine[2])
        assert hall.due(yours) == [0, 1]
        await hall.end(mine[0])
        assert (hall.due(mine), hall.due(yours)) == ([1], [0, 1, 2])
        assert await hall.start(mine[1])

    async def test_jobs_of_dead_workers_keep_their_places_and_tasks_that_fail_do_not(
        self, hall: Hall, world: World
    ) -> None:
        await hall.workers(1)
        fails, again = await hall.submit(), await hall.submit(config=TaskConfig(acks_late=True))
        b = await hall.several(2, B)
        assert await hall.start(fails)
        assert await hall.start(again)
        await world.recovery().beat(WORKER, 0, slots=1)
        assert await world.recovery().recover(again.key, WORKER, "died", POLICY) == "again"
        assert hall.due(b) == []
        assert await world.recovery().recover(fails.key, WORKER, "died", POLICY) == "failed"
        assert hall.due(b) == [0]

    async def test_a_task_that_is_taken_back_expires_or_goes_early_leaves(self, hall: Hall, world: World) -> None:
        await hall.workers(1)
        first, second = await hall.several(2)
        b = await hall.several(4, B)
        assert await world.store.delete(b[0].ref)
        assert await world.store.delete(first.ref)
        assert hall.due(b[1:]) == [0]
        await world.store.retire(second.ref, now_ms() + 30)
        recovery = world.recovery()

        async def goes_on() -> bool:
            await recovery.sweep("r", POLICY)
            return hall.due(b[1:]) == [0, 1]

        await eventually(goes_on)

    async def test_an_operator_may_have_a_job_published_before_its_turn(self, in_redis: RedisWorld) -> None:
        hall = Hall(in_redis)
        await hall.workers(1)
        tasks = await hall.several(4)
        inspection = RedisInspection(in_redis.store)
        (task,) = await inspection.tasks([tasks[3].key])
        assert task is not None
        waiting = waiting_of(task, Surroundings(place=await inspection.place(task)))
        assert waiting.reason == "place"
        assert "1 task is ahead of it (MCP_CELERY_FAIR" in waiting.text
        assert await inspection.requeue(task.record, force=False) == "again"
        assert hall.due(tasks) == [3]
        assert await hall.start(tasks[3])
        await hall.end(tasks[0])
        assert hall.due(tasks) == [], "three jobs were there"
        await hall.end(tasks[3])
        assert hall.due(tasks) == [2]


class TestCreating:
    async def test_the_message_of_a_task_that_waits_is_in_no_queue(self, world: World) -> None:
        message = QueueMessage(queue="queue", payload="job", lanes=("queue",), most=1)
        if isinstance(world, RedisWorld):
            message = replace(message, queue=f"{world.prefix}:queue", lanes=(f"{world.prefix}:queue",))
        await world.recovery().beat(WORKER, LEASE_MS, slots=1)
        quota, snapshot = Quota("a", line="a"), a_submission().snapshot
        records = [a_record() for _ in range(3)]
        assert await world.store.create(records[0], snapshot, quota) is None
        assert await world.store.create(records[1], snapshot, quota, None, message) is None
        once = Idempotency("once", "request")
        for _ in range(2):  # the second time its answer was lost
            assert await world.store.create(records[2], snapshot, quota, once, message) == HeldBack(0)
        earlier = await world.store.earlier(records[0], once)
        assert earlier is not None
        assert (earlier.task_id, earlier.publication) == (records[2].task_id, "published")
        if isinstance(world, RedisWorld):
            client = cast(Any, world.client)
            assert client.llen(message.queue) == 1
            client.delete(message.queue)

    async def test_a_request_with_an_idempotency_key_finds_its_task_waiting(self, hall: Hall) -> None:
        await hall.workers(1)
        await hall.several(2)
        first = await hall.submit(idempotency=Idempotency("once", "request"))
        again = await hall.submit(idempotency=Idempotency("once", "request"))
        assert again.task_id == first.task_id
        assert again.status_message == "Waiting for a free place (0 ahead)"
        assert len(hall.queue.published) == 2


class TestPublishing:
    async def test_the_job_of_a_task_that_has_its_turn_is_published_once(self, hall: Hall, world: World) -> None:
        await hall.workers(1)
        a, b = await hall.several(2), await hall.several(2, B)
        async with publishing(world) as queue:
            for ended, later in zip(a, b, strict=True):
                await hall.start(ended)
                await hall.end(ended)
                await eventually(lambda later=later: not world.is_due(later.ref))
                assert await hall.waits(later) == [False]
            assert [(record.task_id, record.attempt) for record, _ in queue.published] == [
                (later.task_id, 1) for later in b
            ]
        counts = await world.recovery().counts()
        assert (counts.queued, counts.waiting, counts.due) == (2, 0, 0)

    async def test_a_task_that_is_too_late_at_its_turn_ends(self, hall: Hall, world: World) -> None:
        await hall.workers(1)
        first, _ = await hall.several(2)
        late = await hall.submit(config=TaskConfig(expires=0.01))
        await eventually(lambda: late.is_too_late(now_ms()))
        async with publishing(world) as queue:
            await hall.end(first)

            async def has_ended() -> bool:
                return (await hall.now(late)).is_terminal

            await eventually(has_ended)
            assert queue.published == []


class TestInRedis:
    async def test_a_sweep_corrects_turns_that_were_lost_or_forged_in_redis(self, in_redis: RedisWorld) -> None:
        hall, recovery, client, keys = Hall(in_redis), in_redis.recovery(), cast("Any", in_redis.client), in_redis.keys
        await hall.workers(2)
        tasks = await hall.several(6)
        assert client.zcard(keys.window) == 3
        client.delete(keys.line("a"), keys.turns)
        client.zadd(keys.turns, {"elsewhere": -1, f"{keys.turns}:~~0": -1})
        client.delete(keys.record(tasks[0].scope, tasks[0].task_id))  # an operator did so
        await recovery.sweep("r", POLICY)
        assert hall.due(tasks) == [3]
        assert await hall.message(tasks[5]) == "Waiting for a free place (1 ahead)"
        client.set(keys.slots, "")
        client.set(keys.window, "")
        await recovery.sweep("r", POLICY)
        await hall.workers(1)
        await hall.workers(2)
        assert hall.due(tasks) == [3, 4, 5]

    async def test_nothing_is_left_of_tasks_that_have_ended(self, in_redis: RedisWorld) -> None:
        hall = Hall(in_redis)
        await hall.workers(1)
        tasks = [*await hall.several(3), *await hall.several(3, B)]
        for task in tasks:
            await hall.start(task)
        for task in tasks:
            await hall.end(task)
        keys = in_redis.keys
        left = [key.decode() for key in in_redis.keys_left()]
        ours = [key for key in left if ":running:" in key or ":turns" in key or key == keys.waiting]
        assert ours == []

    async def test_a_record_names_no_waiting_list_of_another_server(self, in_redis: RedisWorld) -> None:
        hall, client = Hall(in_redis), cast("Any", in_redis.client)
        other = f"{in_redis.prefix}:other:turns:~~0"
        client.zadd(other, {"it": 1}, nx=True)
        client.pexpire(other, 60_000)
        record = await hall.submit()
        client.hset(in_redis.keys.record(record.scope, record.task_id), mapping={"line": other, "waits_in": other})
        assert await hall.start(record)
        await hall.end(record)
        assert client.zcard(other) == 1
