"""Servers that exist already, prompts and resources as jobs, and several servers on one broker."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from celery import Celery
from mcp.server import MCPServer

from mcp_celery import CeleryTasks, Settings, TaskConfig, TaskContextSnapshot
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine import Caller, Submission, TaskView
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import TaskType
from tests.acceptance.existing_server import fit, make_server
from tests.support.deployment import Deployment, deployed
from tests.support.session import over_http
from tests.support.wire import EXTENSION, Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.acceptance.existing_server:server"


@pytest.fixture(scope="module")
def existing(store_url: str, pool: str) -> Generator[Deployment]:
    """The existing server's worker."""
    with deployed(store_url, f"existing-{pool}-{os.urandom(2).hex()}", spec=SPEC) as found, found.worker(pool):
        yield found


@pytest.fixture
def tasks(existing: Deployment) -> CeleryTasks:
    """The same server in this process, for callers that are no MCP client."""
    address = celery_url(existing.store_url)
    settings = Settings.load(redis_url=existing.store_url, namespace=existing.namespace)
    app = Celery("existing", broker=address, backend=address, set_as_current=False)
    return fit(make_server(), settings=settings, celery=app)


async def run(tasks: CeleryTasks, task_type: TaskType, component: str, **params: Any) -> TaskView:
    """Run a component as a job, and wait for its end."""
    declared_as, config = tasks.config(task_type, component)
    submission = Submission(
        caller=Caller(),
        task_type=task_type,
        component=component,
        declared_as=declared_as,
        config=config,
        snapshot=TaskContextSnapshot(protocol_version="2025-11-25", params=params),
    )
    async with tasks.running():
        record = await tasks.engine().submit(submission)
        return await tasks.engine().wait(Caller(), record.task_id)


@pytest.mark.shows("M1", "M2", "M20")
async def test_an_existing_server_runs_its_tools_as_tasks(existing: Deployment) -> None:
    async with Wire(existing.serve()) as wire:
        assert EXTENSION in (await wire.ask("server/discover")).result["capabilities"]["extensions"]
        seen = await follow(wire, (await wire.create("add", left=2, right=3))["taskId"])
        assert seen[-1]["result"]["structuredContent"] == {"result": 5}
        assert seen[-1]["statusMessage"] == "added (1/1)"
        assert (await wire.call("plain")).result["content"][0]["text"] == "in the foreground"


@pytest.mark.shows("L1", "L3", "L21")
async def test_an_existing_server_serves_the_earlier_era_too(existing: Deployment) -> None:
    async with over_http(existing.serve()) as session:
        assert session.initialized["capabilities"]["tasks"]["requests"].keys() == {"tools", "prompts", "resources"}
        tools = {one["name"]: one.get("execution") for one in (await session.ask("tools/list")).result["tools"]}
        assert tools == {"add": {"taskSupport": "optional"}, "plain": None}
        task_id = (await session.create("add", left=2, right=3))["taskId"]
        assert (await session.result(task_id)).result["structuredContent"] == {"result": 5}
        read = (await session.ask("resources/read", {"uri": "notes://mon/text"}, task={})).result
        assert (await session.result(read["task"]["taskId"])).result["contents"][0]["text"] == "the text of mon"


async def test_a_prompt_runs_as_a_job(tasks: CeleryTasks) -> None:
    view = await run(tasks, "prompt", "summary", name="summary", arguments={"topic": "tides"})
    assert view.result is not None
    assert view.result["messages"][0]["content"] == {"type": "text", "text": "Summarize tides"}


@pytest.mark.parametrize(("uri", "text"), [("notes://today", "nothing today"), ("notes://mon/text", "the text of mon")])
async def test_a_resource_and_a_template_run_as_jobs(tasks: CeleryTasks, uri: str, text: str) -> None:
    view = await run(tasks, "resource", uri, uri=uri)
    assert view.result is not None
    assert view.result["contents"] == [{"uri": uri, "mimeType": "text/plain", "text": text}]
    assert view.record.component == uri


async def test_a_template_that_raises_fails_as_its_foreground_read_would(tasks: CeleryTasks) -> None:
    view = await run(tasks, "resource", "notes://never/text", uri="notes://never/text")
    assert view.record.status == "failed"
    assert view.record.error is not None
    assert "secret" not in str(view.record)


@pytest.mark.shows("C9")
async def test_two_servers_on_one_broker_do_not_see_each_others_jobs(
    existing: Deployment, idle_deployment: Deployment
) -> None:
    async with Wire(existing.serve()) as notes, Wire(idle_deployment.serve()) as other:
        waiting = (await other.create("slow_compute", seconds=0))["taskId"]
        assert (await follow(notes, (await notes.create("add", left=1, right=1))["taskId"]))[-1][
            "status"
        ] == "completed"
        assert (await other.get(waiting))["status"] == "working"
        assert (await notes.ask("tasks/get", {"taskId": waiting})).error["code"] == -32602
        with idle_deployment.worker("threads"):
            assert (await follow(other, waiting))[-1]["status"] == "completed"


async def test_a_component_that_does_not_exist_is_refused_by_name() -> None:
    tasks = CeleryTasks(tools={"add": True, "subtract": True})
    tasks.install(make_server())
    with pytest.raises(ConfigurationError, match="has no tool 'subtract'"):
        tasks.components()


async def test_tasks_are_installed_on_a_server_only_once() -> None:
    server = make_server()
    fit(server)
    with pytest.raises(ConfigurationError, match="runs tasks already"):
        fit(server)


async def test_tasks_without_a_server_raise_an_error_that_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"call CeleryTasks\.install"):
        CeleryTasks().engine()


async def test_a_component_that_no_worker_can_run_is_refused_when_the_server_starts() -> None:
    server: MCPServer[Any] = MCPServer("x")

    @server.tool(structured_output=False)
    def stream() -> Any:
        yield 1

    tasks = CeleryTasks(tools={"stream": TaskConfig()})
    tasks.install(server)
    with pytest.raises(ConfigurationError, match="'stream' cannot run as a task: it is a generator"):
        tasks.components()


async def test_a_component_that_cannot_ask_cannot_ask_before_its_task() -> None:
    server: MCPServer[Any] = MCPServer("x")

    @server.tool()
    def add(left: int, right: int) -> int:
        return left + right

    @server.prompt()
    def poem() -> str:
        return "roses"

    before = TaskConfig(ask="before")
    for tasks in (CeleryTasks(tools={"add": before}), CeleryTasks(prompts={"poem": before})):
        tasks.attach(server)
        with pytest.raises(ConfigurationError, match="cannot ask before it is a task"):
            tasks.components()


async def test_only_a_tool_runs_on_a_worker_in_the_foreground() -> None:
    server: MCPServer[Any] = MCPServer("x")

    @server.prompt()
    def poem() -> str:
        return "roses"

    tasks = CeleryTasks(prompts={"poem": TaskConfig(foreground="worker")})
    tasks.attach(server)
    with pytest.raises(ConfigurationError, match="'poem' cannot run on a worker in the foreground"):
        tasks.components()
