"""The servers, the client and the commands of the first pages, run word for word as a newcomer would run them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, TaskState, call_tool_task
from tests.support.deployment import ROOT, answering_url, is_listening, process, wait_until
from tests.support.locks import reserve_port
from tests.support.programs import Running
from tests.support.wire import Wire

pytestmark = pytest.mark.anyio

PAGES = "\n".join((ROOT / page).read_text() for page in ("README.md", "docs/tools.md", "docs/clients.md"))


def block(language: str, containing: str) -> str:
    """The only block of the pages that contains a text."""
    found = [one for one in re.findall(rf"^```{language}\n(.*?)^```", PAGES, re.M | re.S) if containing in one]
    assert len(found) == 1, f"{len(found)} blocks contain {containing!r}"
    return found[0]


def commands(containing: str) -> list[str]:
    """The commands of a shell block, without their remarks."""
    lines = [line.split("  #")[0].strip() for line in block("sh", containing).splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but the README's server."""
    (tmp_path / "reports.py").write_text(block("python", "def build_report"))
    return tmp_path


@contextmanager
def typed(command: str, folder: Path, **settings: str) -> Generator[tuple[Path, Running]]:
    """A command as it would be typed in the folder, for as long as the context lasts; gives its log and its process."""
    log = folder / f"{re.sub(r'[^a-z]+', '-', command.lower())[:40]}.log"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "PYTHONPATH"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    env = {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **settings}
    with process(["bash", "-c", command if "|" in command else f"exec {command}"], env, log, folder=folder) as running:
        yield log, running


async def report(url: str) -> tuple[str, list[TaskState]]:
    """Call the README's tool as a task, and follow it."""
    async with Client(url, extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "build_report", {"year": 2026})
        states = [state async for state in handle.changes()]
    return str((await handle).structured_content), states


async def test_dev_runs_the_server_of_the_readme_without_other_services(folder: Path) -> None:
    _install, dev = commands("mcp-celery dev")
    with typed(f"{dev} --port 0 --data-dir {folder / 'store'}", folder) as (log, running):
        url = answering_url(log, running)
        result, states = await report(url)
    assert "12 months" in result
    assert states[-1].status == "completed"


@pytest.mark.slow
async def test_the_readmes_tools_that_ask_get_their_answers(folder: Path) -> None:
    (folder / "trips.py").write_text(block("python", "def book"))
    with typed(f"mcp-celery dev trips:server --port 0 --data-dir {folder / 'store'}", folder) as (log, running):
        url = answering_url(log, running)
        async with Wire(url, capabilities={"elicitation": {}}) as wire:
            texts = [await answered(wire, "book", days=3), await answered(wire, "plan")]
    assert texts == ["3 days in Rome", "draft 1: {'city': 'Rome'}"]


async def answered(wire: Wire, tool: str, **arguments: int) -> str:
    """Call a tool that asks, and answer its question."""
    task_id = (await wire.create(tool, **arguments))["taskId"]
    async with wire.listen([task_id]) as events:
        async for event in events:
            task = event["params"]
            if requests := task.get("inputRequests"):
                answer = {"action": "accept", "content": {"city": "Rome"}}
                await wire.update(task_id, dict.fromkeys(requests, answer))
            if task.get("status") == "completed":
                return str(task["result"]["content"][0]["text"])
    raise AssertionError("the stream ended before the task")


@pytest.mark.slow
async def test_the_readmes_three_processes_run_a_task(folder: Path, store_url: str) -> None:
    *exports, serve, worker, flower = commands("celery -A mcp_celery worker")
    settings = dict(line.removeprefix("export ").split("=", 1) for line in exports)
    settings |= {"MCP_CELERY_REDIS_URL": store_url, "MCP_CELERY_NAMESPACE": f"readme-{os.getpid()}"}
    flower_port = reserve_port()
    (folder / "config").mkdir()
    shutil.copy(ROOT / "config" / "flowerconfig.py", folder / "config")
    with ExitStack() as stack:
        log, server = stack.enter_context(typed(serve.replace("8000", "0"), folder, **settings))
        stack.enter_context(typed(worker, folder, **settings))
        stack.enter_context(typed(flower, folder, **settings, FLOWER_PORT=str(flower_port)))
        url = answering_url(log, server)
        wait_until(lambda: is_listening(flower_port), "Flower listens")
        with socket.socket() as elsewhere:
            assert elsewhere.connect_ex(("127.0.0.2", flower_port)), "Flower listens on 127.0.0.1 alone"
        result, _ = await report(url)
        async with httpx2.AsyncClient() as http:
            page = await http.get(f"http://127.0.0.1:{flower_port}/")
            names = ("mcp.example.com", "evil.example")
            statuses = [(await http.post(url, json={}, headers={"host": name})).status_code for name in names]
    assert "12 months" in result
    assert statuses == [400, 421]  # no JSON-RPC, and not the name of the command line
    assert page.status_code == 200


@pytest.mark.slow
async def test_the_readmes_client_and_commands_print_the_report(folder: Path) -> None:
    _install, dev = commands("mcp-celery dev")
    listed, plain, piped = commands("mcp-celery call")
    with typed(f"{dev} --port 0 --data-dir {folder / 'store'}", folder) as (log, running):
        address = urlsplit(answering_url(log, running)).netloc
        (folder / "client.py").write_text(block("python", "asyncio.run(main())").replace("127.0.0.1:8000", address))
        for command, says in (
            ("python client.py", "2026: 12 months"),
            (listed, "build_report"),
            (plain, "Report of 2026: 12 months"),
            (piped, '"status": "completed"'),
        ):
            with typed(command.replace("127.0.0.1:8000", address), folder) as (printed, _):
                wait_until(
                    lambda printed=printed, says=says: says in printed.read_text(), f"{command!r} prints {says!r}"
                )
