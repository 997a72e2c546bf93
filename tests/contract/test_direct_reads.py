"""A task read without a script is the one that the script reads; where only the script can tell, it is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import pytest

from mcp_celery.engine import Asking, Change, NextLeg, TaskRecord
from mcp_celery.errors import StoredDataError
from mcp_celery.store.commands import loaded_directly
from tests.support.own_store import OwnStore
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

RESULT: Final = "celery-task-meta-1"


async def nothing(_world: RedisWorld, _record: TaskRecord) -> None:
    """The task works."""


async def completes(world: RedisWorld, record: TaskRecord) -> None:
    world.put_result(record.job_id, "SUCCESS", {"content": []})
    assert await world.store.change(record.ref, Change(to="completed"))


async def has_an_unreported_result(world: RedisWorld, record: TaskRecord) -> None:
    world.put_result(record.job_id, "SUCCESS", {"content": []})


async def fails_with_a_result(world: RedisWorld, record: TaskRecord) -> None:
    world.put_result(record.job_id, "FAILURE", {"exc_type": "ValueError", "exc_message": ["no"]})
    assert await world.store.change(record.ref, Change(to="failed", status_message="no"))


async def is_cancelled_with_a_result(world: RedisWorld, record: TaskRecord) -> None:
    world.put_result(record.job_id, "SUCCESS", {"content": []})
    assert await world.store.change(record.ref, Change(to="cancelled"))


async def loses_its_result(world: RedisWorld, record: TaskRecord) -> None:
    await completes(world, record)
    world.forget_result(record.job_id)


async def has_another_job(world: RedisWorld, record: TaskRecord) -> None:
    assert await world.store.park(
        record.ref, [], Asking(attempt=1, at_ms=1), NextLeg(leg=2, job_id="", request_state=None)
    )
    world.put_result(record.job_id, "SUCCESS", {"content": ["of the first job"]})


async def is_gone(world: RedisWorld, record: TaskRecord) -> None:
    assert await world.store.delete(record.ref)


Course = Callable[[RedisWorld, TaskRecord], Awaitable[None]]
TOLD: Final[list[Course]] = [
    nothing,
    completes,
    has_an_unreported_result,
    fails_with_a_result,
    is_cancelled_with_a_result,
]
NOT_TOLD: Final[list[Course]] = [loses_its_result, has_another_job, is_gone]


def scripts_run(world: RedisWorld) -> int:
    stats: Any = world.client.info("commandstats")
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"]


async def created(world: RedisWorld, course: Course) -> TaskRecord:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    await course(world, record)
    return record


@pytest.fixture
async def other(own_world: RedisWorld) -> AsyncGenerator[RedisWorld]:
    """Another server, which has not heard of the tasks."""
    world = RedisWorld(own_world.url, prefix=own_world.prefix)
    yield world
    await world.aclose()


@pytest.mark.parametrize("course", TOLD)
async def test_the_server_that_created_a_task_reads_it_without_a_script(
    own_world: RedisWorld, other: RedisWorld, course: Course
) -> None:
    record = await created(own_world, course)
    by_script = await other.store.load(record.ref)
    assert by_script is not None
    before = scripts_run(own_world)
    assert await own_world.store.load(record.ref) == by_script
    assert scripts_run(own_world) == before


@pytest.mark.parametrize("course", NOT_TOLD)
async def test_where_only_the_script_can_tell_it_is_asked(
    own_world: RedisWorld, other: RedisWorld, course: Course
) -> None:
    record = await created(own_world, course)
    by_script = await other.store.load(record.ref)
    before = scripts_run(own_world)
    assert await own_world.store.load(record.ref) == by_script
    assert scripts_run(own_world) > before


async def test_another_server_reads_without_a_script_from_the_second_time_on(
    own_world: RedisWorld, other: RedisWorld
) -> None:
    record = await created(own_world, completes)
    first = await other.store.load(record.ref)
    before = scripts_run(own_world)
    assert await other.store.load(record.ref) == first
    assert scripts_run(own_world) == before


@pytest.mark.parametrize("damaged", ["record", "result"])
async def test_a_key_of_another_type_is_left_to_the_script(own_store: OwnStore, damaged: str) -> None:
    world = RedisWorld(own_store.url)
    try:
        record = await created(world, completes)
        key = world.keys.record(record.scope, record.task_id)
        name: Any = key if damaged == "record" else world.client.hget(key, "result_key")
        world.client.delete(name)
        world.client.lpush(name, "x")
        world.client.expire(name, 60)
        if damaged == "record":
            with pytest.raises(StoredDataError):
                await world.store.load(record.ref)
        else:
            found = await world.store.load(record.ref)
            assert found is not None
            assert found.result is None
    finally:
        await world.aclose()


class TestWhatCanBeTold:
    def of(self, status: str, stored: bytes | None, key: bytes = RESULT.encode()) -> object:
        return loaded_directly([[b"status", status.encode(), b"result_key", key], stored], RESULT)

    def test_a_completed_task_whose_result_went_between_the_commands_is_read_again(self) -> None:
        assert self.of("completed", b"{}")
        assert self.of("completed", None) is None

    def test_a_task_with_questions_is_read_by_the_script(self) -> None:
        assert self.of("input_required", None) is None

    def test_the_result_of_another_job_counts_for_nothing(self) -> None:
        assert self.of("completed", b"{}", b"celery-task-meta-1!2") is None

    def test_a_hash_comes_as_a_mapping_or_flat(self) -> None:
        fields = {b"status": b"working", b"result_key": RESULT.encode()}
        flat = [part for pair in fields.items() for part in pair]
        assert loaded_directly([fields, None], RESULT) == loaded_directly([flat, None], RESULT) == (fields, None, ())

    def test_results_in_another_place_are_not_missed(self) -> None:
        assert loaded_directly([{b"status": b"completed"}], None) == ({b"status": b"completed"}, None, ())
