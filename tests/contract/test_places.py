"""How many jobs run at a time, over memory and Redis: a job without a place waits, and the oldest one goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, cast

import pytest

from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    ELICIT,
    Asking,
    Caller,
    Change,
    NextLeg,
    Question,
    Start,
    TaskRecord,
    now_ms,
)
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.keys import celery_job_id
from mcp_celery.operate.waiting import Surroundings, waiting_of
from mcp_celery.store.inspection import RedisInspection
from tests.support.one_server import WORKER, OneServer
from tests.support.reaping import publishing
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, RedisWorld, Watchful, World, a_submission, engine_of

pytestmark = pytest.mark.anyio

ME: Final = replace(ALICE, requestor="alice")
YOU: Final = Caller("client-a|bob", ALICE.issuer, requestor="bob")
TWO: Final = TaskConfig(max_running=2)
ONE: Final = TaskConfig(max_running=1)
POLICY: Final = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)
QUESTION: Final = Question("1.name", ELICIT, {})


class Floor(OneServer):
    """One server, and the workers that start its jobs."""

    def __init__(self, world: World, **limits: Any) -> None:
        super().__init__(world, engine_of(world, Watchful(world.store), **limits))

    async def submit(self, config: TaskConfig = TWO, caller: Caller = ME, **values: Any) -> TaskRecord:
        return await self.create(caller, config, **values)

    async def several(self, number: int, config: TaskConfig = TWO, caller: Caller = ME) -> list[TaskRecord]:
        return [await self.submit(config, caller) for _ in range(number)]

    async def start(self, record: TaskRecord, *, retries: int = 0) -> int | None:
        """Start the current attempt of a task's job.

        Returns:
            None where it runs; else how many tasks are before it.
        """
        return await self.ahead_of(record, retries=retries)

    def is_due(self, record: TaskRecord) -> bool:
        return self.world.is_due(record.ref)

    async def message(self, record: TaskRecord, caller: Caller = ME) -> str | None:
        """What the owner of a task reads."""
        return (await self.engine.status(caller, record.task_id)).status_message


@pytest.fixture
def floor(world: World) -> Floor:
    return Floor(world)


class TestWaiting:
    async def test_a_job_without_a_place_waits_and_its_owner_sees_how_many_are_ahead(
        self, floor: Floor, world: World
    ) -> None:
        tasks = await floor.several(5)
        assert [await floor.start(task) for task in tasks] == [None, None, 0, 1, 2]
        last = tasks[4]
        waiting = await floor.now(last)
        assert (waiting.status, waiting.attempt, waiting.claim, waiting.started_at_ms) == ("working", 2, None, None)
        assert waiting.status_message == "Waiting for a free place (2 ahead)"
        assert world.transitions[-1].cause == "place_awaited"
        counts = await world.recovery().counts()
        assert (counts.queued, counts.waiting) == (0, 3), "the broker has no message of them"
        assert set(await world.recovery().claimed(WORKER)) == {task.key for task in tasks[:2]}
        assert [await floor.message(task) for task in tasks[2:]] == [
            f"Waiting for a free place ({ahead} ahead)" for ahead in range(3)
        ]
        listed = await floor.engine.list(ME)
        assert [one.status_message for one in listed.records[:3]] == [
            f"Waiting for a free place ({ahead} ahead)" for ahead in (2, 1, 0)
        ]
        await floor.end(tasks[0])
        assert await floor.message(last) == "Waiting for a free place (1 ahead)"

    async def test_the_oldest_task_goes_on_whichever_way_a_place_gets_free(self, floor: Floor, world: World) -> None:
        tasks = await floor.several(7)
        for task in [tasks[0], tasks[1], *reversed(tasks[2:])]:  # workers receive the youngest first
            await floor.start(task)
        await floor.end(tasks[0])
        assert floor.due(tasks) == [2]
        third = await floor.now(tasks[2])
        assert (third.status_message, third.waits_in, third.attempt) == (None, None, 2)
        assert "place_granted" in {one.cause for one in world.transitions if one.ref == third.ref}
        await world.store.change(tasks[1].ref, Change(to="cancelled"))
        assert floor.due(tasks) == [2, 3]
        assert await floor.start(tasks[3]) is None
        await world.store.change(tasks[3].ref, Change(to="failed", attempt=2))
        assert floor.due(tasks) == [2, 3, 4]
        assert await floor.start(await floor.submit()) == 2, "the place is kept for the task that got it"

    async def test_a_task_that_is_cancelled_while_it_waits_takes_no_place(self, floor: Floor, world: World) -> None:
        tasks = await floor.several(5)
        for task in tasks:
            await floor.start(task)
        await floor.engine.cancel(ME, tasks[2].task_id)
        assert await floor.message(tasks[3]) == "Waiting for a free place (0 ahead)"
        await floor.end(tasks[0])
        assert floor.due(tasks) == [3]
        assert await world.store.ahead(await floor.now(tasks[2])) is None

    async def test_a_message_that_comes_again_does_not_start_a_task_that_waits(
        self, floor: Floor, world: World
    ) -> None:
        first, second = await floor.several(2, ONE)
        assert [await floor.start(first), await floor.start(second)] == [None, 0]
        assert await world.store.start(second.ref, Start(attempt=1, retries=0, at_ms=1, worker=WORKER)) is None
        # What the worker that dropped its message still reports is of an attempt that does not count.
        changed = await world.store.change(second.ref, Change(to="failed", attempt=1))
        assert changed is not None
        assert not changed.accepted


class TestReleasing:
    async def test_a_task_that_waits_for_answers_has_no_place_and_takes_one_for_its_next_job(
        self, floor: Floor, world: World
    ) -> None:
        first, second = await floor.several(2, ONE)
        assert [await floor.start(first), await floor.start(second)] == [None, 0]
        leg = NextLeg(leg=2, job_id=celery_job_id(first.key, 2), request_state=None)
        assert await world.store.park(first.ref, [QUESTION], Asking(attempt=1, at_ms=now_ms()), leg)
        assert floor.is_due(second)
        assert await floor.start(second) is None
        answered = await world.store.answer(first.ref, {QUESTION.key: {}}, at_ms=now_ms(), start_before_ms=None)
        assert answered is not None
        assert answered.is_due
        await world.store.published(first.ref, attempt=2)
        assert await floor.start(first) == 0
        await floor.end(second)
        assert floor.is_due(first)
        assert await floor.start(first) is None

    async def test_a_job_that_awaits_an_answer_keeps_its_place(self, floor: Floor, world: World) -> None:
        first, second = await floor.several(2, ONE)
        assert [await floor.start(first), await floor.start(second)] == [None, 0]
        assert await world.store.ask(first.ref, QUESTION, Asking(attempt=1, at_ms=now_ms()))
        assert not floor.is_due(second)

    async def test_a_retry_that_began_before_its_worker_reported_it_keeps_its_place(
        self, world: World, floor: Floor
    ) -> None:
        first, second = await floor.several(2, ONE)
        assert [await floor.start(first), await floor.start(second)] == [None, 0]
        assert await floor.start(first, retries=1) is None
        await world.store.change(first.ref, Change(to="working", attempt=1, retries=1, retry_at_ms=now_ms()))
        assert not floor.is_due(second)
        await floor.end(first)
        assert floor.is_due(second)

    async def test_a_job_that_is_tried_again_has_no_place_meanwhile(self, floor: Floor, world: World) -> None:
        first, second = await floor.several(2, ONE)
        assert [await floor.start(first), await floor.start(second)] == [None, 0]
        await world.store.change(first.ref, Change(to="working", attempt=1, retries=1, retry_at_ms=now_ms()))
        assert floor.is_due(second)
        assert await floor.start(first, retries=1) == 0
        await floor.end(second)
        again = await floor.now(first)
        assert (again.attempt, again.retries) == (2, 1)
        assert await floor.start(first, retries=1) is None

    async def test_tasks_of_dead_workers_release_their_places_or_use_them_again(
        self, floor: Floor, world: World
    ) -> None:
        failing, repeated, third, fourth = (
            await floor.submit(),
            await floor.submit(replace(TWO, acks_late=True)),
            *(await floor.several(2)),
        )
        assert [await floor.start(one) for one in (failing, repeated, third, fourth)] == [None, None, 0, 1]
        recovery = world.recovery()
        await recovery.beat(WORKER, 0)
        assert await recovery.recover(failing.key, WORKER, "died", POLICY) == "failed"
        assert (floor.is_due(third), floor.is_due(fourth)) == (True, False)
        assert await recovery.recover(repeated.key, WORKER, "died", POLICY) == "again"
        assert not floor.is_due(fourth), "the job that is published again has its place"
        assert await floor.start(repeated) is None

    async def test_a_task_that_is_taken_back_or_expires_leaves_no_place(self, floor: Floor, world: World) -> None:
        first, second = await floor.several(2, ONE)
        assert [await floor.start(first), await floor.start(second)] == [None, 0]
        assert await world.store.delete(second.ref)
        third = await floor.submit(ONE)
        assert await floor.start(third) == 0
        await world.store.retire(first.ref, now_ms() + 30)
        reaper = world.recovery()

        async def goes_on() -> bool:
            await reaper.sweep("r", POLICY)
            return floor.is_due(third)

        await eventually(goes_on)


def tenant_of(arguments: Mapping[str, Any]) -> object:
    return arguments["tenant"]


class TestLimits:
    async def test_a_caller_has_places_of_its_own(self, floor: Floor) -> None:
        config = TaskConfig(max_running_per_caller=1)
        mine, yours = await floor.several(2, config), await floor.several(2, config, YOU)
        assert [await floor.start(one) for one in (*mine, *yours)] == [None, 0, None, 0]
        other = await floor.submit(config, ME, component="another")
        assert await floor.start(other) is None
        await floor.end(yours[0])
        assert floor.due([*mine, *yours]) == [3]

    async def test_the_setting_counts_all_jobs_of_a_caller(self, world: World) -> None:
        floor = Floor(world, max_running=1)
        first, second = await floor.submit(TaskConfig()), await floor.submit(TaskConfig(), component="another")
        yours = await floor.submit(TaskConfig(), YOU)
        unknown = await floor.submit(TaskConfig(), ALICE)  # whom nobody counts
        assert [await floor.start(one) for one in (first, second, yours, unknown)] == [None, 0, None, None]

    @pytest.mark.parametrize("key", ["tenant", tenant_of])
    async def test_jobs_are_counted_by_an_argument(self, floor: Floor, key: Any) -> None:
        config = TaskConfig(max_running=1, max_running_key=key)

        async def of(**arguments: object) -> TaskRecord:
            snapshot = replace(a_submission().snapshot, params={"name": "build_report", "arguments": arguments})
            return await floor.submit(config, snapshot=snapshot)

        tasks = [await of(tenant=1), await of(tenant=1), await of(tenant="1"), await of(), await of(other=1)]
        assert [await floor.start(one) for one in tasks] == [None, 0, None, None, 0]

    async def test_a_caller_with_many_tasks_holds_no_place_of_others_while_it_waits(self, floor: Floor) -> None:
        config = TaskConfig(max_running=2, max_running_per_caller=1)
        mine, yours = await floor.several(3, config), await floor.several(2, config, YOU)
        assert [await floor.start(one) for one in (*mine, *yours)] == [None, 0, 1, None, 0]
        await floor.end(mine[0])
        assert floor.due([*mine, *yours]) == [1]
        assert await floor.start(mine[1]) is None

    async def test_a_task_that_has_one_place_waits_for_the_other_and_no_task_is_stuck(self, floor: Floor) -> None:
        config = TaskConfig(max_running=1, max_running_per_caller=1)
        mine, yours = await floor.several(3, config), await floor.several(3, config, YOU)
        left = [*mine, *yours]
        for one in left:
            await floor.start(one)
        running = [mine[0]]
        ended: list[TaskRecord] = []
        while running:
            ended.append(one := running.pop())
            await floor.end(one)
            left.remove(one)
            due = [task for task in left if floor.is_due(task)]
            assert len(due) == (1 if left else 0), "one job runs at a time"
            for task in due:
                assert await floor.start(task) is None
                await floor.world.store.published(task.ref, attempt=(await floor.now(task)).attempt)
                running.append(task)
        assert left == []
        assert {one.task_id for one in ended} == {one.task_id for one in (*mine, *yours)}

    async def test_of_many_starts_at_once_no_more_run_than_may(self, floor: Floor) -> None:
        tasks = [await floor.engine.submit(a_submission(ME, config=TaskConfig(max_running=4))) for _ in range(30)]
        started = await asyncio.gather(*map(floor.start, tasks))
        assert started.count(None) == 4
        ended, running = 0, [task for task, ahead in zip(tasks, started, strict=True) if ahead is None]
        while running:
            await asyncio.gather(*map(floor.end, running))
            ended += len(running)
            running = [task for task in tasks if floor.is_due(task)]
            assert len(running) <= 4
            assert set(await asyncio.gather(*map(floor.start, running))) <= {None}
            for task in running:
                await floor.world.store.published(task.ref, attempt=2)
        assert ended == 30


class TestPublishing:
    async def test_the_job_of_a_task_that_has_got_its_place_is_published_at_once(
        self, floor: Floor, world: World
    ) -> None:
        tasks = await floor.several(3, ONE)
        for task in tasks:
            await floor.start(task)
        async with publishing(world) as queue:
            for task, later in pairwise(tasks):
                await floor.end(task)
                await eventually(lambda later=later: not floor.is_due(later))
                assert [record.task_id for record, _ in queue.published][-1] == later.task_id
                assert queue.published[-1][0].attempt == 2
                assert await floor.start(later) is None

    async def test_a_job_that_waits_before_its_publication_is_noted_is_due_no_longer(
        self, floor: Floor, world: World
    ) -> None:
        first, second = await floor.several(2, ONE)
        assert await floor.start(first) is None
        leg = NextLeg(leg=2, job_id=celery_job_id(first.key, 2), request_state=None)
        assert await world.store.park(first.ref, [QUESTION], Asking(attempt=1, at_ms=now_ms()), leg)
        assert await floor.start(second) is None
        answered = await world.store.answer(first.ref, {QUESTION.key: {}}, at_ms=now_ms(), start_before_ms=None)
        assert answered is not None
        assert answered.is_due
        assert await floor.start(first) == 0, "a worker is quicker than the server that has published it"
        assert not floor.is_due(first)
        await world.store.published(first.ref, attempt=2)
        counts = await world.recovery().counts()
        assert (counts.due, counts.queued, counts.waiting) == (0, 0, 1)
        await floor.end(second)
        await world.store.published(first.ref, attempt=2)
        assert floor.is_due(first)

    async def test_a_job_that_the_broker_does_not_take_stays_due(self, floor: Floor, world: World) -> None:
        first, second = await floor.several(2, ONE)
        await floor.start(first)
        await floor.start(second)
        async with publishing(world) as queue:
            queue.fail()
            await floor.end(first)
            await asyncio.sleep(0.05)
            assert floor.is_due(second)


class TestInRedis:
    async def test_a_sweep_corrects_places_that_were_lost_or_forged_in_redis(self, in_redis: RedisWorld) -> None:
        floor, recovery, client = Floor(in_redis), in_redis.recovery(), cast("Any", in_redis.client)
        tasks = await floor.several(4)
        for task in tasks:
            await floor.start(task)
        limit = in_redis.keys.running("component", '["tool","build_report"]')
        assert client.zcard(limit) == 2
        assert client.zcard(f"{limit}:waiting") == 2
        client.delete(f"{limit}:waiting")
        client.delete(in_redis.keys.record(tasks[0].scope, tasks[0].task_id))  # an operator did so
        await recovery.sweep("r", POLICY)
        assert floor.due(tasks) == [2]
        assert await floor.message(tasks[3]) == "Waiting for a free place (0 ahead)"
        client.zadd(limit, {tasks[1].key: 1})  # it seems to have expired
        assert await floor.start(await floor.submit()) == 1, "a younger task does not overtake"
        await recovery.sweep("r", POLICY)
        assert floor.due(tasks) == [2, 3]

    async def test_a_place_of_a_task_that_is_gone_or_has_ended_is_no_damage(
        self, in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        floor, client = Floor(in_redis), cast("Any", in_redis.client)
        gone, ended, damaged, waiting = await floor.several(4, ONE)
        await floor.start(gone)
        await floor.start(waiting)
        await floor.end(ended)
        names = in_redis.keys.record(gone.scope, gone.task_id), in_redis.keys.record(damaged.scope, damaged.task_id)
        client.delete(*names)
        client.set(names[1], "of another type", ex=60)
        (limit,) = [key for key in in_redis.keys_left() if b":running:" in key and not key.endswith(b":waiting")]
        forged = f"{waiting.key}s"
        client.zadd(limit, dict.fromkeys((ended.key, damaged.key, forged), now_ms() + 60_000))
        await in_redis.recovery().sweep("r", POLICY)
        assert floor.is_due(waiting)
        assert client.zrange(limit, 0, -1) == [waiting.key.encode()]
        removed = {line.partition(" from ")[0] for line in caplog.messages if line.startswith("removed ")}
        assert removed == {f"removed {damaged.key!r}", f"removed {forged!r}"}

    async def test_nothing_is_left_of_tasks_that_have_ended(self, in_redis: RedisWorld) -> None:
        floor = Floor(in_redis, max_running=2)
        tasks = await floor.several(4, TaskConfig(max_running=2, max_running_per_caller=2))
        for task in tasks:
            await floor.start(task)
        for task in tasks:
            await floor.end(task)
        left = [key.decode() for key in in_redis.keys_left()]
        assert [key for key in left if ":running:" in key or key == in_redis.keys.waiting] == []

    async def test_a_record_names_no_limit_of_another_server(self, in_redis: RedisWorld) -> None:
        floor, client = Floor(in_redis), cast("Any", in_redis.client)
        other = f"{in_redis.prefix}:other:running:component~~0"
        client.zadd(other, {"it": 1e15}, nx=True)
        client.pexpire(other, 60_000)
        record = await floor.submit(TaskConfig())
        key = in_redis.keys.record(record.scope, record.task_id)
        client.hset(key, mapping={"limits": f"1 {other}", "counted_in": other})
        assert await floor.start(record) is None
        assert client.zcard(other) == 1

    async def test_an_operator_sees_for_what_place_a_task_waits_and_may_have_its_job_published(
        self, in_redis: RedisWorld
    ) -> None:
        floor, inspection = Floor(in_redis), RedisInspection(in_redis.store)
        tasks = await floor.several(3, ONE)
        for task in tasks:
            await floor.start(task)
        (inspected,) = await inspection.tasks([tasks[2].key])
        assert inspected is not None
        waiting = waiting_of(inspected, Surroundings(place=await inspection.place(inspected)))
        assert waiting.reason == "place"
        assert waiting.text.startswith("a free place, for ")
        assert waiting.text.endswith(": 1 task is ahead of it (max_running of its component)")
        assert await inspection.requeue(inspected.record, force=False) == "again"
        await in_redis.store.published(tasks[2].ref, attempt=3)
        assert await floor.start(tasks[2]) == 1, "it waits in its old place"
