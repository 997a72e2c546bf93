"""A client follows a task by pushes alone, whatever the server does with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, Notification, TextContent

from mcp_celery.cli.follow import EXTENSION, FollowTasks, TaskEndedError, TaskUpdate, result_of

GIVE_UP_SECONDS = 20.0
TASK = {"taskId": "t1", "createdAt": "2026-07-28T00:00:00Z", "lastUpdatedAt": "2026-07-28T00:00:00Z", "ttlMs": None}
WORKING = {**TASK, "status": "working", "_meta": {"mcp-celery/progress": {"progress": 1, "total": 2}}}
COMPLETED = {**TASK, "status": "completed", "result": {"content": [{"type": "text", "text": "done"}]}}
FAILED = {**TASK, "status": "failed", "error": {"code": -32603, "message": "broken"}}
CANCELLED = {**TASK, "status": "cancelled", "statusMessage": "by request"}
FOREIGN = {**COMPLETED, "taskId": "t2"}


class MakesTasks(Extension):
    """Answers every tool call with a task."""

    identifier = EXTENSION

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        return {"resultType": "task", **TASK, "status": "working"}


class Scripted:
    """Pushes what it is told to, and then holds the stream, ends it, or refuses it."""

    def __init__(self, pushes: Sequence[dict[str, Any]], then: str = "hold") -> None:
        self.methods: list[str] = []
        self._pushes = pushes
        self._then = then

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        self.methods.append(ctx.method)
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        assert ctx.params
        assert ctx.params["notifications"] == {"taskIds": ["t1"]}
        for push in self._pushes:
            notification: Any = Notification[dict[str, Any], str](method="notifications/tasks", params=push)
            await ctx.session.send_notification(notification, ctx.request_id)
        if self._then == "refuse":
            raise MCPError(-32602, "refused")
        if self._then == "hold":
            await anyio.sleep_forever()
        return {"resultType": "complete", "_meta": {"io.modelcontextprotocol/subscriptionId": ctx.request_id}}


async def call(script: Scripted, *, silence_seconds: float = GIVE_UP_SECONDS) -> tuple[str, list[TaskUpdate]]:
    server = MCPServer("scripted", extensions=[MakesTasks()], middleware=[script])

    @server.tool(structured_output=False)
    def work() -> str:
        return "in the foreground"

    created: list[str] = []
    updates: list[TaskUpdate] = []
    follow = FollowTasks(created.append, updates.append, silence_seconds=silence_seconds)
    answer: CallToolResult | MCPError | TaskEndedError
    with anyio.fail_after(GIVE_UP_SECONDS):
        async with Client(server, extensions=[follow]) as client:
            try:
                answer = await client.call_tool("work", {})
            except (MCPError, TaskEndedError) as error:
                answer = error  # raised below: on its way out of the client it would be wrapped in groups
    assert created == ["t1"]
    if isinstance(answer, Exception):
        raise answer
    (block,) = answer.content
    assert isinstance(block, TextContent)
    return block.text, updates


@pytest.mark.anyio
async def test_the_last_push_brings_the_result_and_nothing_is_polled() -> None:
    script = Scripted([WORKING, FOREIGN, COMPLETED, WORKING])
    text, updates = await call(script)
    assert text == "done"
    assert [update.status for update in updates] == ["working", "completed"]
    assert updates[0].progress
    assert (updates[0].progress.progress, updates[0].progress.total) == (1, 2)
    assert updates[1].progress is None
    assert [method for method in script.methods if method.startswith("tasks/")] == []


@pytest.mark.anyio
async def test_a_task_that_failed_raises_its_error() -> None:
    with pytest.raises(MCPError, match="broken"):
        await call(Scripted([FAILED]))


@pytest.mark.anyio
async def test_a_cancelled_task_says_so() -> None:
    with pytest.raises(TaskEndedError, match="cancelled: by request"):
        await call(Scripted([CANCELLED]))


@pytest.mark.anyio
async def test_a_refused_stream_raises_the_refusal() -> None:
    with pytest.raises(MCPError, match="refused"):
        await call(Scripted([], then="refuse"))


@pytest.mark.anyio
async def test_a_result_counts_though_the_stream_ended_right_after_it() -> None:
    text, _ = await call(Scripted([COMPLETED], then="end"))
    assert text == "done"


@pytest.mark.anyio
async def test_a_stream_that_ends_before_its_task_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_celery.cli.follow.LAST_WORDS_SECONDS", 0.01)
    with pytest.raises(TaskEndedError, match="before the task had ended"):
        await call(Scripted([WORKING], then="end"))


@pytest.mark.anyio
async def test_a_server_that_says_nothing_more_is_given_up() -> None:
    with pytest.raises(TaskEndedError, match=r"nothing was heard of the task for 0\.05 s"):
        await call(Scripted([WORKING]), silence_seconds=0.05)


def test_a_completed_task_without_a_result_has_none() -> None:
    with pytest.raises(TaskEndedError, match="completed"):
        result_of(TaskUpdate.model_validate({**TASK, "status": "completed"}))
