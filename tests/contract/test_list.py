"""Lists of tasks, told once for memory and Redis: whose they are, their order, their cursors, and what has expired."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_celery.config import TaskConfig
from mcp_celery.engine import Caller, JobOutcome, StoredTask, TaskEngine, TaskRecord, now_ms
from mcp_celery.engine.ids import PAGE_SIZE, cursor_at, position_of
from mcp_celery.errors import InvalidCursorError, QueueUnavailableError
from mcp_celery.keys import TaskType
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, SNAPSHOT, RedisWorld, Watchful, World, a_record, a_submission, engine_of

pytestmark = pytest.mark.anyio

HERE = Caller(session="session-1")


async def listed(engine: TaskEngine, caller: Caller = ALICE) -> list[TaskRecord]:
    """A whole list, part by part."""
    page = await engine.list(caller)
    records = page.records
    while page.cursor is not None:
        assert len(page.records) == PAGE_SIZE
        page = await engine.list(caller, page.cursor)
        records = [*records, *page.records]
    return records


class TestWhoseTheyAre:
    async def test_a_caller_sees_the_tasks_of_its_scope_whatever_its_session(self, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission(replace(ALICE, session="one")))
        assert record.session is None
        assert await listed(engine, replace(ALICE, session="another")) == [record]

    @pytest.mark.parametrize(
        "other",
        [
            Caller("client-a|bob", ALICE.issuer),
            Caller("client-a", ALICE.issuer),
            Caller(ALICE.scope, "https://another.example"),
            Caller(ALICE.scope),
            Caller(session="session-1"),
            Caller(),
        ],
    )
    async def test_a_list_has_the_callers_own_tasks_only(self, engine: TaskEngine, other: Caller) -> None:
        await engine.submit(a_submission(ALICE))
        assert await listed(engine, other) == []

    async def test_an_unlisted_task_is_in_no_list_and_found_by_its_id(self, engine: TaskEngine) -> None:
        record = await engine.submit(replace(a_submission(ALICE), listed=False))
        assert await listed(engine) == []
        assert await engine.status(ALICE, record.task_id) == record

    async def test_an_anonymous_caller_sees_those_of_its_session(self, engine: TaskEngine) -> None:
        mine = await engine.submit(a_submission(HERE))
        await engine.submit(a_submission(Caller(session="session-2")))
        await engine.submit(a_submission(Caller()))
        assert mine.session == HERE.owner.session
        assert await listed(engine, HERE) == [mine]
        # … and may read every task that it knows the id of.
        assert await engine.status(Caller(session="session-2"), mine.task_id) == mine

    async def test_a_caller_without_scope_and_session_has_no_list(self, engine: TaskEngine) -> None:
        await engine.submit(a_submission(Caller()))
        assert await listed(engine, Caller()) == []

    async def test_tasks_of_components_for_which_the_token_has_no_scope_are_left_out(
        self, world: World, queue: Watchful
    ) -> None:
        async def declared(_: TaskType, component: str) -> tuple[str, TaskConfig]:
            return component, TaskConfig(required_scopes=["payroll"] if component == "salaries" else [])

        engine = engine_of(world, queue, declared=declared)
        now = now_ms()
        names = ["build_report", "salaries", "build_report"]
        records = [replace(a_record(component=name), created_at_ms=now + age) for age, name in enumerate(names)]
        for record in records:
            await world.store.create(record, SNAPSHOT)
        first, _, last = records
        assert await listed(engine, replace(ALICE, token_scopes=frozenset({"reports"}))) == [last, first]
        assert await listed(engine, replace(ALICE, token_scopes=frozenset({"payroll"}))) == records[::-1]


class TestOrder:
    async def test_the_newest_is_first_and_every_task_is_there_once(self, world: World, engine: TaskEngine) -> None:
        now = now_ms()
        records = [replace(a_record(), created_at_ms=now + number // 3) for number in range(2 * PAGE_SIZE + 20)]
        for record in records:
            await world.store.create(record, SNAPSHOT)
        found = await listed(engine)
        assert sorted(record.task_id for record in found) == sorted(record.task_id for record in records)
        created = [record.created_at_ms for record in found]
        assert created == sorted(created, reverse=True)

    async def test_tasks_that_come_meanwhile_move_nothing(self, world: World, engine: TaskEngine) -> None:
        now = now_ms()
        old = [replace(a_record(), created_at_ms=now + number) for number in range(PAGE_SIZE + 10)]
        for record in old:
            await world.store.create(record, SNAPSHOT)
        first = await engine.list(ALICE)
        await asyncio.gather(
            *(world.store.create(replace(a_record(), created_at_ms=now + 1000), SNAPSHOT) for _ in old)
        )
        second = await engine.list(ALICE, first.cursor)
        assert [*first.records, *second.records] == old[::-1]
        assert second.cursor is None

    async def test_a_cursor_outlives_the_task_it_was_made_at(self, world: World, engine: TaskEngine) -> None:
        now = now_ms()
        records = [replace(a_record(), created_at_ms=now + number) for number in range(PAGE_SIZE + 2)]
        for record in records:
            await world.store.create(record, SNAPSHOT)
        first = await engine.list(ALICE)
        await world.store.delete(first.records[-1].ref)
        second = await engine.list(ALICE, first.cursor)
        assert second.records == records[1::-1]

    async def test_a_last_part_that_is_full_has_no_cursor(self, world: World, engine: TaskEngine) -> None:
        for _ in range(PAGE_SIZE):
            await world.store.create(a_record(), SNAPSHOT)
        page = await engine.list(ALICE)
        assert (len(page.records), page.cursor) == (PAGE_SIZE, None)


class TestCursors:
    @pytest.mark.parametrize(
        "cursor",
        ["", "x", "1", "not base64!", "ключ", "AAAA", cursor_at("1:x"), cursor_at("00179x000000000:a"), "A" * 100_000],
    )
    async def test_a_cursor_that_the_server_did_not_make_is_refused(self, engine: TaskEngine, cursor: str) -> None:
        with pytest.raises(InvalidCursorError):
            await engine.list(ALICE, cursor)

    @given(st.text())
    def test_any_text_that_is_no_cursor_is_refused(self, cursor: str) -> None:
        with pytest.raises(InvalidCursorError):
            position_of(cursor)

    def test_a_cursor_that_the_server_made_is_accepted(self) -> None:
        position = a_record().position
        assert position_of(cursor_at(position)) == position


class TestLifetime:
    async def test_a_task_that_was_taken_back_is_not_listed(self, engine: TaskEngine, queue: Watchful) -> None:
        queue.fail()
        with pytest.raises(QueueUnavailableError):
            await engine.submit(a_submission())
        assert await listed(engine) == []

    async def test_an_expired_task_is_not_listed(self, world: World, engine: TaskEngine) -> None:
        kept, first, last = a_record(), a_record(ttl_ms=1), a_record(ttl_ms=1)
        for record in (first, kept, last):
            await world.store.create(record, SNAPSHOT)

        async def gone() -> bool:
            return [await world.store.load(brief.ref) for brief in (first, last)] == [None, None]

        await eventually(gone, what="the tasks have expired")
        assert await listed(engine) == [kept]

    async def test_a_listed_task_is_settled_like_one_that_is_read(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        world.put_result(record.job_id, "SUCCESS", JobOutcome({"content": []}))
        assert [one.status for one in await listed(engine)] == ["completed"]
        assert (await engine.status(ALICE, record.task_id)).status == "completed"

    async def test_a_task_that_expires_while_its_part_is_read_is_left_out(
        self, world: World, engine: TaskEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept, brief = await engine.submit(a_submission()), await engine.submit(a_submission())
        world.put_result(brief.job_id, "SUCCESS", JobOutcome({"content": []}))
        page = world.store.page

        async def then_gone(owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
            found = await page(owner, before=before, limit=limit)
            await world.store.delete(brief.ref)
            return found

        monkeypatch.setattr(world.store, "page", then_gone)
        assert await listed(engine) == [kept]

    async def test_a_task_whose_result_is_lost_still_has_a_status(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        world.put_result(record.job_id, "SUCCESS", JobOutcome({"content": []}))
        await engine.get(ALICE, record.task_id)
        world.forget_result(record.job_id)
        assert (await engine.status(ALICE, record.task_id)).status == "completed"
        assert [one.status for one in await listed(engine)] == ["completed"]


class TestInRedisOnly:
    async def test_no_key_and_no_record_shows_the_session(self, in_redis: RedisWorld, queue: Watchful) -> None:
        engine = engine_of(in_redis, queue)
        record = await engine.submit(a_submission(HERE))
        kept = in_redis.client.hgetall(in_redis.keys.record(None, record.task_id))
        assert b"session-1" not in b" ".join(in_redis.keys_left())
        assert "session-1" not in str(kept)

    async def test_the_list_lives_as_long_as_its_longest_lived_task(self, in_redis: RedisWorld) -> None:
        await in_redis.store.create(a_record(ttl_ms=50_000), SNAPSHOT)
        index = str(in_redis.keys.index(ALICE.scope, ALICE.issuer, None))
        assert 40_000 < in_redis.client.pttl(index) <= 50_000  # type: ignore[operator]
        await in_redis.store.create(a_record(ttl_ms=90_000), SNAPSHOT)
        await in_redis.store.create(a_record(ttl_ms=10_000), SNAPSHOT)
        assert 80_000 < in_redis.client.pttl(index) <= 90_000  # type: ignore[operator]

    async def test_expired_tasks_are_removed_from_a_list_that_is_not_read(self, in_redis: RedisWorld) -> None:
        index = str(in_redis.keys.index(ALICE.scope, ALICE.issuer, None))
        await in_redis.store.create(a_record(ttl_ms=60_000), SNAPSHOT)
        for _ in range(500):
            await in_redis.store.create(a_record(ttl_ms=1), SNAPSHOT)
        assert in_redis.client.zcard(index) < 100  # type: ignore[operator]

    async def test_reading_a_list_removes_expired_tasks_from_it(self, in_redis: RedisWorld) -> None:
        index = str(in_redis.keys.index(ALICE.scope, ALICE.issuer, None))
        kept, brief = a_record(), a_record()
        await in_redis.store.create(kept, SNAPSHOT)
        await in_redis.store.create(brief, SNAPSHOT)
        in_redis.client.pexpire(in_redis.keys.record(brief.scope, brief.task_id), 1)

        async def gone() -> bool:
            return await in_redis.store.load(brief.ref) is None

        await eventually(gone, what="the task has expired")
        assert in_redis.client.zcard(index) == 2
        await in_redis.store.page(ALICE, before=None, limit=10)
        assert in_redis.client.zcard(index) == 1

    async def test_a_list_takes_off_a_task_whose_record_is_none(self, in_redis: RedisWorld) -> None:
        index = str(in_redis.keys.index(ALICE.scope, ALICE.issuer, None))
        kept, damaged = a_record(), a_record()
        for record in (kept, damaged):
            await in_redis.store.create(record, SNAPSHOT)
        in_redis.client.set(in_redis.keys.record(damaged.scope, damaged.task_id), "", px=60_000)
        assert len(await in_redis.store.page(ALICE, before=None, limit=10)) == 1
        assert in_redis.client.zcard(index) == 1

    async def test_a_part_is_full_although_what_came_first_has_expired(self, in_redis: RedisWorld) -> None:
        now = now_ms()
        records = [replace(a_record(), created_at_ms=now + number) for number in range(4)]
        for record in records:
            await in_redis.store.create(record, SNAPSHOT)
        for record in records[2:]:
            in_redis.client.delete(in_redis.keys.record(record.scope, record.task_id))
        found = await in_redis.store.page(ALICE, before=None, limit=2)
        assert [stored.record for stored in found] == records[1::-1]

    async def test_a_task_that_is_taken_back_leaves_no_place(self, in_redis: RedisWorld) -> None:
        record = a_record()
        await in_redis.store.create(record, SNAPSHOT)
        await in_redis.store.delete(record.ref)
        # Only the mark, for a minute, of what must not be created any more.
        assert in_redis.keys_left() == [in_redis.keys.deleted(record.scope, record.task_id).encode()]
