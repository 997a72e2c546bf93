"""A tool in a worker has what FastMCP gives it in the foreground, and its results and errors are FastMCP's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from fastmcp import Client as FastMCPClient
from fastmcp.exceptions import ToolError

from tests.fastmcp.conftest import Deploy
from tests.support.session import over_http
from tests.support.waiting import soon
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio

ASKABLE: JSON = {"elicitation": {"form": {}}, "sampling": {}}


@pytest.fixture(scope="module")
def url(deploy: Deploy) -> Generator[str]:
    with deploy("fastmcp_features") as found:
        yield found.serve()


@pytest.fixture
async def wire(url: str) -> AsyncGenerator[Wire]:
    async with Wire(url, capabilities=ASKABLE, headers={"x-trace": "t1"}) as client:
        yield client


async def end_of(wire: Wire, tool: str, **arguments: Any) -> JSON:
    """The last state of a task that is made of a call."""
    return (await follow(wire, (await wire.create(tool, **arguments))["taskId"]))[-1]


async def result_of(wire: Wire, tool: str, **arguments: Any) -> JSON:
    """The result of a task that is made of a call."""
    task = await end_of(wire, tool, **arguments)
    assert task["status"] == "completed", task
    return task["result"]


def text_of(result: JSON) -> str:
    return result["content"][0]["text"]


@pytest.mark.smoke
async def test_results_are_those_of_a_call(url: str, wire: Wire) -> None:
    calls: list[tuple[str, JSON]] = [
        ("double", {"number": 4}),
        ("result", {}),
        ("model", {"a": 1, "b": 2}),
        ("nothing", {}),
        ("generate", {"n": 3}),
        ("generate_here", {"n": 3}),
        ("fail", {"how": "deliberately"}),
        ("fail", {"how": "unexpectedly"}),
        ("fail", {"how": "limited"}),
        ("masked_fail", {"how": "deliberately"}),
        ("masked_fail", {"how": "unexpectedly"}),
    ]
    async with Wire(url, extension=False) as plain:
        for tool, arguments in calls:
            here = (await plain.call(tool, **arguments)).result
            assert await result_of(wire, tool, **arguments) == without_stamp(here), tool


def without_stamp(result: JSON) -> JSON:
    """A result without the server's name, which the SDK adds to what leaves the server."""
    meta = {name: one for name, one in result.get("_meta", {}).items() if name != "io.modelcontextprotocol/serverInfo"}
    kept = {name: one for name, one in result.items() if name != "_meta"}
    return {**kept, "_meta": meta} if meta else kept


async def test_wrong_arguments_are_refused_as_in_a_call_and_make_no_task(url: str, wire: Wire) -> None:
    wrong: list[tuple[str, JSON]] = [
        ("double", {"number": "many"}),
        ("double", {}),
        ("double", {"number": 1, "other": 2}),
        ("double", {"number": 1, "at_most": 11}),
        ("strict_double", {"number": "4"}),
    ]
    async with Wire(url, extension=False) as plain, over_http(url) as session:
        for tool, arguments in wrong:
            refused = (await wire.call(tool, **arguments)).result
            assert refused["isError"], (tool, arguments)
            assert refused["content"] == (await plain.call(tool, **arguments)).result["content"]
            answer = await session.ask("tools/call", {"name": tool, "arguments": arguments}, task={})
            assert f"Invalid arguments for tool {tool!r}" in answer.error["message"]
    assert (await result_of(wire, "double", number="4"))["structuredContent"] == {"result": 8}


async def test_an_error_of_the_protocol_fails_the_task(wire: Wire) -> None:
    task = await end_of(wire, "fail", how="by protocol")
    assert task["status"] == "failed"
    assert task["error"] == {"code": -32050, "message": "the gears are stuck", "data": {"gear": 7}}
    task = await end_of(wire, "slow")
    assert task["status"] == "failed"
    assert "timed out after 0.2s" in task["error"]["message"]


async def test_dependencies_are_injected_in_the_worker(wire: Wire) -> None:
    found = [(await result_of(wire, "injected"))["structuredContent"] for _ in range(2)]
    assert (
        found[0]
        == found[1]
        == {
            "depends": ["dependency of features", "open"],
            "shared": 1,
            "headers": ["t1", "t1"],
            "server": ["features", "features"],
            "token": False,
            "request": "none",
        }
    )
    assert (await result_of(wire, "masked_whose"))["structuredContent"] == {"result": ["masked", "masked"]}


async def test_progress_and_log_messages_are_the_tasks_message(wire: Wire) -> None:
    task = await end_of(wire, "files", names=["a", "b"])
    assert task["statusMessage"] == "reading b (2/2)"
    assert (await end_of(wire, "says"))["statusMessage"] == "on my way"


async def test_a_tool_reads_resources_and_calls_tools(wire: Wire) -> None:
    found = (await result_of(wire, "nested"))["structuredContent"]
    assert found == {
        "read": f"42 in {found['process']}",
        "called": {"result": 8},
        "process": found["process"],
    }
    refused = await result_of(wire, "calls_required")
    assert refused["isError"]
    assert "only runs as a background task" in text_of(refused)


async def answered(wire: Wire, tool: str, answers: list[JSON]) -> JSON:
    """Answer the questions of a task in their order.

    Returns:
        Its last state.
    """
    task_id = (await wire.create(tool))["taskId"]
    left = list(answers)
    async with wire.listen([task_id]) as events:
        async for event in events:
            if event["method"] != "notifications/tasks":
                continue
            task = event["params"]
            if task["status"] == "input_required":
                (key,) = task["inputRequests"]
                await wire.update(task_id, {key: left.pop(0)})
            elif task["status"] != "working":
                assert not left
                return task
    raise AssertionError("the stream ended before the task")


async def test_a_tool_asks_and_waits_for_the_answer(wire: Wire) -> None:
    task = await answered(wire, "ask", [{"action": "accept", "content": {"city": "Oslo"}}])
    assert text_of(task["result"]) == "accept city='Oslo'"
    model = {"role": "assistant", "content": {"type": "text", "text": "four"}, "model": "m"}
    assert text_of((await answered(wire, "sample", [model]))["result"]) == "four"


async def test_a_tool_asks_by_returning_and_remembers_its_rounds(wire: Wire) -> None:
    answers: list[JSON] = [
        {"action": "accept", "content": {"city": "Oslo"}},
        {"action": "accept", "content": {"value": True}},
    ]
    task = await answered(wire, "guard", answers)
    assert text_of(task["result"]) == "in Oslo, accept, from the first round"


async def test_a_client_of_the_earlier_revision_is_asked(url: str) -> None:
    async def answer(request: JSON) -> JSON:
        assert request["params"]["message"] == "Which city?"
        return {"action": "accept", "content": {"city": "Rome"}}

    async with over_http(url, capabilities=ASKABLE, answer_with=answer) as session:
        task_id = (await session.create("ask"))["taskId"]
        assert text_of((await soon(session.result(task_id))).result) == "accept city='Rome'"


async def test_fastmcps_client_sees_the_errors_of_tools(url: str) -> None:
    async with FastMCPClient(url) as client:
        with pytest.raises(ToolError, match="as expected"):
            await soon(client.call_tool("fail", {"how": "deliberately"}))
