"""The SDK's own client over every transport: Streamable HTTP, stdio, in memory; and clients of the other era."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from celery import Celery
from mcp.client import Client
from mcp.client.extension import ClientExtension, advertise
from mcp.shared.exceptions import MCPError
from pydantic import ConfigDict

from mcp_celery import Settings, TaskServer
from mcp_celery.client import TaskCancelledError, TaskFailedError, TaskHandle, TasksClient, call_tool_task
from mcp_celery.common.redis_translation import celery_url
from tests.acceptance.fixture_server import add_tools, lifespan
from tests.support.deployment import Deployment
from tests.support.scripted import text_of
from tests.support.wire import EXTENSION

pytestmark = pytest.mark.anyio

Connect = Callable[..., Any]


class TaskRequest(types.Request[dict[str, Any], str]):
    """Any ``tasks/*`` request."""

    params: dict[str, Any]


class Anything(types.Result):
    """Any result."""

    model_config = ConfigDict(extra="allow")


@pytest.fixture(params=["http", "stdio", "memory"])
def connect(request: pytest.FixtureRequest, deployment: Deployment, url: str) -> Connect:
    """Opens a client of a server of the shared deployment."""

    @asynccontextmanager
    async def open_client(*extensions: ClientExtension, **options: Any) -> AsyncGenerator[Client]:
        async with Client(target(), extensions=list(extensions), **options) as client:
            yield client

    def target() -> Any:
        if request.param == "http":
            return url
        if request.param == "memory":
            return in_memory(deployment)
        return deployment.stdio()

    return open_client


def in_memory(deployment: Deployment) -> TaskServer:
    """A server of the deployment in this process."""
    settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
    address = celery_url(deployment.store_url)
    app = Celery("in-memory", broker=address, backend=address, set_as_current=False)
    return add_tools(TaskServer("acceptance", lifespan=lifespan, log_level="WARNING", settings=settings, celery=app))


async def ask(client: Client, method: str, **params: Any) -> dict[str, Any]:
    """A request that the SDK's client has no method for."""
    answer = await client.session.send_request(TaskRequest(method=method, params=params), Anything)
    return answer.model_dump(by_alias=True)


@pytest.mark.shows("M1", "M2", "M20")
async def test_a_tool_call_becomes_a_task_and_is_followed_by_push(connect: Connect) -> None:
    async with connect(TasksClient()) as client:
        assert client.session.server_capabilities.extensions["mcp-celery/tasks"] == {"idempotentCreation": True}
        handle = await call_tool_task(client, "counting", {"steps": 3})
        states = [state async for state in handle.changes()]
        polled = await ask(client, "tasks/get", taskId=handle.task_id)
        called = await client.call_tool("counting", {"steps": 2})
    assert text_of(await handle) == "counted to 3"
    assert states[-1].status == "completed"
    told = list(dict.fromkeys(state.status_message for state in states if state.status_message))
    steps = [f"step {number} ({number}/3)" for number in (1, 2, 3)]
    assert told  # a state that is overtaken by the next is not told on a busy machine
    assert [step for step in steps if step in told] == told
    assert polled["result"]["content"] == [{"type": "text", "text": "counted to 3"}]
    assert called.content[0].text == "counted to 2"


@pytest.mark.shows("M2", "M3")
async def test_a_client_without_the_extension_gets_the_plain_result(connect: Connect) -> None:
    async with connect() as client:
        result = await client.call_tool("slow_compute", {"seconds": 0, "label": "plain"})
    assert result.content[0].text == "done plain"


@pytest.mark.shows("M4", "M5")
async def test_a_client_without_the_extension_gets_an_error_that_names_it(connect: Connect) -> None:
    async with connect() as client:
        with pytest.raises(MCPError) as refused:
            await client.call_tool("failing_job", {})
        with pytest.raises(MCPError) as unseen:
            await ask(client, "tasks/get", taskId="nobody-made-this")
    assert refused.value.code == unseen.value.code == -32021
    assert refused.value.data["requiredCapabilities"]["extensions"] == {EXTENSION: {}}


@pytest.mark.shows("M10", "M16")
async def test_a_client_cancels_its_task(connect: Connect, tmp_path: Path) -> None:
    async with connect(TasksClient()) as client:
        handle = await call_tool_task(client, "wait_for_file", {"path": str(tmp_path / "never")})
        assert (await handle.cancel()).status == "cancelled"
        with pytest.raises(TaskCancelledError):
            await handle
        again = await TaskHandle.resume(client, handle.task_id)
        assert (await again.cancel()).status == "cancelled"
    (tmp_path / "never").touch()  # a thread cannot be ended: let the dropped job go


@pytest.mark.shows("M11")
async def test_a_json_rpc_error_reaches_the_caller_as_it_is(connect: Connect) -> None:
    async with connect(TasksClient()) as client:
        with pytest.raises(TaskFailedError) as failed:
            await client.call_tool("protocol_error_job", {})
        result = await client.call_tool("failing_job", {})
    assert (failed.value.code, failed.value.message, failed.value.data) == (-32050, "the gears are stuck", {"gear": 7})
    assert result.is_error
    assert "failing_job" in text_of(result)


@pytest.mark.shows("M8")
async def test_a_task_is_found_again_by_another_client(connect: Connect, tmp_path: Path) -> None:
    async with connect(TasksClient()) as client:
        task_id = (await call_tool_task(client, "wait_for_file", {"path": str(tmp_path / "go")})).task_id
    async with connect(TasksClient()) as client:
        handle = await TaskHandle.resume(client, task_id)
        (tmp_path / "go").touch()
        assert text_of(await handle.result(60)) == "released"


@pytest.mark.shows("M6", "M26")
async def test_a_client_of_the_earlier_era_is_not_given_tasks_of_this_one(connect: Connect) -> None:
    async with connect(advertise(EXTENSION), mode="legacy") as client:
        assert client.protocol_version == "2025-11-25"
        result = await client.call_tool("slow_compute", {"seconds": 0})
        with pytest.raises(MCPError) as refused:
            await client.call_tool("failing_job", {})
        with pytest.raises(MCPError) as unknown:
            await ask(client, "tasks/get", taskId="nobody-made-this")
    assert result.content[0].text == "done"
    assert refused.value.code == -32601
    assert unknown.value.code == -32602


@pytest.mark.shows("M22")
async def test_cancelling_the_request_that_created_a_task_leaves_the_task(connect: Connect, tmp_path: Path) -> None:
    async with connect(TasksClient()) as client:
        handle = await call_tool_task(client, "wait_for_file", {"path": str(tmp_path / "go")})
        for request_id in range(1, 10):  # whichever it was
            gone = types.CancelledNotificationParams(request_id=request_id, reason="changed my mind")
            await client.session.send_notification(types.CancelledNotification(params=gone))
    (tmp_path / "go").touch()
    async with connect(TasksClient()) as client:
        handle = await TaskHandle.resume(client, handle.task_id)
        assert (await handle.wait(timeout=60)).status == "completed"
