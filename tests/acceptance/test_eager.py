"""``task_always_eager``: no worker, no broker that answers, and the same checks of create, get, result and list."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
from celery import Celery
from mcp.client import Client
from mcp.server.mcpserver import Context

from mcp_celery import Settings, TaskConfig, TaskMeta, TaskServer, get_task_context
from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.engine import Caller
from mcp_celery.server import eager_queue as eager
from mcp_celery.server.task_server import tasks_of
from tests.acceptance import test_tasks_2025 as core
from tests.acceptance import test_tasks_2026 as extension
from tests.support.deployment import Deployment, deployed
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire

pytestmark = pytest.mark.anyio

NOWHERE = "amqp://127.0.0.1:1//"
"""A broker that nobody may ask for anything."""


@pytest.fixture(scope="module", params=["redis", "memory"])
def deployment(request: pytest.FixtureRequest, store_url: str) -> Generator[Deployment]:
    """No worker; the results are in the Redis of the records, or in the server's memory."""
    settings = {"CELERY_CONFIG_MODULE": "tests.support.servers.eager", "MCP_CELERY_BROKER_URL": NOWHERE}
    if request.param == "memory":
        settings["MCP_CELERY_RESULT_BACKEND"] = "cache+memory://"
    with deployed(store_url, f"eager-{os.urandom(4).hex()}", settings=settings) as found:
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve()


session = core.session

# The tests of the revisions, on the server above.
test_a_task_is_created = extension.test_a_request_that_declares_the_extension_gets_a_task
test_a_task_is_created_in_2025 = core.test_the_granted_ttl_is_reported_in_every_answer
test_wrong_arguments_are_refused = extension.test_invalid_arguments_are_refused_before_a_task_exists
test_a_task_has_its_result = extension.test_a_completed_task_holds_what_the_foreground_call_returns
test_a_task_has_its_result_in_2025 = core.test_the_result_is_what_the_request_would_have_returned
test_prompts_and_resources_run_as_tasks = core.test_a_prompt_and_a_resource_that_require_a_task_get_one
test_a_tool_that_raises_has_an_error_result = extension.test_a_tool_that_raises_is_completed_with_an_error_result
test_a_tool_that_raises_has_an_error_result_in_2025 = core.test_a_tool_error_fails_the_task_and_stays_readable
test_a_json_rpc_error_fails_its_task = extension.test_a_json_rpc_error_fails_the_task
test_a_json_rpc_error_fails_its_task_in_2025 = core.test_a_json_rpc_error_fails_the_task_and_is_its_result
test_a_result_without_json_fails_its_task = extension.test_a_result_that_cannot_be_serialized_fails_with_a_reason
test_reading_a_task_does_not_change_it = extension.test_polling_changes_nothing
test_times_are_iso_8601_and_reading_changes_none = core.test_times_are_iso_8601_and_reading_changes_none
test_tasks_are_listed_once_each = core.test_250_tasks_are_listed_once_each_the_newest_first
test_every_change_is_pushed = extension.test_push_sends_the_current_state_then_every_change_then_nothing
test_every_change_is_pushed_in_2025 = core.test_the_session_gets_every_change_in_order_and_nothing_after_the_end
test_sync_tools_report_progress = extension.test_sync_tools_report_progress_too
test_a_tool_finds_its_context = extension.test_a_tool_finds_its_context_in_the_worker


@pytest.mark.shows("C14")
async def test_a_job_of_a_job_runs_too(url: str) -> None:
    async with Wire(url) as wire:
        outer = await extension.ended(wire, (await wire.create("delegating"))["taskId"])
        inner = await extension.ended(wire, outer["result"]["content"][0]["text"])
    assert inner["result"]["content"][0]["text"] == "done"


def threads() -> list[str]:
    """Threads in which jobs run."""
    return [one.name for one in threading.enumerate() if one.name.startswith(("mcp-celery-eager", "mcp-celery-loop"))]


@pytest.fixture
async def gate() -> AsyncGenerator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture(params=[True, False], ids=["propagates", "keeps"])
def server(request: pytest.FixtureRequest, store_url: str, gate: threading.Event) -> TaskServer:
    """A server of a host whose tests are eager, in this process."""
    host = Celery("eager", broker=NOWHERE, backend="cache+memory://", set_as_current=False)
    host.conf.update(task_always_eager=True, task_eager_propagates=request.param, task_store_eager_result=False)
    settings = Settings.load(redis_url=store_url, namespace=f"eager-{os.urandom(4).hex()}")
    server = TaskServer("eager", task=True, celery=host, settings=settings, log_level="WARNING")
    tries: list[int] = []

    @server.tool()
    def hold() -> dict[str, Any]:
        gate.wait(60)
        context = get_task_context()
        return {"process": os.getpid(), "job": None if context is None else context.job_id}

    @server.tool()
    async def sleep_long(ctx: Context) -> str:
        await ctx.report_progress(1, 2, "asleep")
        event = threading.Event()
        while not event.is_set():
            await ctx.read_resource("test://moment")
        return "woken"

    @server.resource("test://moment")
    def moment() -> str:
        return "now"

    @server.tool(task=TaskConfig(autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=600))
    async def flaky(failures: int) -> str:
        tries.append(1)
        if len(tries) <= failures:
            raise ConnectionError("not yet")
        return f"{len(tries)} tries"

    return server


@pytest.fixture
def said(server: TaskServer) -> list[str]:
    """What the jobs of the server's tool ``tidy`` do."""
    said: list[str] = []

    @server.tool()
    async def tidy(stubborn: bool) -> str:
        said.append("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if stubborn:
                await asyncio.sleep(60)
            raise
        finally:
            await asyncio.sleep(5 * eager.LOOK_EVERY_SECONDS)
            said.append("tidied")
        return "slept"

    @server.tool()
    async def delegate() -> str:
        return (await server.call_tool("tidy", {"stubborn": False}, task_meta=TaskMeta())).task_id

    return said


@pytest.mark.shows("C14")
async def test_the_job_runs_in_this_process_after_the_handle_is_answered(
    server: TaskServer, gate: threading.Event
) -> None:
    async with Client(server, extensions=[TasksClient()]) as client:
        handle = await soon(call_tool_task(client, "hold", {}))
        assert (await handle.status()).status == "working"
        record = await tasks_of(server).engine().find(Caller(), handle.task_id)
        assert record.claim is None, "no heart beats for it"
        gate.set()
        assert (await soon(handle)).structured_content == {"process": os.getpid(), "job": record.job_id}
    assert threads() == []


@pytest.mark.shows("C14")
@pytest.mark.parametrize(("failures", "ends"), [(2, "3 tries"), (3, "Error executing tool flaky")])
async def test_a_job_is_tried_again_at_once(server: TaskServer, failures: int, ends: str) -> None:
    async with Client(server, extensions=[TasksClient()]) as client:
        result = await soon(client.call_tool("flaky", {"failures": failures}))
    assert ends in str(result.content[0])
    assert result.is_error is (failures == 3)


@pytest.mark.shows("C14")
async def test_a_job_is_cancelled_at_its_next_await(server: TaskServer) -> None:
    async with Client(server, extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "sleep_long", {})
        await soon(handle.wait("working"))
        assert (await handle.cancel()).status == "cancelled"
        await eventually(lambda: not [name for name in threads() if "eager" in name], what="its thread ends")


@pytest.mark.shows("C14")
async def test_the_end_of_the_server_ends_its_jobs(server: TaskServer) -> None:
    tasks = tasks_of(server)
    async with tasks.running():
        submitted = await server.call_tool("sleep_long", {}, task_meta=TaskMeta())
    assert threads() == []
    async with tasks.running():
        record = await tasks.engine().find(Caller(), submitted.task_id)
    assert record.status == "failed"
    assert threads() == []


@pytest.mark.shows("C14")
async def test_a_job_may_tidy_up_when_its_server_ends(server: TaskServer, said: list[str]) -> None:
    tasks = tasks_of(server)
    async with tasks.running():
        await server.call_tool("tidy", {"stubborn": False}, task_meta=TaskMeta())
        await eventually(lambda: said == ["began"], what="it runs")
    assert said == ["began", "tidied"]


@pytest.mark.shows("C14")
async def test_the_end_of_the_server_ends_the_jobs_of_its_jobs(server: TaskServer, said: list[str]) -> None:
    tasks = tasks_of(server)
    async with tasks.running():
        outer = await server.call_tool("delegate", {}, task_meta=TaskMeta())
        inner = (await soon(tasks.engine().wait(Caller(), outer.task_id))).result or {}
        await eventually(lambda: said == ["began"], what="it runs")
    assert said == ["began", "tidied"]
    assert threads() == []
    async with tasks.running():
        record = await tasks.engine().find(Caller(), inner["content"][0]["text"])
    assert record.status == "failed"


@pytest.mark.shows("C14")
async def test_a_job_that_does_not_end_in_time_is_reported_as_failed(
    server: TaskServer, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "PATIENCE_SECONDS", 0.1)
    tasks = tasks_of(server)
    async with tasks.running():
        submitted = await server.call_tool("tidy", {"stubborn": True}, task_meta=TaskMeta())
        await eventually(lambda: said == ["began"], what="it runs")
    async with tasks.running():
        record = (await soon(tasks.engine().wait(Caller(), submitted.task_id))).record
    assert record.status == "failed"
