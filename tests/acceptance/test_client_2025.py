"""The client's library on connections of revision 2025-11-25, against our own server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.session import ClientRequestContext
from mcp.shared.exceptions import MCPError

from mcp_celery.client import (
    AnswerError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TaskGoneError,
    TaskHandle,
    TasksClient,
    call_tool_task,
    get_prompt_task,
    list_tasks,
    read_resource_task,
    resilient_http,
    tracked_task,
)
from mcp_celery.client.v2025_11_25 import CoreTaskChannel
from tests.acceptance.test_transports import in_memory
from tests.support.deployment import Deployment
from tests.support.scripted import text_of

pytestmark = pytest.mark.anyio

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session", params=["asyncio"])
def pool(request: pytest.FixtureRequest) -> str:
    """What the client sees is the same on every pool."""
    return request.param


@pytest.fixture(params=["http", "memory"])
def connect(request: pytest.FixtureRequest, deployment: Deployment, url: str) -> Connect:
    """Opens a client of the shared deployment that shakes hands as 2025-11-25 has it."""

    def client(mode: str = "legacy", **options: Any) -> Client:
        target = resilient_http(url) if request.param == "http" else in_memory(deployment)
        return Client(target, extensions=[TasksClient()], mode=mode, **options)

    return client


async def test_a_handle_follows_a_tool_to_its_result(connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "counting", {"steps": 3}, ttl=60_000)
        assert (handle.state.status, handle.state.ttl_ms) == ("working", 60_000)
        told = [state.status_message async for state in handle.changes()]
        assert text_of(await handle) == "counted to 3"
        assert any((one or "").startswith("step ") for one in told)
        assert handle.state.status == "completed"
        resumed = await TaskHandle.resume(client, handle.task_id)
        assert text_of(await resumed) == "counted to 3"
    assert text_of(await handle) == "counted to 3"


async def test_a_pushed_end_finishes_the_wait_for_a_result(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked_task, "LEAST_INTERVAL_SECONDS", 600.0)
    async with connect() as client:
        handle = await call_tool_task(client, "wait_for_file", {"path": str(tmp_path / "go")})
        (tmp_path / "go").touch()
        assert text_of(await handle.result(60)) == "released"


async def test_prompts_resources_and_templates_are_tasks(connect: Connect) -> None:
    async with connect() as client:
        prompt = await get_prompt_task(client, "briefing", {"topic": "tea"})
        message = (await prompt).messages[0].content
        assert isinstance(message, types.TextContent)
        assert message.text == "A plain briefing about tea, as a task"
        assert prompt.task_id
        resource = await read_resource_task(client, "fixture://report", ttl=60_000)
        page = await read_resource_task(client, "fixture://pages/7")
        contents = [(await one).contents[0] for one in (resource, page)]
        assert [one.text for one in contents if isinstance(one, types.TextResourceContents)] == ["# Report", "page 7"]
        again = await TaskHandle[types.GetPromptResult].resume(client, prompt.task_id)
        assert (await again).messages == (await prompt).messages


async def test_a_call_that_makes_no_task_is_answered_at_once(connect: Connect) -> None:
    async with connect() as client:
        tool = await call_tool_task(client, "greet", {"name": "Ada"})
        prompt = await get_prompt_task(client, "plain_prompt")
        resource = await read_resource_task(client, "fixture://readme")
        assert (tool.task_id, prompt.task_id, resource.task_id) == ("", "", "")
        assert "Ada" in text_of(await tool)
        assert len((await prompt).messages) == len((await resource).contents) == 1
        assert (await (await call_tool_task(client, "nothing_of_the_kind"))).is_error


async def test_errors_are_those_of_the_foreground(connect: Connect) -> None:
    async with connect() as client:
        own = await call_tool_task(client, "failing_job")
        assert (await own).is_error
        assert own.state.status == "completed"
        failed = await call_tool_task(client, "protocol_error_job")
        with pytest.raises(TaskFailedError) as raised:
            await failed
        assert raised.value.code != 0
        assert (failed.state.status, failed.state.error) == ("failed", raised.value.error)
        with pytest.raises(MCPError, match="failing_job"):  # the SDK's call has no task in it
            await client.call_tool("failing_job")


async def test_a_handle_cancels_its_task_and_other_handles_see_it(connect: Connect, tmp_path: Path) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "wait_for_file", {"path": str(tmp_path / "never")})
        other = await TaskHandle.resume(client, handle.task_id)
        assert (await handle.cancel()).status == "cancelled"
        with pytest.raises(TaskCancelledError):
            await other
        ended = await call_tool_task(client, "slow_compute", {"seconds": 0})
        channel = CoreTaskChannel(client.session, busy_seconds=0)
        await ended
        await channel.cancel(ended.task_id)  # -32602 of the server: it has ended already
        with pytest.raises(MCPError) as unknown:
            await channel.cancel("none-of-mine")
        assert unknown.value.code == types.INVALID_PARAMS
        with pytest.raises(TaskGoneError):
            await TaskHandle.resume(client, "none-of-mine")


async def test_list_tasks_returns_each_task_once_the_newest_first(connect: Connect) -> None:
    async with connect() as client:
        made = [(await call_tool_task(client, "slow_compute", {"seconds": 0})).task_id for _ in range(3)]
        listed = [task.task_id for task in await list_tasks(client)]
        assert [task_id for task_id in listed if task_id in made] == made[::-1]
        assert len(listed) == len(set(listed))


async def test_questions_go_to_the_callbacks(connect: Connect) -> None:
    asked: list[str] = []

    async def answer(_: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"sure": True, "confirm": True, "name": "Ada"})

    async with connect(elicitation_callback=answer) as client:
        handle = await call_tool_task(client, "confirm_delete", {"filename": "a.txt"})
        assert text_of(await handle.result(60)) == "accept: a.txt"
        assert asked == ["Delete a.txt?"]


async def test_answers_by_hand_are_refused(connect: Connect) -> None:
    never = asyncio.Event()

    async def answer(_: ClientRequestContext, __: types.ElicitRequestParams) -> types.ElicitResult:
        await never.wait()
        raise AssertionError

    async with connect(elicitation_callback=answer) as client:
        handle = await call_tool_task(client, "confirm_delete", {"filename": "a.txt"})
        await handle.wait("input_required", 60)
        assert handle.questions == {}
        with pytest.raises(AnswerError, match="go to the client's callbacks"):
            await handle.answer({"key": {"action": "accept"}})
        await handle.cancel()


async def test_a_later_revision_makes_tasks_of_tools_only(connect: Connect) -> None:
    async with connect(mode="auto") as client:
        with pytest.raises(TaskError, match=r"prompts become tasks in revision 2025-11-25 only.* speaks 2026-07-28"):
            await get_prompt_task(client, "briefing", {"topic": "tea"})
        with pytest.raises(TaskError, match="resources become tasks"):
            await read_resource_task(client, "fixture://report")
        with pytest.raises(TaskError, match="tasks are listed"):
            await list_tasks(client)
