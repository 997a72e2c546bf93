"""Tasks that are submitted in the server's own process, and run by a real worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from decimal import Decimal

import pytest
from mcp.client._memory import InMemoryTransport
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, GetPromptResult, ReadResourceResult, TextContent, TextResourceContents

from mcp_celery import McpCeleryError, TaskMeta, TaskServer
from mcp_celery.broker.naming import job_name
from mcp_celery.server.task_server import tasks_of
from tests.acceptance.test_transports import in_memory
from tests.support.deployment import Deployment
from tests.support.session import session_over
from tests.support.waiting import soon

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(deployment: Deployment) -> AsyncGenerator[TaskServer]:
    server = in_memory(deployment)
    async with tasks_of(server).running():
        yield server


async def test_a_tool_a_prompt_and_a_resource_are_submitted_and_waited_for(server: TaskServer) -> None:
    meta = TaskMeta(ttl=5_000)
    tool = await server.call_tool("counting", {"steps": 2}, task_meta=meta)
    prompt = await server.get_prompt("briefing", {"topic": "tides"}, task_meta=meta)
    resource = await server.read_resource("fixture://pages/7", task_meta=meta)
    for task in (tool, prompt, resource):
        assert (task.created.status, task.created.ttl, task.created.task_id) == ("working", 5_000, task.task_id)

    counted = await soon(tool.result())
    assert isinstance(counted, CallToolResult)
    assert counted.content == [TextContent(type="text", text="counted to 2")]
    briefed = await soon(prompt.result())
    assert isinstance(briefed, GetPromptResult)
    read = await soon(resource.result())
    assert isinstance(read, ReadResourceResult)
    assert isinstance(read.contents[0], TextResourceContents)
    assert read.contents[0].text == "page 7"
    assert (await tool.get()).status == "completed"
    assert (await tool.cancel()).status == "completed"


async def test_a_task_ends_as_it_would_for_a_client(server: TaskServer) -> None:
    broken = await server.call_tool("protocol_error_job", {}, task_meta=TaskMeta())
    with pytest.raises(MCPError, match="the gears are stuck"):
        await soon(broken.result())
    refused = await server.call_tool("refusing", {}, task_meta=TaskMeta())
    result = await soon(refused.result())
    assert isinstance(result, CallToolResult)
    assert result.is_error
    stopped = await server.call_tool("counting", {"steps": 500, "pause": 0.05}, task_meta=TaskMeta())
    assert (await stopped.cancel()).status == "cancelled"
    with pytest.raises(MCPError) as cancelled:
        await soon(stopped.result())
    assert cancelled.value.code == -32800


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("greet", {"name": "Ada"}, "does not run as a task"),
        ("counting", {"steps": "many"}, "Invalid arguments"),
        ("no_such_tool", {}, "Unknown tool"),
    ],
)
async def test_a_submission_that_cannot_run_is_refused(
    server: TaskServer, tool: str, arguments: dict[str, object], reason: str
) -> None:
    with pytest.raises(McpCeleryError, match=reason):
        await server.call_tool(tool, arguments, task_meta=TaskMeta())


async def test_arguments_become_json_as_a_client_would_send_them(server: TaskServer) -> None:
    task = await server.call_tool("counting", {"steps": Decimal(1), "pause": Decimal("0.0")}, task_meta=TaskMeta())
    counted = await soon(task.result())
    assert isinstance(counted, CallToolResult)
    assert counted.content == [TextContent(type="text", text="counted to 1")]
    with pytest.raises(McpCeleryError, match="arguments that are JSON: dict has no JSON form"):
        await server.call_tool("counting", {"steps": object()}, task_meta=TaskMeta())


async def test_without_task_meta_nothing_is_submitted(server: TaskServer) -> None:
    result = await server.call_tool("slow_compute", {"seconds": 0})
    assert isinstance(result, CallToolResult)
    assert isinstance(await server.get_prompt("briefing", {"topic": "tides"}), GetPromptResult)
    assert [one.content for one in await server.read_resource("fixture://report")] == ["# Report"]  # type: ignore[union-attr]


async def test_the_caller_chooses_the_job(server: TaskServer) -> None:
    """No worker knows this one, and the worker that meets it says so."""
    nowhere = job_name(tasks_of(server).namespace, "tool", "nowhere")
    task = await server.call_tool("counting", {"steps": 1}, task_meta=TaskMeta(fn_key=nowhere))
    with pytest.raises(MCPError, match="No worker of the queue knows this job"):
        await soon(task.result())


@pytest.mark.parametrize("as_a_task", [False, True], ids=["from a request", "from a job"])
async def test_a_task_that_is_made_for_a_request_is_listed_in_its_session(
    deployment: Deployment, as_a_task: bool
) -> None:
    async with session_over(InMemoryTransport(in_memory(deployment))) as session:
        if as_a_task:
            made = (await session.result((await session.create("delegating"))["taskId"])).result
        else:
            made = (await session.call("delegating")).result
        task_id = made["content"][0]["text"]
        assert task_id in [one["taskId"] for one in await session.listed()]
        assert (await session.result(task_id)).result["content"][0]["text"] == "done"
