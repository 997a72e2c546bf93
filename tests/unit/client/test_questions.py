"""Questions of tasks: put to the client's callbacks once each, and every answer delivered."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import anyio
import anyio.lowlevel
import mcp_types as types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.client.session import ClientRequestContext
from mcp.shared.exceptions import MCPError

from mcp_celery.client import AnswerError, TaskCancelledError, TaskHandle, call_tool_task
from mcp_celery.client import questions as questions_module
from mcp_celery.client.questions import TaskQuestions
from mcp_celery.client.tracked_task import FollowedTask
from mcp_celery.client.v2026_07_28 import ExtensionChannel
from mcp_celery.client.wire import parse_task
from tests.support.scripted import Scripted, elicitation, text_of
from tests.support.waiting import eventually
from tests.unit.client.conftest import Connect

pytestmark = pytest.mark.anyio

ACCEPTED = {"action": "accept", "content": {"sure": True}}


class User:
    """Answers what it is asked, and keeps it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = anyio.Event()
        self.may_answer.set()
        self.dismissed: list[str] = []

    async def __call__(self, context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        key = str(context.request_id)
        self.asked.append(key)
        try:
            await self.may_answer.wait()
        except anyio.get_cancelled_exc_class():
            self.dismissed.append(key)
            raise
        return types.ElicitResult(action="accept", content={"sure": True})


@pytest.fixture
def user() -> User:
    return User()


@pytest.mark.parametrize("pushes", [True, None], ids=["push", "poll"])
async def test_a_call_answers_the_questions_of_its_task(
    scripted: Scripted, connect: Connect, user: User, pushes: bool | None
) -> None:
    scripted.pushes = pushes
    scripted.poll_interval_ms = 50

    async def drive() -> None:
        task_id = await scripted.made()
        for number in range(3):
            first, second = f"first-{number}", f"second-{number}"
            scripted.ask(task_id, **{first: elicitation(), second: elicitation()})
            await eventually(lambda keys={first, second}: keys <= set(scripted.answers.get(task_id, {})))
        scripted.complete(task_id, "answered")

    async with connect(elicitation_callback=user) as client, anyio.create_task_group() as group:
        group.start_soon(drive)
        assert text_of(await client.call_tool("work")) == "answered"
    assert sorted(user.asked) == sorted(scripted.answers["task-1"])
    assert list(scripted.answers["task-1"].values()) == [[ACCEPTED]] * 6, "each once"


async def test_sampling_and_roots_are_answered_by_their_callbacks(scripted: Scripted, connect: Connect) -> None:
    async def sample(
        context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        return types.CreateMessageResult(role="assistant", content=types.TextContent(text="four"), model="m")

    async def roots(context: ClientRequestContext) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[])

    prompt = {"role": "user", "content": {"type": "text", "text": "2 + 2?"}}
    async with connect(sampling_callback=sample, list_roots_callback=roots) as client:
        await call_tool_task(client, "work")
        handle = await TaskHandle.resume(client, "task-1")
        await scripted.listened("task-1")
        scripted.ask(
            "task-1",
            sample={"method": "sampling/createMessage", "params": {"messages": [prompt], "maxTokens": 9}},
            roots={"method": "roots/list"},
        )
        await handle.wait("working", timeout=10)
        await eventually(lambda: len(scripted.answers.get("task-1", {})) == 2)
    answers = scripted.answers["task-1"]
    assert answers["sample"][0]["content"] == {"type": "text", "text": "four"}
    assert answers["roots"] == [{"roots": []}]


@pytest.mark.slow
async def test_a_hundred_tasks_ask_three_questions_each(scripted: Scripted, connect: Connect) -> None:
    order = random.Random(6)

    async def answer(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        for _ in range(order.randrange(30)):
            await anyio.lowlevel.checkpoint()
        return types.ElicitResult(action="accept", content={"sure": True, "key": str(context.request_id)})

    async with connect(elicitation_callback=answer) as client:
        handles = [await call_tool_task(client, "work") for _ in range(100)]
        await scripted.listened(*scripted.tasks)
        for task_id in scripted.tasks:
            scripted.ask(task_id, **{f"{task_id}-{number}": elicitation() for number in range(3)})
        await eventually(lambda: all(len(scripted.answers.get(one, {})) == 3 for one in scripted.tasks))
        for task_id in scripted.tasks:
            scripted.complete(task_id)
        assert [text_of(await handle) for handle in handles] == ["done"] * 100
    for task_id, answers in scripted.answers.items():
        expected = {
            f"{task_id}-{n}": [{**ACCEPTED, "content": {"sure": True, "key": f"{task_id}-{n}"}}] for n in range(3)
        }
        assert answers == expected


async def test_a_question_without_a_callback_ends_the_call_and_its_task(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        calling = asyncio.create_task(client.call_tool("work"))
        await scripted.made()
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        with pytest.raises(AnswerError, match="question 'sure' of task task-1: Elicitation not supported"):
            await calling
    assert scripted.tasks["task-1"]["status"] == "cancelled"


async def test_a_callback_that_raises_is_reported_without_its_text(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        raise ValueError("a secret")

    async with connect(elicitation_callback=broken) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        with pytest.raises(AnswerError, match="the client's callback raised ValueError"):
            await handle
        assert "a secret" in caplog.text
        await handle.answer({"sure": {"action": "decline"}})
        await handle.wait("working", timeout=10)
        scripted.complete("task-1")
        assert text_of(await handle) == "done", "somebody answered it by hand"


@pytest.mark.parametrize("question", [{"method": "sampling/dream", "params": {}}, {}, {"method": "elicitation/create"}])
async def test_a_question_of_an_unknown_kind_ends_the_call(
    scripted: Scripted, connect: Connect, user: User, question: Any
) -> None:
    async with connect(elicitation_callback=user) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", odd=question)
        with pytest.raises(AnswerError, match="of a kind that this client does not know"):
            await handle
    assert user.asked == []


async def test_an_answer_that_the_server_refuses_ends_the_call(
    scripted: Scripted, connect: Connect, user: User
) -> None:
    scripted.faults["tasks/update"] = [MCPError(-32602, "'sure' must be a number")]
    async with connect(elicitation_callback=user) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        with pytest.raises(AnswerError, match="question 'sure' of task task-1: 'sure' must be a number"):
            await handle
    assert user.asked == ["sure"], "nobody is asked twice"


async def test_an_answer_that_came_too_late_is_no_error(scripted: Scripted, connect: Connect, user: User) -> None:
    scripted.faults["tasks/update"] = [MCPError(-32602, "Task not found")]
    user.may_answer = anyio.Event()
    async with connect(elicitation_callback=user) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        await eventually(lambda: user.asked == ["sure"])
        scripted.set("task-1", "cancelled", silently=True)
        user.may_answer.set()
        with pytest.raises(TaskCancelledError):
            await handle.result(10)


async def test_an_answer_is_sent_until_the_server_has_it(scripted: Scripted, connect: Connect, user: User) -> None:
    scripted.poll_interval_ms = 50
    scripted.faults["tasks/update"] = [MCPError(-32000, "restarting"), MCPError(-32603, "store unavailable")]
    async with connect(elicitation_callback=user) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        await eventually(lambda: scripted.answers.get("task-1") == {"sure": [ACCEPTED]})
        scripted.complete("task-1")
        await handle
    assert user.asked == ["sure"]


async def test_a_question_that_another_client_answers_is_taken_back(
    scripted: Scripted, connect: Connect, user: User
) -> None:
    user.may_answer = anyio.Event()
    async with connect(elicitation_callback=user) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", elsewhere=elicitation(), here=elicitation(), ended=elicitation())
        await eventually(lambda: len(user.asked) == 3)
        rest = {key: elicitation() for key in ("here", "ended")}
        scripted.set("task-1", "input_required", inputRequests=rest)
        await eventually(lambda: user.dismissed == ["elsewhere"])
        await handle.answer({"here": {"action": "decline"}})
        await eventually(lambda: user.dismissed == ["elsewhere", "here"])
        scripted.complete("task-1")
        await handle
        await eventually(lambda: sorted(user.dismissed) == ["elsewhere", "ended", "here"])
    assert scripted.answers["task-1"] == {"here": [{"action": "decline"}]}


async def test_a_server_that_still_lists_an_answered_question_is_not_answered_twice(
    scripted: Scripted, connect: Connect, user: User
) -> None:
    """SEP-2663: an acknowledged answer may take a while to be seen."""
    async with connect(elicitation_callback=user) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        await eventually(lambda: "task-1" in scripted.answers)
        for number in range(3):
            scripted.set("task-1", "input_required", statusMessage=str(number), inputRequests={"sure": elicitation()})
        await eventually(lambda: handle.state.status_message == "2")
        scripted.complete("task-1")
        await handle
    assert user.asked == ["sure"]
    assert scripted.answers == {"task-1": {"sure": [ACCEPTED]}}


KEYS = st.sets(st.sampled_from("abcdef"))


@given(states=st.lists(KEYS, max_size=12), by_hand=st.lists(st.sampled_from("abcdef"), max_size=4))
def test_whatever_is_listed_no_question_is_answered_twice(states: list[set[str]], by_hand: list[str]) -> None:
    """The bookkeeping alone: lists come and go, some questions are answered by hand in between."""

    async def run() -> None:
        answered: list[str] = []
        handed = list(by_hand)

        class Channel(ExtensionChannel):
            def __init__(self) -> None:
                self.jobs: list[asyncio.Task[Any]] = []

            def start_soon(self, body: Any, *arguments: Any) -> None:
                self.jobs.append(asyncio.create_task(body(*arguments)))

            async def dispatch(self, key: str, question: Any) -> dict[str, Any]:
                await anyio.lowlevel.checkpoint()
                return {"action": "accept"}

            async def update(self, task_id: str, responses: Any) -> None:
                answered.extend(responses)

        async def recheck(_: str) -> None:
            return

        channel = Channel()
        questions = TaskQuestions(channel, recheck, patience_seconds=1)
        told: dict[str, Any] = {"taskId": "t", "status": "input_required"}
        task = FollowedTask(parse_task(told), answering=True, is_open=lambda: True)
        seen: set[str] = set()
        for keys in states:
            seen |= keys
            task.take(parse_task({**told, "inputRequests": {key: {} for key in keys}}))
            questions.look(task)
            if handed:
                questions.take_over(task, [handed.pop()])
            await anyio.lowlevel.checkpoint()
        await asyncio.gather(*channel.jobs)
        assert len(answered) == len(set(answered)), answered
        assert set(answered) <= seen
        still_open = states[-1] if states else set[str]()
        assert still_open - set(by_hand) <= set(answered)

    asyncio.run(run())


async def test_an_answer_is_sent_again_less_and_less_often(scripted: Scripted, connect: Connect, user: User) -> None:
    scripted.poll_interval_ms = 50
    scripted.faults["tasks/update"] = [MCPError(-32603, "store unavailable")] * 1000
    async with connect(elicitation_callback=user, tasks={"patience_seconds": 1.0}) as client:
        handle = await call_tool_task(client, "work")
        began = anyio.current_time()
        scripted.ask("task-1", sure=elicitation())
        with pytest.raises(AnswerError, match="store unavailable"):
            await handle.result(60)
        elapsed = anyio.current_time() - began
    least_pauses = itertools.accumulate(0.05 * 2**number for number in range(20))
    assert 2 <= scripted.count("tasks/update") <= 1 + sum(1 for pause in least_pauses if pause <= elapsed)
    assert user.asked == ["sure"]


async def test_answered_questions_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_module, "MOST_REMEMBERED", 3)
    told: dict[str, Any] = {"taskId": "t", "status": "input_required", "inputRequests": {"open": {}}}
    task = FollowedTask(parse_task(told), answering=True, is_open=lambda: True)

    async def recheck(_: str) -> None:
        return

    questions = TaskQuestions(ExtensionChannel.__new__(ExtensionChannel), recheck, patience_seconds=1)
    questions.take_over(task, ["open", *(str(number) for number in range(100))])
    assert list(task.asked) == ["open", "98", "99"]
