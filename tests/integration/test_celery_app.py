"""The app that ``celery -A mcp_celery`` finds: whom it refuses, what it consumes, and that it keeps to itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_celery import Settings
from mcp_celery.settings import ENV_PREFIX
from tests.support.nodes import ROOT, EmbeddedStoreContainer, WorkerNode, environment
from tests.support.programs import forked_command

COMMAND_SECONDS = 180.0
WORKER = ["worker", "--pool=threads", "--concurrency=1", "--without-mingle", "--without-gossip"]

REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no server": ({}, "set MCP_CELERY_SERVER=module:attribute"),
    "a module that does not import": (
        {"SERVER": "tests.support.servers.broken:server"},
        "cannot import 'tests.support.servers.broken': RuntimeError: this module is broken on purpose",
    ),
    "an attribute that is not there": ({"SERVER": "tests.support.servers.tools:nobody"}, "has no attribute 'nobody'"),
    "a server without task tools": (
        {"SERVER": "tests.support.servers.no_tasks:server"},
        "runs as a task; declare a tool with task=True",
    ),
    "a server with an app of its own": (
        {"SERVER": "tests.support.servers.own_app:server"},
        "uses a Celery app of its own",
    ),
    "accept_content without json": (
        {"SERVER": "tests.support.servers.refuses_json:server"},
        "accept_content lacks 'json'",
    ),
    "a setting that is refused": (
        {"SERVER": "tests.support.servers.tools:server", "MAX_TTL_MS": "-1"},
        "MCP_CELERY_MAX_TTL_MS",
    ),
}


def celery_command(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*forked_command("celery"), "-A", "mcp_celery", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(**{ENV_PREFIX + name: value for name, value in settings.items()}),
    )


@pytest.fixture(scope="module")
def refusals(store: EmbeddedStoreContainer) -> dict[str, tuple[int, str]]:
    """How the workers that cannot run end: exit status and output. They are started together, which saves time."""
    started = {
        case: celery_command(*WORKER, REDIS_URL=store.url, **settings) for case, (settings, _) in REFUSED.items()
    }
    found: dict[str, tuple[int, str]] = {}
    for case, command in started.items():
        with command:
            try:
                output, _ = command.communicate(timeout=COMMAND_SECONDS)
            finally:
                command.kill()
        found[case] = (command.returncode, output)
    return found


def own_lines(output: str) -> list[str]:
    """What was said, without Celery's warning to those who run it as root."""
    _, mark, rest = output.rpartition("_warn_or_raise_security_error(egid, euid, gid, uid,")
    return [line for line in (rest if mark else output).splitlines() if line.strip()]


@pytest.mark.shows("C10", "C4")
@pytest.mark.parametrize("case", REFUSED)
def test_a_worker_that_cannot_run_jobs_ends_with_one_line_that_says_why(
    refusals: dict[str, tuple[int, str]], case: str
) -> None:
    status, output = refusals[case]
    assert status not in (0, -9), output
    assert "Traceback" not in output
    [line] = own_lines(output)
    assert REFUSED[case][1] in line


@pytest.mark.shows("C10")
def test_inspect_registered_needs_no_server_and_shows_every_component(worker: WorkerNode, settings: Settings) -> None:
    command = celery_command("inspect", "registered", "--json", REDIS_URL=settings.redis_url)
    output, _ = command.communicate(timeout=COMMAND_SECONDS)
    assert command.returncode == 0, output
    registered: list[str] = json.loads(output[output.index("{") :])[worker.hostname()]
    ours = [name for name in registered if name.startswith("mcp.")]
    assert f"mcp.{settings.namespace}.tool.add" in ours
    assert all(name.startswith(f"mcp.{settings.namespace}.tool.") for name in ours)


@pytest.mark.smoke
def test_a_worker_consumes_the_servers_queue_and_no_other(
    worker: WorkerNode, celery_setup_app: Any, settings: Settings
) -> None:
    queues = celery_setup_app.control.inspect([worker.hostname()]).active_queues()[worker.hostname()]
    assert [queue["name"] for queue in queues] == [f"mcp.{settings.namespace}"]


@pytest.mark.smoke
def test_importing_the_package_does_not_change_the_current_app(tmp_path: Path) -> None:
    code = """
import celery
from celery import Celery
host = Celery('host')
import mcp_celery.celery
assert celery.current_app._get_current_object() is host, celery.current_app
@celery.shared_task(name="theirs")
def theirs(): ...
host.finalize()
mcp_celery.celery.app.finalize()
assert "theirs" in host.tasks
assert not any(name.startswith("mcp.") for name in host.tasks)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
