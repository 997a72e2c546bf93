"""The commands as users type them: real `mcp-celery` processes, and nothing of them left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from mcp.client import Client
from mcp.client.subscriptions import SubscriptionLost
from redis.exceptions import RedisError

from mcp_celery.client import TasksClient, call_tool_task
from tests.support.programs import forked_command
from tests.support.signals import interruptible
from tests.support.waiting import eventually_sync

CHECKOUT = Path(__file__).resolve().parents[2]
GIVE_UP_SECONDS = 180.0
MARK = "MCP_CELERY_TEST_MARK"

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
"""
FAILING_DEMO = """
from mcp_celery import TaskServer
server = TaskServer("demo")
@server.tool(task=True)
def index_folder(path: str, delay_ms: int) -> str: raise ValueError("no index today")
"""
DEMO_WITHOUT_WORKER = """
import os, sys
if "worker" in sys.argv:
    print("the worker's last words", flush=True)
    os._exit(7)
from mcp_celery import TaskServer
server = TaskServer("demo")
@server.tool(task=True)
def index_folder(path: str, delay_ms: int) -> str: return path
"""

CELERY_NAMES = {"asyncio": "pool", "prefork": "prefork", "threads": "thread", "solo": "solo"}
"""Of the pools, in the banner of a worker."""


class Running:
    """A command that runs, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed: list[str] = []
        self._news = threading.Condition()
        self._readers = [threading.Thread(target=self._read, args=(pipe,)) for pipe in (process.stdout, process.stderr)]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            with self._news:
                self.printed.append(line.rstrip("\n"))
                self._news.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.printed)

    def until_printed(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        found: re.Match[str] | None = None

        def is_there() -> bool:
            nonlocal found
            found = re.search(pattern, self.text)
            return found is not None

        with self._news:
            self._news.wait_for(is_there, GIVE_UP_SECONDS)
        assert found, f"{pattern!r} was not printed:\n{self.text}"
        return found

    def end(self) -> int:
        """Wait for its end, and return its exit status."""
        status = self.process.wait(GIVE_UP_SECONDS)
        for reader in self._readers:
            reader.join(GIVE_UP_SECONDS)
        return status


class CommandLine:
    """Runs commands, in a folder and an environment of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
        self._env = {**kept, "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(CHECKOUT), MARK: self._mark}
        self.started: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def start(self, *arguments: str, cwd: Path | None = None, **env: str) -> Running:
        with interruptible():
            process = subprocess.Popen(
                [sys.executable, "-m", "mcp_celery", *arguments],
                cwd=cwd or self.folder,
                env={**self._env, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.started.append(process)
        return Running(process)

    def run(self, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*forked_command("mcp_celery"), *arguments],
            cwd=cwd or self.folder,
            env={**self._env, **env},
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """All that was started here, however far removed: an environment is inherited by daemons, too."""
        return [one for one in psutil.process_iter() if _mark_of(one) == self._mark]

    def close(self) -> None:
        """Wait for the end of everything; what does not end is killed, and fails the test."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        with suppress(AssertionError):
            eventually_sync(lambda: not self.processes())
        left = self.processes()
        commands = [" ".join(one.cmdline()) for one in left]
        for one in left:
            one.kill()
        for process in self.started:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        assert commands == [], "processes were left"


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


@pytest.fixture
def command(tmp_path: Path) -> Generator[CommandLine]:
    line = CommandLine(tmp_path)
    line.write("plain.py", PLAIN_SERVER)
    line.write("mine.py", TASK_SERVER)
    line.write("workers/__init__.py", "")
    line.write("broken.py", "raise RuntimeError('not\\ntoday')")
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dev", "missing:server"], "missing"),
        (["serve", "missing:server"], "missing"),
        (["dev", "mine:nothing"], "nothing"),
        (["serve", "mine:nothing"], "nothing"),
        (["dev", "plain:number"], "plain:number"),
        (["serve", "plain:number"], "plain:number"),
        (["dev", "broken:server"], "not today"),
        (["serve", "broken:server"], "not today"),
        (["dev", "mine"], "module:attribute"),
        (["dev", "mine:server", "--host", "256.0.0.1"], "256.0.0.1"),
        (["demo"], "workers/demo.py"),
    ],
)
def test_what_cannot_be_started_is_told_in_one_line(command: CommandLine, arguments: list[str], said: str) -> None:
    done = command.run(*arguments)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line != "said while it is imported"]
    assert line.startswith("Error: ")
    assert said in line


@pytest.mark.parametrize("name", ["dev", "serve"])
def test_a_port_in_use_is_told_in_one_line(command: CommandLine, taken_port: str, name: str) -> None:
    done = command.run(name, "mine:server", "--port", taken_port)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert taken_port in line
    assert "in use" in line


def test_a_wrong_setting_is_told_in_one_line(command: CommandLine) -> None:
    done = command.run("dev", "mine:server", "--port", "0", MCP_CELERY_MAX_TTL_MS="-1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "MCP_CELERY_MAX_TTL_MS" in line


def test_a_redis_that_does_not_answer_is_told_without_its_password(command: CommandLine) -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    done = command.run("dev", "mine:server", "--port", "0", MCP_CELERY_REDIS_URL=url)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "MCP_CELERY_REDIS_URL" in line
    assert "secret" not in line


def test_the_store_answers_until_it_is_told_to_stop(command: CommandLine) -> None:
    store = command.start("store", "--data-dir", str(command.folder / "data"))
    url = store.until_printed(r"export MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    store.until_printed("Ctrl-C")
    assert answers(url)
    store.process.send_signal(signal.SIGTERM)
    assert store.end() == 0
    assert not answers(url)


def test_the_store_does_not_outlive_a_killed_command(command: CommandLine) -> None:
    store = command.start("store", "--data-dir", str(command.folder / "data"))
    url = store.until_printed(r"export MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    store.until_printed("Ctrl-C")
    store.process.kill()
    eventually_sync(lambda: not answers(url), what="the store ends")


@pytest.mark.parametrize("pool", ["asyncio", "prefork", "threads", "solo"])
def test_dev_serves_until_ctrl_c(command: CommandLine, pool: str) -> None:
    dev = command.start("dev", "mine:server", "--port", "0", "--pool", pool, "--concurrency", "1")
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


@pytest.mark.parametrize("pool", ["asyncio", "prefork", "threads", "solo"])
def test_dev_ends_in_spite_of_a_running_job(command: CommandLine, pool: str) -> None:
    dev = command.start("dev", "mine:server", "--port", "0", "--pool", pool, "--concurrency", "1")
    url = dev.until_printed(r"answers at (http://\S+/mcp)")[1]

    async def start_a_job_and_stop() -> None:
        async with Client(url, extensions=[TasksClient()]) as client:
            await call_tool_task(client, "sleep", {"seconds": 600})
            await asyncio.to_thread(dev.until_printed, r"(?m)^worker \| .*asleep")

    asyncio.run(start_a_job_and_stop())
    dev.process.send_signal(signal.SIGTERM)
    assert dev.end() == 0
    assert command.processes() == []


def test_dev_ends_with_its_worker(command: CommandLine) -> None:
    dev = command.start("dev", "mine:server", "--port", "0")
    dev.until_printed(r"answers at ")

    def workers() -> list[psutil.Process]:
        return [one for one in command.processes() if "worker" in one.cmdline() and one.ppid() == dev.process.pid]

    # Between its fork and its exec a process has the command line of the one that starts it.
    (worker,) = eventually_sync(workers, what="the worker is there")
    worker.kill()
    assert dev.end() == 1
    assert "Error: worker was ended unexpectedly by signal SIGKILL; everything else was stopped" in dev.printed


def test_dev_ends_with_its_store(command: CommandLine) -> None:
    dev = command.start("dev", "mine:server", "--port", "0")
    url = dev.until_printed(r"MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    with redis.Redis.from_url(url) as client:
        client.shutdown(nosave=True)
    assert dev.end() == 1
    assert "Error: the store ended unexpectedly; everything else was stopped" in dev.printed


def test_nothing_outlives_a_killed_dev(command: CommandLine) -> None:
    dev = command.start("dev", "mine:server", "--port", "0")
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
    assert json.loads(answer)["result"]["serverInfo"]["name"] == "plain"
    stdin.close()
    assert served.end() == 0


@pytest.mark.parametrize("with_own_store", [False, True])
def test_the_demo_shows_a_task_to_its_end(command: CommandLine, with_own_store: bool) -> None:
    env: dict[str, str] = {}
    if with_own_store:
        store = command.start("store", "--data-dir", str(command.folder / "data"))
        env["MCP_CELERY_REDIS_URL"] = store.until_printed(r"export MCP_CELERY_REDIS_URL='?([^\s']+)")[1]
    done = command.run("demo", cwd=CHECKOUT, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    task_id = re.search(r"(?m)^Task\s+(\S+) completed", done.stdout)
    assert task_id
    assert f"anon:{task_id[1]}:tool:index_folder" in done.stdout
    assert re.search(r"│ Python\s+│", done.stdout)
    assert re.search(r"sha256:[0-9a-f]{64}\b", done.stdout)
    assert '? Which files do you look for?  {"pattern": "*.md"} by default' in done.stdout
    assert "\ndocs/architecture.md\n" in done.stdout
    assert "celery -A mcp_celery flower" in done.stdout
    assert done.stderr == ""


def test_the_demo_says_why_its_tool_failed(command: CommandLine) -> None:
    command.write("workers/demo.py", FAILING_DEMO)
    done = command.run("demo")
    assert done.returncode == 1
    assert "no index today" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[0]


def test_the_demo_shows_the_last_lines_of_a_worker_that_died(command: CommandLine) -> None:
    command.write("workers/demo.py", DEMO_WITHOUT_WORKER)
    done = command.run("demo")
    assert done.returncode == 1
    assert "Error: worker ended unexpectedly with exit status 7" in done.stderr
    assert "worker | the worker's last words" in done.stderr
