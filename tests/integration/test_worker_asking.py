"""Tools that ask, on every pool: what they await, what they return, and what becomes of a question."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from mcp_celery import Settings, TaskContextSnapshot
from mcp_celery.engine import ELICIT, LIST_ROOTS, SAMPLE, JSONObject, TaskRecord, TaskView
from tests.integration.conftest import Starter, lines, settings_for
from tests.support.live import ANYONE, JOB_SECONDS, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import asking
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

SERVER = "tests.support.servers.asking:server"
EVERYTHING: JSONObject = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}}


def asked_by(capabilities: JSONObject, revision: str = "2026-07-28") -> TaskContextSnapshot:
    return TaskContextSnapshot(protocol_version=revision, client_capabilities=capabilities)


ABLE = asked_by(EVERYTHING)


@pytest.fixture(scope="module")
def asking_settings(store: EmbeddedStoreContainer, pool: Pool) -> Settings:
    return settings_for(store, f"asking-{pool}", default_ttl_ms=60_000)


@pytest.fixture(scope="module")
def asking_worker(shared: Starter, asking_settings: Settings, pool: Pool) -> Generator[WorkerProcess]:
    worker = shared.worker(SERVER, pool, asking_settings, concurrency=100 if pool == "asyncio" else 3)
    yield worker
    worker.teardown()


@pytest.fixture
async def live(asking_worker: WorkerProcess, asking_settings: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(asking.build, asking_settings) as server:
        yield server


def named(name: str) -> JSONObject:
    return {"action": "accept", "content": {"name": name}}


async def ask(live: LiveServer, tool: str, arguments: JSONObject | None = None, **options: Any) -> TaskRecord:
    """Submit a task for a client that can be asked everything."""
    return await live.submit(tool, arguments, **{"snapshot": ABLE, **options})


async def requests(live: LiveServer, record: TaskRecord, count: int = 1) -> dict[str, JSONObject]:
    """Wait until that many questions are open."""

    async def open_now() -> dict[str, JSONObject]:
        view = await live.engine.get(ANYONE, record.task_id)
        assert view.record.is_open, view
        return dict(view.input_requests) if len(view.input_requests) == count else {}

    return await eventually(open_now, what=f"{count} questions", seconds=JOB_SECONDS)


async def respond(live: LiveServer, record: TaskRecord, *answers: JSONObject) -> list[str]:
    """Answer the open questions in the order of asking.

    Returns:
        Their keys.
    """
    keys = list(await requests(live, record, len(answers)))
    await soon(live.engine.respond(ANYONE, record.task_id, dict(zip(keys, answers, strict=True))))
    return keys


def text_of(view: TaskView) -> str:
    assert view.result is not None, view.record
    return str(view.result["content"][0]["text"])


@pytest.mark.each_pool
class TestAwaited:
    @pytest.mark.smoke
    @pytest.mark.parametrize("tool", ["greet", "greet_sync"])
    async def test_a_tool_continues_after_its_question(self, live: LiveServer, tool: str) -> None:
        record = await ask(live, tool)
        ((_, request),) = (await requests(live, record)).items()
        assert request["method"] == ELICIT
        assert request["params"]["message"] == "Your name?"
        assert request["params"]["requestedSchema"]["properties"].keys() == {"name"}
        await respond(live, record, named("Ada"))
        assert text_of(await live.end_of(record)) == "Hello, Ada!"

    @pytest.mark.parametrize("action", ["decline", "cancel"])
    async def test_a_caller_may_decline_a_question(self, live: LiveServer, action: str) -> None:
        record = await ask(live, "greet")
        await respond(live, record, {"action": action})
        assert text_of(await live.end_of(record)) == action

    async def test_a_follower_sees_the_task_wait_and_work_again(self, live: LiveServer) -> None:
        record = await ask(live, "greet")
        seen: list[str] = []
        async with asyncio.timeout(JOB_SECONDS), live.engine.watch(ANYONE, [record.task_id]) as watch:
            async for view in watch:
                seen.append(view.record.status)
                if view.input_requests:
                    await live.engine.respond(ANYONE, record.task_id, dict.fromkeys(view.input_requests, named("Ada")))
        assert [status for status, before in zip(seen, [None, *seen], strict=False) if status != before] in (
            ["working", "input_required", "working", "completed"],
            ["input_required", "working", "completed"],
            ["working", "input_required", "completed"],  # two changes between two looks are one
            ["input_required", "completed"],
        )

    @pytest.mark.shows("M13")
    async def test_a_key_is_never_used_again(self, live: LiveServer) -> None:
        record = await ask(live, "one_after_the_other")
        keys = [key for name in "abc" for key in await respond(live, record, named(name))]
        assert len(set(keys)) == 3
        assert text_of(await live.end_of(record)) == "a b c"

    @pytest.mark.shows("M14")
    async def test_simultaneous_questions_are_answered_in_any_order(self, live: LiveServer) -> None:
        record = await ask(live, "ask_three", {"label": "What"})
        open_now = await requests(live, record, 3)
        by_message = {request["params"]["message"]: key for key, request in open_now.items()}
        for number in (2, 0, 1):
            await live.engine.respond(ANYONE, record.task_id, {by_message[f"What {number}?"]: named(str(number))})
        assert text_of(await live.end_of(record)) == "0 1 2"

    async def test_a_question_in_url_mode_is_shown_and_accepted(self, live: LiveServer) -> None:
        record = await ask(live, "sign_in")
        ((_, request),) = (await requests(live, record)).items()
        assert request["params"]["mode"] == "url"
        assert request["params"]["url"] == "https://login.example/x"
        await respond(live, record, {"action": "accept"})
        assert text_of(await live.end_of(record)) == "accept"

    async def test_the_callers_model_is_asked(self, live: LiveServer) -> None:
        record = await ask(live, "think")
        ((_, request),) = (await requests(live, record)).items()
        assert request["method"] == SAMPLE
        assert request["params"]["maxTokens"] == 5
        sampled: JSONObject = {"role": "assistant", "content": {"type": "text", "text": "sea"}, "model": "m"}
        await respond(live, record, sampled)
        assert text_of(await live.end_of(record)) == "m: sea"

    async def test_the_callers_roots_are_asked(self, live: LiveServer) -> None:
        record = await ask(live, "look_around")
        assert next(iter((await requests(live, record)).values())) == {"method": LIST_ROOTS}
        await respond(live, record, {"roots": [{"uri": "file:///home"}]})
        assert text_of(await live.end_of(record)) == "file:///home"

    async def test_resolvers_ask_what_they_need(self, live: LiveServer) -> None:
        record = await ask(live, "resolved")
        answers: list[JSONObject] = [
            named("Ada"),
            {"action": "accept", "content": {"size": 7}},
            {"role": "assistant", "content": {"type": "text", "text": "sea"}, "model": "m"},
            {"roots": []},
        ]
        for answer in answers:
            await respond(live, record, answer)
        assert text_of(await live.end_of(record)) == "Ada 7 m 0"

    async def test_progress_is_reported_while_a_question_waits(self, live: LiveServer, gate: Gate) -> None:
        record = await ask(live, "chat", {"gate": str(gate)})
        (key,) = await requests(live, record)
        told = await live.becomes(record, lambda now: now.progress is not None, "progress")
        assert told.status == "input_required"
        gate.open()
        await live.engine.respond(ANYONE, record.task_id, {key: named("Ada")})
        assert text_of(await live.end_of(record)) == "accept"


class TestWhatCannotBeAsked:
    @pytest.mark.smoke
    @pytest.mark.parametrize(
        ("tool", "declared", "missing"),
        [
            ("greet", {}, {"elicitation": {"form": {}}}),
            ("greet", {"elicitation": {"url": {}}}, {"elicitation": {"form": {}}}),
            ("sign_in", {"elicitation": {}}, {"elicitation": {"url": {}}}),
            ("think", {"elicitation": {}}, {"sampling": {}}),
            ("look_around", {"sampling": {}}, {"roots": {}}),
            ("resolved", {"sampling": {}}, {"elicitation": {"form": {}}}),
            ("three_at_once", {}, {"elicitation": {"form": {}}}),
        ],
    )
    async def test_a_question_that_the_client_does_not_support_fails_the_task(
        self, live: LiveServer, tool: str, declared: JSONObject, missing: JSONObject
    ) -> None:
        arguments = {"label": "x"} if tool == "three_at_once" else {}
        record = (await live.run(tool, arguments, snapshot=asked_by(declared))).record
        assert record.status == "failed"
        assert record.error is not None
        assert record.error.code == -32021
        assert record.error.data == {"requiredCapabilities": missing}
        assert record.status_message == record.error.message

    async def test_a_form_that_cannot_be_filled_in_fails_the_task(self, live: LiveServer) -> None:
        record = (await live.run("ask_nonsense", snapshot=ABLE)).record
        assert record.status == "failed"
        assert "requestedSchema" in (record.status_message or "")

    async def test_a_request_that_is_no_question_fails_the_task(self, live: LiveServer) -> None:
        assert (await live.run("ping", snapshot=ABLE)).record.status == "failed"


@pytest.mark.each_pool
class TestQuestionsThatNobodyWaitsFor:
    async def test_a_form_that_is_not_answered_in_time_is_cancelled(self, live: LiveServer) -> None:
        view = await live.run("greet_impatiently", snapshot=ABLE)
        assert text_of(view) == "cancel"

    async def test_a_model_that_does_not_answer_in_time_fails_the_task(self, live: LiveServer) -> None:
        record = (await live.run("think_impatiently", snapshot=ABLE)).record
        assert record.status == "failed"
        assert record.error is not None
        assert record.error.code == -32001

    @pytest.mark.smoke
    @pytest.mark.parametrize(("tool", "text"), [("give_up", "too slow"), ("forget", "did not wait")])
    async def test_a_question_goes_when_its_tool_no_longer_waits(self, live: LiveServer, tool: str, text: str) -> None:
        view = await live.run(tool, snapshot=ABLE)
        assert text_of(view) == text
        assert view.input_requests == {}

    @pytest.mark.smoke
    async def test_a_retry_begins_without_the_questions_of_the_try_before(
        self, live: LiveServer, tmp_path: Path
    ) -> None:
        notes = tmp_path / "notes"
        record = await ask(live, "fails_while_asking", {"notes": str(notes)}, config=asking.PERSISTENT)
        await live.becomes(record, lambda _: len(lines(notes)) == 2, "a second try")
        await live.becomes(record, lambda now: now.status == "input_required", "its question")
        ((key, request),) = (await requests(live, record)).items()
        assert request["params"]["message"] == "Second try?"
        await live.engine.respond(ANYONE, record.task_id, {key: {"action": "decline"}})
        assert text_of(await live.end_of(record)) == "decline"

    @pytest.mark.shows("M17")
    @pytest.mark.parametrize("tool", ["greet", "three_at_once"])
    async def test_a_waiting_task_that_is_cancelled_ignores_later_answers(
        self, live: LiveServer, asking_worker: WorkerProcess, tool: str
    ) -> None:
        record = await ask(live, tool, {"label": "x"} if tool == "three_at_once" else {})
        keys = list(await requests(live, record, 3 if tool == "three_at_once" else 1))
        assert (await live.engine.cancel(ANYONE, record.task_id)).status == "cancelled"
        answered = await live.engine.respond(ANYONE, record.task_id, dict.fromkeys(keys, named("late")))
        assert answered.status == "cancelled"
        # Its slot is free: as many tasks as the worker can hold at a time get their answers.
        others = [await ask(live, "greet") for _ in range(3)]
        for other in others:
            await respond(live, other, named("Ada"))
        assert [text_of(await live.end_of(other)) for other in others] == ["Hello, Ada!"] * 3
        assert (await live.now(record)).status == "cancelled"

    async def test_a_slot_that_a_question_holds_is_logged_once(
        self, live: LiveServer, asking_worker: WorkerProcess
    ) -> None:
        for _ in range(2):
            record = await ask(live, "greet")
            await respond(live, record, named("Ada"))
            await live.end_of(record)
        said_by = re.findall(r"WARNING/(\S+)\] 'greet' waits for input, and holds a slot", asking_worker.logs())
        assert bool(said_by) is (asking_worker.pool != "asyncio")
        assert len(said_by) == len(set(said_by)), "once in each process"


class TestReturned:
    @pytest.mark.smoke
    async def test_the_jobs_of_a_task_have_different_legs(self, live: LiveServer, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        record = await ask(live, "journey", {"notes": str(notes)})
        first = await respond(live, record, named("Rome"))
        second = await respond(live, record, named("Athens"))
        view = await live.end_of(record)
        assert text_of(view) == "Rome, Athens"
        assert (view.record.leg, view.record.job_id) == (3, f"{record.job_id}!3")
        assert lines(notes) == ["begun", "first", "then Rome"]
        assert (first, second) == (["1.where"], ["2.where"])

    async def test_a_returned_question_holds_no_worker(self, live: LiveServer) -> None:
        waiting = [await ask(live, "three_at_once", {"label": str(n)}) for n in range(8)]
        for record in waiting:
            parked = await live.becomes(record, lambda now: now.status == "input_required", "questions")
            assert (parked.claim, parked.started_at_ms) == (None, None)
        other = await ask(live, "greet")
        await respond(live, other, named("Ada"))
        assert text_of(await live.end_of(other)) == "Hello, Ada!"
        for record in waiting:
            await live.engine.cancel(ANYONE, record.task_id)

    async def test_the_last_status_message_of_a_leg_stays(self, live: LiveServer, tmp_path: Path) -> None:
        record = await ask(live, "journey", {"notes": str(tmp_path / "notes")})
        await requests(live, record)
        assert (await live.now(record)).status_message == "packed (1/3)"
        await live.engine.cancel(ANYONE, record.task_id)

    async def test_a_leg_may_also_await_an_answer(self, live: LiveServer) -> None:
        record = await ask(live, "both_ways")
        for name in ("one", "two", "three"):
            await respond(live, record, named(name))
        assert text_of(await live.end_of(record)) == "one two accept"

    async def test_a_tool_that_returns_no_question_is_called_again(self, live: LiveServer) -> None:
        assert text_of(await live.run("call_again", {"times": 3}, snapshot=ABLE)) == "called 4 times"

    async def test_a_tool_that_never_ends_its_rounds_fails(self, live: LiveServer) -> None:
        record = (await live.run("call_again", {"times": 1000}, snapshot=ABLE)).record
        assert record.status == "failed"
        assert record.started_at_ms is not None

    async def test_a_wait_does_not_count_for_the_jobs_expiry(self, live: LiveServer) -> None:
        record = await ask(live, "brief", config=asking.DURING)
        parked = await live.becomes(record, lambda now: now.status == "input_required", "the question")
        assert parked.start_before_ms is None
        await asyncio.sleep(1.1)  # what is shown is that this time does not matter
        await respond(live, record, named("Ada"))
        assert text_of(await live.end_of(record)) == "done"

    async def test_a_redelivered_leg_does_nothing(self, live: LiveServer, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        record = await ask(live, "journey", {"notes": str(notes)})
        await requests(live, record)
        await live.publish_again(record, live.submission("journey", {"notes": str(notes)}))
        await respond(live, record, named("Rome"))
        (key,) = await requests(live, record)
        assert key == "2.where"
        assert lines(notes) == ["begun", "first"]
        await live.engine.cancel(ANYONE, record.task_id)


class TestLifetime:
    @pytest.mark.smoke
    @pytest.mark.parametrize("tool", ["greet", "three_at_once"])
    async def test_a_wait_extends_the_ttl_and_reports_it(self, live: LiveServer, tool: str) -> None:
        record = await ask(live, tool, {"label": "x"} if tool == "three_at_once" else {})
        waiting = await live.becomes(record, lambda now: now.status == "input_required", "questions")
        assert waiting.ttl_ms > record.ttl_ms
        assert waiting.ttl_ms <= live.settings.max_ttl_ms
        with live.redis() as client:
            left = client.pttl(live.keys.record(None, record.task_id))
        assert left > record.ttl_ms  # type: ignore[operator] # pyright: ignore[reportOperatorIssue]
        await live.engine.cancel(ANYONE, record.task_id)

    async def test_in_revision_2025_a_wait_does_not_extend_the_ttl(self, live: LiveServer) -> None:
        record = await ask(live, "greet", snapshot=asked_by(EVERYTHING, "2025-11-25"))
        waiting = await live.becomes(record, lambda now: now.status == "input_required", "the question")
        assert waiting.ttl_ms == record.ttl_ms
        await respond(live, record, named("Ada"))
        assert text_of(await live.end_of(record)) == "Hello, Ada!"


async def test_a_hundred_tasks_with_three_questions_each_get_all_answers_right(
    live: LiveServer, asking_worker: WorkerProcess
) -> None:
    """On the asyncio pool a hundred tools wait at a time; on the others they return, and nothing waits."""
    tool = "ask_three" if asking_worker.pool == "asyncio" else "three_at_once"
    records = [await ask(live, tool, {"label": f"t{number}"}) for number in range(100)]
    answers: list[tuple[TaskRecord, str, str]] = []
    for record in records:
        for key, request in (await requests(live, record, 3)).items():
            answers.append((record, key, request["params"]["message"]))
    random.Random(6).shuffle(answers)
    limit = asyncio.Semaphore(20)

    async def say(record: TaskRecord, key: str, message: str) -> None:
        async with limit:
            await live.engine.respond(ANYONE, record.task_id, {key: named(message)})

    await asyncio.gather(*(say(*answer) for answer in answers))
    for number, record in enumerate(records):
        view = await live.end_of(record)
        assert text_of(view) == f"t{number} 0? t{number} 1? t{number} 2?"
