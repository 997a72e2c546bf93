"""`mcp-celery client-config` as it is typed; and a client that starts a server as its entry says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.support.programs import forked_command
from tests.support.terminal import at_a_terminal

SERVER: Final = """
print("said while it is imported")
import asyncio
from mcp_celery import TaskServer
server = TaskServer("reports")
@server.tool(task=True)
async def build_report(year: int) -> str:
    await asyncio.sleep(0)
    return f"Report of {year}"
"""
POLLING: Final = "server.add_polling_tools(after=0)\n"
COMMAND: Final = ("client-config", "reports.py:server", "--client", "vscode")


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "NO_COLOR"))}
    return {**inherited, "TERM": "xterm"} | variables


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*forked_command("mcp_celery"), *COMMAND, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.anyio
async def test_a_client_that_knows_no_tasks_starts_the_server_by_its_entry_and_gets_the_result(tmp_path: Path) -> None:
    (tmp_path / "reports.py").write_text(SERVER + POLLING)
    done = run(tmp_path)
    assert "polling" not in done.stderr
    assert "MCP_CELERY_REDIS_URL=memory://" in done.stderr
    entry = json.loads(done.stdout)["servers"]["reports"]
    assert entry.pop("type") == "stdio"
    # A client has a working folder of its own, and passes few variables on.
    started = stdio_client(StdioServerParameters(**entry, cwd="/"))
    async with Client(started) as client:
        called = await client.call_tool("build_report", {"year": 2026})
        assert called.structured_content is not None
        ended = await client.call_tool("task_result", {"task_id": called.structured_content["task_id"]})
    assert ended.structured_content is not None
    assert "Report of 2026" in json.dumps(ended.structured_content)


def test_settings_that_the_entry_lacks_are_named_beside_it(tmp_path: Path) -> None:
    (tmp_path / "reports.py").write_text(SERVER)
    done = run(tmp_path, MCP_CELERY_REDIS_URL="redis://:secret@redis.example/0")
    assert "add_polling_tools(after=5)" in done.stderr
    assert "MCP_CELERY_REDIS_URL of this terminal was not copied" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["servers"]["reports"]["env"] == {"MCP_CELERY_REDIS_URL": "memory://"}
    done = run(tmp_path, "--env", "MCP_CELERY_REDIS_URL=redis://redis.example/0")
    assert "a worker has to run" in done.stderr
    assert json.loads(done.stdout)["servers"]["reports"]["env"] == {"MCP_CELERY_REDIS_URL": "redis://redis.example/0"}


def test_of_a_server_whose_jobs_run_elsewhere_no_store_is_named(tmp_path: Path) -> None:
    own = SERVER.replace('TaskServer("reports")', 'TaskServer("reports", celery=Celery("mine"))')
    (tmp_path / "reports.py").write_text("from celery import Celery\n" + own)
    done = run(tmp_path)
    assert "workers of the server's app have to run" in done.stderr
    assert "env" not in json.loads(done.stdout)["servers"]["reports"]


@pytest.mark.parametrize(
    ("columns", "rows", "variables", "colour"),
    [(80, 24, {}, True), (120, 40, {"NO_COLOR": "1"}, False), (80, 24, {"TERM": "dumb"}, False)],
)
def test_a_change_is_shown_and_written_only_after_a_yes(
    tmp_path: Path, columns: int, rows: int, variables: dict[str, str], colour: bool
) -> None:
    (tmp_path / "reports.py").write_text(SERVER)
    file = tmp_path / ".vscode" / "mcp.json"
    file.parent.mkdir()
    file.write_text('{\n  // mine\n  "servers": {}\n}\n')
    before = file.read_text()
    command = [*forked_command("mcp_celery"), *COMMAND, "--write"]
    env = environment(**variables)
    for answer, status in (("n", 1), ("y", 0)):
        with at_a_terminal(command, folder=tmp_path, env=env, columns=columns, rows=rows) as terminal:
            terminal.until(r"\+    \"reports\": \{")
            terminal.until(r"Write this to \S+mcp\.json\? \[y/N\]: ")
            assert file.read_text() == before
            terminal.type(f"{answer}\r")
            terminal.until("was left as it is" if status else r"the file before it is \S+mcp\.json\.bak\.")
            assert terminal.end() == status
        assert bool(re.search(r"\x1b\[\d+m", terminal.text)) is colour
    assert file.with_name("mcp.json.bak").read_text() == before
    assert file.read_text().startswith('{\n  // mine\n  "servers": {\n    "reports": {\n')
