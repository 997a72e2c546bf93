"""A FastMCP server with one import changed: tasks of both revisions, for our client and for FastMCP's."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from fastmcp import Client as FastMCPClient
from mcp.client import Client

from mcp_celery.client import TasksClient, call_tool_task, resilient_http
from mcp_celery.protocol.shared_wire import IDEMPOTENCY_KEY
from tests.fastmcp.conftest import Deploy
from tests.support.deployment import Deployment
from tests.support.session import over_http
from tests.support.waiting import soon
from tests.support.wire import EXTENSION, JSON, Wire, follow

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Generator[Deployment]:
    with deploy("fastmcp_tools") as found:
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve()


async def end_of(wire: Wire, tool: str, **arguments: Any) -> JSON:
    """The last state of a task that is made of a call."""
    return (await follow(wire, (await wire.create(tool, **arguments))["taskId"]))[-1]


@pytest.mark.smoke
async def test_a_tool_runs_on_a_worker_and_its_progress_is_pushed(url: str) -> None:
    async with Wire(url) as wire:
        declared = (await wire.ask("server/discover")).result["capabilities"]["extensions"]
        assert (declared[EXTENSION], declared["mcp-celery/tasks"]) == ({}, {"idempotentCreation": True})
        server = (await wire.call("here")).result["structuredContent"]["result"]
        task = await end_of(wire, "where")
        found = task["result"]["structuredContent"]
        assert found["process"] not in (server, os.getpid())
        assert found == {
            "process": found["process"],
            "lifespan": {"opened by": found["process"]},
            "task": task["taskId"],
            "background": True,
        }
        states = await follow(wire, (await wire.create("count", steps=4))["taskId"])
        assert states[-1]["result"]["structuredContent"] == {"result": "counted 4"}
        assert "counting (4/4)" in [state.get("statusMessage") for state in states]
        task = await end_of(wire, "plain_function", seconds=0.01)
        assert task["result"]["structuredContent"]["process"] == found["process"]


async def test_the_earlier_revision_is_served_too(url: str) -> None:
    async with over_http(url) as session:
        assert session.initialized["capabilities"]["tasks"] == {
            "list": {},
            "cancel": {},
            "requests": {"tools": {"call": {}}},
        }
        tools = {one["name"]: one.get("execution") for one in (await session.ask("tools/list")).result["tools"]}
        assert tools["here"] is None
        assert tools["where"] == {"taskSupport": "optional"}
        assert tools["must"] == {"taskSupport": "required"}
        task_id = (await session.create("count", steps=2))["taskId"]
        result = (await session.result(task_id)).result
        assert result["structuredContent"] == {"result": "counted 2"}
        assert task_id in [task["taskId"] for task in await session.listed()]
        refused = await session.call("must")
        assert "runs only as a task" in refused.error["message"]


async def test_requests_with_one_idempotency_key_make_one_task(url: str) -> None:
    made: list[str] = []
    for meta, headers in (({IDEMPOTENCY_KEY: "k" * 22}, {}), ({}, {"Idempotency-Key": "k" * 22})):
        async with Wire(url, meta=meta) as wire:
            answer = await wire.ask("tools/call", {"name": "count", "arguments": {"steps": 1}}, **headers)
            made.append(answer.result["taskId"])
            end = (await follow(wire, made[-1]))[-1]
            assert end["result"]["structuredContent"] == {"result": "counted 1"}
    assert made[0] == made[1]


async def test_our_client_follows_a_task(url: str) -> None:
    for mode in ("auto", "legacy"):
        async with Client(resilient_http(url), extensions=[TasksClient()], mode=mode) as client:
            handle = await soon(call_tool_task(client, "count", {"steps": 3}))
            states = [state.status_message async for state in handle.changes()]
            assert "counting (3/3)" in states
            assert (await soon(handle)).structured_content == {"result": "counted 3"}


async def test_a_running_task_is_cancelled(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("wait"))["taskId"]
        await wire.ask("tasks/cancel", {"taskId": task_id})
        assert (await follow(wire, task_id))[-1]["status"] == "cancelled"


async def test_fastmcps_client_without_tasks_gets_the_result_of_a_call(url: str) -> None:
    async with FastMCPClient(url) as client:
        result = await soon(client.call_tool("count", {"steps": 1}))
    assert result.data == "counted 1"


async def test_tasks_run_over_stdio(deployment: Deployment) -> None:
    async with Client(deployment.stdio(), extensions=[TasksClient()]) as client:
        handle = await soon(call_tool_task(client, "count", {"steps": 1}))
        result = await soon(handle)
    assert result.structured_content == {"result": "counted 1"}
