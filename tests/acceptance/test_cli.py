"""The commands as users type them: real `mcp-celery` processes, and nothing of them left behind."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import psutil
import pytest
import redis
from mcp.client import Client
from mcp.client.subscriptions import SubscriptionLost
from redis.exceptions import RedisError

from mcp_celery.client import TasksClient, call_tool_task
from tests.support.command_line import GIVE_UP_SECONDS, CommandLine, Running
from tests.support.waiting import eventually_sync

CHECKOUT = Path(__file__).resolve().parents[2]

PLAIN_SERVER = """
from mcp.server import MCPServer
print("said while it is imported")
server = MCPServer("plain")
@server.tool()
def add(a: int, b: int) -> int: return a + b
number = 3
"""
TASK_SERVER = """
import time
from mcp_celery import TaskServer
server = TaskServer("mine")
@server.tool(task=True)
def add(a: int, b: int) -> int: return a + b
@server.tool(task=True)
def sleep(seconds: float) -> str:
    print("asleep", flush=True)
    time.sleep(seconds)
    return "awake"
@server.tool(task=True)
def fail() -> None: raise ValueError
"""
DYING_WORKER = """
import os, sys
if "worker" in sys.argv:
    print("the worker's last words", flush=True)
    os._exit(7)
"""
"""Celery's configuration, which servers and workers read."""

CELERY_NAMES = {"asyncio": "pool", "prefork": "prefork", "threads": "thread", "solo": "solo"}
"""Of the pools, in the banner of a worker."""


@pytest.fixture
def command(tmp_path: Path) -> Generator[CommandLine]:
    line = CommandLine(tmp_path)
    line.write("plain.py", PLAIN_SERVER)
    line.write("mine.py", TASK_SERVER)
    line.write("workers/__init__.py", "")
    line.write("broken.py", "import math\nraise RuntimeError('not\\ntoday')")
    line.write(
        "two.py",
        TASK_SERVER.replace("server", "first") + TASK_SERVER.replace("server", "second").replace("mine", "other"),
    )
    line.write("empty.py", "")
    yield line
    line.close()


@pytest.fixture
def taken_port() -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False


def call_add(url: str) -> object:
    async def call() -> object:
        async with Client(url) as client:
            return (await client.call_tool("add", {"a": 2, "b": 3})).structured_content

    return asyncio.run(call())


def call_task_add(url: str) -> object:
    return call_task(url, "add", {"a": 2, "b": 3}).structured_content


def call_task(url: str, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
    async def call() -> types.CallToolResult:
        async with Client(url, extensions=[TasksClient()]) as client:
            return await (await call_tool_task(client, tool, arguments))

    return asyncio.run(call())


def name_over_stdio(served: Running) -> str:
    """Initialize a session with a server on stdio, and end it.

    Returns:
        The server's name.
    """
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    stdin = served.process.stdin
    assert stdin
    stdin.write(json.dumps(request) + "\n")
    stdin.flush()
    answer = served.until_printed(r"(?m)^\{.*$")[0]
    stdin.close()
    assert served.end() == 0
    return json.loads(answer)["result"]["serverInfo"]["name"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dev", "missing:server"], "missing"),
        (["serve", "missing:server"], "missing"),
        (["dev", "mine:nothing"], "nothing"),
        (["serve", "mine:nothing"], "nothing"),
        (["dev", "plain:number"], "plain:number"),
        (["serve", "plain:number"], "plain:number"),
        (["dev", "two"], "name one of first, second after a colon"),
        (["dev", "nothing.py"], "there is no file 'nothing.py'"),
        (["dev", "empty"], "module 'empty' has no MCP server"),
        (["dev", "mine:server", "--host", "256.0.0.1"], "256.0.0.1"),
    ],
)
def test_a_server_that_cannot_be_started_is_an_error_of_one_line(
    command: CommandLine, arguments: list[str], said: str
) -> None:
    done = command.run(*arguments)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line != "said while it is imported"]
    assert line.startswith("Error: ")
    assert said in line


@pytest.mark.parametrize("name", ["dev", "serve"])
def test_a_module_that_raises_is_shown_with_its_own_traceback(command: CommandLine, name: str) -> None:
    done = command.run(name, "broken.py", COLUMNS="300")
    assert done.returncode == 2
    assert re.search(r"broken\.py:2 in <module>", done.stderr)
    assert "importlib" not in done.stderr
    assert "mcp_celery" not in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: cannot import 'broken': RuntimeError: not today"


def test_a_wrong_declaration_names_tool_file_and_line(command: CommandLine) -> None:
    command.write("wrong.py", TASK_SERVER.replace("task=True", "task='yes'", 1))
    done = command.run("serve", "wrong:server")
    (line,) = done.stderr.splitlines()
    assert re.search(r"task='yes' of 'add' is neither True, False nor a TaskConfig \(\S+wrong\.py:5\)$", line)


@pytest.mark.slow
def test_a_server_is_found_by_its_file_from_any_folder(command: CommandLine, tmp_path_factory: Any) -> None:
    command.write("pack/__init__.py", "")
    command.write("pack/inner.py", "from pack import other\n" + TASK_SERVER)
    command.write("pack/other.py", "")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = str(command.folder / "pack" / "inner.py")
    for arguments in (["serve", file], ["serve", "pack.inner:server", "--app-dir", str(command.folder)]):
        served = command.start(*arguments, "--port", "0", cwd=elsewhere)
        assert call_add(served.until_printed(r"Answers at (http://\S+)")[1]) == {"result": 5}
        served.process.send_signal(signal.SIGTERM)
        served.end()
    served = command.start("serve", f"{file}:server", "--transport", "stdio", cwd=elsewhere)
    assert name_over_stdio(served) == "mine"


def test_serve_ends_without_an_error_on_ctrl_c(command: CommandLine) -> None:
    served = command.start("serve", "mine:server", "--port", "0")
    served.until_printed(r"Answers at (http://\S+)")
    served.process.send_signal(signal.SIGINT)
    assert served.end() == 0
    assert "Aborted" not in served.text


@pytest.mark.parametrize("named", ["other.py", "other:mcp"])
def test_a_server_without_tasks_of_ours_is_refused_with_the_line_that_adds_them(
    command: CommandLine, named: str
) -> None:
    command.write("other.py", "class FastMCP: ...\n\n\nmcp = FastMCP()\n")
    done = command.run("serve", named)
    assert done.returncode == 2
    assert "add_extension(mcp_celery.fastmcp.TasksExtension())" in done.stderr


@pytest.mark.slow
def test_dev_finds_a_server_by_its_file_too(command: CommandLine, tmp_path_factory: Any) -> None:
    dev = command.start("dev", str(command.folder / "mine.py"), "--port", "0", cwd=tmp_path_factory.mktemp("elsewhere"))
    assert call_add(dev.until_printed(r"answers at (http://\S+/mcp)")[1]) == {"result": 5}


@pytest.mark.slow
def test_dev_ends_with_a_summary_and_shows_a_line_for_each_task(command: CommandLine) -> None:
    dev = command.start("dev", "mine", "--port", "0", MCP_CELERY_REDIS_ULR="redis://localhost")
    url = dev.until_printed(r"answers at (http://\S+/mcp)")[1]
    dev.until_printed(rf"  call +\S*mcp-celery call {url.removesuffix('/mcp')} add --arg a=1 --arg b=1\n")
    assert "Warning: MCP_CELERY_REDIS_ULR is not a setting; did you mean MCP_CELERY_REDIS_URL?" in dev.printed
    start = next(at for at, line in enumerate(dev.printed) if "answers at" in line)
    assert "Starting a private store, a Celery worker and an MCP server …" in dev.printed[:start]
    shown = [line for line in dev.printed[start:] if not line.startswith("server |")]
    assert [line.split()[0] for line in shown[1:6]] == ["tools", "worker", "store", "Flower", "call"]
    dev.until_printed(r"  export MCP_CELERY_SERVER=mine MCP_CELERY_REDIS_URL=\S+")
    assert shown[1] == "  tools   add (task), fail (task), sleep (task)"
    assert call_task_add(url) == {"result": 5}
    dev.until_printed(r"(?m)^\d\d:\d\d:\d\d  add  task \S{8}… created$")
    dev.until_printed(r"(?m)^\d\d:\d\d:\d\d  add  task \S{8}… completed after [\d.]+ m?s$")
    assert call_task(url, "fail", {}).is_error
    dev.until_printed(r"(?m)^\d\d:\d\d:\d\d  fail  task \S{8}… failed \(tool error\) after [\d.]+ m?s$")
    assert not re.search(r"(?m)^(worker|server) \| .*INFO", dev.text)


@pytest.mark.slow
def test_dev_names_the_extra_that_an_option_needs(command: CommandLine) -> None:
    command.write("sitecustomize.py", "import sys\nsys.modules['watchfiles'] = sys.modules['flower'] = None\n")
    for option, package, extra in (("--reload", "watchfiles", "reload"), ("--flower", "Flower", "flower")):
        dev = command.start("dev", "mine", option, forked=False, PYTHONPATH=f"{command.folder}:{CHECKOUT}")
        assert dev.end() == 2
        install = f"pip install 'mcp-celery-backend[{extra}]'"
        assert dev.printed == [f"Error: {option}: {package} is not installed: `{install}`"]


@pytest.mark.slow
def test_dev_says_how_a_tool_becomes_a_task(command: CommandLine) -> None:
    command.write("none.py", TASK_SERVER.replace("task=True", ""))
    dev = command.start("dev", "none", "--port", "0")
    dev.until_printed(r"(?m)^Starting a private store and an MCP server …$")
    dev.until_printed(r"worker +none: nothing runs as a task; declare a tool with @server\.tool\(task=True\)")
    assert not [one for one in command.processes() if "celery" in one.cmdline()]


@pytest.mark.slow
def test_dev_starts_flower_with_its_option(command: CommandLine) -> None:
    dev = command.start("dev", "mine", "--port", "0", "--flower")
    dev.until_printed(r"(?m)^Starting a private store, a Celery worker, Flower and an MCP server …$")
    url = dev.until_printed(r"Flower +(http://127\.0\.0\.1:\d+)")[1]

    def answers_with_a_page() -> bool:
        try:
            return "Flower" in httpx2.get(url).text
        except httpx2.HTTPError:
            return False

    eventually_sync(answers_with_a_page, what="Flower answers")


@pytest.mark.parametrize("name", ["dev", "serve"])
def test_a_port_in_use_is_an_error_of_one_line(command: CommandLine, taken_port: str, name: str) -> None:
    done = command.run(name, "mine:server", "--port", taken_port)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert taken_port in line
    assert "in use" in line


def test_a_wrong_setting_is_an_error_of_one_line(command: CommandLine) -> None:
    done = command.run("dev", "mine:server", "--port", "0", MCP_CELERY_MAX_TTL_MS="-1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "MCP_CELERY_MAX_TTL_MS" in line


def test_a_redis_that_does_not_answer_is_reported_without_its_password(command: CommandLine) -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    done = command.run("dev", "mine:server", "--port", "0", MCP_CELERY_REDIS_URL=url)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "MCP_CELERY_REDIS_URL" in line
    assert "secret" not in line


def test_the_store_answers_until_it_is_stopped(command: CommandLine) -> None:
    store = command.start("store", "--data-dir", str(command.folder / "data"))
    url = store.until_printed(r"export MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    store.until_printed("Ctrl-C")
    assert answers(url)
    store.process.send_signal(signal.SIGTERM)
    assert store.end() == 0
    assert not answers(url)


@pytest.mark.slow
def test_the_store_does_not_outlive_a_killed_command(command: CommandLine) -> None:
    store = command.start("store", "--data-dir", str(command.folder / "data"), forked=False)
    url = store.until_printed(r"export MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    store.until_printed("Ctrl-C")
    store.process.kill()
    eventually_sync(lambda: not answers(url), what="the store ends")


@pytest.mark.parametrize(
    "pool", ["asyncio", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("prefork", "threads", "solo"))]
)
def test_dev_serves_until_ctrl_c(command: CommandLine, pool: str) -> None:
    dev = command.start("dev", "mine:server", "--port", "0", "--pool", pool, "--concurrency", "1", "--verbose")
    url = dev.until_printed(r"answers at (http://\S+/mcp)")[1]
    dev.until_printed(r"(?m)^worker \| .* ready\.$")
    dev.until_printed(rf"(?m)^worker \| .*concurrency: 1 \({CELERY_NAMES[pool]}\)")
    assert call_add(url) == {"result": 5}
    dev.process.send_signal(signal.SIGINT)
    assert dev.end() == 0
    assert re.search(r"(?m)^server \| ", dev.text)
    assert "\x1b[" not in dev.text, "no colours but on a terminal"
    assert "Traceback" not in dev.text
    assert command.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "number"),
    [("asyncio", signal.SIGINT), *((pool, signal.SIGTERM) for pool in ("asyncio", "prefork", "threads", "solo"))],
)
def test_dev_ends_in_spite_of_a_running_job(command: CommandLine, pool: str, number: signal.Signals) -> None:
    dev = command.start("dev", "mine:server", "--port", "0", "--pool", pool, "--concurrency", "1")
    url = dev.until_printed(r"answers at (http://\S+/mcp)")[1]

    async def start_a_job_and_stop() -> None:
        async with Client(url, extensions=[TasksClient()]) as client:
            await call_tool_task(client, "sleep", {"seconds": 600})
            await asyncio.to_thread(dev.until_printed, r"(?m)^worker \| .*asleep")

    asyncio.run(start_a_job_and_stop())
    dev.process.send_signal(number)
    assert dev.end() == 0
    assert "Traceback" not in dev.text
    assert command.processes() == []


@pytest.mark.slow
def test_dev_ends_with_its_worker(command: CommandLine) -> None:
    dev = command.start("dev", "mine:server", "--port", "0", forked=False)
    dev.until_printed(r"answers at ")

    def workers() -> list[psutil.Process]:
        # A worker that is ready has written a title over its command line and its environment.
        children = psutil.Process(dev.process.pid).children()
        return [one for one in children if " ".join(one.cmdline()).startswith("[celeryd:")]

    (worker,) = eventually_sync(workers, what="the worker is there")
    worker.kill()
    assert dev.end() == 1
    assert "Error: worker was ended unexpectedly by signal SIGKILL; everything else was stopped" in dev.printed


@pytest.mark.slow
def test_dev_ends_with_its_store(command: CommandLine) -> None:
    dev = command.start("dev", "mine:server", "--port", "0")
    url = dev.until_printed(r"MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    with redis.Redis.from_url(url) as client:
        client.shutdown(nosave=True)
    assert dev.end() == 1
    assert "Error: the store ended unexpectedly; everything else was stopped" in dev.printed


@pytest.mark.slow
def test_nothing_outlives_a_killed_dev(command: CommandLine) -> None:
    dev = command.start("dev", "mine:server", "--port", "0", forked=False)
    url = dev.until_printed(r"MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    dev.process.kill()
    eventually_sync(lambda: not answers(url), what="the store ends")
    eventually_sync(lambda: not command.processes(), what="all processes end")


def test_serve_ends_in_spite_of_an_open_stream(command: CommandLine) -> None:
    served = command.start("serve", "plain:server", "--port", "0")
    url = served.until_printed(r"Answers at (http://\S+)")[1]

    async def listen_until_its_end() -> None:
        async with Client(url) as client, client.listen(tools_list_changed=True) as stream:
            served.process.send_signal(signal.SIGTERM)
            with suppress(SubscriptionLost):
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    async for _event in stream:
                        pass

    asyncio.run(listen_until_its_end())
    assert served.end() in (0, -signal.SIGTERM)


def test_on_stdio_nothing_but_the_protocol_is_written_to_standard_output(command: CommandLine) -> None:
    served = command.start("serve", "plain:server", "--transport", "stdio")
    assert name_over_stdio(served) == "plain"


@pytest.mark.parametrize("with_own_store", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_demo_shows_a_task_to_its_end(command: CommandLine, with_own_store: bool) -> None:
    """In a checkout with a private store, as `make demo` does; elsewhere with a store that runs already."""
    command.write("docs/page.md", "A page.")
    env: dict[str, str] = {}
    if with_own_store:
        store = command.start("store", "--data-dir", str(command.folder / "data"))
        env["MCP_CELERY_REDIS_URL"] = store.until_printed(r"export MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    done = command.run("demo", cwd=command.folder if with_own_store else CHECKOUT, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    task_id = re.search(r"(?m)^Task\s+(\S+) completed", done.stdout)
    assert task_id
    assert f"anon:{task_id[1]}:tool:index_folder" in done.stdout
    assert re.search(r"│ Python\s+│", done.stdout)
    assert re.search(r"sha256:[0-9a-f]{64}\b", done.stdout)
    assert '? Which files do you look for?  {"pattern": "*.md"} by default' in done.stdout
    assert f"\ndocs/{'page' if with_own_store else 'architecture'}.md\n" in done.stdout
    assert re.search(r"(?m)^  \S*mcp-celery dev mcp_celery\.demo\.server", done.stdout)
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_servers_and_workers_start_where_the_locale_has_ascii_alone(command: CommandLine) -> None:
    done = command.run("demo", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_demo_says_why_its_tool_failed(command: CommandLine) -> None:
    done = command.run("demo", MCP_CELERY_MAX_RESULT_BYTES="10")
    assert done.returncode == 1
    assert "MCP_CELERY_MAX_RESULT_BYTES" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[0]


@pytest.mark.slow
def test_the_demo_shows_the_last_lines_of_a_worker_that_died(command: CommandLine) -> None:
    command.write("dying_worker.py", DYING_WORKER)
    done = command.run("demo", CELERY_CONFIG_MODULE="dying_worker")
    assert done.returncode == 1
    assert "Error: worker ended unexpectedly with exit status 7" in done.stderr
    assert "worker | the worker's last words" in done.stderr
