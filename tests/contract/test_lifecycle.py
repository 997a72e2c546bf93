"""No order of what workers, clients and operators do breaks the status table, whoever looks and whenever."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_celery.engine import (
    MOVES,
    Change,
    JobOutcome,
    Start,
    TaskEngine,
    TaskRecord,
    TaskStatus,
    TaskView,
    expired,
    failure,
    now_ms,
    success,
)
from mcp_celery.errors import TaskNotFoundError
from mcp_celery.protocol.v2025_11_25.wire import encode_task
from tests.support.waiting import eventually, soon
from tests.support.worlds import ALICE, World, a_submission

pytestmark = pytest.mark.anyio

OUTCOMES = [JobOutcome({"content": []}), JobOutcome({"content": [], "isError": True}, "halfway")]
SIGNALS = st.one_of(
    st.sampled_from(OUTCOMES).map(success),
    st.sampled_from(["TimeLimitExceeded", "WorkerLostError", "JobFailedError"]).map(failure),
    st.builds(expired),
    st.builds(Change, to=st.just("cancelled"), status_message=st.just("The job was revoked")),
    st.builds(Change, to=st.just("working"), attempt=st.sampled_from([None, 1, 2]), status_message=st.text(max_size=3)),
    st.builds(Change, to=st.just("input_required")),
)
DEEDS = st.one_of(
    SIGNALS,
    st.sampled_from(OUTCOMES),
    st.sampled_from(["cancel", "read", "list", "start"]),
)


async def done(world: World, engine: TaskEngine, record: TaskRecord, deed: object) -> None:
    """Let somebody do something to a task."""
    match deed:
        case Change():
            await asyncio.to_thread(world.ledger.change, record.ref, deed)
        case JobOutcome():
            world.put_result(record.job_id, "SUCCESS", deed)  # and nobody tells of it
        case "cancel":
            await engine.cancel(ALICE, record.task_id)
        case "read":
            await engine.status(ALICE, record.task_id)
        case "list":
            await engine.list(ALICE)
        case _:
            await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms()))


@pytest.mark.shows("L34")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(DEEDS, min_size=1, max_size=4), min_size=1, max_size=5))
async def test_any_order_of_events_gives_one_end_and_allowed_moves_only(
    world: World, engine: TaskEngine, made: list[list[object]]
) -> None:
    record = await engine.submit(a_submission())
    seen: list[TaskView] = []

    async def follow() -> None:
        async with engine.watch(ALICE, [record.task_id], results=False) as watch:
            async for view in watch:
                seen.append(view)  # noqa: PERF401 - what was seen before a failure counts

    following = asyncio.create_task(follow())
    for together in made:
        await asyncio.gather(*(done(world, engine, record, deed) for deed in together))
    await engine.cancel(ALICE, record.task_id)
    await soon(following)

    last = await engine.status(ALICE, record.task_id)
    assert last.is_terminal
    assert seen[-1].record == last
    assert [view.record.is_terminal for view in seen].count(True) == 1
    assert [view.record.revision for view in seen] == sorted({view.record.revision for view in seen})
    assert {view.record.created_at_ms for view in seen} == {record.created_at_ms}
    shown: list[TaskStatus] = [encode_task(view.record)["status"] for view in seen]
    assert all(after in MOVES[before] for before, after in itertools.pairwise(shown))


async def test_changes_after_a_task_has_expired_find_no_task(world: World, engine: TaskEngine) -> None:
    record = await engine.submit(a_submission(ttl_ms=100))

    async def gone() -> bool:
        return await world.store.load(record.ref) is None

    await eventually(gone, what="the task has expired")
    assert await asyncio.to_thread(world.ledger.change, record.ref, success(OUTCOMES[0])) is None
    with pytest.raises(TaskNotFoundError):
        await engine.wait(ALICE, record.task_id)
    with pytest.raises(TaskNotFoundError):
        await engine.cancel(ALICE, record.task_id)
