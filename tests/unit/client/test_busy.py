"""A server that is busy says when to come again, and the client does: once for each request, and not without end."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from mcp_celery.client import TaskHandle, TasksClient, call_tool_task, resilient_http
from mcp_celery.client.busy import retry_after_seconds
from mcp_celery.client.retry import spread
from tests.support.scripted import Scripted, elicitation, text_of
from tests.support.waiting import eventually, soon
from tests.unit.client.conftest import Connect

pytestmark = pytest.mark.anyio

BUSY: Final = -32005
AFTER_MS: Final = 30


def busy(times: int = 2, after_ms: Any = AFTER_MS) -> list[Any]:
    return [MCPError(BUSY, "The server is busy", {"limit": "pending_requests", "retryAfterMs": after_ms})] * times


def refuse(scripted: Scripted, method: str, times: int = 2, after_ms: Any = AFTER_MS) -> None:
    """Refuse the next requests of a method."""
    scripted.faults[method] = busy(times, after_ms)


async def test_a_creation_that_is_refused_is_made_later_and_once(scripted: Scripted, connect: Connect) -> None:
    refuse(scripted, "tools/call")
    async with connect() as client:
        began = time.monotonic()
        handle = await soon(call_tool_task(client, "work"))
        assert time.monotonic() - began >= 2 * AFTER_MS / 1000
        scripted.complete(handle.task_id, "made")
        assert text_of(await soon(handle.result())) == "made"
    assert scripted.count("tools/call") == 3
    assert list(scripted.tasks) == ["task-1"]


async def test_every_other_request_that_is_refused_is_made_later(scripted: Scripted, connect: Connect) -> None:
    scripted.pushes = None
    async with connect() as client:
        handle = await soon(call_tool_task(client, "work", answer=False))
        refuse(scripted, "tasks/get")
        assert (await soon(handle.status())).status == "working"
        scripted.ask(handle.task_id, sure=elicitation())
        await soon(handle.status())
        refuse(scripted, "tasks/update")
        await soon(handle.answer({"sure": {"action": "decline"}}))
        assert scripted.answers[handle.task_id]["sure"] == [{"action": "decline"}]
        refuse(scripted, "tasks/cancel")
        assert (await soon(handle.cancel())).status == "cancelled"
        refuse(scripted, "tasks/get")
        assert (await soon(TaskHandle.resume(client, handle.task_id))).state.status == "cancelled"


async def test_a_stream_that_is_refused_is_opened_when_the_server_says(scripted: Scripted, connect: Connect) -> None:
    refuse(scripted, "subscriptions/listen")
    async with connect() as client:
        handle = await soon(call_tool_task(client, "work"))
        await scripted.listened(handle.task_id)
        scripted.complete(handle.task_id)
        await soon(handle.result())


async def test_the_sdks_own_calls_are_sent_again_over_resilient_http(scripted: Scripted) -> None:
    scripted.makes_tasks = False
    async with scripted.http() as http, Client(resilient_http(http.url), extensions=[TasksClient()]) as client:
        for method in ("tools/call", "tools/list"):
            refuse(scripted, method)
        result = await soon(client.call_tool("work", {"answer": "in the end"}))
        assert text_of(result) == "in the end"
        assert [tool.name for tool in (await soon(client.list_tools(cache_mode="refresh"))).tools] == ["work"]
        assert scripted.count("tools/call") == 3


async def test_a_server_that_stays_busy_is_reported_in_time(scripted: Scripted) -> None:
    refuse(scripted, "tools/call", times=1_000)
    async with Client(scripted.server, extensions=[TasksClient(busy_seconds=0.2)]) as client:
        with pytest.raises(MCPError, match="The server is busy") as refused:
            await soon(call_tool_task(client, "work"))
    assert refused.value.error.data == {"limit": "pending_requests", "retryAfterMs": AFTER_MS}
    assert 1 < scripted.count("tools/call") < 1_000


async def test_over_http_the_time_is_the_transports(scripted: Scripted) -> None:
    refuse(scripted, "tools/call", times=1_000)
    async with (
        scripted.http() as http,
        Client(resilient_http(http.url, busy_seconds=0.2), extensions=[TasksClient(busy_seconds=0)]) as client,
    ):
        with pytest.raises(MCPError, match="The server is busy"):
            await soon(client.call_tool("work", {}))
        assert 1 < scripted.count("tools/call") < 1_000


@pytest.mark.parametrize("after_ms", [100_000, 10**400], ids=["long", "endless"])
@pytest.mark.parametrize("busy_seconds", [0, 60])
async def test_a_server_that_is_busy_for_longer_than_the_client_waits_is_an_error_at_once(
    scripted: Scripted, busy_seconds: float, after_ms: int
) -> None:
    refuse(scripted, "tools/call", times=1, after_ms=after_ms)
    async with (
        scripted.http() as http,
        Client(
            resilient_http(http.url, busy_seconds=busy_seconds), extensions=[TasksClient(busy_seconds=busy_seconds)]
        ) as client,
    ):
        with pytest.raises(MCPError, match="The server is busy"):
            await soon(call_tool_task(client, "work"))
        assert scripted.count("tools/call") == 1
        assert (await soon(call_tool_task(client, "work"))).task_id == "task-1", "the session goes on"


async def test_a_call_that_is_given_up_while_it_waits_is_not_sent_again(scripted: Scripted) -> None:
    refuse(scripted, "tools/call", after_ms=200)
    async with scripted.http() as http, Client(resilient_http(http.url), extensions=[TasksClient()]) as client:
        with anyio.move_on_after(None) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "work")
                await eventually(lambda: scripted.count("tools/call") == 1)
                await asyncio.sleep(0.1)  # the refusal arrives
                scope.cancel()
        await asyncio.sleep(0.5)
    assert scripted.count("tools/call") == 1


@pytest.mark.parametrize("code", [BUSY, -32603])
@pytest.mark.parametrize("data", [None, {}, {"retryAfterMs": "soon"}, {"retryAfterMs": True}, {"retryAfterMs": -1}])
async def test_other_refusals_are_not_retried(scripted: Scripted, connect: Connect, code: int, data: Any) -> None:
    scripted.faults["tools/call"] = [MCPError(code, "no", data)]
    async with connect() as client:
        with pytest.raises(MCPError, match="no"):
            await soon(call_tool_task(client, "work"))
    assert scripted.count("tools/call") == 1


def test_only_a_refusal_before_any_work_says_when_to_come_again() -> None:
    (refusal,) = busy(1)
    assert retry_after_seconds(refusal.error) == AFTER_MS / 1000
    assert retry_after_seconds(MCPError(-32603, "failed", {"retryAfterMs": AFTER_MS}).error) is None


def test_clients_that_were_refused_together_retry_at_different_times() -> None:
    pauses = {spread(10.0) for _ in range(100)}
    assert all(10.0 <= pause <= 20.0 for pause in pauses)
    assert max(pauses) - min(pauses) > 5.0
