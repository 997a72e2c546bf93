"""Clients without tasks, and existing jobs as tools: a FastMCP server in a Celery app that a team has already."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, Literal

import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from fastmcp import Client as FastMCPClient
from mcp.client import Client
from mcp_types import CallToolResult, ElicitResult

from tests.support.deployment import Deployment, deployed
from tests.support.nodes import Pool
from tests.support.session import over_http
from tests.support.waiting import soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

HOST = "tests.support.servers.fastmcp_host"
Mode = Literal["auto", "legacy"]


@pytest.fixture(scope="module")
def deployment(store_url: str, pool: Pool) -> Generator[Deployment]:
    """The host's own worker, in whose app the server is installed."""
    namespace = f"fastmcp-host-{pool}-{os.urandom(2).hex()}"
    with deployed(store_url, namespace, spec=f"{HOST}:mcp", app=HOST) as found, found.worker(pool):
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve(MCP_CELERY_EXPOSED_INTERVAL_MS="100")


async def agree(context: object, params: object) -> ElicitResult:
    return ElicitResult(action="accept", content={"value": "Oslo"})


def structured(result: CallToolResult) -> dict[str, Any]:
    assert result.structured_content is not None, result
    return result.structured_content


@pytest.mark.smoke
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_runs_on_a_worker_and_its_client_sees_progress_and_questions(url: str, mode: Mode) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with Client(url, mode=mode, elicitation_callback=agree) as client:
        server = structured(await client.call_tool("here", {}))["result"]
        result = await soon(client.call_tool("process", {"steps": 3}, progress_callback=hear))
        assert structured(result)["process"] != server
        assert heard[-1] == (3, 3, "working")
        assert structured(await soon(client.call_tool("ask", {}))) == {"result": "accept Oslo"}
        refused = await client.call_tool("process", {"steps": "many"})
        assert refused.is_error


async def test_fastmcps_client_gets_the_result_of_a_job(url: str) -> None:
    async with FastMCPClient(url) as client:
        server = (await client.call_tool("here", {})).data
        assert (await soon(client.call_tool("process", {"steps": 1}))).data != {"process": server}
        assert (await soon(client.call_tool("add", {"a": 1}))).data == 2


async def test_polling_tools_follow_a_task(deployment: Deployment) -> None:
    async with FastMCPClient(deployment.serve(HOST_POLLS="1")) as client:
        names = {tool.name for tool in await client.list_tools()}
        assert {"task_status", "task_result", "task_cancel"} <= names
        first = await client.call_tool("process", {"steps": 2})
        assert first.structured_content is not None
        task_id = first.structured_content["task_id"]
        done = await soon(client.call_tool("task_result", {"task_id": task_id}))
        assert done.structured_content is not None
        assert done.structured_content.keys() == {"process"}
        status = await client.call_tool("task_status", {"task_id": task_id})
        assert status.structured_content is not None
        assert status.structured_content["status"] == "completed"
        refused = await client.call_tool("task_status", {"task_id": "nothing"}, raise_on_error=False)
        assert refused.is_error
        refused = await client.call_tool("task_result", {}, raise_on_error=False)
        assert refused.is_error


async def test_existing_jobs_are_tools(url: str) -> None:
    async with Wire(url) as wire:
        tools = {one["name"]: one for one in (await wire.ask("tools/list")).result["tools"]}
        assert {"add", "host_where", "host_fail", "added_up"} <= tools.keys()
        assert tools["add"]["description"] == "Add two numbers."
        assert tools["add"]["inputSchema"]["required"] == ["a"]

        async def end_of(tool: str, **arguments: Any) -> dict[str, Any]:
            return (await follow(wire, (await wire.create(tool, **arguments))["taskId"]))[-1]

        assert (await end_of("add", a=1, b=2))["result"]["structuredContent"] == {"result": 3}
        assert "13" in str((await end_of("added_up", first=1, second=2))["result"])
        assert (await end_of("host_fail"))["result"]["isError"]
        refused = (await wire.call("add", a="many")).result
        assert refused["isError"]


async def test_existing_jobs_are_tools_for_the_earlier_revision(url: str) -> None:
    async with over_http(url) as session:
        tools = {one["name"]: one.get("execution") for one in (await session.ask("tools/list")).result["tools"]}
        assert tools["add"] == {"taskSupport": "optional"}
        task_id = (await session.create("add", a=4))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"] == {"result": 5}
        refused = await session.ask("tools/call", {"name": "add", "arguments": {"a": "many"}}, task={})
        assert "a: Input should be a valid integer" in refused.error["message"]
