"""A FastMCP server over each transport, and in the apps of other frameworks."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from fastapi import FastAPI
from fastmcp import Client as FastMCPClient
from fastmcp import FastMCP
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_celery.client import TasksClient, call_tool_task, resilient_http
from mcp_celery.fastmcp.private import lowlevel_of
from tests.fastmcp.conftest import Deploy, served, shared_with
from tests.support.deployment import Deployment
from tests.support.servers.fastmcp_tools import build
from tests.support.session import REVISION, over_http, session_over
from tests.support.waiting import soon

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Generator[Deployment]:
    with deploy("fastmcp_tools") as found:
        yield found


@pytest.fixture
def server(deployment: Deployment) -> FastMCP[Any]:
    """A server of the deployment in this process."""
    return build(**shared_with(deployment))


async def require_tasks(target: Any, mode: str) -> None:
    """A client follows a task to its end, and sees its progress."""
    async with Client(target, extensions=[TasksClient()], mode=mode) as client:
        handle = await soon(call_tool_task(client, "count", {"steps": 3}))
        states = [state.status_message async for state in handle.changes()]
        assert "counting (3/3)" in states
        assert (await soon(handle)).structured_content == {"result": "counted 3"}


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_server_is_mounted_in_an_asgi_app(server: FastMCP[Any], framework: str, mode: str) -> None:
    app = server.http_app(path="/mcp")
    if framework == "starlette":
        host: Any = Starlette(routes=[Mount("/tools", app)], lifespan=app.lifespan)
    else:
        host = FastAPI(lifespan=app.lifespan)
        host.mount("/tools", app)
    async with served(host, "/tools/mcp") as url:
        await require_tasks(resilient_http(url), mode)


@pytest.mark.smoke
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_server_is_served_in_memory(server: FastMCP[Any], mode: str) -> None:
    await require_tasks(lowlevel_of(server), mode)
    async with FastMCPClient(server) as client:
        assert (await client.call_tool("count", {"steps": 1})).data == "counted 1"


async def test_stateless_http_has_tasks_but_no_list_and_no_push(deployment: Deployment) -> None:
    url = deployment.serve(FASTMCP_STATELESS_HTTP="true")
    await require_tasks(resilient_http(url), "auto")
    async with (
        httpx2.AsyncClient(headers={"mcp-protocol-version": REVISION}, timeout=60) as http,
        session_over(streamable_http_client(url, http_client=http)) as session,
    ):
        assert session.initialized["capabilities"]["tasks"].keys() == {"cancel", "requests"}
        task_id = (await session.create("count", steps=1))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"] == {"result": "counted 1"}
        assert (await session.get(task_id))["status"] == "completed"
        assert (await session.ask("tasks/list")).error["code"] == -32601
        assert session.heard == []


async def test_a_session_is_pushed_each_status_of_its_tasks(deployment: Deployment) -> None:
    async with over_http(deployment.serve()) as session:
        task_id = (await session.create("count", steps=2))["taskId"]
        pushed = await session.ended(task_id)
        assert pushed[-1] == await session.get(task_id)
        assert pushed[-1]["status"] == "completed"
        stopped = (await session.create("wait"))["taskId"]
        await session.ask("tasks/cancel", taskId=stopped)
        assert (await session.ended(stopped))[-1]["status"] == "cancelled"
