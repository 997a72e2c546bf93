"""A server that is no ``MCPServer`` (``tests/support/tiny_server.py``): its port is all that tasks need of it."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, call_tool_task
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import Pool
from tests.support.session import over_http
from tests.support.tiny_server import VERSION
from tests.support.waiting import soon
from tests.support.wire import EXTENSION, JSON, Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.tiny:server"


@pytest.fixture(scope="module")
def tiny(store_url: str, pool: Pool) -> Generator[Deployment]:
    with deployed(store_url, f"tiny-{pool}-{os.urandom(2).hex()}", spec=SPEC) as found, found.worker(pool):
        yield found


@pytest.fixture(scope="module")
def url(tiny: Deployment) -> str:
    return tiny.serve()


async def end_of(wire: Wire, tool: str, **arguments: Any) -> JSON:
    """The last state of a task that is made of a call."""
    return (await follow(wire, (await wire.create(tool, **arguments))["taskId"]))[-1]


def text_of(result: JSON) -> str:
    return result["content"][0]["text"]


async def test_a_tool_runs_on_a_worker_with_its_lifespan_and_progress(url: str) -> None:
    async with Wire(url) as wire:
        assert EXTENSION in (await wire.ask("server/discover")).result["capabilities"]["extensions"]
        here = (await wire.call("plain")).result["structuredContent"]["result"]
        task = await end_of(wire, "count", steps=2, ignored="by its arguments' model")
    assert task["statusMessage"] == "counting (2/2)"
    found = task["result"]["structuredContent"]
    assert found["process"] != here
    assert found == {
        "steps": 2,
        "process": found["process"],
        "lifespan": f"opened by {found['process']}",
        "task": task["taskId"],
        "server": "tiny",
    }


async def test_the_earlier_revision_is_served_too(url: str) -> None:
    async with over_http(url) as session:
        assert session.initialized["capabilities"]["tasks"]["requests"].keys() == {"tools"}
        tools = {one["name"]: one.get("execution") for one in (await session.ask("tools/list")).result["tools"]}
        assert tools["plain"] is None
        assert tools["kid.hello"] == {"taskSupport": "optional"}
        task_id = (await session.create("count", steps=1))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"]["steps"] == 1


async def test_a_tool_of_a_mounted_server_has_its_configuration_and_runs(url: str) -> None:
    async with Wire(url) as wire:
        assert text_of((await end_of(wire, "kid.hello"))["result"]) == "hello from the child"


async def test_each_version_has_a_configuration_of_its_own(url: str) -> None:
    async with Wire(url) as wire, Wire(url, meta={VERSION: "1"}) as first, Wire(url, meta={VERSION: "2"}) as second:
        assert text_of((await first.call("greet")).result) == "hello"
        for current in (wire, second):
            assert text_of((await end_of(current, "greet", name="Ada"))["result"]) == "hello Ada"


async def test_the_servers_own_check_refuses_arguments_before_there_is_a_task(url: str) -> None:
    async with over_http(url) as session:
        refused = await session.ask("tools/call", {"name": "count", "arguments": {"steps": "many"}}, task={})
        assert refused.error["message"] == "count does not take steps"
        refused = await session.ask("tools/call", {"name": "kid.nothing", "arguments": {}}, task={})
        assert refused.error["message"] == "Unknown tool: kid.nothing"


@pytest.mark.parametrize(("deliberately", "text"), [(True, "tiny: as expected"), (False, "tiny: it broke")])
async def test_the_servers_own_texts_describe_errors(url: str, deliberately: bool, text: str) -> None:
    async with Wire(url) as wire:
        result = (await end_of(wire, "fail", deliberately=deliberately))["result"]
    assert (text_of(result), result["isError"]) == (text, True)


async def test_an_exception_that_celery_retries_is_no_result(url: str, tmp_path: Path) -> None:
    async with Wire(url) as wire:
        task = await end_of(wire, "flaky", tried=str(tmp_path / "tried"))
    assert (task["status"], text_of(task["result"])) == ("completed", "the second time")


async def test_a_tool_asks_and_a_cancel_ends_it(url: str) -> None:
    async with Wire(url, capabilities={"elicitation": {"form": {}}}) as wire:
        task_id = (await wire.create("ask"))["taskId"]
        async with wire.listen([task_id]) as events:
            async for event in events:
                if event["method"] == "notifications/tasks" and event["params"]["status"] == "input_required":
                    break
        (key,) = (await wire.get(task_id))["inputRequests"]
        await wire.update(task_id, {key: {"action": "accept", "content": {"name": "Ada"}}})
        assert text_of((await follow(wire, task_id))[-1]["result"]) == "accept name='Ada'"
        task_id = (await wire.create("wait"))["taskId"]
        await wire.ask("tasks/cancel", {"taskId": task_id})
        assert (await follow(wire, task_id))[-1]["status"] == "cancelled"


async def test_an_argument_of_celerytasks_overrides_what_a_tool_declares(url: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.call("hidden")).result["structuredContent"] == (await wire.call("plain")).result[
            "structuredContent"
        ]


async def test_clients_that_know_no_tasks_follow_one_with_the_polling_tools(url: str) -> None:
    async with Client(url) as client:
        assert {"task_status", "task_result", "task_cancel"} <= {one.name for one in (await client.list_tools()).tools}
        here = (await client.call_tool("plain", {})).structured_content
        away = await soon(client.call_tool("count", {"steps": 1}))
        assert away.structured_content is not None
        assert here is not None
        assert away.structured_content["process"] != here["result"]
        refused = await client.call_tool("task_status", {"task_id": "nothing"})
        assert refused.is_error


async def test_the_server_is_served_over_stdio(tiny: Deployment) -> None:
    async with Client(tiny.stdio(), extensions=[TasksClient()]) as client:
        handle = await soon(call_tool_task(client, "count", {"steps": 1}))
        result = await soon(handle)
    assert result.structured_content is not None
    assert result.structured_content["steps"] == 1
