"""Answering through the engine, over either store: what is refused and ignored, and how the next leg is published."""

import asyncio
from dataclasses import replace

import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    ELICIT,
    Asking,
    Caller,
    JSONObject,
    NextLeg,
    Question,
    RpcError,
    Start,
    TaskEngine,
    TaskRecord,
    now_ms,
)
from mcp_celery.errors import AnswersTooLargeError, InvalidAnswerError, SnapshotUnreadableError, TaskNotFoundError
from mcp_celery.keys import TaskType, celery_job_id
from tests.support.worlds import ALICE, LIMITS, SNAPSHOT, Watchful, World, a_submission

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
PARAMS: JSONObject = {"mode": "form", "message": "Your name?", "requestedSchema": SCHEMA}
ADA: JSONObject = {"action": "accept", "content": {"name": "Ada"}}
NOBODY: JSONObject = {"action": "accept", "content": {}}
CONFIG = TaskConfig(queue="gpu", expires=30)


async def declared(_: TaskType, component: str) -> tuple[str, TaskConfig]:
    return f"declared {component}", CONFIG


@pytest.fixture
def engine(world: World, queue: Watchful) -> TaskEngine:
    limits = replace(LIMITS, max_input_bytes=200)
    return TaskEngine(
        store=world.store,
        queue=queue,
        bus=world.bus,
        results=world.results,
        limits=limits,
        answer_version=LATEST_HANDSHAKE_VERSION,
        declared=declared,
    )


def asking(record: TaskRecord) -> Asking:
    return Asking(attempt=record.attempt, at_ms=now_ms())


async def submitted(engine: TaskEngine, world: World) -> TaskRecord:
    record = await engine.submit(a_submission())
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
    return record


async def awaiting(engine: TaskEngine, world: World, *keys: str) -> TaskRecord:
    """A task whose job waits for answers."""
    record = await submitted(engine, world)
    for key in keys:
        assert await world.store.ask(record.ref, Question(key, ELICIT, PARAMS), asking(record))
    return record


async def parked(engine: TaskEngine, world: World, *names: str, request_state: str | None = None) -> TaskRecord:
    """A task whose job has ended with questions."""
    record = await submitted(engine, world)
    questions = [Question(f"1.{name}", ELICIT, PARAMS) for name in names]
    leg = NextLeg(leg=2, job_id=celery_job_id(record.key, 2), request_state=request_state)
    assert await world.store.park(record.ref, questions, asking(record), leg)
    return record


async def requests_of(engine: TaskEngine, record: TaskRecord) -> list[str]:
    return list((await engine.get(ALICE, record.task_id)).input_requests)


class TestAwaited:
    async def test_the_caller_sees_what_it_is_asked(self, engine: TaskEngine, world: World) -> None:
        record = await awaiting(engine, world, "one", "two")
        view = await engine.get(ALICE, record.task_id)
        assert view.record.status == "input_required"
        assert view.input_requests == {key: {"method": ELICIT, "params": PARAMS} for key in ("one", "two")}

    async def test_answers_take_their_questions_off_the_list(self, engine: TaskEngine, world: World) -> None:
        record = await awaiting(engine, world, "one", "two")
        assert (await engine.respond(ALICE, record.task_id, {"two": ADA})).status == "input_required"
        assert await requests_of(engine, record) == ["one"]
        assert (await engine.respond(ALICE, record.task_id, {"one": ADA})).status == "working"
        assert await world.store.heard(record.ref, "one", attempt=1) == ADA

    async def test_no_leg_is_published_for_a_job_that_waits(
        self, engine: TaskEngine, world: World, queue: Watchful
    ) -> None:
        record = await awaiting(engine, world, "one")
        await engine.respond(ALICE, record.task_id, {"one": ADA})
        assert len(queue.published) == 1

    async def test_a_wrong_answer_is_refused_and_the_question_stays(self, engine: TaskEngine, world: World) -> None:
        record = await awaiting(engine, world, "one", "two")
        before = await engine.get(ALICE, record.task_id)
        with pytest.raises(InvalidAnswerError, match="'two'"):
            await engine.respond(ALICE, record.task_id, {"one": ADA, "two": NOBODY})
        assert await engine.get(ALICE, record.task_id) == before

    async def test_answers_above_the_size_limit_are_refused(self, engine: TaskEngine, world: World) -> None:
        record = await awaiting(engine, world, "one")
        with pytest.raises(AnswersTooLargeError):
            await engine.respond(ALICE, record.task_id, {"one": {"action": "accept", "content": {"name": "x" * 300}}})
        assert await requests_of(engine, record) == ["one"]

    @pytest.mark.parametrize("responses", [{}, {"unknown": NOBODY}, {"one": NOBODY}])
    async def test_an_answer_without_an_open_question_is_ignored(
        self, engine: TaskEngine, world: World, responses: dict[str, object]
    ) -> None:
        record = await awaiting(engine, world, "one", "two")
        await engine.respond(ALICE, record.task_id, {"one": ADA})
        before = await engine.get(ALICE, record.task_id)
        await engine.respond(ALICE, record.task_id, responses)
        assert await engine.get(ALICE, record.task_id) == before

    async def test_only_its_owner_may_answer(self, engine: TaskEngine, world: World) -> None:
        record = await awaiting(engine, world, "one")
        for stranger in (Caller("client-a|bob", ALICE.issuer), Caller(ALICE.scope, "https://other.example"), Caller()):
            with pytest.raises(TaskNotFoundError):
                await engine.respond(stranger, record.task_id, {"one": ADA})
        with pytest.raises(TaskNotFoundError):
            await engine.respond(ALICE, "no such id", {"one": ADA})
        assert await requests_of(engine, record) == ["one"]

    async def test_followers_are_notified_of_each_question(self, engine: TaskEngine, world: World) -> None:
        record = await submitted(engine, world)
        seen: list[list[str]] = []
        async with engine.watch(ALICE, [record.task_id]) as watch:
            for key in ("one", "two"):
                await world.store.ask(record.ref, Question(key, ELICIT, PARAMS), asking(record))
            async for view in watch:
                seen.append(list(view.input_requests))
                if len(seen[-1]) == 2:
                    await engine.respond(ALICE, record.task_id, {"one": ADA, "two": ADA})
                elif view.record.status == "working" and view.record.revision > 2:
                    break
        assert ["one", "two"] in seen
        assert seen[-1] == []


class TestReturned:
    async def test_every_leg_has_the_job_name_that_was_asked_for(
        self, engine: TaskEngine, world: World, queue: Watchful
    ) -> None:
        record = await engine.submit(replace(a_submission(), job_name="reports.build"))
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        leg = NextLeg(leg=2, job_id=celery_job_id(record.key, 2), request_state=None)
        assert await world.store.park(record.ref, [Question("1.one", ELICIT, PARAMS)], asking(record), leg)
        await engine.respond(ALICE, record.task_id, {"1.one": ADA})
        assert [(one.leg, one.job_name) for one, _ in queue.published] == [(1, "reports.build"), (2, "reports.build")]

    async def test_the_last_answer_publishes_the_next_leg(
        self, engine: TaskEngine, world: World, queue: Watchful
    ) -> None:
        record = await parked(engine, world, "name", "again")
        await engine.respond(ALICE, record.task_id, {"1.name": ADA})
        assert len(queue.published) == 1
        await engine.respond(ALICE, record.task_id, {"1.again": ADA})
        assert len(queue.published) == 2
        published, submission = queue.published[-1]
        assert published.job_id == f"{record.job_id}!2"
        assert (published.leg, published.attempt) == (2, 2)
        assert (submission.config, submission.declared_as) == (CONFIG, "declared build_report")
        assert submission.snapshot == SNAPSHOT
        now = await engine.find(ALICE, record.task_id)
        assert now.status == "working"
        assert not world.is_due(record.ref)

    async def test_a_leg_expires_from_when_it_is_due(self, engine: TaskEngine, world: World) -> None:
        record = await parked(engine, world, "name")
        assert (await engine.find(ALICE, record.task_id)).start_before_ms is None
        before = now_ms()
        await engine.respond(ALICE, record.task_id, {"1.name": ADA})
        too_late = (await engine.find(ALICE, record.task_id)).start_before_ms
        assert too_late is not None
        assert too_late >= before + 30_000

    @pytest.mark.shows("M15")
    async def test_racing_updates_publish_one_leg(self, engine: TaskEngine, world: World, queue: Watchful) -> None:
        names = ["a", "b", "c"]
        record = await parked(engine, world, *names)
        updates = [{f"1.{name}": ADA for name in names}] * 4 + [{f"1.{name}": ADA} for name in names]
        await asyncio.gather(*(engine.respond(ALICE, record.task_id, update) for update in updates))
        assert len(queue.published) == 2

    async def test_answers_are_kept_and_the_leg_stays_due_when_the_broker_is_away(
        self, engine: TaskEngine, world: World, queue: Watchful
    ) -> None:
        record = await parked(engine, world, "name")
        queue.fail()
        assert (await engine.respond(ALICE, record.task_id, {"1.name": ADA})).status == "working"
        assert world.is_due(record.ref)
        snapshot = await world.store.start(record.ref, Start(attempt=2, retries=0, at_ms=1))
        assert snapshot is not None
        assert snapshot.params["inputResponses"] == {"name": ADA}

    @pytest.mark.shows("M17")
    async def test_an_answer_does_not_resume_a_cancelled_task(
        self, engine: TaskEngine, world: World, queue: Watchful
    ) -> None:
        record = await parked(engine, world, "name")
        assert (await engine.cancel(ALICE, record.task_id)).status == "cancelled"
        assert (await engine.respond(ALICE, record.task_id, {"1.name": ADA})).status == "cancelled"
        assert len(queue.published) == 1

    async def test_a_context_that_cannot_be_read_fails_the_task(
        self, engine: TaskEngine, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def unreadable(_: object) -> None:
            raise SnapshotUnreadableError("another key")

        record = await parked(engine, world, "name")
        monkeypatch.setattr(world.store, "snapshot", unreadable)
        await engine.respond(ALICE, record.task_id, {"1.name": ADA})
        assert (await engine.find(ALICE, record.task_id)).status == "failed"

    async def test_a_client_may_answer_with_an_error(self, engine: TaskEngine, world: World, queue: Watchful) -> None:
        record = await parked(engine, world, "name")
        await engine.respond(ALICE, record.task_id, {"1.name": RpcError(-32601, "Not here")})
        assert len(queue.published) == 2
