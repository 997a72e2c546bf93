"""What a FastMCP server says when it is started as it cannot work, or as it worked with Docket."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from celery import Celery
from fastmcp import FastMCP
from fastmcp.utilities.tasks import TaskConfig as FastMCPTaskConfig
from mcp.client import Client
from pydantic import BaseModel

from mcp_celery import Settings
from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.errors import ConfigurationError
from mcp_celery.fastmcp import TaskConfig, TasksExtension
from mcp_celery.fastmcp.private import lowlevel_of
from tests.support.deployment import Deployment, deployed
from tests.support.receiver import SECRET, receiving
from tests.support.servers.fastmcp_tools import build
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

NO_WORKER = "no worker consumes the queue"


class Nothing(BaseModel):
    """The arguments of a job that takes none."""


@pytest.fixture
def deployment(store_url: str) -> Generator[Deployment]:
    """A store, and no worker yet."""
    spec = "tests.support.servers.fastmcp_tools:mcp"
    with deployed(store_url, f"fastmcp-{os.urandom(2).hex()}", spec=spec) as found:
        yield found


async def test_a_server_without_workers_names_the_command_to_start_one(deployment: Deployment) -> None:
    async with Wire(deployment.serve()) as wire:
        task_id = (await wire.create("where"))["taskId"]
        await wire.create("where")

        def warned() -> bool:
            return NO_WORKER in deployment.logs()["server-1.log"]

        await eventually(warned, what="the server warns")
        lines = [line for line in deployment.logs()["server-1.log"].splitlines() if NO_WORKER in line]
        assert len(lines) == 1
        assert f"'mcp.{deployment.namespace}'" in lines[0]
        command = f"MCP_CELERY_SERVER={deployment.spec} celery -A mcp_celery worker"
        assert lines[0].endswith(command)
        with deployment.worker("threads"):
            assert (await follow(wire, task_id))[-1]["status"] == "completed"


@pytest.mark.smoke
@pytest.mark.parametrize("in_memory", [False, True], ids=["in_process", "memory"])
async def test_a_server_runs_its_jobs_itself(in_memory: bool) -> None:
    settings = Settings.load(redis_url="memory://") if in_memory else None
    server = build(settings=settings, in_process=not in_memory)
    async with Client(lowlevel_of(server), extensions=[TasksClient()]) as client:
        where = await soon(await call_tool_task(client, "where", {}))
        assert where.structured_content is not None
        assert where.structured_content["process"] == os.getpid()
        assert where.structured_content["lifespan"] == {"opened by": os.getpid()}
        plain = await soon(await call_tool_task(client, "plain_function", {"seconds": 0.01}))
        assert plain.structured_content == {"process": os.getpid()}
        handle = await call_tool_task(client, "wait", {})
        assert (await handle.cancel()).status == "cancelled"


async def test_a_server_that_runs_its_jobs_delivers_their_webhooks() -> None:
    with receiving() as receiver:
        settings = Settings.load(redis_url="memory://", webhook_url=receiver.url, webhook_secrets=SECRET)
        async with Client(lowlevel_of(build(settings=settings)), extensions=[TasksClient()]) as client:
            await soon(await call_tool_task(client, "plain_function", {"seconds": 0.01}))
            await eventually(lambda: bool(receiver.received), what="the webhook arrives")
    told = receiver.received[0].verified_with(SECRET)
    assert (told["type"], told["data"]["component"]) == ("task.completed", "plain_function")


async def test_a_server_runs_no_more_jobs_at_a_time_than_its_setting() -> None:
    server = FastMCP("limited")
    server.add_extension(TasksExtension(settings=Settings.load(redis_url="memory://")))
    running, most, created = 0, 0, threading.Event()

    @server.tool(task=TaskConfig(max_running=1))
    async def alone() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.to_thread(created.wait, 60)
        running -= 1
        return "done"

    async with Client(lowlevel_of(server), extensions=[TasksClient()]) as client:
        handles = [await call_tool_task(client, "alone", {}) for _ in range(4)]
        created.set()
        await soon(asyncio.gather(*handles))
    assert most == 1


@pytest.mark.smoke
def test_a_server_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has no name.*MCP_CELERY_NAMESPACE.*in_process=True"):
        FastMCP().add_extension(TasksExtension())
    FastMCP().add_extension(TasksExtension(in_process=True))
    FastMCP().add_extension(TasksExtension(settings=Settings.load(redis_url="memory://")))
    FastMCP().add_extension(TasksExtension(settings=Settings.load(namespace="named")))
    FastMCP("FastMCP-1").add_extension(TasksExtension())


@pytest.fixture
def shop() -> Celery:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="count", shared=False)
    def count() -> int:  # pyright: ignore[reportUnusedFunction] - the app has it
        return 1

    return app


def in_process(name: str, shop: Celery | None = None) -> tuple[FastMCP, TasksExtension]:
    server, tasks = FastMCP(name), TasksExtension(in_process=True, celery=shop)
    server.add_extension(tasks)
    return server, tasks


@pytest.mark.smoke
async def test_no_tool_takes_the_place_of_another(shop: Celery) -> None:
    server, tasks = in_process("names", shop)
    server.tool(lambda: 1, name="count")
    server.tool(lambda: 1, name="task_result", version="1")
    with pytest.raises(ConfigurationError, match="has a tool 'count' already; give name="):
        tasks.expose("count", arguments=Nothing)
    with pytest.raises(ConfigurationError, match="'task_result'"):
        tasks.add_polling_tools()
    tasks.expose("count", arguments=Nothing, name="count_all")
    tasks.add_polling_tools(prefix="my_")
    tasks.tasks.components()
    server.tool(lambda: 1, name="count_all")
    with pytest.raises(ConfigurationError, match="a tool 'count_all' beside the exposed job"):
        tasks.tasks.components()
    with pytest.raises(ConfigurationError, match="a tool 'count_all' beside the exposed job"):
        async with Client(lowlevel_of(server)):
            pass


async def test_fastmcps_declarations_hold_for_exposed_jobs(shop: Celery) -> None:
    server, tasks = in_process("declared", shop)
    tasks.expose("count", arguments=Nothing, name="ours", task=TaskConfig(ttl=60_000))
    tasks.expose("count", arguments=Nothing, name="theirs", task=FastMCPTaskConfig(mode="required"))  # pyright: ignore[reportArgumentType]
    tasks.expose_canvas(lambda: shop.signature("count"), name="canvas", task=TaskConfig(mode="required"))
    found = {name: config for (_, name), config in tasks.tasks.components().items()}
    assert (found["ours"].ttl_ms, found["theirs"].mode, found["canvas"].mode) == (60_000, "required", "required")
    wrong: Any = True
    with pytest.raises(ConfigurationError, match=r"an exposed tool takes task=TaskConfig\(…\), not task=True"):
        tasks.expose("count", arguments=Nothing, name="wrong", task=wrong)
    assert await server.get_tool("wrong") is None


@pytest.mark.smoke
def test_dockets_options_have_no_effect_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mcp_celery"):
        TasksExtension(url="redis://elsewhere", concurrency=3, redelivery_timeout=timedelta(seconds=1))
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 3
    assert "TasksExtension(url=…)" in said[0]
    assert "MCP_CELERY_REDIS_URL" in said[0]
    with pytest.raises(TypeError, match="'nothing'"):
        TasksExtension(nothing=1)


@pytest.mark.smoke
def test_dockets_variables_have_no_effect_and_one_warning_names_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMCP_DOCKET_URL", "redis://elsewhere")
    monkeypatch.setenv("FASTMCP_TASKS_ENCRYPTION_KEY", "s3cr3t-value")
    with caplog.at_level(logging.WARNING, "mcp_celery"):
        FastMCP("named").add_extension(TasksExtension())
    (said,) = [one.getMessage() for one in caplog.records if "settings of Docket" in one.getMessage()]
    assert said.startswith("FASTMCP_DOCKET_URL, FASTMCP_TASKS_ENCRYPTION_KEY: ")
    assert "s3cr3t-value" not in said


def test_an_extension_without_a_server_says_what_to_do() -> None:
    extension = TasksExtension()
    with pytest.raises(ConfigurationError, match="belong to no server yet"):
        extension.add_polling_tools()


def test_a_clone_belongs_to_no_server() -> None:
    first, second = TasksExtension(in_process=True), FastMCP("second")
    FastMCP("first").add_extension(first)
    second.add_extension(first.clone())
    with pytest.raises(ValueError, match="already registered"):
        second.add_extension(TasksExtension())


def test_a_configuration_is_checked_where_it_is_written() -> None:
    server = FastMCP("configured")
    with pytest.raises(ConfigurationError, match="time_limit"):
        TaskConfig(time_limit=0)
    with pytest.raises(ValueError, match="sync function"):
        server.tool(lambda: 1, name="sync", task=True)
    server.tool(lambda: 1, name="sync", task=TaskConfig())
    assert TaskConfig(queue="a") == TaskConfig(queue="a")
    assert TaskConfig(queue="a") != TaskConfig(queue="b")


@pytest.mark.smoke
def test_the_extra_is_named_where_fastmcp_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    source = Path(__file__).parents[2] / "mcp_celery/fastmcp/__init__.py"
    with pytest.raises(ImportError, match=r"mcp-celery-backend\[fastmcp\]"):
        exec(compile(source.read_text(), str(source), "exec"), {})
