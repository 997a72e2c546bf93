"""How a job ends: in what the foreground call of the same tool would have answered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from mcp_celery import TaskConfig
from mcp_celery.engine import JobOutcome, JSONObject, RpcError
from mcp_celery.errors import INTERNAL_ERROR
from tests.integration.conftest import TOOLS, Starter, settings_for
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.servers import tools
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

CALLS: list[tuple[str, JSONObject]] = [
    ("add", {"a": 2, "b": 3}),
    ("add", {"a": "2", "b": 3.0}),
    ("add_sync", {"a": -1, "b": 10**12}),
    ("weather", {"city": "Ålesund"}),
    ("picture", {}),
    ("read_greeting", {}),
    ("echo", {"text": 'quotes " and \\ and \n and \u2028 and 🚀 and \x00'}),
    ("echo", {"text": ""}),
    ("answer_raw", {"text": "twice", "count": 2}),
    ("answer_raw", {"text": "none", "count": 0}),
    ("answer_raw", {"text": "an error of the tool's own", "flag": True}),
    ("decline", {"reason": "not on Sundays"}),
    ("crash", {}),
]


ENVELOPE = "io.modelcontextprotocol/serverInfo"
"""What the server stamps on each answer; a task's result has it on the answer around it."""


def on_the_wire(result: CallToolResult) -> JSONObject:
    dumped = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    dumped["_meta"] = {name: value for name, value in dumped.get("_meta", {}).items() if name != ENVELOPE}
    return dumped


@pytest.mark.parametrize(
    ("tool", "arguments"), CALLS, ids=[f"{tool}-{number}" for number, (tool, _) in enumerate(CALLS)]
)
async def test_a_task_has_the_result_of_the_foreground_call(live: LiveServer, tool: str, arguments: JSONObject) -> None:
    async with live.foreground() as client:
        answered = await client.call_tool(tool, arguments)
    view = await live.run(tool, arguments)
    assert view.record.status == "completed"
    assert view.record.is_error is bool(answered.is_error)
    assert view.result is not None
    assert on_the_wire(CallToolResult.model_validate(view.result, by_name=False)) == on_the_wire(answered)


async def test_a_text_that_utf_8_cannot_hold_is_a_result_that_can_be_sent(live: LiveServer) -> None:
    view = await live.run("echo", {"text": "caf\udce9"})
    assert view.result is not None
    assert view.result["content"][0]["text"] == "caf?"
    assert CallToolResult.model_validate(view.result, by_name=False).model_dump_json()


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_tool_that_crashes_completes_with_is_error_and_without_its_text(live: LiveServer) -> None:
    view = await live.run("crash", {"secret": "hunter2"})
    assert view.record.status == "completed"
    assert view.record.is_error
    async with live.foreground() as client:
        answered = await client.call_tool("crash", {"secret": "hunter2"})
    assert view.result is not None
    assert view.result["content"] == on_the_wire(answered)["content"]


async def test_a_json_rpc_error_fails_the_task_with_code_message_and_data(live: LiveServer) -> None:
    arguments = {"message": "The shop is closed", "detail": "until 9 o'clock"}
    async with live.foreground() as client:
        with pytest.raises(MCPError) as answered:
            await client.call_tool("refuse", arguments)
    record = (await live.run("refuse", arguments)).record
    assert record.status == "failed"
    assert record.error == RpcError(-32050, "The shop is closed", {"detail": "until 9 o'clock"})
    assert record.status_message == "The shop is closed"
    error = answered.value.error
    assert record.error == RpcError(error.code, error.message, error.data)


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_result_that_cannot_be_serialized_fails_the_task_and_says_so(live: LiveServer) -> None:
    record = (await live.run("unserializable")).record
    assert record.status == "failed"
    assert record.error == RpcError(INTERNAL_ERROR, "The job's result could not be serialized")


async def test_arguments_that_the_tool_refuses_in_the_worker_end_as_in_the_foreground(live: LiveServer) -> None:
    """The server refuses them before there is a task; a worker of another version may still meet some."""
    async with live.foreground() as client:
        answered = await client.call_tool("add", {"a": "two"})
    view = await live.run("add", {"a": "two"})
    assert view.record.is_error
    assert view.result is not None
    assert view.result["content"] == on_the_wire(answered)["content"]


@pytest.mark.each_pool
async def test_a_worker_runs_the_next_job_after_a_failed_one(live: LiveServer) -> None:
    for tool in ("crash", "unserializable"):
        await live.run(tool)
        assert await live.text_of("add", {"a": 1, "b": 1}) == "2"


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_stored_result_ends_a_record_whose_worker_was_killed(live: LiveServer, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    outcome = JobOutcome({"content": [{"type": "text", "text": "it was done"}]}, "last words")
    live.app.backend.store_result(record.job_id, outcome, "SUCCESS")
    view = await live.engine.get(ANYONE, record.task_id)
    assert view.record.status == "completed"
    assert view.record.status_message == "last words"
    assert view.result == outcome.result


@pytest.mark.parametrize("pool", ["prefork"], indirect=True)
async def test_results_may_be_stored_in_another_backend(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    settings = settings_for(store, "files", result_backend=f"file://{results}")
    own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        assert await live.structured("weather", {"city": "Oslo"}) == {"city": "Oslo", "celsius": -3.5, "warnings": []}
        refused = (await live.run("refuse", {"message": "closed", "detail": "today"})).record
        assert refused.error == RpcError(-32050, "closed", {"detail": "today"})
        assert len(list(results.iterdir())) == 2

        # A job that no worker reaches, as if its worker had died between storing the result and telling of it.
        lost = await live.submit("add", {"a": 1, "b": 1}, config=TaskConfig(queue="nobody-consumes-this"))
        live.app.backend.store_result(lost.job_id, JobOutcome({"content": []}), "SUCCESS")

        async def settled() -> bool:
            return (await live.engine.get(ANYONE, lost.task_id)).record.status == "completed"

        await eventually(settled)


async def test_a_result_that_the_backend_refuses_fails_the_task_and_says_so(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    settings = settings_for(store, f"gone-{pool}", result_backend=f"file://{results}")
    own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
        shutil.rmtree(results)
        view = await live.run("add", {"a": 1, "b": 1})
    assert view.record.status == "failed"
    assert view.record.status_message == "The job completed, but its result could not be stored in the result backend"
