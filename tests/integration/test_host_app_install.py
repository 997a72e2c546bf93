"""What `install` does to a worker when it starts, and whom it leaves alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcp_celery.common.redis_translation import celery_url
from tests.support.nodes import ROOT, EmbeddedStoreContainer, environment
from tests.support.programs import forked_command

COMMAND_SECONDS = 120.0
HOST = "tests.support.host"
NAME = "installed"
WORKER = ["-A", HOST, "worker", "--pool=threads", "--concurrency=1"]

REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "a module that does not import": (
        {"HOST_SERVERS": "tests.support.servers.broken:server"},
        "cannot import 'tests.support.servers.broken': RuntimeError: this module is broken on purpose",
    ),
    "no attribute": (
        {"HOST_SERVERS": f"{HOST}.mcp"},
        "has several MCP servers: name one of namesake, other, server, stranger",
    ),
    "a server of another app": (
        {"HOST_SERVERS": f"{HOST}.mcp:stranger"},
        f"{HOST}.mcp:stranger does not use the Celery app 'host' in which it is installed: make it with celery=app",
    ),
    "two servers of one name": (
        {"HOST_SERVERS": f"{HOST}.mcp:server,{HOST}.mcp:namesake"},
        f"{HOST}.mcp:namesake has the namespace 'installed' of another server",
    ),
    "accept_content without json": ({"HOST_CONF": '{"accept_content": ["yaml"]}'}, "accept_content lacks 'json'"),
    "messages that nothing says how to sign": (
        {"HOST_CONF": '{"task_serializer": "auth", "accept_content": ["json"]}'},
        "task_serializer is 'auth', but the app has no keys to sign with: call app.setup_security()",
    ),
    "a backend that cannot hold tasks": ({"HOST_BACKEND": "rpc://"}, "result_backend (RPCBackend) cannot hold tasks"),
    "a setting of ours that is refused": ({"MCP_CELERY_MAX_TTL_MS": "-1"}, "MCP_CELERY_MAX_TTL_MS"),
}

CONSUMED: dict[str, tuple[str, set[str]]] = {
    "nothing is said": ("", {NAME, f"{NAME}-slow", f"{NAME}-night", f"mcp.{NAME}"}),
    "-Q names theirs": (f"queues=['{NAME}']", {NAME}),
    "-Q names the server's": (f"queues=['{NAME}-slow', 'mcp.{NAME}']", {f"{NAME}-slow", f"mcp.{NAME}"}),
    "-X excludes the server's": (f"exclude_queues='mcp.{NAME},{NAME}'", {f"{NAME}-slow", f"{NAME}-night"}),
}


def python(program: str, store: EmbeddedStoreContainer, **settings: str) -> subprocess.CompletedProcess[str]:
    return run([*forked_command("tests.support.run_text"), program], store=store, **settings)


def celery(*arguments: str, store: EmbeddedStoreContainer, **settings: str) -> subprocess.CompletedProcess[str]:
    return run([*forked_command("celery"), *arguments], store=store, **settings)


def run(argv: Sequence[str], store: EmbeddedStoreContainer, **settings: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "HOST_NAME": NAME,
        "HOST_BROKER": celery_url(store.url),
        "HOST_BACKEND": celery_url(store.url),
        "MCP_CELERY_REDIS_URL": store.url,
        "C_FORCE_ROOT": "1",
        **settings,
    }
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(**variables),
        timeout=COMMAND_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def refusals(store: EmbeddedStoreContainer) -> dict[str, subprocess.CompletedProcess[str]]:
    """How the workers end that cannot run. They are started together, which saves time."""
    with ThreadPoolExecutor(2) as threads:
        started = {
            case: threads.submit(celery, *WORKER, store=store, **settings) for case, (settings, _) in REFUSED.items()
        }
        return {case: one.result() for case, one in started.items()}


@pytest.mark.shows("C9", "C4", "C10")
@pytest.mark.parametrize("case", REFUSED)
def test_a_worker_that_cannot_run_jobs_ends_with_one_line_that_says_why(
    refusals: dict[str, subprocess.CompletedProcess[str]], case: str
) -> None:
    done = refusals[case]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert REFUSED[case][1] in done.stderr.splitlines()[-1]


@pytest.mark.smoke
@pytest.mark.shows("C9")
@pytest.mark.parametrize("case", CONSUMED)
def test_a_worker_consumes_the_servers_queue_unless_an_option_names_others(
    store: EmbeddedStoreContainer, case: str
) -> None:
    arguments, expected = CONSUMED[case]
    code = f"""
import json
from tests.support.host.celery import app
app.Worker({arguments})
consumed = app.amqp.queues.consume_from
print(json.dumps({{name: [queue.exchange.name, queue.queue_arguments] for name, queue in consumed.items()}}))
"""
    done = python(code, store=store)
    assert done.returncode == 0, done.stderr
    consumed = json.loads(done.stdout)
    assert set(consumed) == expected
    if f"mcp.{NAME}" in expected:  # as servers declare it
        assert consumed[f"mcp.{NAME}"] == [f"mcp.{NAME}", {"x-max-priority": 9}]


@pytest.mark.shows("C9")
def test_several_servers_are_run_by_one_app(store: EmbeddedStoreContainer) -> None:
    code = """
import json
from tests.support.host.celery import app
app.Worker()
print(json.dumps([[*app.amqp.queues.consume_from], sorted(app.tasks)]))
"""
    both = f"{HOST}.mcp:server,{HOST}.mcp:other,{HOST}.mcp:server"  # one of them twice
    done = python(code, store=store, HOST_SERVERS=both)
    assert done.returncode == 0, done.stderr
    queues, jobs = json.loads(done.stdout)
    assert {f"mcp.{NAME}", f"mcp.{NAME}-other"} < set(queues)
    assert {f"mcp.{NAME}.tool.add", f"mcp.{NAME}-other.tool.add", "host.conf"} < set(jobs)


@pytest.mark.shows("C9")
@pytest.mark.parametrize("command", [["report"], ["inspect", "registered", "--timeout=0.1"], ["call", "host.conf"]])
def test_commands_that_run_no_job_import_no_server(store: EmbeddedStoreContainer, command: list[str]) -> None:
    done = celery("-A", HOST, *command, store=store, HOST_SERVERS="tests.support.servers.broken:server")
    assert "broken" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.shows("C9")
def test_celery_beat_imports_no_server(store: EmbeddedStoreContainer) -> None:
    code = """
from celery.apps.beat import Beat
from tests.support.host.celery import app
Beat(app=app).init_loader()
assert "host.conf" in app.tasks
"""
    done = python(code, store=store, HOST_SERVERS="tests.support.servers.broken:server")
    assert done.returncode == 0, done.stderr


@pytest.mark.smoke
@pytest.mark.shows("C9")
def test_a_worker_inside_the_tests_of_the_app_runs_jobs_too(store: EmbeddedStoreContainer) -> None:
    """The worker of Celery's own pytest plugin, which ends it cold. Another app of the process is left alone."""
    code = """
import asyncio
import threading
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.worker import state
from mcp_celery import TaskMeta
from mcp_celery.engine import Caller
from mcp_celery.server.task_server import tasks_of
from tests.support.host.mcp import app, server

began = threading.Event()

@server.tool()
async def lasting():
    began.set()
    await asyncio.sleep(60)

async def end_of(submitted):
    async with asyncio.timeout(60):
        return await tasks_of(server).engine().wait(Caller(), submitted.task_id)

async def main():
    async with tasks_of(server).running():
        submitted = await server.call_tool("add", {"a": 2, "b": 3}, task_meta=TaskMeta())
        view = await end_of(submitted)
    assert view.result["structuredContent"] == {"result": 5}, view

async def left():
    async with tasks_of(server).running():
        with start_worker(app, perform_ping_check=False, pool="threads"):
            submitted = await server.call_tool("lasting", {}, task_meta=TaskMeta())
            assert await asyncio.to_thread(began.wait, 60)
        view = await end_of(submitted)
    assert view.record.status == "failed", view

bystander = Celery("bystander", set_as_current=False)
bystander.Worker(quiet=True)
assert not any(name.startswith("mcp.") for name in bystander.tasks)
for pool, warm in [("solo", False), ("threads", False), ("solo", True), ("solo", True)]:
    with start_worker(app, perform_ping_check=False, pool=pool) as worker:
        asyncio.run(main())
        ours = {one.name for one in threading.enumerate() if one.name.startswith("mcp-celery")}
        assert {"mcp-celery-heart", "mcp-celery-loop"} <= ours, ours
        if warm:
            state.should_stop = 0
            worker.blueprint.join()
    state.should_stop = None
    ours = [one.name for one in threading.enumerate() if one.name.startswith("mcp-celery")]
    assert not ours, (pool, warm, ours)
asyncio.run(left())
"""
    done = python(code, store=store, HOST_NAME=f"{NAME}-embedded")
    assert done.returncode == 0, done.stderr
