"""Revision 2025-11-25 over every transport: Streamable HTTP with and without sessions, stdio, in memory."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from celery import Celery
from mcp.client._memory import InMemoryTransport
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer

from mcp_celery import Settings, TaskServer
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.context import get_task_session
from tests.acceptance.test_transports import in_memory
from tests.support.deployment import Deployment
from tests.support.session import RELATED, REVISION, Connect, Session, session_over
from tests.support.waiting import eventually
from tests.support.wire import EXTENSION

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session", params=["asyncio"])
def pool(request: pytest.FixtureRequest) -> str:
    """What differs between transports is the same on every pool."""
    return request.param


@pytest.fixture(params=["http", "stdio", "memory"])
def connect(request: pytest.FixtureRequest, deployment: Deployment, url: str) -> Connect:
    """Opens a session with a server of the shared deployment."""

    def transport() -> AbstractAsyncContextManager[Any]:
        if request.param == "http":
            return streamable_http_client(url)
        if request.param == "memory":
            return InMemoryTransport(in_memory(deployment))
        return deployment.stdio()

    def open_session(**options: Any) -> AbstractAsyncContextManager[Session]:
        return session_over(transport(), **options)

    return open_session


@asynccontextmanager
async def served(server: MCPServer[Any], **options: Any) -> AsyncGenerator[str]:
    """A server of this process over HTTP."""
    app = server.streamable_http_app(streamable_http_path="/mcp", **options)
    runner = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    running = asyncio.create_task(runner.serve())
    try:
        await eventually(lambda: runner.started, what="the server listens")
        yield f"http://127.0.0.1:{runner.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        runner.should_exit = True
        await running


# --- Every transport


@pytest.mark.shows("L1", "L3", "L4", "L10", "L18", "L21", "L31", "L35", "L38")
async def test_a_session_creates_follows_and_ends_a_task(connect: Connect) -> None:
    async with connect() as session:
        assert session.initialized["capabilities"]["tasks"]["list"] == {}
        params = {"name": "counting", "arguments": {"steps": 3}, "task": {"ttl": 60_000}}
        created = (await session.ask("tools/call", params, _meta={"progressToken": 7})).result["task"]
        assert (created["status"], created["ttl"]) == ("working", 60_000)
        result = (await session.result(created["taskId"])).result
        assert result["content"][0]["text"] == "counted to 3"
        assert result["_meta"] == {RELATED: {"taskId": created["taskId"]}}
        pushed = await session.ended(created["taskId"])
        assert pushed[-1] == await session.get(created["taskId"]) == (await session.listed())[0]
        # Only the newest progress is pushed: a step may be left out.
        assert pushed[0]["statusMessage"] in {f"step {step} ({step}/3)" for step in (1, 2, 3)}
        told = [one["params"]["progress"] for one in session.heard if one["method"] == "notifications/progress"]
        assert told[-1] == 3
        assert (await session.ask("tasks/cancel", taskId=created["taskId"])).error["code"] == -32602


@pytest.mark.shows("L30", "L36")
async def test_a_cancel_ends_a_request_that_waits_for_the_result(connect: Connect) -> None:
    async with connect() as session:
        task_id = (await session.create("counting", steps=500, pause=0.05))["taskId"]
        waiting = await session.send("tasks/result", {"taskId": task_id})
        assert (await session.ask("tasks/cancel", taskId=task_id)).result["status"] == "cancelled"
        assert (await session.answer(waiting)).error["code"] == -32800
        assert (await session.ended(task_id))[-1]["status"] == "cancelled"


@pytest.mark.shows("L22", "L23")
async def test_failures_end_a_request_that_waits_for_the_result(connect: Connect) -> None:
    async with connect() as session:
        broken = (await session.create("protocol_error_job"))["taskId"]
        refused = (await session.create("refusing"))["taskId"]
        assert (await session.result(broken)).error["code"] == -32050
        assert (await session.result(refused)).result["isError"] is True
        assert {one["status"] for one in await session.listed()} == {"failed"}


@pytest.mark.shows("L13", "L14", "L15")
async def test_a_tool_refuses_calls_that_contradict_its_mode(connect: Connect) -> None:
    async with connect() as session:
        assert (await session.call("greet", task={}, name="Ada")).error["code"] == -32601
        assert (await session.call("failing_job")).error["code"] == -32601
        assert (await session.call("slow_compute", seconds=0)).result["content"][0]["text"] == "done"
        assert await session.listed() == []


@pytest.mark.shows("L21")
async def test_prompts_resources_and_templates_run_as_tasks(connect: Connect) -> None:
    async with connect() as session:
        prompt = {"name": "briefing", "arguments": {"topic": "tides"}}
        for method, params, text in (
            ("prompts/get", prompt, "A plain briefing about tides, as a task"),
            ("resources/read", {"uri": "fixture://report"}, "# Report"),
            ("resources/read", {"uri": "fixture://pages/7"}, "page 7"),
        ):
            task_id = (await session.ask(method, params, task={})).result["task"]["taskId"]
            assert text in str((await session.result(task_id)).result)
            assert (await session.ended(task_id))[-1]["status"] == "completed"


@pytest.mark.shows("M6", "M26")
async def test_declaring_the_other_eras_extension_means_nothing(connect: Connect) -> None:
    async with connect(capabilities={"extensions": {EXTENSION: {}}}) as session:
        assert (await session.call("slow_compute", seconds=0)).result["content"][0]["text"] == "done"
        assert (await session.ask("tasks/update", taskId="x", inputResponses={})).error["code"] == -32601


@pytest.mark.shows("L2")
async def test_a_session_lists_its_own_tasks(connect: Connect) -> None:
    async with connect() as first:
        mine = (await first.create("slow_compute", seconds=0))["taskId"]
        async with connect() as second:
            assert await second.listed() == []
            assert (await second.get(mine))["taskId"] == mine
        assert [one["taskId"] for one in await first.listed()] == [mine]


# --- Servers of this process


def server_in(deployment: Deployment, name: str = "acceptance") -> TaskServer:
    """A server of the deployment without components."""
    settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
    address = celery_url(deployment.store_url)
    app = Celery("bare", broker=address, backend=address, set_as_current=False)
    return TaskServer(name, settings=settings, celery=app, log_level="WARNING")


@pytest.mark.shows("L1", "L16")
async def test_a_capability_without_components_is_not_declared_and_task_is_ignored(deployment: Deployment) -> None:
    server = server_in(deployment)

    @server.prompt()
    def plain_prompt() -> str:
        return "plain"

    @server.tool()
    def plain_tool() -> str:
        return "plain"

    async with session_over(InMemoryTransport(server)) as session:
        assert "tasks" not in session.initialized["capabilities"]
        assert "plain" in str((await session.ask("prompts/get", {"name": "plain_prompt"}, task={"ttl": 5})).result)
        assert "plain" in str((await session.call("plain_tool", task={"ttl": 5})).result)

    server.add_tool(plain_tool, "may_be_a_task", task=True)
    async with session_over(InMemoryTransport(server)) as session:
        assert session.initialized["capabilities"]["tasks"]["requests"] == {"tools": {"call": {}}}
        assert "plain" in str((await session.ask("prompts/get", {"name": "plain_prompt"}, task={"ttl": 5})).result)
        assert (await session.call("plain_tool", task={"ttl": 5})).error["code"] == -32601


@pytest.mark.shows("L2", "L37")
async def test_stateless_http_has_tasks_but_no_list_and_no_push(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mcp_celery"):
        async with (
            served(in_memory(deployment), stateless_http=True) as url,
            httpx2.AsyncClient(headers={"mcp-protocol-version": REVISION}, timeout=60) as http,
            session_over(streamable_http_client(url, http_client=http)) as session,
        ):
            assert session.initialized["capabilities"]["tasks"].keys() == {"cancel", "requests"}
            ids = [(await session.create("counting", steps=2))["taskId"] for _ in range(2)]
            assert (await session.result(ids[0])).result["content"][0]["text"] == "counted to 2"
            assert (await session.result(ids[1])).result["content"][0]["text"] == "counted to 2"
            assert (await session.get(ids[0]))["status"] == "completed"
            assert (await session.ask("tasks/list")).error["code"] == -32601
            assert session.heard == []
    assert len([one for one in caplog.messages if "stateless HTTP" in one]) == 1


@pytest.mark.slow
@pytest.mark.shows("C12", "L36")
async def test_a_closed_session_is_released_with_its_followers(deployment: Deployment, tmp_path: Path) -> None:
    def followers() -> list[str]:
        return [one.get_name() for one in asyncio.all_tasks() if one.get_name().startswith("mcp-celery-push")]

    ids: set[str] = set()

    async def note(response: httpx2.Response) -> None:
        ids.update(response.headers.get_list("mcp-session-id"))

    async with (
        served(in_memory(deployment)) as url,
        httpx2.AsyncClient(event_hooks={"response": [note]}, timeout=60) as http,
    ):
        async with session_over(streamable_http_client(url, http_client=http)) as session:
            await session.ended((await session.create("slow_compute", seconds=0))["taskId"])
            for _ in range(20):
                await session.create("wait_for_file", path=str(tmp_path / "go"))
            await eventually(lambda: len(followers()) == 20, what="the follower of the ended task has ended")
            (session_id,) = ids
            assert get_task_session(session_id) is not None
        await eventually(lambda: followers() == [], what="the followers have ended")

        def released() -> bool:
            gc.collect()
            return get_task_session(session_id) is None

        await eventually(released, what="the session is released")
        await eventually(lambda: not deployment.channels(), what="nothing is subscribed")
    (tmp_path / "go").touch()
