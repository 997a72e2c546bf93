"""Clients that follow no task, whose calls run on a worker: the same answers, progress, questions and cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import mcp_types as types
import pytest
import uvicorn
from celery import Celery
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.streamable_http import EventStore
from mcp.shared.exceptions import MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from mcp_celery import Settings, TaskServer
from mcp_celery.common.redis_translation import celery_url
from tests.acceptance.test_transports_2025 import served
from tests.support.deployment import Deployment, deployed
from tests.support.scripted import text_of
from tests.support.servers.foreground import build
from tests.support.session import session_over
from tests.support.waiting import eventually
from tests.support.wire import JSON, Answer, Wire

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.foreground:server"
ABLE: JSON = {"elicitation": {}}
Call = Callable[..., Awaitable[Answer]]


@pytest.fixture(scope="module", params=["asyncio"])
def pool(request: pytest.FixtureRequest) -> str:
    """What differs between pools is how a job is cancelled."""
    return request.param


@pytest.fixture(scope="module")
def deployment(store_url: str, pool: str) -> Iterator[Deployment]:
    with deployed(store_url, f"foreground-{pool}", spec=SPEC) as found, found.worker(pool):
        yield found


def a_server(deployment: Deployment, foreground: str = "worker") -> TaskServer:
    """A server of the deployment in this process."""
    settings = Settings.load(
        redis_url=deployment.store_url, namespace=deployment.namespace, foreground=cast(Any, foreground)
    )
    address = celery_url(deployment.store_url)
    app = Celery("foreground", broker=address, backend=address, set_as_current=False)
    return build(settings=settings, celery=app)


@pytest.fixture
async def url(deployment: Deployment) -> AsyncGenerator[str]:
    """A server that has its calls run on the worker."""
    async with served(a_server(deployment)) as url:
        yield url


@pytest.fixture
async def url_here(deployment: Deployment) -> AsyncGenerator[str]:
    """A server that runs its tools itself."""
    async with served(a_server(deployment, "server")) as url:
        yield url


@asynccontextmanager
async def caller(url: str, revision: str, **session: Any) -> AsyncGenerator[Call]:
    """Calls tools as a client of a revision that knows no tasks."""
    async with AsyncExitStack() as stack:
        if revision in HANDSHAKE_PROTOCOL_VERSIONS:
            client = session_over(streamable_http_client(url), revision=revision, **session)
            yield (await stack.enter_async_context(client)).call
        else:
            yield (await stack.enter_async_context(Wire(url, extension=False))).call


def records(deployment: Deployment) -> list[dict[str, str]]:
    """The tasks that are kept."""
    store: Any = deployment.redis
    keys = store.keys(f"mcp_celery:{deployment.namespace}:task:anon:*")
    found = [store.hgetall(key) for key in keys if store.type(key) == "hash"]
    return [record for record in found if "status" in record]


def open_records(deployment: Deployment) -> list[dict[str, str]]:
    return [record for record in records(deployment) if record["status"] == "working"]


def only(deployment: Deployment, task_id: str) -> dict[str, str]:
    (record,) = [one for one in records(deployment) if one["task_id"] == task_id]
    return record


def lines(notes: Path) -> list[str]:
    return notes.read_text().split() if notes.exists() else []


# --- Answers

CALLS: dict[str, JSON] = {
    "tree": {"label": "leaf", "depth": 3},
    "content": {},
    "refuses": {},
    "crashes": {},
    "rpc_error": {},
    "where_here": {},
    "counting": {"steps": 1},
}


@pytest.mark.shows("C16")
@pytest.mark.parametrize(
    "revision",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in HANDSHAKE_PROTOCOL_VERSIONS[:-1]),
        HANDSHAKE_PROTOCOL_VERSIONS[-1],
        "2026-07-28",
    ],
)
async def test_a_call_has_the_same_answer_wherever_it_runs(url: str, url_here: str, revision: str) -> None:
    async with caller(url, revision) as on_a_worker, caller(url_here, revision) as here:
        for tool, arguments in {**CALLS, "nobody": {}}.items():
            answers = [await call(tool, **arguments) for call in (on_a_worker, here)]
            for answer in answers:
                del answer.message["id"]
            assert answers[0] == answers[1], tool
        wrong = [await call("tree", label="leaf", depth="deep") for call in (on_a_worker, here)]
        assert wrong[0].result == wrong[1].result
        assert "valid integer" in str(wrong[0].result)
        assert (await on_a_worker("where")).result["content"][0]["text"] == "on a worker"
        assert (await here("where")).result["content"][0]["text"] == "here"
        assert (await here("where_on_a_worker")).result["content"][0]["text"] == "on a worker"
        assert (await on_a_worker("where_required")).error["code"] in (-32601, -32021)


@pytest.mark.shows("C16")
async def test_the_time_limit_of_a_call_does_not_depend_on_the_tasks_time_to_live(url: str) -> None:
    async with Wire(url, extension=False) as wire:
        assert (await wire.call("where_short_lived")).result["content"][0]["text"] == "on a worker"


@pytest.mark.shows("C16")
async def test_the_record_of_a_foreground_call_is_deleted_soon_after(deployment: Deployment, url: str) -> None:
    async with caller(url, "2025-11-25") as call:
        await call("where")
    assert {int(record["ttl_ms"]) < 120_000 for record in records(deployment)} == {True}


@pytest.mark.shows("C16")
async def test_the_session_does_not_list_a_foreground_call(url: str) -> None:
    async with session_over(streamable_http_client(url)) as session:
        await session.call("where")
        assert await session.listed() == []


# --- Progress


@pytest.fixture(params=["http", "stdio", "memory"])
def transport(request: pytest.FixtureRequest, deployment: Deployment) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """A way to a server that has its calls run on the worker."""

    @asynccontextmanager
    async def open_transport() -> AsyncGenerator[Any]:
        async with AsyncExitStack() as stack:
            if request.param == "memory":
                yield a_server(deployment)
            elif request.param == "http":
                yield await stack.enter_async_context(served(a_server(deployment)))
            else:
                yield deployment.stdio(MCP_CELERY_FOREGROUND="worker")

    return open_transport


@pytest.mark.shows("C16")
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_progress_of_a_foreground_call_reaches_the_caller(transport: Any, mode: Any) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async with transport() as target, Client(target, mode=mode) as client:
        result = await client.call_tool("counting", {"steps": 4}, progress_callback=on_progress)
        heard = list(told)
        await client.call_tool("where", {})
    assert result.structured_content == {"result": "counted to 4"}
    values = [value for value, _total, _message in heard]
    assert values == sorted(set(values))
    # Only the newest progress is passed on: a step may be left out.
    assert heard[0] in [(step, 4, f"step {step}") for step in (1, 2, 3, 4)]
    assert (4, 4, "step 4") in heard
    assert told == heard


# --- Leaving


async def begun(notes: Path) -> None:
    await eventually(lambda: lines(notes) == ["begun"], what="the job has begun")


async def is_cancelled(deployment: Deployment, notes: Path, *, before: set[str]) -> None:
    """Wait until the only new task is cancelled, and its job has ended."""
    await eventually(lambda: lines(notes) == ["begun", "ended"], what="the job has ended")
    (record,) = [one for one in records(deployment) if one["task_id"] not in before]
    assert record["status"] == "cancelled"
    await eventually(lambda: int(only(deployment, record["task_id"])["ttl_ms"]) < 120_000, what="it goes soon")


def known(deployment: Deployment) -> set[str]:
    return {record["task_id"] for record in records(deployment)}


@pytest.mark.shows("C16")
@pytest.mark.parametrize(
    ("pool", "transport"),
    [("asyncio", "http"), ("asyncio", "stdio"), ("asyncio", "memory"), ("prefork", "http")],
    indirect=True,
)
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_call_that_its_client_cancels_cancels_the_job(
    deployment: Deployment, transport: Any, mode: Any, tmp_path: Path
) -> None:
    notes, before = tmp_path / "notes", known(deployment)
    async with transport() as target, Client(target, mode=mode) as client:
        calling = asyncio.create_task(client.call_tool("noted", {"notes": str(notes)}))
        await begun(notes)
        calling.cancel()
        await is_cancelled(deployment, notes, before=before)
        assert (await client.call_tool("where", {})).structured_content == {"result": "on a worker"}
    await asyncio.gather(calling, return_exceptions=True)


@pytest.mark.shows("C16")
@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("transport", ["http", "stdio"], indirect=True)  # in memory a call is its handler's own caller
async def test_a_connection_that_ends_cancels_the_job(
    deployment: Deployment, transport: Any, mode: Any, tmp_path: Path
) -> None:
    notes, before = tmp_path / "notes", known(deployment)
    async with transport() as target:
        async with Client(target, mode=mode) as client:
            calling = asyncio.create_task(client.call_tool("noted", {"notes": str(notes)}))
            await begun(notes)
        await asyncio.gather(calling, return_exceptions=True)
        await is_cancelled(deployment, notes, before=before)


@pytest.mark.shows("C16")
@pytest.mark.parametrize("json_response", [False, True], ids=["sse", "json"])
@pytest.mark.parametrize("stateless", [False, True], ids=["session", "stateless"])
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_an_http_exchange_that_is_dropped_cancels_the_job(
    deployment: Deployment, revision: str, *, json_response: bool, stateless: bool, tmp_path: Path
) -> None:
    notes, before = tmp_path / "notes", known(deployment)
    server = a_server(deployment)
    async with served(server, json_response=json_response, stateless_http=stateless) as url:
        call = {"name": "noted", "arguments": {"notes": str(notes)}}
        wire = Wire(url, extension=False)
        body, headers = wire._request("tools/call", call, {})  # pyright: ignore[reportPrivateUsage]
        async with httpx2.AsyncClient(timeout=60) as http:
            if revision == "2025-11-25":
                body = {**body, "params": call}
                headers = await shaken_hands(http, url)
            dropping = asyncio.create_task(http.post(url, json=body, headers=headers))
            await begun(notes)
            dropping.cancel()
            await is_cancelled(deployment, notes, before=before)


async def shaken_hands(http: httpx2.AsyncClient, url: str, **capabilities: Any) -> dict[str, str]:
    """Begin a session, where there are sessions.

    Returns:
        The headers of its requests.
    """
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    client = {"name": "raw", "version": "1"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": client}
    initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    answer = await http.post(url, json=initialize, headers=headers)
    if (session := answer.headers.get("mcp-session-id")) is not None:
        headers["mcp-session-id"] = session
    await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
    return headers


@pytest.mark.shows("C16")
async def test_a_client_that_can_resume_its_stream_keeps_its_call(deployment: Deployment, tmp_path: Path) -> None:
    """With an event store the answer is kept for it, and a dropped stream says nothing (2025-11-25, Transports)."""
    stored: list[Any] = []

    class Events(EventStore):
        async def store_event(self, stream_id: str, message: Any) -> str:
            stored.append(message)
            return str(len(stored))

        async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
            return None

    go = tmp_path / "go"
    async with served(a_server(deployment), event_store=Events()) as url, httpx2.AsyncClient(timeout=60) as http:
        headers = await shaken_hands(http, url)
        call = {"name": "wait_for_file", "arguments": {"path": str(go)}}
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
        async with http.stream("POST", url, json=body, headers=headers):
            pass
        async with http.stream("POST", url, json={**body, "id": 3}, headers=headers):
            pass
        await eventually(lambda: len(open_records(deployment)) == 2, what="both jobs wait")
        assert not [one for one in asyncio.all_tasks() if one.get_name().startswith("mcp-celery-presence")]
        go.touch()

        def answered() -> set[Any]:
            return {one.id for one in stored if isinstance(one, types.JSONRPCResponse)} & {2, 3}

        await eventually(lambda: answered() == {2, 3}, what="both are answered")


@pytest.mark.shows("C16")
async def test_a_server_with_two_endpoints_answers_though_each_request_is_acknowledged_at_once(
    deployment: Deployment,
) -> None:
    """The SSE transport of 2024-11-05: a request's own HTTP exchange is over before its handler begins."""
    runner = uvicorn.Server(
        uvicorn.Config(a_server(deployment).sse_app(), port=0, log_config=None, timeout_graceful_shutdown=1)
    )
    running = asyncio.create_task(runner.serve())
    await eventually(lambda: runner.started, what="the server listens")
    port = runner.servers[0].sockets[0].getsockname()[1]
    try:
        async with Client(sse_client(f"http://127.0.0.1:{port}/sse"), mode="legacy") as client:
            result = await client.call_tool("counting", {"steps": 10})
        assert result.structured_content == {"result": "counted to 10"}
    finally:
        runner.should_exit = True
        await running


# --- Questions


async def give_names(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    assert not (params.meta or {}).get("io.modelcontextprotocol/related-task")
    return types.ElicitResult(action="accept", content={"name": "Ada" if params.message == "Your name?" else "Rex"})


@pytest.mark.shows("C16")
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_questions_of_a_foreground_call_reach_the_caller(transport: Any, mode: Any) -> None:
    async with transport() as target, Client(target, mode=mode, elicitation_callback=give_names) as client:
        awaited = await client.call_tool("greet", {})
        returned = await client.call_tool("greet_in_rounds", {})
    assert awaited.structured_content == {"result": "Hello, Ada and Rex!"}
    assert text_of(returned) == "Hello, Ada, its own!"


@pytest.mark.shows("C16")
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_an_answer_that_does_not_fit_ends_the_call(url: str, mode: Any) -> None:
    async def give_nonsense(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"nom": "Ada"})

    async with Client(url, mode=mode, elicitation_callback=give_nonsense) as client:
        with pytest.raises(MCPError, match="does not satisfy"):
            await client.call_tool("greet", {})


@pytest.mark.shows("C16")
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_that_cannot_be_asked_gets_an_error_that_says_so(url: str, mode: Any) -> None:
    async with Client(url, mode=mode) as client:
        with pytest.raises(MCPError, match="did not declare the form elicitation capability"):
            await client.call_tool("greet", {})


@pytest.mark.shows("C16")
@pytest.mark.parametrize("stateless", [False, True], ids=["session", "stateless"])
async def test_where_no_question_can_be_asked_the_call_ends(deployment: Deployment, *, stateless: bool) -> None:
    """HTTP without streams has no way for a question, and HTTP without sessions none for its answer."""
    server = a_server(deployment)
    async with (
        served(server, json_response=True, stateless_http=stateless) as url,
        session_over(streamable_http_client(url), capabilities=ABLE) as session,
    ):
        answer = await session.call("greet")
    assert "message" in answer.error


@pytest.mark.shows("C16")
async def test_each_round_continues_the_job_of_its_own_call(deployment: Deployment, url: str) -> None:
    before = known(deployment)
    async with Wire(url, extension=False, capabilities=ABLE) as wire:
        asked = (await wire.call("greet")).result
        assert asked["resultType"] == "input_required"
        (key,) = asked["inputRequests"]
        (record,) = [one for one in records(deployment) if one["task_id"] not in before]
        assert record["status"] == "input_required"
        assert record["task_id"] not in str(asked)  # the state is sealed
        answers = {key: {"action": "accept", "content": {"name": "Ada"}}}
        again = {"name": "greet", "arguments": {}, "inputResponses": answers, "requestState": asked["requestState"]}
        asked = (await wire.ask("tools/call", again)).result
        (other,) = asked["inputRequests"]
        assert other != key
        # The same answer again is none to the new question; somebody else's state is refused.
        assert (await wire.ask("tools/call", again)).result["inputRequests"].keys() == {other}
        forged = {**again, "requestState": "mcp-celery/foreground:" + record["task_id"]}
        assert (await wire.ask("tools/call", forged)).error["code"] == -32602
        declined = {**again, "inputResponses": {other: {"action": "decline"}}}
        assert (await wire.ask("tools/call", declined)).result["structuredContent"] == {"result": "Hello, Ada!"}
