"""The README's server and commands, run word for word as a newcomer would run them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from mcp.client import Client

from mcp_celery.cli.follow import FollowTasks, TaskUpdate
from tests.support.deployment import ROOT, free_port, is_listening, process, wait_until

pytestmark = pytest.mark.anyio

README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The README's block that contains a text."""
    found = [one for one in re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S) if containing in one]
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
def typed(command: str, folder: Path, **settings: str) -> Generator[Path]:
    """A command as it would be typed in the folder, for as long as the context lasts; gives its log."""
    log = folder / f"{re.sub(r'[^a-z]+', '-', command.lower())[:40]}.log"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "PYTHONPATH"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    env = {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **settings}
    with process(["bash", "-c", f"exec {command}"], env, log, folder=folder):
        yield log


async def report(url: str) -> tuple[str, list[TaskUpdate]]:
    """Call the README's tool as a task, and follow it by push."""
    updates: list[TaskUpdate] = []
    following = FollowTasks(lambda _: None, updates.append, silence_seconds=60)
    async with Client(url, extensions=[following]) as client:
        result = await client.call_tool("build_report", {"year": 2026})
    return str(result.structured_content), updates


async def test_dev_runs_the_server_with_nothing_else(folder: Path) -> None:
    _install, dev = commands("mcp-celery dev")
    port = free_port()
    with typed(f"{dev} --port {port} --data-dir {folder / 'store'}", folder) as log:
        wait_until(lambda: f":{port}/mcp" in log.read_text(), "dev says where the server answers")
        result, updates = await report(f"http://127.0.0.1:{port}/mcp")
    assert "12 months" in result
    assert updates[-1].status == "completed"


async def test_three_processes_are_a_deployment(folder: Path, store_url: str) -> None:
    exports, (serve, worker, flower) = commands("celery -A mcp_celery worker")[:2], commands("celery -A")[2:]
    settings = dict(line.removeprefix("export ").split("=", 1) for line in exports)
    settings |= {"MCP_CELERY_REDIS_URL": store_url, "MCP_CELERY_NAMESPACE": f"readme-{os.getpid()}"}
    port, flower_port = free_port(), free_port()
    with ExitStack() as stack:
        stack.enter_context(typed(serve.replace("8000", str(port)), folder, **settings))
        stack.enter_context(typed(worker, folder, **settings))
        stack.enter_context(typed(flower, folder, **settings, FLOWER_PORT=str(flower_port)))
        wait_until(lambda: is_listening(port) and is_listening(flower_port), "the server and Flower listen")
        result, _ = await report(f"http://127.0.0.1:{port}/mcp")
        async with httpx2.AsyncClient() as http:
            page = await http.get(f"http://127.0.0.1:{flower_port}/")
    assert "12 months" in result
    assert page.status_code == 200
