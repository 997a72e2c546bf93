"""Somebody's own Celery app, its worker started by its own command, with every setting that could be in our way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcp_celery.common.redis_translation import celery_url
from tests.support.brokers import delete_queues
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import ROOT, EmbeddedStoreContainer
from tests.support.programs import forked_command
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

APP = "tests.support.host"
SERVER = f"{APP}.mcp:server"
COMMAND_SECONDS = 120.0
JOB_SECONDS = 120.0
ASYNCIO = {"CELERY_CUSTOM_WORKER_POOL": "mcp_celery.asyncio_pool.pool:TaskPool"}
FLAGS = {"asyncio": ("--pool", "custom"), "prefork": ("--pool", "prefork")}


@dataclass
class Project:
    """A deployment of theirs."""

    name: str
    deployment: Deployment
    url: str

    def ask(self, what: str, **settings: str) -> Any:
        """What a process of the project says. One without servers of ours has imported nothing of ours."""
        command = [sys.executable, "-m", APP] if what == "plain" else forked_command(APP)
        done = subprocess.run(
            [*command, what],
            env=self.deployment.env(**settings),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def variables(name: str, broker: str, backend: str) -> dict[str, str]:
    return {
        "HOST_NAME": name,
        "HOST_BROKER": broker,
        "HOST_BACKEND": backend,
        "MCP_CELERY_NAMESPACE": "",  # the servers' names are theirs
        "MCP_CELERY_KEY_PREFIX": f"mcp_celery:{name}",
        "C_FORCE_ROOT": "1",  # Celery lets nobody who may do everything read pickles
        **ASYNCIO,
    }


@pytest.fixture(scope="module", params=["prefork-rabbitmq", "threads-redis", "solo-rabbitmq", "asyncio-redis"])
def project(request: pytest.FixtureRequest, store: EmbeddedStoreContainer) -> Generator[Project]:
    pool, _, broker = str(request.param).partition("-")
    name = f"host-{pool}-{os.urandom(2).hex()}"
    url = request.getfixturevalue("rabbitmq_url") if broker == "rabbitmq" else celery_url(store.url)
    settings = variables(name, url, celery_url(store.url))
    with ExitStack() as stack:
        if broker == "rabbitmq":
            queues = (name, f"{name}-slow", f"{name}-night", f"mcp.{name}")
            stack.callback(delete_queues, url, *queues)
        deployment = stack.enter_context(deployed(store.url, name, spec=SERVER, settings=settings, app=APP))
        stack.enter_context(deployment.worker(pool, concurrency=1, flags=FLAGS.get(pool, ())))
        yield Project(name, deployment, deployment.serve())


@pytest.fixture
async def wire(project: Project) -> AsyncGenerator[Wire]:
    async with Wire(project.url) as connected:
        yield connected


async def ended(wire: Wire, tool: str, **arguments: Any) -> dict[str, Any]:
    """How a task ends."""
    task_id = (await wire.create(tool, **arguments))["taskId"]
    return (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]


@pytest.mark.smoke
@pytest.mark.shows("C9")
async def test_a_tool_runs_in_their_worker(wire: Wire) -> None:
    seen = await follow(wire, (await wire.create("add", a=2, b=3))["taskId"])
    assert seen[-1]["result"]["structuredContent"] == {"result": 5}
    assert seen[-1]["statusMessage"] == "added (1/1)"


@pytest.mark.shows("C9")
@pytest.mark.parametrize("tool", ["whereabouts", "routed", "expiring"])
async def test_a_job_finds_its_queue_and_is_run_in_time(wire: Wire, tool: str) -> None:
    where = (await ended(wire, tool))["result"]["structuredContent"]
    assert where["job"].endswith(f":tool:{tool}")
    assert int(where["process"]) != os.getpid()


@pytest.mark.shows("C9")
async def test_a_job_is_tried_again_in_json(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "tries"
    assert (await ended(wire, "fails_at_first", path=str(path)))["result"]["structuredContent"] == {"result": "at last"}
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.shows("C9")
async def test_errors_are_returned_as_they_were_raised(wire: Wire) -> None:
    failed = await ended(wire, "refuse")
    assert (failed["status"], failed["error"]["code"]) == ("failed", -32050)
    complained = await ended(wire, "complain")
    assert (complained["status"], complained["result"]["isError"]) == ("completed", True)


@pytest.mark.shows("C9")
async def test_a_job_creates_a_task_of_its_own(wire: Wire) -> None:
    task_id = (await ended(wire, "delegating"))["result"]["structuredContent"]["task"]
    assert (await follow(wire, task_id))[-1]["result"]["structuredContent"] == {"result": 42}


@pytest.mark.shows("C9")
async def test_a_running_job_is_cancelled(project: Project, wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "gate"
    task_id = (await wire.create("hold", path=str(path)))["taskId"]
    await eventually(lambda: Path(f"{path}.held").exists(), what="the job has begun")
    await wire.ask("tasks/cancel", {"taskId": task_id})
    assert (await wire.get(task_id))["status"] == "cancelled"
    await eventually(lambda: Path(f"{path}.cancelled").exists(), what="the tool is cancelled")
    path.touch()
    assert (await ended(wire, "add", a=1, b=1))["status"] == "completed"


@pytest.mark.smoke
@pytest.mark.shows("C9")
async def test_no_setting_of_theirs_is_changed(project: Project, wire: Wire) -> None:
    """Neither in the worker, which has run our jobs, nor in a process that serves."""
    await ended(wire, "add", a=1, b=1)
    before = project.ask("plain", HOST_SERVERS="")
    assert project.ask("serve") == before
    in_worker = project.ask("conf")
    differing = {name for name in before.keys() | in_worker.keys() if before.get(name) != in_worker.get(name)}
    assert in_worker["task_default_queue"] == repr(project.name)
    # Their own handler, and what Celery notes of its modules and of the command line.
    assert {name.removeprefix("changes.") for name in differing} <= {
        "task_queues",
        "include",
        "worker_disable_prefetch",
    }
    assert "mcp" not in in_worker["include"] + in_worker["task_queues"]


@pytest.mark.shows("C9")
async def test_their_own_signal_handlers_see_our_jobs(project: Project, wire: Wire) -> None:
    await ended(wire, "add", a=1, b=1)
    assert f"mcp.{project.name}.tool.add" in project.ask("seen")
