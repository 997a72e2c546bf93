"""``memory://``: a server and its jobs in one process, without Redis, broker and worker."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest
from celery import Celery
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

import mcp_celery.testing
from mcp_celery import Settings, TaskConfig, TaskMeta, TaskServer
from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.engine import BackendOptions, Caller
from mcp_celery.errors import ConfigurationError
from mcp_celery.server import only_process
from mcp_celery.server.task_server import tasks_of
from mcp_celery.testing import MemoryBackend
from tests.acceptance import test_input_2025 as core_input
from tests.acceptance import test_input_2026 as input_
from tests.acceptance import test_tasks_2025 as core
from tests.acceptance import test_tasks_2026 as extension
from tests.support.deployment import Deployment, deployed
from tests.support.programs import ROOT, forked_command
from tests.support.session import Session, session_over
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.shows("C21")]

KEYS = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def every_key_has_a_lifetime() -> None:
    """There is no store to look at."""


@pytest.fixture(scope="module")
def deployment() -> Generator[Deployment]:
    settings = {"MCP_CELERY_ENCRYPTION_KEYS": KEYS, "MCP_CELERY_HEARTBEAT_MS": "200"}
    with deployed("memory://", f"memory-{os.urandom(4).hex()}", settings=settings) as found:
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve()


@pytest.fixture(scope="module")
def guarded_url(deployment: Deployment) -> str:
    return deployment.serve("guarded")


@pytest.fixture(scope="module")
def asking_url() -> Generator[str]:
    """A server whose tools ask."""
    with deployed("memory://", f"asking-{os.urandom(4).hex()}", spec=input_.SPEC) as found:
        yield found.serve(MCP_CELERY_DEFAULT_TTL_MS="60000")


@pytest.fixture
async def wire(asking_url: str) -> AsyncGenerator[Wire]:
    async with Wire(asking_url, capabilities=input_.ABLE) as wire:
        yield wire


@pytest.fixture
def connect(asking_url: str) -> Callable[..., AbstractAsyncContextManager[Session]]:
    def open_session(capabilities: Any = input_.ABLE, **options: Any) -> AbstractAsyncContextManager[Session]:
        return session_over(streamable_http_client(asking_url), capabilities=capabilities, **options)

    return open_session


session = core.session

# The tests of the revisions, on the servers above.
test_a_task_is_created = extension.test_a_request_that_declares_the_extension_gets_a_task
test_a_task_is_created_in_2025 = core.test_the_granted_ttl_is_reported_in_every_answer
test_a_task_has_its_result = extension.test_a_completed_task_holds_what_the_foreground_call_returns
test_prompts_and_resources_run_as_tasks = core.test_a_prompt_and_a_resource_that_require_a_task_get_one
test_a_tool_that_raises_has_an_error_result = extension.test_a_tool_that_raises_is_completed_with_an_error_result
test_a_tool_that_raises_has_an_error_result_in_2025 = core.test_a_tool_error_fails_the_task_and_stays_readable
test_a_json_rpc_error_fails_its_task = extension.test_a_json_rpc_error_fails_the_task
test_reading_a_task_does_not_change_it = extension.test_polling_changes_nothing
test_every_change_is_pushed = extension.test_push_sends_the_current_state_then_every_change_then_nothing
test_many_tasks_are_pushed_on_one_stream = extension.test_many_tasks_share_a_stream
test_every_change_is_pushed_in_2025 = core.test_the_session_gets_every_change_in_order_and_nothing_after_the_end
test_a_running_task_is_cancelled = extension.test_a_running_task_is_cancelled_for_good
test_a_running_task_is_cancelled_in_2025 = core.test_a_running_task_is_cancelled_for_good
test_callers_reach_their_own_tasks_only = extension.test_no_caller_reaches_the_task_of_another
test_jobs_see_their_own_caller_only = extension.test_jobs_of_different_callers_do_not_see_each_other
test_a_tool_asks_its_client = input_.test_a_task_that_asks_shows_its_question_and_continues_when_answered
test_a_question_is_pushed = input_.test_a_question_is_pushed_as_tasks_get_shows_it
test_a_tool_returns_its_questions = input_.test_a_key_is_never_used_again
test_a_tool_asks_its_client_in_2025 = (
    core_input.test_a_question_is_sent_on_the_open_result_and_its_answer_continues_the_task
)
test_a_tool_returns_its_questions_in_2025 = core_input.test_a_tool_that_returns_its_questions_gets_all_answers


async def test_a_task_is_forgotten_after_its_time_to_live(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("short_lived"))["taskId"]

        async def is_gone() -> bool:
            return (await wire.ask("tasks/get", {"taskId": task_id})).message.get("error") is not None

        await eventually(is_gone)


async def test_a_server_over_stdio_runs_tasks_in_memory(deployment: Deployment) -> None:
    async with session_over(deployment.stdio()) as session:
        created = (await session.call("counting", task={}, steps=1)).result["task"]
        assert (await core.end_of(session, created["taskId"]))["status"] == "completed"


def test_the_start_warns_once_that_a_restart_loses_everything(url: str, deployment: Deployment) -> None:
    warnings = [line for line in deployment.logs()["server-1.log"].splitlines() if " WARNING " in line]
    assert warnings[0].partition(" WARNING ")[2] == (
        "mcp_celery.server.eager_queue: tasks are kept in this process, which runs their jobs itself: a restart "
        "loses every task"
    )
    assert sum("restart" in line for line in warnings) == 1


# --- In the process of a test


def a_server(
    backend: MemoryBackend | None = None, celery: Celery | None = None, tries: list[int] | None = None, **settings: Any
) -> TaskServer:
    tries = [] if tries is None else tries
    found = Settings.load(redis_url="memory://", namespace="in-memory", **settings)
    server = TaskServer("memory", task=True, backend=backend, celery=celery, settings=found, log_level="ERROR")

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    @server.tool(task=TaskConfig(autoretry_for=(ConnectionError,), max_retries=2))
    def fails_always() -> str:
        tries.append(1)
        raise ConnectionError("secret")

    return server


async def test_a_task_that_the_process_submits_completes() -> None:
    server = a_server()
    async with tasks_of(server).running():
        submitted = await server.call_tool("add", {"a": 1, "b": 2}, task_meta=TaskMeta())
        view = await soon(tasks_of(server).engine().wait(Caller(), submitted.task_id))
    assert view.result is not None
    assert view.result["structuredContent"] == {"result": 3}


async def test_a_job_retries_as_often_as_declared_and_then_fails() -> None:
    tries: list[int] = []
    server = a_server(tries=tries)
    async with Client(server, extensions=[TasksClient()]) as client:
        task = await call_tool_task(client, "fails_always")
        assert (await soon(task.result())).is_error
    assert tries == [1, 1, 1]


async def test_a_client_that_knows_no_tasks_is_served_by_jobs_and_polling_tools() -> None:
    server = a_server(foreground="worker")
    server.add_polling_tools(after=0)
    async with Client(server) as client:
        begun = (await client.call_tool("add", {"a": 1, "b": 2})).structured_content
        assert begun is not None
        result = await client.call_tool("task_result", {"task_id": begun["task_id"]})
    assert result.structured_content == {"result": 3}


async def test_limits_hold_and_expired_tasks_leave_nothing() -> None:
    time = 1_000_000
    backend = MemoryBackend(clock=lambda: time)
    server = a_server(backend)
    async with tasks_of(server).running():
        for _ in range(3):
            submitted = await server.call_tool("add", {"a": 1, "b": 2}, task_meta=TaskMeta(ttl=60_000))
            await soon(tasks_of(server).engine().wait(Caller(), submitted.task_id))
        ledger = backend.open_ledger(BackendOptions(namespace="in-memory"))
        assert ledger.count() == 3
        time = 10**15
        assert ledger.count() == 0


# --- What the documentation shows


def as_documented() -> dict[str, str]:
    """The example, as the docstring of the package has it and as the page has it."""
    found = re.search(r"(?ms)run ``pytest``::\n\n(.*?)\n\n(?=\S)", mcp_celery.testing.__doc__ or "")
    assert found is not None
    page = re.search(r"(?ms)^```python\n(.*?)^```", (ROOT / "docs" / "testing.md").read_text())
    assert page is not None
    return {"docstring": textwrap.dedent(found[1]).strip(), "page": page[1].strip()}


@pytest.mark.slow
def test_the_documented_test_passes_as_it_is_copied(tmp_path: Path) -> None:
    examples = as_documented()
    assert examples["docstring"] == examples["page"]
    (tmp_path / "test_reports.py").write_text(examples["page"] + "\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_reports.py"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert re.search(r"(?m)^1 passed", done.stdout), done.stdout + done.stderr


def test_dev_starts_the_server_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from mcp_celery import TaskServer\n\nserver = TaskServer('mine')\n\n\n"
        "@server.tool(task=True)\nasync def add(a: int, b: int) -> int:\n    return a + b\n"
    )
    with subprocess.Popen(
        [*forked_command("mcp_celery"), "dev", "mine:server", "--port", "0"],
        env={**os.environ, "MCP_CELERY_REDIS_URL": "memory://", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as dev:
        assert dev.stdout is not None
        said: list[str] = []
        end = threading.Timer(60, dev.kill)  # a line that never comes fails the test
        end.start()
        for line in dev.stdout:
            said.append(line)
            if "the server runs its jobs itself" in line:
                dev.send_signal(signal.SIGINT)
        end.cancel()
    assert dev.returncode == 0, said
    assert not [line for line in said if line.startswith("worker")]
    assert (said[0], said[-1]) == ("Starting an MCP server …\n", "Stopped.\n")


# --- What needs another process is refused in one line


def refusal(*argv: str, **env: str) -> str:
    done = subprocess.run(
        [*forked_command(argv[0]), *argv[1:]],
        env={**os.environ, "MCP_CELERY_REDIS_URL": "memory://", **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line]
    return line


SERVER = "tests.acceptance.fixture_server:server"


def test_a_worker_with_a_memory_store_is_refused() -> None:
    line = refusal("celery", "-A", "mcp_celery", "worker", MCP_CELERY_SERVER=SERVER)
    assert line.startswith("Error: MCP_CELERY_REDIS_URL=memory:// keeps tasks in their server's process")


def test_a_worker_of_a_server_that_is_given_the_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no worker can have them"):
        tasks_of(a_server(MemoryBackend())).register_jobs(Celery("host", set_as_current=False))


@pytest.mark.parametrize("name", ["BROKER_URL", "RESULT_BACKEND"])
def test_a_broker_beside_a_memory_store_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"MCP_CELERY_{name} is set beside MCP_CELERY_REDIS_URL=memory://"):
        Settings.load(redis_url="memory://", **{name.lower(): "redis://127.0.0.1:1/0"})


def test_the_refusal_of_a_broker_is_one_line() -> None:
    line = refusal("mcp_celery", "serve", SERVER, MCP_CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    assert "MCP_CELERY_BROKER_URL is set beside" in line


def test_an_app_with_a_broker_is_refused_unless_it_is_eager() -> None:
    app = Celery("host", broker="amqp://127.0.0.1:1//", set_as_current=False)
    server = a_server(celery=app)
    with pytest.raises(ConfigurationError, match="the Celery app has a broker"):
        tasks_of(server).check()
    app.conf.task_always_eager = True
    tasks_of(server).check()


async def test_exposed_jobs_are_refused_unless_the_app_is_eager() -> None:
    app = Celery("shop", backend="cache+memory://", set_as_current=False)
    cast(Any, app).task(sell, name="shop.sell", shared=False)
    server = a_server(celery=app, exposed_interval_ms=50)
    server.expose("shop.sell")
    with pytest.raises(ConfigurationError, match="Celery jobs are exposed as tools"):
        tasks_of(server).check()
    app.conf.task_always_eager = True
    async with Client(server, extensions=[TasksClient()]) as client:
        result = await soon((await call_tool_task(client, "shop_sell", {"what": "tea"})).result())
    assert result.structured_content == {"result": "sold tea"}


def sell(what: str) -> str:
    return f"sold {what}"


def test_a_second_process_of_one_supervisor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(only_process, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "uvicorn")
    only_process.require_only_process("memory")
    only_process.require_only_process("memory")
    # As in another process: a lock belongs to the file that is open.
    monkeypatch.setattr(only_process, "_held", dict[Path, int]())
    with pytest.raises(ConfigurationError, match="another process serves it already"):
        only_process.require_only_process("memory")
    only_process.require_only_process("another")
