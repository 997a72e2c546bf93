"""Clients that know no tasks follow one with three tools: over HTTP, in both eras, with a real worker."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from celery import Celery
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl

from mcp_celery import CeleryTasks, Settings, TaskServer
from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.errors import ConfigurationError
from tests.acceptance.fixture_server import Verifier
from tests.acceptance.test_foreground import shaken_hands
from tests.acceptance.test_transports_2025 import served
from tests.support.deployment import Deployment, deployed
from tests.support.scripted import text_of
from tests.support.servers.foreground import build
from tests.support.session import session_over
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.foreground:server"
THE_THREE = {"task_status", "task_result", "task_cancel"}


@pytest.fixture(scope="module")
def deployment(store_url: str) -> Iterator[Deployment]:
    with deployed(store_url, "polling", spec=SPEC) as found, found.worker("asyncio"):
        yield found


@pytest.fixture(params=["legacy", "auto"])
def mode(request: pytest.FixtureRequest) -> Any:
    """Which era the client speaks."""
    return request.param


def a_server(deployment: Deployment, **options: Any) -> TaskServer:
    settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
    address = celery_url(deployment.store_url)
    app = Celery("polling", broker=address, backend=address, set_as_current=False)
    return build(settings=settings, celery=app, **options)


def polled(deployment: Deployment, after: float = 0) -> AbstractAsyncContextManager[str]:
    """A server whose first answers come so many seconds after a call."""
    server = a_server(deployment)
    server.add_polling_tools(after=after)
    return served(server)


@pytest.fixture
async def url(deployment: Deployment) -> AsyncGenerator[str]:
    """A server that answers with a task at once."""
    async with polled(deployment) as url:
        yield url


@asynccontextmanager
async def bearer(url: str, token: str) -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def begun(answer: types.CallToolResult) -> str:
    """The task that a call goes on as."""
    assert not answer.is_error
    assert answer.structured_content is not None
    task_id = str(answer.structured_content["task_id"])
    assert answer.structured_content["status"] == "working"
    assert answer.meta is not None
    assert answer.meta["mcp-celery/task"] == {"taskId": task_id}
    text = text_of(answer)
    assert re.findall(r"task_id: (\S+)", text) == [task_id]
    assert all(name in text for name in THE_THREE)
    return task_id


# --- Following a task


@pytest.mark.shows("C17")
async def test_the_polling_tools_lead_from_the_first_answer_to_the_result(url: str, mode: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with Client(url, mode=mode) as client:
        task_id = begun(await client.call_tool("wait_for_file", {"path": str(go)}))
        state = (await client.call_tool("task_status", {"task_id": task_id})).structured_content
        assert state is not None
        assert (state["task_id"], state["status"]) == (task_id, "working")
        assert "task_result" in state["next_step"]
        waiting = await client.call_tool("task_result", {"task_id": task_id, "wait_seconds": 0})
        assert not waiting.is_error
        assert "has not ended yet" in text_of(waiting)
        go.touch()
        result = await client.call_tool("task_result", {"task_id": task_id})
        assert result.structured_content == {"label": "released", "children": []}
        again = await client.call_tool("task_result", {"task_id": task_id, "wait_seconds": 0})
        assert again.structured_content == result.structured_content
        state = (await client.call_tool("task_status", {"task_id": task_id})).structured_content
    assert state is not None
    assert state["status"] == "completed"


@pytest.mark.shows("C17")
async def test_a_task_that_ends_in_time_is_never_mentioned(deployment: Deployment, mode: Any) -> None:
    async with polled(deployment, after=50) as url, Client(url, mode=mode) as client:
        tree = await client.call_tool("tree", {"label": "leaf", "depth": 1})
        here = await client.call_tool("where_here", {})
        elsewhere = await client.call_tool("where", {})
    assert tree.structured_content == {"label": "leaf", "children": [{"label": "leaf", "children": []}]}
    assert [text_of(here), text_of(elsewhere)] == ["here", "on a worker"]


@pytest.mark.slow
@pytest.mark.shows("C17")
async def test_a_longer_call_sends_its_progress_and_then_returns_its_task(
    deployment: Deployment, tmp_path: Path
) -> None:
    told: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    notes = str(tmp_path / "notes")
    async with polled(deployment, after=8) as url, Client(url) as client:
        task_id = begun(await client.call_tool("noted", {"notes": notes}, progress_callback=on_progress))
        assert told == [1]
        await client.call_tool("task_cancel", {"task_id": task_id})


@pytest.mark.shows("C17")
async def test_task_cancel_cancels_a_task_and_may_be_repeated(url: str, mode: Any, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with Client(url, mode=mode) as client:
        task_id = begun(await client.call_tool("noted", {"notes": str(notes)}))
        await eventually(notes.exists, what="the job has begun")
        for _ in range(2):
            state = (await client.call_tool("task_cancel", {"task_id": task_id})).structured_content
            assert state is not None
            assert state["status"] == "cancelled"
        result = await client.call_tool("task_result", {"task_id": task_id})
    assert result.is_error
    assert "Cancelled by the client" in text_of(result)
    await eventually(lambda: notes.read_text().split() == ["begun", "ended"], what="the job has ended")


@pytest.mark.shows("C17")
async def test_errors_of_a_task_are_text_for_the_model(url: str, mode: Any) -> None:
    async with Client(url, mode=mode) as client:
        broken = begun(await client.call_tool("rpc_error", {}))
        refused = begun(await client.call_tool("refuses", {}))
        answers = [
            await client.call_tool("task_result", {"task_id": broken}),
            await client.call_tool("task_result", {"task_id": refused}),
            *[await client.call_tool(name, {"task_id": "nobody-made-this"}) for name in sorted(THE_THREE)],
            await client.call_tool("tree", {"label": "leaf", "depth": "deep"}),
            await client.call_tool("task_result", {"task_id": broken, "wait_seconds": 51}),
        ]
    assert all(answer.is_error for answer in answers)
    assert "the gears are stuck" in text_of(answers[0])
    assert "No such dataset" in text_of(answers[1])
    assert all("Task not found" in text_of(answer) for answer in answers[2:5])
    assert "valid integer" in text_of(answers[5])
    assert "less than or equal to 50" in text_of(answers[6])


@pytest.mark.shows("C17")
async def test_questions_are_asked_while_task_result_waits(url: str, mode: Any) -> None:
    async def give_names(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        name = "Ada" if params.message == "Your name?" else "Rex"
        return types.ElicitResult(action="accept", content={"name": name})

    async with Client(url, mode=mode, elicitation_callback=give_names) as client:
        task_id = begun(await client.call_tool("greet", {}))
        result = await client.call_tool("task_result", {"task_id": task_id, "wait_seconds": 50})
    assert result.structured_content == {"result": "Hello, Ada and Rex!"}


@pytest.mark.shows("C17")
async def test_a_client_that_drops_the_wait_is_waited_for_no_longer_and_cancels_nothing(url: str) -> None:
    def waits() -> bool:
        names = [task.get_name() for task in asyncio.all_tasks()]
        return any(name.startswith(("mcp-celery-presence", "mcp-celery-ask")) for name in names)

    async with httpx2.AsyncClient(timeout=60) as http:
        headers = await shaken_hands(http, url, elicitation={})
        call: dict[str, Any] = {"name": "greet", "arguments": {}}
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
        events = (await http.post(url, json=body, headers=headers)).text.splitlines()
        (message,) = [json.loads(line[5:]) for line in events if line.startswith("data: {")]
        task_id = message["result"]["structuredContent"]["task_id"]
        call = {"name": "task_result", "arguments": {"task_id": task_id, "wait_seconds": 50}}
        async with http.stream("POST", url, json={**body, "id": 3, "params": call}, headers=headers) as answer:
            asked = [line async for line in until(answer.aiter_lines(), "elicitation/create")]
            assert "Your name?" in asked[-1]
            assert waits()
        await eventually(lambda: not waits(), what="nobody waits")
        call = {"name": "task_status", "arguments": {"task_id": task_id}}
        found = await http.post(url, json={**body, "id": 4, "params": call}, headers=headers)
        assert '"status":"input_required"' in found.text
        call = {"name": "task_cancel", "arguments": {"task_id": task_id}}
        await http.post(url, json={**body, "id": 5, "params": call}, headers=headers)


async def until(lines: AsyncIterator[str], word: str) -> AsyncGenerator[str]:
    """What comes up to a line that has a word."""
    async for line in lines:
        yield line
        if word in line:
            return


@pytest.mark.shows("C17")
async def test_a_question_that_cannot_be_asked_while_the_result_is_waited_for_stays_open(
    deployment: Deployment,
) -> None:
    """HTTP without streams: another of the client's requests may have a way."""
    server = a_server(deployment)
    server.add_polling_tools(after=0)
    async with (
        served(server, json_response=True) as url,
        session_over(streamable_http_client(url), capabilities={"elicitation": {}}) as session,
    ):
        task_id = (await session.call("greet")).result["structuredContent"]["task_id"]

        async def status() -> str:
            return (await session.call("task_status", task_id=task_id)).result["structuredContent"]["status"]

        await eventually(lambda: asks(status()), what="the job asks")
        waited = (await session.call("task_result", task_id=task_id, wait_seconds=0.3)).result
        assert "has not ended yet" in waited["content"][0]["text"]
        assert await status() == "input_required"
        await session.call("task_cancel", task_id=task_id)


async def asks(status: Awaitable[str]) -> bool:
    return await status == "input_required"


@pytest.mark.shows("C17")
async def test_the_task_of_another_caller_is_not_found(deployment: Deployment) -> None:
    auth = AuthSettings(issuer_url=AnyHttpUrl("https://one.example"), resource_server_url=None, required_scopes=["use"])
    server = a_server(deployment, token_verifier=Verifier(), auth=auth)
    server.add_polling_tools(after=0)
    async with served(server) as url, bearer(url, "alice") as alice, bearer(url, "bob") as bob:
        task_id = begun(await alice.call_tool("where", {}))
        for name in THE_THREE:
            assert "Task not found" in text_of(await bob.call_tool(name, {"task_id": task_id}))
        assert text_of(await alice.call_tool("task_result", {"task_id": task_id})) == "on a worker"


# --- Who gets one


@pytest.mark.shows("C17")
async def test_a_tool_that_runs_only_as_a_task_runs_for_every_client(url: str, mode: Any) -> None:
    async with Client(url, mode=mode) as client:
        task_id = begun(await client.call_tool("where_required", {}))
        assert text_of(await client.call_tool("task_result", {"task_id": task_id})) == "on a worker"


@pytest.mark.shows("C17")
async def test_clients_with_tasks_are_served_without_polling_tools(url: str) -> None:
    async with Client(url, extensions=[TasksClient()]) as client:
        assert (await (await call_tool_task(client, "tree", {"label": "leaf", "depth": 0}))).structured_content
        (tree,) = [tool for tool in (await client.list_tools()).tools if tool.name == "tree"]
        assert "anyOf" not in (tree.output_schema or {})
    async with session_over(streamable_http_client(url)) as session:
        created = await session.create("tree", label="leaf", depth=0)
        assert (await session.result(created["taskId"])).result["structuredContent"]["label"] == "leaf"
        listed = {tool["name"]: tool for tool in (await session.ask("tools/list")).result["tools"]}
    assert listed["where_required"]["execution"]["taskSupport"] == "optional"
    assert listed.keys() > THE_THREE
    assert not any("execution" in listed[name] for name in THE_THREE)


@pytest.mark.shows("C17")
async def test_only_what_may_be_a_task_shows_that_it_may_be_answered_with_one(url: str, mode: Any) -> None:
    async with Client(url, mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert len((tools["tree"].output_schema or {})["anyOf"]) == 2
    assert "anyOf" not in (tools["where_here"].output_schema or {})
    assert "anyOf" not in (tools["task_status"].output_schema or {})
    assert tools["task_result"].output_schema is None


# --- Adding them


@pytest.mark.shows("C17")
async def test_polling_tools_are_added_to_an_existing_server_under_other_names(deployment: Deployment) -> None:
    server: MCPServer[Any] = MCPServer("existing", log_level="WARNING")
    tasks = CeleryTasks(settings=Settings.load(redis_url=deployment.store_url), task=True)
    with pytest.raises(ConfigurationError, match="belong to no server yet"):
        tasks.add_polling_tools()
    tasks.install(server)

    @server.tool()
    def task_status() -> str:
        return "its own"

    with pytest.raises(ConfigurationError, match="there is a tool 'task_status' already"):
        tasks.add_polling_tools()
    tasks.add_polling_tools(prefix="jobs_")
    async with Client(server) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
    assert tools == {"task_status", *(f"jobs_{name}" for name in THE_THREE)}


@pytest.mark.shows("C17")
@pytest.mark.parametrize("after", [-1, 51, float("nan")])
def test_a_wait_out_of_range_is_refused(after: float) -> None:
    server = TaskServer("refused", settings=Settings.load())
    with pytest.raises(ConfigurationError, match="add_polling_tools\\(after="):
        server.add_polling_tools(after=after)
