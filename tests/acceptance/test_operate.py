"""`mcp-celery tasks` and `workers`, and the same under `celery -A proj mcp`, on real deployments."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.deployment import Deployment, deployed
from tests.support.programs import ROOT, forked_command
from tests.support.terminal import at_a_terminal
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

GIVE_UP_SECONDS = 180.0
ALL_BUSY: Final = 2
"""Slots of the worker."""
HOSTED: Final = "tests.support.servers.deploys_hosted"
"""An app of somebody else's, in which a server is installed."""


class Operator:
    """Types commands beside a deployment."""

    def __init__(self, deployment: Deployment, *, module: str = "mcp_celery", before: tuple[str, ...] = ()) -> None:
        self.deployment = deployment
        self.command = [*forked_command(module), *before]

    def __call__(self, *arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        settings = {"COLUMNS": "80", **variables}
        return subprocess.run(
            [*self.command, *arguments],
            input=typed,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
            cwd=ROOT,
            env=self.deployment.env(**settings),
            check=False,
        )

    def lines(self, *arguments: str, **variables: str) -> list[dict[str, Any]]:
        """What a command prints with ``--json``."""
        done = self(*arguments, "--json", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def show(self, task_id: str, *arguments: str) -> dict[str, Any]:
        return self.lines("tasks", "show", task_id, *arguments)[0]


async def message_of(wire: Wire, task_id: str) -> str | None:
    """What a client is told of a task."""
    return (await wire.get(task_id)).get("statusMessage")


async def _is(found: Awaitable[str | None], wanted: str) -> bool:
    return await found == wanted


@pytest.fixture(scope="module")
def deployment(store_url: str) -> Iterator[Deployment]:
    """A worker with two slots."""
    settings = {"MCP_CELERY_HEARTBEAT_MS": "500"}
    name = f"operate-{os.urandom(3).hex()}"
    with deployed(store_url, name, quiet=True, settings=settings) as found, found.worker("threads", ALL_BUSY):
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve()


@pytest.fixture(scope="module")
def guarded(deployment: Deployment) -> str:
    return deployment.serve("guarded")


@pytest.fixture
def operator(deployment: Deployment) -> Operator:
    return Operator(deployment)


async def test_a_list_that_is_watched_shows_a_new_task_and_ends(operator: Operator, url: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    command = [*operator.command, "tasks", "list", "--watch"]
    env = operator.deployment.env(TERM="xterm")
    async with Wire(url) as wire:
        with at_a_terminal(command, folder=ROOT, env=env, columns=80, rows=24) as terminal:
            await asyncio.to_thread(terminal.until, "component")
            task_id = (await wire.create("wait_for_file", path=str(gate)))["taskId"]
            await asyncio.to_thread(terminal.until, task_id[:8])
            assert [row for row in terminal.rows if "wait_for_file" in row]
            terminal.interrupt()
            assert await asyncio.to_thread(terminal.end) == 0
            assert "Traceback" not in terminal.text
        gate.touch()
        assert (await soon(follow(wire, task_id)))[-1]["status"] == "completed"


async def test_an_operator_lists_shows_and_cancels_tasks(  # noqa: PLR0915 - one deployment, which takes long to start
    operator: Operator, url: str, guarded: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with Wire(url) as wire, Wire(guarded, token="alice") as alice:
        running = [(await wire.create("wait_for_file", path=str(gate)))["taskId"] for _ in range(ALL_BUSY)]
        await eventually(lambda: len(operator.lines("tasks", "list", "--status", "running")) == ALL_BUSY)
        queued = [(await alice.create("slow_compute", label=f"secret-{number}"))["taskId"] for number in range(2)]

        # The client is told, too.
        await eventually(lambda: _is(message_of(alice, queued[1]), "Queued, 1 ahead"))

        # The list, and the ids that it prints.
        rows = {row["component"]: row for row in operator.lines("tasks", "list")}
        assert rows.keys() == {"wait_for_file", "slow_compute"}
        assert rows["wait_for_file"]["worker"].startswith(operator.deployment.namespace)
        assert rows["slow_compute"]["scope"] == "app|alice"
        table = operator("tasks", "list").stdout
        assert max(map(len, table.splitlines())) <= 80
        assert queued[0][:8] in table
        for hidden in (running[0], "secret-"):
            assert hidden not in table + json.dumps([*rows.values()])
        assert operator.lines("tasks", "list", "--scope", "app|alice", "--older-than", "1h") == []
        (own,) = operator.lines("tasks", "list", "--scope", "app|alice", "--limit", "1", "--full-ids")
        assert own["task"] == queued[1]
        whole = operator("tasks", "list", "--full-ids").stdout
        assert all(task_id in whole for task_id in (*queued, *running))

        # One task, by whatever names it.
        told = operator.show(queued[1])
        assert told["waitsFor"]["reason"] == "busy"
        assert "all 2 are busy, and 1 job is ahead of it" in told["waitsFor"]["text"]
        assert "secret" not in json.dumps(told)
        assert operator.show(queued[1], "--show-arguments")["arguments"]["arguments"] == {"label": "secret-1"}
        assert "It waits for its job, which runs on" in operator("tasks", "show", running[0][:8]).stdout
        (worker,) = operator.lines("workers")
        assert (worker["state"], worker["pool"], worker["slots"], worker["active"]) == ("ok", "threads", 2, 2)
        assert worker["queues"] == [f"mcp.{operator.deployment.namespace}"]
        assert worker["oldestJobMs"] > 0
        assert "tool:counting" in [one["component"] for one in worker["components"]]

        # A cancel reaches the client, and its job never runs.
        done = operator("tasks", "cancel", queued[0][:10])
        assert done.returncode == 0, done.stderr
        seen = await follow(alice, queued[0])
        assert [(one["status"], one["statusMessage"]) for one in seen] == [("cancelled", "Cancelled by an operator")]
        celery_id = operator.show(queued[0])["celeryIds"][0]
        for name in (queued[0][:8], f"{queued[0][:8]}…", celery_id, celery_id.replace("~", "%")):
            assert operator.show(name)["celeryIds"] == [celery_id], name
        again = operator("tasks", "cancel", queued[0])
        assert (again.returncode, again.stderr) == (1, f"Error: task {queued[0]} has already ended: cancelled\n")

        # What has started and may have had effects is repeated with --force alone; one of both attempts counts.
        refused = operator("tasks", "requeue", running[0])
        assert refused.returncode == 1
        assert "use --force" in refused.stderr
        forced = operator("tasks", "requeue", running[0], "--force")
        assert (forced.returncode, "its effects may happen twice" in forced.stderr) == (0, True), forced.stderr
        assert (await wire.get(running[0]))["statusMessage"] == (
            "Trying again: an operator put the job back into the queue"
        )
        gate.touch()
        assert [(await follow(wire, one))[-1]["status"] for one in running] == ["completed"] * ALL_BUSY
        assert operator.show(running[0])["attempt"] == 2
        assert (await follow(alice, queued[1]))[-1]["status"] == "completed"

        # Ended tasks go, and no others.
        async with Wire(url, capabilities={"elicitation": {}}) as asked:
            asks = (await asked.create("confirm_delete", filename="x"))["taskId"]
        await eventually(lambda: operator.show(asks)["waitsFor"]["reason"] == "answer")
        refused = operator("tasks", "requeue", asks)
        assert "it waits for an answer of its client" in refused.stderr
        kept = operator("tasks", "purge", "--older-than", "0s", typed="n\n")
        assert (kept.returncode, "Aborted" in kept.stderr) == (1, True)
        assert operator.lines("tasks", "purge", "--older-than", "1h", "--yes") == [{"purged": 0}]
        (purged,) = operator.lines("tasks", "purge", "--older-than", "0s", "--yes")
        assert purged["purged"] >= 4
        assert (await wire.ask("tasks/get", {"taskId": running[0]})).error["code"] == -32602
        assert (await wire.get(asks))["status"] == "input_required"
        assert operator("tasks", "cancel", asks).returncode == 0


@pytest.mark.slow
async def test_a_task_that_no_worker_takes_is_shown_as_such_and_runs_when_it_is_requeued(
    idle_deployment: Deployment,
) -> None:
    operator = Operator(idle_deployment)
    async with Wire(idle_deployment.serve()) as wire:
        task_id = (await wire.create("repeated", text="x", times=1))["taskId"]
        await eventually(lambda: _is(message_of(wire, task_id), "Waiting for a worker"))
        printed = operator("task", "get", wire.url, task_id).stdout
        assert re.fullmatch(rf"Task {task_id}: working: Waiting for a worker \(created \d+s ago\)\n", printed), printed
        told = operator.show(task_id)
        assert told["waitsFor"]["reason"] == "no worker"
        assert f"no live worker consumes the queue 'mcp.{idle_deployment.namespace}'" in told["waitsFor"]["text"]
        command = told["waitsFor"]["command"]
        assert command.endswith(" celery -A mcp_celery worker")
        assert f"Start one: {command}" in operator("tasks", "show", task_id, COLUMNS="400").stdout
        again = operator("tasks", "requeue", task_id).stdout.splitlines()
        assert again[-1].endswith(f": it will wait there. Start one: {command}")
        assert operator("workers").stdout.startswith("No workers")
        assert idle_deployment.redis.delete(f"mcp.{idle_deployment.namespace}") == 1  # as `celery purge`
        assert operator.lines("tasks", "requeue", task_id[:8]) == [{"task": f"{task_id[:8]}…", "attempt": 3}]
        await eventually(lambda: idle_deployment.redis.llen(f"mcp.{idle_deployment.namespace}") == 1)
        with idle_deployment.worker("solo"):
            assert (await follow(wire, task_id))[-1]["status"] == "completed"


@pytest.mark.slow
async def test_a_worker_drains_under_celerys_own_command(store_url: str, tmp_path: Path) -> None:
    """It finishes what it has, takes nothing more, and ends."""
    gate = tmp_path / "gate"
    with deployed(store_url, f"drain-{os.urandom(3).hex()}", quiet=True) as deployment, deployment.worker("threads", 1):
        celery = Operator(deployment, module="celery", before=("-A", "mcp_celery", "mcp"))
        (worker,) = celery.lines("workers")
        async with Wire(deployment.serve()) as wire:
            first = (await wire.create("wait_for_file", path=str(gate)))["taskId"]
            await eventually(Path(f"{gate}.awaited").exists)
            with ThreadPoolExecutor(1) as thread:
                draining = thread.submit(celery, "workers", "drain", worker["worker"])
                await eventually(lambda: celery.lines("workers")[0]["queues"] == [])
                second = (await wire.create("slow_compute"))["taskId"]
                gate.touch()
                drained = await asyncio.to_thread(draining.result)
            assert (drained.returncode, "has finished 1 job" in drained.stdout) == (0, True), drained.stderr
            assert (await follow(wire, first))[-1]["status"] == "completed"
            await eventually(lambda: celery.lines("workers") == [])
            assert celery.show(second)["waitsFor"]["reason"] == "no worker"
            gone = celery("workers", "drain", worker["worker"])
            assert gone.returncode == 1
            assert "does not answer, so it was not asked" in " ".join(gone.stderr.split())
            assert "Asked worker" not in gone.stderr
            assert celery("tasks", "cancel", second).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["signal", "remote control"])
async def test_a_worker_that_waits_for_its_last_job_is_listed_as_ending(
    store_url: str, tmp_path: Path, way: str
) -> None:
    gate = tmp_path / "gate"
    with (
        deployed(store_url, f"ending-{os.urandom(3).hex()}", quiet=True) as deployment,
        deployment.worker("threads", 1),
    ):
        operator, celery = Operator(deployment), Operator(deployment, module="celery", before=("-A", "mcp_celery"))
        async with Wire(deployment.serve()) as wire:
            task_id = (await wire.create("wait_for_file", path=str(gate)))["taskId"]
            await eventually(Path(f"{gate}.awaited").exists)
            node = operator.lines("workers")[0]["worker"]  # other workers listen to the same broker
            stats = json.loads(celery("inspect", "stats", "--destination", node, "--json").stdout)[node]
            if way == "signal":
                os.kill(stats["pid"], signal.SIGTERM)
            else:
                celery("control", "shutdown", "--destination", node)
            await eventually(lambda: operator.lines("workers")[0]["state"] == "ending", seconds=60)
            gate.touch()
            assert (await follow(wire, task_id))[-1]["status"] == "completed"


@pytest.mark.slow
async def test_a_worker_of_another_celery_app_drains(store_url: str, tmp_path: Path) -> None:
    """The servers are those that are installed in the app of ``celery -A``."""
    settings = {"TEST_DEPLOYS_VERSION": "old"}
    name = f"hosted-{os.urandom(3).hex()}"
    with (
        deployed(store_url, name, quiet=True, spec=f"{HOSTED}:server", settings=settings, app=HOSTED) as deployment,
        deployment.worker("threads", 1),
    ):
        celery = Operator(deployment, module="celery", before=("-A", HOSTED, "mcp"))
        (worker,) = celery.lines("workers")
        assert (worker["servers"], worker["state"]) == ([name], "ok")
        assert [one["level"] for one in celery.lines("doctor") if one["level"] != "ok"] == []
        async with Wire(deployment.serve()) as wire:
            task_id = (await wire.create("hold", gate=str(tmp_path)))["taskId"]
            await eventually(lambda: celery.show(task_id[:8])["waitsFor"]["reason"] == "running")
            with ThreadPoolExecutor(1) as thread:
                draining = thread.submit(celery, "workers", "drain", worker["worker"])
                await eventually(lambda: celery.lines("workers")[0]["queues"] == [])
                (tmp_path / "opened").touch()
                drained = await asyncio.to_thread(draining.result)
            assert drained.returncode == 0, drained.stderr
            assert (await follow(wire, task_id))[-1]["status"] == "completed"
