"""Which requests a server answers with one JSON document: those about one task, at 2026-07-28.

The SDK refuses ``Accept: application/json`` alone (406) where the answer may become a stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
import pytest
from celery import Celery
from mcp.server import MCPServer
from mcp_types import HEADER_MISMATCH, INVALID_PARAMS, MISSING_REQUIRED_CLIENT_CAPABILITY

from mcp_celery import Settings, TaskServer
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine.outcome import JobOutcome
from mcp_celery.web import http_app
from tests.acceptance.fixture_server import add_tools
from tests.acceptance.test_shutdown import session_of
from tests.support.deployment import Deployment
from tests.support.waiting import eventually
from tests.support.wire import JSON, Wire

pytestmark = pytest.mark.anyio

JSON_TYPE: Final = "application/json"
EVENTS: Final = "text/event-stream"
UNKNOWN_TASK: Final = "A" * 43
SHORT: Final[dict[str, JSON]] = {
    "tasks/get": {"taskId": UNKNOWN_TASK},
    "tasks/update": {"taskId": UNKNOWN_TASK, "inputResponses": {}},
    "tasks/cancel": {"taskId": UNKNOWN_TASK},
}
OTHERS: Final[dict[str, JSON]] = {
    "tools/call": {"name": "slow_compute", "arguments": {"seconds": 0}},
    "tools/list": {},
    "tasks/result": {"taskId": UNKNOWN_TASK},
    "subscriptions/listen": {"notifications": {"taskIds": [UNKNOWN_TASK]}},
}


@pytest.mark.parametrize("method", SHORT)
async def test_a_request_about_a_task_needs_no_stream(url: str, method: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        response = await wire.post(method, {**SHORT[method], "taskId": task_id}, accept=JSON_TYPE)
    assert (response.status_code, response.headers["content-type"]) == (200, JSON_TYPE)
    assert response.json()["result"]["resultType"] == "complete"


@pytest.mark.parametrize("method", OTHERS)
async def test_other_requests_may_need_a_stream(url: str, method: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.post(method, OTHERS[method], accept=JSON_TYPE)).status_code == 406


@pytest.mark.parametrize("method", SHORT)
async def test_a_client_has_to_accept_json(url: str, method: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.post(method, SHORT[method], accept=EVENTS)).status_code == 406


@pytest.mark.parametrize("accept", [JSON_TYPE, f"{JSON_TYPE}, {EVENTS}"])
@pytest.mark.parametrize("method", SHORT)
async def test_errors_have_the_http_status_of_their_kind(url: str, method: str, accept: str) -> None:
    async def status_and_code(wire: Wire, params: JSON) -> tuple[int, int]:
        response = await wire.post(method, params, accept=accept)
        assert response.headers["content-type"] == JSON_TYPE
        return response.status_code, response.json()["error"]["code"]

    async with Wire(url) as wire, Wire(url, extension=False) as plain:
        assert await status_and_code(wire, SHORT[method]) == (400, INVALID_PARAMS)
        assert await status_and_code(wire, {}) == (400, INVALID_PARAMS)
        assert await status_and_code(plain, SHORT[method]) == (400, MISSING_REQUIRED_CLIENT_CAPABILITY)


@pytest.mark.parametrize("said", SHORT)
@pytest.mark.parametrize("method", ["tools/call", "subscriptions/listen"])
async def test_a_header_that_contradicts_the_body_is_refused(url: str, said: str, method: str) -> None:
    async with Wire(url) as wire:
        answer = await wire.ask(method, OTHERS[method], mcp_method=said)
        assert (answer.status, answer.error["code"]) == (400, HEADER_MISMATCH)
        answer = await wire.ask(said, SHORT[said], mcp_method=method)
        assert (answer.status, answer.error["code"]) == (400, HEADER_MISMATCH)


async def test_sessions_of_2025_are_as_they_were(url: str) -> None:
    async with httpx2.AsyncClient(timeout=30) as http:
        headers = {**await session_of(http, url), "mcp-method": "tasks/get"}
        params: JSON = {"name": "slow_compute", "arguments": {"seconds": 0}, "task": {}}
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
        created = await http.post(url, json=body, headers=headers)
        assert created.headers["content-type"].startswith(EVENTS)
        body = {"jsonrpc": "2.0", "id": 3, "method": "tasks/get", "params": {"taskId": UNKNOWN_TASK}}
        assert (await http.post(url, json=body, headers=headers)).headers["content-type"].startswith(EVENTS)
        # Of two versions the SDK reads the first one.
        hello: JSON = {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "raw", "version": "1"},
        }
        opening = {"jsonrpc": "2.0", "id": 4, "method": "initialize", "params": hello}
        both = [(name, value) for name, value in headers.items() if name != "mcp-session-id"]
        opened = await http.post(url, json=opening, headers=[*both, ("mcp-protocol-version", "2026-07-28")])
        assert opened.headers["content-type"].startswith(EVENTS)
        headers["accept"] = JSON_TYPE
        assert (await http.post(url, json=body, headers=headers)).status_code == 406


@pytest.mark.parametrize("method", SHORT)
async def test_short_answers_skip_no_check_of_host_size_or_token(url: str, guarded_url: str, method: str) -> None:
    params = SHORT[method]
    async with Wire(url) as wire, Wire(guarded_url) as nobody, Wire(guarded_url, token="alice") as alice:
        assert (await wire.post(method, params, host="evil.example")).status_code == 421
        assert (await wire.post(method, params, origin="https://evil.example")).status_code == 403
        assert (await wire.post(method, {**params, "more": "x" * 5_000_000})).status_code == 413
        assert (await nobody.post(method, params)).status_code == 401
        task_id = (await alice.create("slow_compute", seconds=0))["taskId"]
        async with Wire(guarded_url, token="bob") as bob:
            assert (await bob.post(method, {**params, "taskId": task_id})).status_code == 400
        assert (await alice.post(method, {**params, "taskId": task_id})).status_code == 200


@pytest.mark.parametrize("reads", [False, True], ids=["as-stored", "read-by-the-hosts-middleware"])
async def test_a_large_result_is_that_of_a_call_in_the_foreground(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    read: list[str] = []

    def parsed(_: JobOutcome) -> JSON:
        raise AssertionError("the server has read the result")

    if not reads:
        monkeypatch.setattr(JobOutcome, "result", property(parsed))

    async def middleware(ctx: Any, call_next: Any) -> Any:
        result = await call_next(ctx)
        if ctx.method == "tasks/get" and result["status"] == "completed":
            read.append(result["result"]["content"][0]["text"])
        return result

    arguments: JSON = {"text": 'ж"\\', "times": 4_000}
    server = served_here(deployment)
    if reads:
        server.middleware.append(middleware)
    app = http_app(server)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        Wire("http://127.0.0.1/mcp", transport=transport) as wire,
        Wire("http://127.0.0.1/mcp", transport=transport, extension=False) as plain,
    ):
        task_id = (await wire.create("repeated", **arguments))["taskId"]

        async def completed() -> JSON | None:
            task = await wire.get(task_id)
            return task if task["status"] == "completed" else None

        task = await eventually(completed, what="the end of the task")
        assert task is not None
        result = task["result"]
        there = await plain.ask("tools/call", {"name": "repeated", "arguments": arguments})
        assert result == {name: value for name, value in there.result.items() if name != "_meta"}
    assert read == ([result["content"][0]["text"]] if reads else [])


def served_here(deployment: Deployment, **options: Any) -> TaskServer:
    """The deployment's server once more, in this process."""
    settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
    address = celery_url(deployment.store_url)
    celery = Celery("short", broker=address, backend=address, set_as_current=False)
    return add_tools(TaskServer("acceptance", settings=settings, celery=celery, **options))


async def test_the_lifespan_is_entered_once(deployment: Deployment) -> None:
    entered: list[str] = []

    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncGenerator[dict[str, str]]:
        entered.append("in")
        yield {}
        entered.append("out")

    app = http_app(served_here(deployment, lifespan=lifespan))
    transport = httpx2.ASGITransport(app=app)
    async with app.router.lifespan_context(app), Wire("http://127.0.0.1/mcp", transport=transport) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        for method, params in SHORT.items():
            assert (await wire.post(method, {**params, "taskId": task_id}, accept=JSON_TYPE)).status_code == 200
        assert entered == ["in"]
    assert entered == ["in", "out"]
