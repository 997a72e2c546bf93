"""Middleware, mounted servers, versions, transforms: what FastMCP composes runs as tasks as well."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from fastmcp.tools import Tool

from tests.fastmcp.conftest import Deploy
from tests.support.session import over_http
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def url(deploy: Deploy) -> Generator[str]:
    with deploy("fastmcp_composed") as found:
        yield found.serve()


async def result_of(wire: Wire, tool: str, **arguments: Any) -> Any:
    """The result of a task that is made of a call."""
    task = (await follow(wire, (await wire.create(tool, **arguments))["taskId"]))[-1]
    assert task["status"] == "completed", task
    assert not task["result"].get("isError"), task
    return task["result"]["structuredContent"]


async def looked(wire: Wire) -> JSON:
    """What the server's middleware has seen, and which process it is."""
    return (await wire.call("look")).result["structuredContent"]


async def look_nowhere() -> None:
    """Of a tool that is asked whether its transformed form runs as a task."""


def calls_of(found: JSON, tool: str) -> int:
    return found["seen"].count(["call", tool])


@pytest.mark.smoke
async def test_middleware_sees_each_call_once_and_in_the_server(url: str) -> None:
    async with Wire(url) as wire, over_http(url) as session:
        server = (await looked(wire))["process"]
        found = await result_of(wire, "work")
        assert found["seen"] == []
        assert found["process"] != server
        after = await looked(wire)
        assert calls_of(after, "work") == 1
        assert after["seen"].count(["message", "tools/call"]) == 2  # the other one is the look
        task_id = (await session.create("work"))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"]["seen"] == []
        after = await looked(wire)
        assert calls_of(after, "work") == 1
        assert after["seen"].count(["message", "tools/call"]) == 2


async def test_what_middleware_changes_of_a_call_reaches_the_task(url: str) -> None:
    async with Wire(url) as wire, over_http(url) as session:
        assert await result_of(wire, "edited", value="by the client") == {"result": "by the middleware"}
        task_id = (await session.create("edited", value="by the client"))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"] == {"result": "by the middleware"}


async def test_tools_of_mounted_servers_run_as_tasks(url: str) -> None:
    async with Wire(url) as wire, over_http(url) as session:
        server = (await looked(wire))["process"]
        said = (await result_of(wire, "kid_hello", name="Ada"))["result"]
        assert said.startswith("hello Ada in ")
        assert not said.endswith(f" {server}")
        assert await result_of(wire, "kid_deep_hello_there") == {"result": "grandchild the grandchild's"}
        tools = {one["name"]: one.get("execution") for one in (await session.ask("tools/list")).result["tools"]}
        assert tools["kid_hello"] == {"taskSupport": "optional"}
        assert tools["kid_deep_hello_there"] == {"taskSupport": "required"}
        refused = (await wire.call("kid_hello", name=3)).result
        assert "name" in refused["content"][0]["text"]
        assert refused["isError"]


async def test_the_version_that_a_client_names_runs(url: str) -> None:
    first, second = ({"fastmcp": {"version": version}} for version in ("1.0", "2.0"))
    async with Wire(url) as wire, Wire(url, meta=first) as one, Wire(url, meta=second) as two:
        assert await result_of(wire, "versioned", word="2") == {"result": "2"}
        assert await result_of(two, "versioned") == {"result": "two"}
        assert await result_of(one, "versioned") == {"result": "one"}
        assert (await one.call("versioned", word="2")).result["isError"]


@pytest.mark.skipif(
    not Tool.from_tool(Tool.from_function(look_nowhere, task=True)).task_config.supports_tasks(),
    reason="this FastMCP runs transformed tools in the foreground only; 4.2 and later run them as tasks",
)
async def test_transformed_tools_run_and_check_their_arguments(url: str) -> None:
    async with Wire(url) as wire, over_http(url) as session:
        assert await result_of(wire, "renamed", x=1) == {"result": 102}
        assert await result_of(wire, "doubled", a=1, b=2) == {"result": 6}
        assert await result_of(wire, "kid_sum", a=1) == {"result": 2}
        wrong: list[tuple[str, JSON, str]] = [
            ("renamed", {"a": 1}, "a: unexpected argument"),
            ("renamed", {}, "x: missing required argument"),
            ("renamed", {"x": "many"}, "a: Input should be a valid integer"),
            ("renamed", {"x": 1, "c": 1}, "c: unexpected argument"),
            ("kid_sum", {"b": 1}, "a: missing required argument"),
        ]
        for tool, arguments, reason in wrong:
            refused = (await wire.call(tool, **arguments)).result
            assert refused["isError"], (tool, arguments)
            answer = await session.ask("tools/call", {"name": tool, "arguments": arguments}, task={})
            assert reason in answer.error["message"], (tool, arguments)


async def test_tools_that_middleware_injects_run_as_tasks(url: str) -> None:
    async with Wire(url) as wire:
        server = (await looked(wire))["process"]
        assert (await result_of(wire, "injected", value=0))["result"] != server
        assert (await wire.call("injected", value="one")).result["isError"]


async def test_a_tool_that_is_enabled_for_a_session_runs_for_it_alone(url: str) -> None:
    async with over_http(url) as session, over_http(url) as other:
        await session.call("unlock")
        task_id = (await session.create("locked", number=3))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"] == {"result": 3}
        refused = await session.ask("tools/call", {"name": "locked", "arguments": {"number": "x"}}, task={})
        assert "number" in refused.error["message"]
        refused = await other.ask("tools/call", {"name": "locked", "arguments": {"number": 3}}, task={})
        assert "locked" in refused.error["message"]


async def test_a_tool_that_a_catalog_hides_runs_as_a_task(url: str) -> None:
    async with Wire(url) as wire:
        listed = [one["name"] for one in (await wire.ask("tools/list")).result["tools"]]
        assert "catalog_found" not in listed
        assert await result_of(wire, "catalog_found", number=5) == {"result": 5}
        assert (await wire.call("catalog_found", number="x")).result["isError"]


async def test_tools_of_a_proxy_stay_in_the_foreground(url: str) -> None:
    async with Wire(url) as wire:
        server = (await looked(wire))["process"]
        assert (await wire.call("far_away")).result["structuredContent"] == {"result": server}
