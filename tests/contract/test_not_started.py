"""A job gives up, because the store does not let it start for a minute. A body that another delivery began goes on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Change, Start, TaskRecord, TaskRef
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.worker import runner as worker_runner
from mcp_celery.worker.delivery import JobCall, JobNotStarted, JobRefused
from mcp_celery.worker.runner import JobRunner
from tests.support.worlds import SNAPSHOT, World, a_record

pytestmark = pytest.mark.anyio


class Silent:
    """A store that does not answer some calls.

    Args:
        world: Whose store it is.
        calls: Their names.
        is_carried_out: Whether it carries out a start nevertheless.
    """

    def __init__(self, world: World, *calls: str, is_carried_out: bool = False) -> None:
        self._store: Any = world.store
        self._calls = calls
        self._is_carried_out = is_carried_out

    def __getattr__(self, name: str) -> Any:
        return self._do_not_answer if name in self._calls else getattr(self._store, name)

    async def _do_not_answer(self, ref: TaskRef, *arguments: Any) -> None:
        if self._is_carried_out:
            await self._store.start(ref, *arguments)
        raise StoreUnavailableError


class Versions:
    """A worker to which the versions of components do not matter."""

    async def fingerprint(self, _: JobCall) -> str | None:
        return None


async def created(world: World) -> TaskRecord:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    return record


async def run(store: Silent, record: TaskRecord, *, is_genuine: bool = True) -> None:
    anything: Any = None
    runner = JobRunner(
        anything,
        namespace="shop",
        open_store=lambda: cast(Any, store),
        open_bus=lambda: anything,
        lifetimes=anything,
        progress_interval_seconds=1,
        max_result_bytes=1,
        revisions=anything,
        versions=cast(Any, Versions()),
    )
    await runner.run(
        JobCall(
            job_id=record.job_id,
            key=record.key,
            attempt=1,
            leg=1,
            retries=0,
            worker="celery@here/1",
            input_timeout_seconds=1,
            is_genuine=is_genuine,
        )
    )


async def begun(world: World, record: TaskRecord) -> TaskContextSnapshot | None:
    start = Start(attempt=1, retries=0, at_ms=1, worker="celery@there/1", delivery="another")
    return await world.store.start(record.ref, start)


async def failed(world: World, record: TaskRecord, delivery: str) -> bool:
    """Whether the task fails by what a job that gave up says of it."""
    changed = await world.store.change(record.ref, Change(to="failed", attempt=1, unless_begun=0, delivery=delivery))
    assert changed is not None
    assert changed.accepted is (changed.record.status == "failed")
    return changed.accepted


@pytest.fixture(autouse=True)
def gives_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_runner, "JOB_GIVES_UP_SECONDS", -1.0)


async def gave_up(world: World, record: TaskRecord, *, is_carried_out: bool = False) -> str:
    """The delivery of a job that could not learn whether it may begin."""
    with pytest.raises(JobNotStarted) as given_up:
        await run(Silent(world, "start", is_carried_out=is_carried_out), record)
    return given_up.value.delivery


async def test_a_job_that_gave_up_fails_a_task_that_no_delivery_began(world: World) -> None:
    record = await created(world)
    assert await failed(world, record, await gave_up(world, record))


async def test_a_job_that_gave_up_does_not_fail_a_body_that_another_delivery_began(world: World) -> None:
    record = await created(world)
    assert await begun(world, record)
    assert not await failed(world, record, await gave_up(world, record))


async def test_a_job_that_gave_up_fails_its_task_though_the_store_had_let_it_start(world: World) -> None:
    record = await created(world)
    delivery = await gave_up(world, record, is_carried_out=True)
    assert not await begun(world, record)
    assert await failed(world, record, delivery)


async def test_a_refused_job_does_not_give_up_when_the_store_does_not_say_why(world: World) -> None:
    record = await created(world)
    assert await begun(world, record)
    with pytest.raises(JobRefused) as refused:
        await run(Silent(world, "load"), record)
    assert type(refused.value) is JobRefused


async def test_a_forged_job_does_not_give_up(world: World) -> None:
    record = await created(world)
    with pytest.raises(JobRefused) as refused:
        await run(Silent(world, "snapshot"), record, is_genuine=False)
    assert type(refused.value) is JobRefused
