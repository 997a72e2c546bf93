"""What somebody sees who has installed the wheel, and has no checkout: commands in a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.common.redis_translation import celery_url
from tests.support.deployment import answering_url, process
from tests.support.terminal import at_a_terminal
from tests.support.wheel import environment_of, unpacked_wheel

MCP_CELERY: Final = (sys.executable, "-m", "mcp_celery")
ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLUMNS: Final = 80
ROWS: Final = 24


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unpacked = unpacked_wheel(tmp_path_factory.mktemp("wheel"))
    code = "import importlib.util, mcp_celery; print(mcp_celery.__file__, importlib.util.find_spec('workers'))"
    where = [sys.executable, "-c", code]
    shown = subprocess.check_output(where, env=environment_of(unpacked), cwd=unpacked.parent, text=True)
    assert shown.split() == [str(unpacked / "mcp_celery" / "__init__.py"), "None"]
    return unpacked


@pytest.mark.slow
def test_the_demo_needs_no_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an empty folder, at a terminal of the usual size."""
    env = environment_of(wheel, TERM="xterm")
    with at_a_terminal([*MCP_CELERY, "demo"], folder=tmp_path, env=env, columns=COLUMNS, rows=ROWS) as terminal:
        terminal.until(r"The current folder has no file, so a sample is indexed")
        terminal.until(r"Digest of all 50 files")
        terminal.until(r"Which files do you look for\?")
        terminal.until(r'\("\*\.md"\): ')
        terminal.type("page_8*\r")
        terminal.until(r"(?m)^docs/page_8\.md\r$")
        terminal.until(r"Task +\S+ completed")
        assert terminal.end() == 0
    lines = ESCAPES.sub("", terminal.text).splitlines()
    last = [line.split("mcp-celery ")[1] for line in lines[-6:] if "mcp-celery " in line]
    assert [line.split()[0] for line in last] == ["dev", "call", "init"]
    assert lines[-7] == "Three commands to try next:"
    assert list(tmp_path.iterdir()) == []


async def report(url: str) -> object:
    """What the starter's tool returns as a task."""
    async with Client(url, extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "build_report", {"year": 2026})
        assert handle.task_id
        return (await handle).structured_content


def write_project(wheel: Path, folder: Path, *arguments: str, **variables: str) -> list[str]:
    """Run ``init`` at a terminal; gives the commands that it tells."""
    command = [*MCP_CELERY, "init", *arguments]
    env = environment_of(wheel, TERM="xterm", **variables)
    with at_a_terminal(command, folder=folder, env=env, columns=COLUMNS, rows=ROWS) as terminal:
        terminal.until("README.md has the next steps")
        assert terminal.end() == 0
    assert ESCAPES.sub("", terminal.text) == terminal.text
    told = terminal.text.partition("To run it, in that folder:\r\n")[2].splitlines()
    return [line.strip().rpartition("/")[2] for line in told if line.startswith("  ")]


def imports(module: str, folder: Path, env: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=folder, env=env, check=True)


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_project_that_init_wrote_runs(wheel: Path, tmp_path: Path) -> None:
    assert write_project(wheel, tmp_path, "my-server") == ["mcp-celery dev server.py"]
    folder, env = tmp_path / "my-server", environment_of(wheel)
    dev = [*MCP_CELERY, "dev", "server.py", "--port", "0", "--data-dir", str(tmp_path / "store")]
    with process(dev, env, tmp_path / "dev.log", folder=folder) as running:
        assert await report(answering_url(tmp_path / "dev.log", running)) == {"result": "Report of 2026: 12 months"}
    # What its Procfile and its .env name.
    imports("workers.asgi, config.celeryconfig", folder, env)
    assert "MCP_CELERY_SERVER=server:server\n" in (folder / "config" / "env.example").read_text()


EXISTING_APP: Final = """
import os
from celery import Celery
celery_app = Celery("proj", broker=os.environ["PROJ_REDIS"], backend=os.environ["PROJ_REDIS"])
"""


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_existing_app_gets_a_server(wheel: Path, tmp_path: Path, store_url: str) -> None:
    folder = tmp_path / f"existing-{os.getpid()}"
    (folder / "proj").mkdir(parents=True)
    (folder / "proj" / "__init__.py").touch()
    (folder / "proj" / "celery.py").write_text(EXISTING_APP)
    variables = {"MCP_CELERY_REDIS_URL": store_url, "PROJ_REDIS": celery_url(store_url)}
    env = environment_of(wheel, **variables)
    write_project(wheel, folder, "-A", "proj", **variables)
    assert not (folder / "shop.py").exists()
    worker = [sys.executable, "-m", "celery", "-A", "mcp_worker", "worker", "-Q", f"mcp.{folder.name}", "-P", "solo"]
    serve = [*MCP_CELERY, "serve", "mcp_server.py", "--port", "0"]
    with (
        process(worker, env, tmp_path / "worker.log", folder=folder),
        process(serve, env, tmp_path / "serve.log", folder=folder) as running,
    ):
        assert await report(answering_url(tmp_path / "serve.log", running)) == {"result": "Report of 2026: 12 months"}
    imports("workers.asgi", folder, env)


@pytest.mark.slow
def test_a_small_app_is_written_where_there_is_none(wheel: Path, tmp_path: Path) -> None:
    told = write_project(wheel, tmp_path, "--existing-app", "mine")
    assert told == ["celery -A mcp_worker worker -Q mcp.mine", "mcp-celery serve mcp_server.py"]
    imports("mcp_server, mcp_worker, workers.asgi", tmp_path / "mine", environment_of(wheel))
