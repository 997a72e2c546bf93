"""Following tasks: the current state first, then every change, nothing after the end, and nobody else's tasks."""

import asyncio

import pytest

from mcp_celery.engine import Caller, Change, JobOutcome, TaskEngine, TaskStatus, TaskWatch
from mcp_celery.testing import MemoryBackend
from tests.support.waiting import soon
from tests.support.worlds import ALICE, LIMITS, World, a_submission

pytestmark = pytest.mark.anyio

OUTCOME = JobOutcome({"content": [{"type": "text", "text": "42"}]})


async def told(watch: TaskWatch) -> tuple[str, TaskStatus, str | None]:
    record = (await soon(watch.__anext__())).record
    return record.task_id, record.status, record.status_message


async def ended(watch: TaskWatch) -> bool:
    with pytest.raises(StopAsyncIteration):
        await soon(watch.__anext__())
    return True


async def test_a_follower_gets_the_current_state_then_every_change_then_nothing(
    world: World, engine: TaskEngine
) -> None:
    task = await engine.submit(a_submission())
    await world.store.change(task.ref, Change(to="working", status_message="before"))
    async with engine.watch(ALICE, [task.task_id]) as watch:
        assert watch.accepted == [task.task_id]
        assert await told(watch) == (task.task_id, "working", "before")
        for message in ("one", "two", "three"):
            await world.store.change(task.ref, Change(to="working", status_message=message))
            assert await told(watch) == (task.task_id, "working", message)
        await world.store.change(task.ref, Change(to="input_required"))
        assert (await told(watch))[1] == "input_required"
        world.put_result(task.job_id, "SUCCESS", OUTCOME)
        await world.store.change(task.ref, Change(to="completed"))
        view = await soon(watch.__anext__())
        assert (view.record.status, view.result) == ("completed", OUTCOME.result)
        await world.store.change(task.ref, Change(to="working", status_message="too late"))
        assert await ended(watch)
        assert await ended(watch)


async def test_an_ended_task_is_reported_once(world: World, engine: TaskEngine) -> None:
    task = await engine.submit(a_submission())
    await engine.cancel(ALICE, task.task_id)
    async with engine.watch(ALICE, [task.task_id]) as watch:
        assert watch.accepted == [task.task_id]
        assert (await told(watch))[1] == "cancelled"
        assert await ended(watch)


async def test_changes_between_two_reads_are_reported_as_the_last_one(world: World, engine: TaskEngine) -> None:
    task = await engine.submit(a_submission())
    async with engine.watch(ALICE, [task.task_id]) as watch:
        await told(watch)
        for number in range(50):
            await world.store.change(task.ref, Change(to="working", status_message=str(number)))
        await engine.cancel(ALICE, task.task_id)
        statuses: list[TaskStatus] = []
        revisions: list[int] = []
        async for view in watch:
            statuses.append(view.record.status)
            revisions.append(view.record.revision)
        assert statuses[-1] == "cancelled"
        assert statuses.count("cancelled") == 1
        assert revisions == sorted(set(revisions))


async def test_a_change_between_the_subscription_and_the_first_read_is_reported_once(
    world: World, engine: TaskEngine
) -> None:
    task = await engine.submit(a_submission())
    async with engine.watch(ALICE, [task.task_id]) as watch:
        await engine.cancel(ALICE, task.task_id)
        told_of = [view.record.status async for view in watch]
    assert told_of.count("cancelled") == 1
    assert told_of[-1] == "cancelled"


async def test_several_tasks_are_followed_until_all_have_ended(world: World, engine: TaskEngine) -> None:
    tasks = [await engine.submit(a_submission()) for _ in range(5)]
    ids = [task.task_id for task in tasks]
    async with engine.watch(ALICE, ids) as watch:
        assert watch.accepted == ids
        assert {(await told(watch))[0] for _ in ids} == set(ids)
        for task in reversed(tasks):
            await engine.cancel(ALICE, task.task_id)
            assert (await told(watch))[:2] == (task.task_id, "cancelled")
        assert await ended(watch)


async def test_foreign_missing_and_malformed_ids_are_left_out(world: World, engine: TaskEngine) -> None:
    own = await engine.submit(a_submission())
    bobs = await engine.submit(a_submission(Caller("client-a|bob", ALICE.issuer)))
    anonymous = await engine.submit(a_submission(Caller()))
    same_name = await engine.submit(a_submission(Caller(ALICE.scope, "https://other.example")))
    asked = [
        bobs.task_id, "x" * 43, own.task_id, "x" * 10_240, "a:b", anonymous.task_id, same_name.task_id, own.task_id, "",
    ]  # fmt: skip
    async with engine.watch(ALICE, asked) as watch:
        assert watch.accepted == [own.task_id]
        assert (await told(watch))[0] == own.task_id
        for foreign in (bobs, anonymous, same_name):
            await world.store.change(foreign.ref, Change(to="completed"))
        await engine.cancel(ALICE, own.task_id)
        assert (await told(watch))[:2] == (own.task_id, "cancelled")
        assert await ended(watch)


async def test_a_caller_without_tasks_gets_an_empty_watch(engine: TaskEngine) -> None:
    for ids in ([], ["x" * 43]):
        async with engine.watch(ALICE, ids) as watch:
            assert watch.accepted == []
            assert await ended(watch)


async def test_a_task_that_expires_ends_without_a_report(engine: TaskEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_celery.engine.subscription.RECHECK_SECONDS", 0.02)
    task = await engine.submit(a_submission(ttl_ms=1_000))
    async with engine.watch(ALICE, [task.task_id]) as watch:
        assert [view.record.status async for view in watch] == ["working"]


async def test_a_task_whose_result_is_gone_does_not_end_the_others(world: World, engine: TaskEngine) -> None:
    lost, other = [await engine.submit(a_submission()) for _ in range(2)]
    async with engine.watch(ALICE, [lost.task_id, other.task_id]) as watch:
        assert {(await told(watch))[0] for _ in range(2)} == {lost.task_id, other.task_id}
        await world.store.change(lost.ref, Change(to="completed"))
        await engine.cancel(ALICE, other.task_id)
        assert (await told(watch))[:2] == (other.task_id, "cancelled")
        assert await ended(watch)


async def test_two_followers_get_the_same_states(world: World, engine: TaskEngine) -> None:
    task = await engine.submit(a_submission())
    async with engine.watch(ALICE, [task.task_id]) as one, engine.watch(ALICE, [task.task_id]) as other:
        for watch in (one, other):
            assert (await told(watch))[1] == "working"
        await engine.cancel(ALICE, task.task_id)
        for watch in (one, other):
            assert (await told(watch))[1] == "cancelled"
            assert await ended(watch)


async def test_a_follower_waits_through_an_outage_and_gets_the_state_afterwards() -> None:
    backend = MemoryBackend()
    engine = backend.engine(LIMITS)
    task = await engine.submit(a_submission())
    async with engine.watch(ALICE, [task.task_id]) as watch:
        assert (await told(watch))[1] == "working"
        backend.bus.fail()  # the hint of the cancel is lost
        await engine.cancel(ALICE, task.task_id)
        backend.store.ledger.fail()
        waiting = asyncio.create_task(told(watch))
        backend.bus.recover()  # the follower is hinted, and cannot read
        await asyncio.sleep(0)
        backend.store.ledger.recover()
        backend.bus.recover()
        assert (await waiting)[1] == "cancelled"


async def test_a_watch_that_is_not_entered_ends_at_once(engine: TaskEngine) -> None:
    task = await engine.submit(a_submission())
    watch = engine.watch(ALICE, [task.task_id])
    assert await ended(watch)
