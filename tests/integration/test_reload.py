"""``mcp-celery dev --reload``: real processes, and a real file that changes."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from mcp.client import Client

from mcp_celery.cli.dev.inspection import Inspected, InspectedTool, inspect_changed_server
from mcp_celery.client import TasksClient, call_tool_task, resilient_http
from tests.support.command_line import CommandLine, Running
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

CODE = """
import asyncio
from pathlib import Path
from mcp_celery import TaskServer
server = TaskServer("mine")
@server.tool(task=True)
def add(a: int, b: int) -> int: return a + b
@server.tool(task=True)
async def hold() -> str:
    with Path("began").open("a") as began:
        began.write("once ")
    await asyncio.sleep(1)
    return "held to the end"
"""
MORE = """
@server.tool()
def more() -> None: ...
"""


@pytest.fixture
def command(tmp_path: Path) -> Generator[CommandLine]:
    line = CommandLine(tmp_path)
    line.write("mine.py", CODE)
    yield line
    line.close()


async def printed(dev: Running, pattern: str) -> re.Match[str]:
    """Wait for a line."""
    return await asyncio.to_thread(dev.until_printed, pattern)


async def add(client: Client) -> object:
    return (await soon((await soon(call_tool_task(client, "add", {"a": 2, "b": 3}))).result())).structured_content


@pytest.mark.smoke
async def test_reloading_checks_the_code_as_it_is_now(
    command: CommandLine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    file = str(command.folder / "mine.py")
    assert await inspect_changed_server(file, command.folder) == Inspected(
        queues=("mcp.mine",),
        tools=(InspectedTool("add", True, ("a=1", "b=1")), InspectedTool("hold", True, ())),
        has_jobs=True,
        in_process=False,
    )
    command.write("mine.py", "import nothing_of_this_name\n")
    assert await inspect_changed_server(file, command.folder) is None
    shown = capfd.readouterr().err
    assert "mine.py:1 in <module>" in shown
    assert shown.splitlines()[-1] == "Error: cannot import 'mine': No module named 'nothing_of_this_name'"


@pytest.mark.smoke
async def test_a_changed_file_is_served_and_a_wrong_one_is_shown(command: CommandLine) -> None:
    dev = command.start(*("dev", "mine.py", "--port", "0", "--reload"), COLUMNS="300", MCP_CELERY_REDIS_URL="memory://")
    url = (await printed(dev, r"answers at (http://\S+/mcp)"))[1]
    async with Client(resilient_http(url), extensions=[TasksClient()]) as client:
        assert await add(client) == {"result": 5}

        command.write("mine.py", CODE.replace("a + b", "a + "))
        await printed(dev, r"not restarted: save a file to try again")
        assert re.search(r"mine\.py:7", dev.text)
        assert re.search(r"Error: cannot import 'mine': SyntaxError", dev.text)
        assert "importlib" not in dev.text
        assert await add(client) == {"result": 5}, "what runs goes on"

        command.write("other/__pycache__/no.py", "")
        command.write(".venv/no.py", "")
        command.write("mine.py", CODE.replace("a + b", "a * b") + MORE)
        await printed(dev, r"(?m)^\d\d:\d\d:\d\d  restarted: 3 tools, 2 of them as tasks$")
        assert await add(client) == {"result": 6}
    assert dev.text.count("answers at http") == 1, "the summary is printed once"
    assert dev.text.count("  restarted: ") == 1
    assert not re.search(r"no\.py", dev.text)


async def test_a_running_job_may_finish_and_what_cannot_start_is_tried_again(command: CommandLine) -> None:
    dev = command.start("dev", "mine.py", "--port", "0", "--reload")
    url = (await printed(dev, r"answers at (http://\S+/mcp)"))[1]
    async with Client(resilient_http(url), extensions=[TasksClient()]) as client:
        held = await soon(call_tool_task(client, "hold", {}))
        await eventually((command.folder / "began").exists, what="the job runs")
        command.write("mine.py", f"{CODE}\nimport sys\nif 'serve' in sys.argv: sys.exit(7)\n")
        await printed(dev, "server ended unexpectedly with exit status 7; it is started again when a file is saved")
        command.write("mine.py", CODE.replace("a + b", "a * b"))
        await printed(dev, r"restarted: 2 tools, 2 of them as tasks")
        assert (await soon(held.result())).structured_content == {"result": "held to the end"}
        assert await add(client) == {"result": 6}
    began = (command.folder / "began").read_text()
    assert began == "once ", "the job was not interrupted"


async def test_a_save_is_heard_while_a_worker_does_not_become_ready(command: CommandLine) -> None:
    """The worker logs as config/logging.json says."""
    dev = command.start("dev", "mine.py", "--port", "0", "--reload", CELERY_CONFIG_MODULE="config.celeryconfig")
    await printed(dev, r"answers at http://\S+/mcp")
    hangs = "\nimport sys, time\nif 'worker' in sys.argv: Path('hangs').touch(); time.sleep(600)\n"
    command.write("mine.py", CODE + hangs)
    await eventually((command.folder / "hangs").exists, what="the worker hangs")
    command.write("mine.py", CODE + MORE)
    await printed(dev, r"restarted: 3 tools, 2 of them as tasks")


async def test_code_that_is_broken_at_the_start_is_waited_for(command: CommandLine) -> None:
    command.write("mine.py", CODE.replace("a + b", "a + "))
    dev = command.start(*("dev", "mine.py", "--port", "0", "--reload"), COLUMNS="300", MCP_CELERY_REDIS_URL="memory://")
    await printed(dev, r"(?m)^\d\d:\d\d:\d\d  not started: save a file to try again$")
    assert "mine.py:7" in dev.text
    assert "Error: cannot import 'mine': SyntaxError" in dev.text
    command.write("mine.py", CODE.replace("task=True", "task='yes'", 1))
    await printed(dev, r"(?s)task='yes' of 'add' is neither .*not started: save a file to try again")
    command.write("mine.py", CODE)
    url = (await printed(dev, r"answers at (http://\S+/mcp)"))[1]
    async with Client(resilient_http(url), extensions=[TasksClient()]) as client:
        assert await add(client) == {"result": 5}


async def test_ctrl_c_ends_a_command_that_waits_for_code(command: CommandLine) -> None:
    command.write("mine.py", "import nothing_of_this_name\n")
    dev = command.start("dev", "mine.py", "--port", "0", "--reload")
    await printed(dev, r"not started: save a file to try again")
    dev.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(dev.end) == 0
    assert dev.printed[-1] == "Stopped."


async def test_a_file_that_does_not_exist_is_not_waited_for(command: CommandLine) -> None:
    done = await asyncio.to_thread(command.run, "dev", "nothing.py", "--reload")
    assert (done.returncode, done.stderr) == (2, "Error: there is no file 'nothing.py'\n")
