"""Requests with an idempotency key, from real clients over connections that break."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from mcp.client import Client
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from mcp_celery import Settings, TaskConfig, TaskServer
from mcp_celery.client import TaskFailedError, TasksClient, call_tool_task, resilient_http
from tests.support.deployment import answering_url, deployed, process
from tests.support.locks import reserved_port
from tests.support.proxy import Proxy
from tests.support.scripted import HttpServer, text_of
from tests.support.session import over_http
from tests.support.waiting import eventually, soon
from tests.support.wire import Answer, Wire

pytestmark = pytest.mark.anyio

KEY: Final = "mcp-celery/idempotency-key"
ONLY_AS_TASK: Final = "mcp-celery/only-as-task"
CREATED: Final = {"2026-07-28": b'"resultType":"task"', "2025-11-25": b'"task":{'}
"""What the answer to a creation holds, and no other."""


@dataclass
class Site:
    """A server, and what its tools have done."""

    port: int
    sold: list[int] = field(default_factory=list[int])
    looked: list[int] = field(default_factory=list[int])
    refused: list[str] = field(default_factory=list[str])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"


class Name(BaseModel):
    name: str


@pytest.fixture
async def site() -> AsyncGenerator[Site]:
    with reserved_port() as port:
        site = Site(port)
        server = TaskServer("once", settings=Settings.load(redis_url="memory://"))

        @server.tool(task=True)
        async def sell(item: int) -> str:
            site.sold.append(item)
            return f"sold {item}"

        @server.tool()
        async def look(item: int) -> str:
            site.looked.append(item)
            return "here"

        @server.tool(task=True)
        async def buy() -> str:
            return refused_elsewhere("buy")

        @server.tool(task=TaskConfig(foreground="worker"))
        async def order() -> str:
            return refused_elsewhere("order")

        @server.tool(task=TaskConfig(foreground="worker"))
        async def greet(ctx: Context) -> str:
            answer = await ctx.elicit("Your name?", Name)
            return f"Hello, {answer.data.name}!" if answer.action == "accept" else "Hello!"

        def refused_elsewhere(tool: str) -> str:
            site.refused.append(tool)
            raise MCPError(-32005, "Another server is busy", {"limit": "elsewhere", "retryAfterMs": 10})

        http = HttpServer(server, port)
        await http.start()
        try:
            yield site
        finally:
            await http.stop()


@asynccontextmanager
async def client_of(port: int, revision: str) -> AsyncGenerator[Client]:
    mode: Any = "auto" if revision == "2026-07-28" else "legacy"
    url = f"http://127.0.0.1:{port}/mcp"
    async with Client(resilient_http(url), extensions=[TasksClient()], mode=mode) as client:
        assert client.protocol_version == revision
        yield client


@pytest.mark.parametrize(
    ("revision", "number"), [pytest.param("2026-07-28", 100, marks=pytest.mark.slow), ("2025-11-25", 20)]
)
async def test_creations_whose_answer_is_lost_make_one_task_each(site: Site, revision: str, number: int) -> None:
    with Proxy.before(site.url) as proxy:
        async with client_of(proxy.port, revision) as client:
            ids: set[str] = set()
            for item in range(number):
                proxy.lose_next_answer(holding=CREATED[revision])
                handle = await soon(call_tool_task(client, "sell", {"item": item}))
                assert not proxy.is_losing
                assert text_of(await soon(handle.result())) == f"sold {item}"
                ids.add(handle.task_id)
    assert len(ids) == number
    assert site.sold == [*range(number)]


async def test_a_call_in_the_foreground_whose_answer_is_lost_runs_once(site: Site) -> None:
    with Proxy.before(site.url) as proxy:
        async with client_of(proxy.port, "2026-07-28") as client:
            proxy.lose_next_answer(holding=b"here")
            with pytest.raises(MCPError, match="cannot be reached"):
                await soon(client.call_tool("look", {"item": 1}))
            assert text_of(await soon(client.call_tool("look", {"item": 2}))) == "here"
    assert site.looked == [1, 2]


async def called(url: str, name: str, item: int, meta: dict[str, Any], **headers: str) -> Answer:
    return await asked(url, name, {"item": item}, meta, **headers)


async def asked(url: str, name: str, arguments: dict[str, Any], meta: dict[str, Any], **headers: str) -> Answer:
    async with Wire(url, meta=meta) as wire:
        return await wire.ask("tools/call", {"name": name, "arguments": arguments}, **headers)


async def test_the_key_is_in_meta_or_in_the_header(site: Site) -> None:
    key = "k" * 22
    first = await called(site.url, "sell", 1, {}, **{"Idempotency-Key": f'"{key}"'})
    again = await called(site.url, "sell", 1, {KEY: key})
    assert again.result["taskId"] == first.result["taskId"]
    other = await called(site.url, "sell", 2, {KEY: key})
    assert other.error["code"] == -32602
    assert KEY in other.error["message"]
    assert (await called(site.url, "sell", 1, {KEY: "order 7"})).error["code"] == -32602
    assert site.sold == [1]


async def test_a_call_in_the_foreground_ignores_the_key(site: Site) -> None:
    for _ in range(2):
        found = await called(site.url, "look", 1, {KEY: "order 7"})
        assert found.result["content"][0]["text"] == "here"
    refused = await called(site.url, "look", 1, {KEY: "order 7", ONLY_AS_TASK: True})
    assert refused.error["code"] == -32601
    assert site.looked == [1, 1]


async def test_a_call_that_continues_in_the_foreground_is_refused_too(site: Site) -> None:
    meta: dict[str, Any] = {}
    async with Wire(site.url, extension=False, capabilities={"elicitation": {}}, meta=meta) as wire:
        asking = (await soon(wire.ask("tools/call", {"name": "greet", "arguments": {}}))).result
        (key,) = asking["inputRequests"]
        answers = {key: {"action": "accept", "content": {"name": "Ada"}}}
        again = {"name": "greet", "arguments": {}, "inputResponses": answers, "requestState": asking["requestState"]}
        meta[ONLY_AS_TASK] = True
        assert (await soon(wire.ask("tools/call", again))).error["code"] == -32601
        meta.clear()
        assert (await soon(wire.ask("tools/call", again))).result["structuredContent"] == {"result": "Hello, Ada!"}


async def test_a_creation_that_a_server_cuts_off_at_its_end_is_sent_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, cut_off = httpx2.AsyncClient.send, list[httpx2.Request]()

    async def ends_first(self: httpx2.AsyncClient, request: httpx2.Request, **options: Any) -> httpx2.Response:
        response = await send(self, request, **options)
        if cut_off or request.headers.get("mcp-method") != "tools/call":
            return response
        cut_off.append(request)
        await response.aclose()
        return httpx2.Response(503, headers={"retry-after": "1"}, request=request)

    monkeypatch.setattr(httpx2.AsyncClient, "send", ends_first)
    async with client_of(site.port, "2026-07-28") as client:
        handle = await soon(call_tool_task(client, "sell", {"item": 1}))
        assert text_of(await soon(handle.result())) == "sold 1"
    assert cut_off
    assert site.sold == [1]


@pytest.mark.parametrize("tool", ["buy", "order"])
@pytest.mark.parametrize("revision", ["2026-07-28", "2025-11-25"])
async def test_a_tool_that_another_server_refuses_runs_once(site: Site, revision: str, tool: str) -> None:
    mode: Any = "auto" if revision == "2026-07-28" else "legacy"
    async with Client(resilient_http(site.url), mode=mode) as client:
        with pytest.raises(MCPError, match="Another server is busy") as failed:
            await soon(client.call_tool(tool))
    assert (failed.value.code, failed.value.data) == (-32005, {"limit": "elsewhere"})
    assert site.refused == [tool]


@pytest.mark.parametrize("revision", ["2026-07-28", "2025-11-25"])
async def test_a_task_that_another_server_refuses_fails(site: Site, revision: str) -> None:
    async with client_of(site.port, revision) as client:
        with pytest.raises(TaskFailedError, match="Another server is busy"):
            await soon((await soon(call_tool_task(client, "buy"))).result(20))
    assert site.refused == ["buy"]


async def test_in_2025_a_guessable_key_counts_in_its_session(site: Site) -> None:
    sell = {"name": "sell", "arguments": {"item": 1}, "task": {}, "_meta": {KEY: "order 7"}}
    found: list[str] = []
    for _ in range(2):
        async with over_http(site.url) as session:
            made = [(await session.ask("tools/call", sell)).result["task"]["taskId"] for _ in range(2)]
            assert len(set(made)) == 1
            found += made
    assert len(set(found)) == 2


@pytest.mark.slow
async def test_a_server_that_is_killed_while_it_creates_tasks_leaves_one_for_each_key(
    store_url: str, tmp_path: Path
) -> None:
    """Its clients send their requests again to another server, with the same keys."""
    notes, keys = tmp_path / "notes", {item: secrets.token_urlsafe(24) for item in range(20)}

    async def sell(url: str, item: int) -> str:
        answer = await asked(url, "sell", {"path": str(notes), "item": item}, {KEY: keys[item]})
        return answer.result["taskId"]

    with deployed(store_url, f"selling-{os.urandom(4).hex()}", spec="tests.support.servers.selling:server") as site:
        argv, log = [sys.executable, "-m", "mcp_celery", "serve", site.spec, "--port", "0"], tmp_path / "killed.log"
        with process(argv, site.env(), log) as killed:
            url = answering_url(log, killed)
            selling = [asyncio.create_task(sell(url, item)) for item in keys]
            await asyncio.wait(selling, return_when=asyncio.FIRST_COMPLETED)
            killed.kill()
            answers = await soon(asyncio.gather(*selling, return_exceptions=True))
        url = site.serve()
        made = await soon(asyncio.gather(*(sell(url, item) for item in keys)))
        assert len(set(made)) == len(keys)
        answered = [(before, now) for before, now in zip(answers, made, strict=True) if isinstance(before, str)]
        assert answered
        assert all(before == now for before, now in answered)
        with site.worker("threads"):
            async with Wire(url) as wire:
                for task_id in made:
                    await eventually(lambda task_id=task_id: is_completed(wire, task_id), what="a task has ended")
        records = f"mcp_celery:{site.namespace}:task:anon:"
        kept = {key.removeprefix(records) for key in site.our_keys() if key.startswith(records)}
        assert {task_id for task_id in kept if ":" not in task_id} == set(made)
    assert sorted(map(int, notes.read_text().split())) == [*keys]


async def is_completed(wire: Wire, task_id: str) -> bool:
    return (await wire.get(task_id))["status"] == "completed"
