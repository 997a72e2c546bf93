"""A task whose owner neither polls nor follows it is cancelled, where its component or the server says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from mcp_celery.common.background import ended
from mcp_celery.config import TaskConfig
from mcp_celery.engine import Change, Observers, TaskEngine, TaskRecord
from mcp_celery.engine.followup_jobs import as_itself
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.errors import ConfigurationError, StoreUnavailableError
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, LIMITS, Watchful, World, a_submission

pytestmark = pytest.mark.anyio

POLICY: Final = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)
SOON: Final = TaskConfig(abandon_after=0.2)
ATTENDED: Final = TaskConfig(abandon_after=1)


@asynccontextmanager
async def reaping(world: World, queue: Watchful) -> AsyncGenerator[None]:
    reaper = Reaper(
        store=world.recovery(),
        tasks=world.store,
        queue=queue,
        results=world.results,  # pyright: ignore[reportArgumentType] - no result is forgotten
        declared=as_itself,
        policy=POLICY,
        observers=Observers(),
    )
    running = asyncio.create_task(reaper.run())
    try:
        yield
    finally:
        await ended(running)


async def state(world: World, record: TaskRecord) -> TaskRecord:
    stored = await world.store.load(record.ref)
    assert stored is not None
    return stored.record


async def cancelled(world: World, record: TaskRecord) -> TaskRecord:
    async def is_cancelled() -> bool:
        return (await state(world, record)).status == "cancelled"

    await eventually(is_cancelled, what="the task is cancelled")
    return await state(world, record)


async def test_a_task_whose_owner_is_gone_is_cancelled_with_its_job_and_others_are_not(
    world: World, engine: TaskEngine, queue: Watchful
) -> None:
    kept = await engine.submit(a_submission())
    abandoned = await engine.submit(a_submission(config=SOON))
    async with reaping(world, queue):
        found = await cancelled(world, abandoned)
        await eventually(lambda: abandoned.job_id in queue.revoked, what="its job is revoked")
    assert found.status_message == "Cancelled: its client has neither asked for it nor followed it for 0.2 s"
    assert (await state(world, kept)).status == "working"


@pytest.mark.parametrize("how", ["poll", "list", "follow"])
async def test_a_task_is_kept_while_its_owner_is_there(
    world: World, engine: TaskEngine, queue: Watchful, how: str
) -> None:
    attended = await engine.submit(a_submission(config=ATTENDED))

    async def attend() -> None:
        if how == "follow":
            async with engine.watch(ALICE, [attended.task_id]) as watch:
                async for _ in watch:
                    pass
        while how != "follow":
            await (engine.get(ALICE, attended.task_id) if how == "poll" else engine.list(ALICE))
            await asyncio.sleep(0.05)

    attending = asyncio.create_task(attend())
    async with reaping(world, queue):
        # Another one that is left alone just as long goes meanwhile.
        other = replace(a_submission(config=ATTENDED), listed=False)
        await cancelled(world, await engine.submit(other))
        assert (await state(world, attended)).status == "working"
        await ended(attending)
        await cancelled(world, attended)


async def test_a_task_that_has_ended_stays_as_it_is(world: World, engine: TaskEngine, queue: Watchful) -> None:
    done, abandoned = [await engine.submit(a_submission(config=SOON)) for _ in range(2)]
    await world.store.change(done.ref, Change(to="completed"))
    async with reaping(world, queue):
        await cancelled(world, abandoned)
    assert (await state(world, done)).status == "completed"
    recovery = world.recovery()
    for record in (done, abandoned):
        assert await recovery.attended_until_ms(record.key) is None
        await world.store.attend(record.ref)
        assert await recovery.attended_until_ms(record.key) is None


async def test_a_request_does_not_fail_because_its_owner_could_not_be_noted(
    world: World, engine: TaskEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await engine.submit(a_submission(config=SOON))

    async def attend(_: object) -> None:
        raise StoreUnavailableError

    monkeypatch.setattr(world.store, "attend", attend)
    assert (await engine.get(ALICE, record.task_id)).record.status == "working"


def test_a_component_chooses_the_time_or_never() -> None:
    limits = replace(LIMITS, abandon_after_ms=60_000)
    assert limits.abandon_after_of(TaskConfig()) == 60_000
    assert limits.abandon_after_of(TaskConfig(abandon_after=1.5)) == 1_500
    assert limits.abandon_after_of(TaskConfig(abandon_after=False)) is None
    assert LIMITS.abandon_after_of(TaskConfig()) is None
    wrong: Any
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match=r"abandon_after=.*must be above 0 seconds"):
            TaskConfig(abandon_after=wrong)
