"""Servers and workers of the release before and of this one work together, with tasks in flight."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import pytest
import redis

from mcp_celery.common.formats import FORMAT, FORMAT_HEADER
from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import answering_url, process, wait_until
from tests.support.nodes import environment, short_folder
from tests.support.programs import ROOT, Running
from tests.support.waiting import eventually
from tests.support.wire import JSON, Wire

pytestmark = pytest.mark.anyio

Release = Literal["0.1.0", "this"]
ELICITS: Final[JSON] = {"elicitation": {}}
WHEELS: Final = ROOT / "tests" / "releases"
SERVER: Final = '''
"""A server that both releases run."""
from pathlib import Path
import anyio
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_celery import TaskConfig, TaskServer
from pydantic import BaseModel

server = TaskServer("releases")


class Name(BaseModel):
    name: str


@server.tool(task=TaskConfig(mode="required", acks_late=True))
async def wait(gate: str) -> dict[str, str]:
    """Wait until a file is there."""
    note = Path(gate + ".started")
    note.write_text(note.read_text() + "x" if note.exists() else "x")
    while not Path(gate).exists():
        await anyio.sleep(0.02)
    return {"opened": gate, "odd": "ünïcode"}


@server.tool(task=TaskConfig(mode="required"))
async def greet(ctx: Context) -> str:
    """Ask for a name."""
    answer = await ctx.elicit("Who is it?", Name)
    assert answer.action == "accept"
    return "Hello " + answer.data.name


@server.tool(task=TaskConfig(mode="required"))
def fail() -> str:
    """Fail with an error of the protocol."""
    raise MCPError(-32602, "no such report", {"year": 1999})


@server.tool(task=TaskConfig(mode="required"))
def nested() -> dict[str, dict[str, int]]:
    """Return values with names that some serializers give a meaning."""
    return {"result": {"__type__": 1, "format": 2}}
'''


@dataclass
class Stage:
    """One store, and programs of both releases on it."""

    folder: Path
    store_url: str
    packages: dict[Release, Path]
    settings: dict[str, str] = field(default_factory=dict[str, str])
    stack: ExitStack = field(default_factory=ExitStack)
    started: int = 0

    def _env(self, release: Release) -> dict[str, str]:
        return environment(
            PYTHONPATH=f"{self.packages[release]}:{self.folder}",
            MCP_CELERY_REDIS_URL=self.store_url,
            MCP_CELERY_SERVER="both:server",
            MCP_CELERY_HEARTBEAT_MS="500",
            MCP_CELERY_POLL_INTERVAL_MS="50",
            **self.settings,
        )

    def _start(self, release: Release, *argv: str) -> tuple[Running, Path]:
        self.started += 1
        log = self.folder / f"{argv[0]}-{release}-{self.started}.log"
        # Another interpreter than the fork server's, which has imported this release.
        command = [sys.executable, "-u", "-m", *argv]
        child = self.stack.enter_context(process(command, self._env(release), log, folder=self.folder))
        return child, log

    def run(self, release: Release, *argv: str) -> list[JSON]:
        """Run a command, and read the lines of JSON that it prints."""
        command = [sys.executable, "-m", *argv]
        done = subprocess.run(command, env=self._env(release), cwd=self.folder, capture_output=True, check=False)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def serve(self, release: Release) -> tuple[str, Running]:
        """Start a server; its URL and its process."""
        child, log = self._start(release, "mcp_celery", "serve", "both:server", "--port", "0")
        return answering_url(log, child), child

    def work(self, release: Release) -> Running:
        """Start a worker."""
        child, log = self._start(release, "celery", "-A", "mcp_celery", "worker", "-l", "INFO", "-c", "4")
        wait_until(lambda: " ready." in log.read_text() or child.poll() is not None, "the worker is ready")
        assert child.poll() is None, log.read_text()
        return child


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[Release, Path]:
    """Where the package of each release is."""
    folder = tmp_path_factory.mktemp("release")
    (wheel,) = WHEELS.glob("*-0.1.0-*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return {"0.1.0": folder, "this": ROOT}


@contextmanager
def a_stage(packages: dict[Release, Path]) -> Generator[Stage]:
    with short_folder() as folder, EmbeddedStore.open(folder / "store") as store:
        (folder / "both.py").write_text(SERVER)
        stage = Stage(folder, store.url, packages)
        with stage.stack:
            yield stage


@pytest.fixture
def stage(packages: dict[Release, Path]) -> Generator[Stage]:
    with a_stage(packages) as stage:
        yield stage


def started_of(gate: Path) -> int:
    """How many jobs that wait for a gate have started."""
    note = Path(f"{gate}.started")
    return len(note.read_text()) if note.exists() else 0


async def ended(wire: Wire, task: JSON) -> JSON:
    """The task when it has ended."""

    async def is_over() -> JSON | None:
        seen = await wire.get(task["taskId"])
        return seen if seen["status"] in ("completed", "failed", "cancelled") else None

    return cast(JSON, await eventually(is_over, what="the task ends"))


async def asked(wire: Wire, task: JSON) -> JSON:
    """The task when it waits for an answer."""

    async def is_asked() -> JSON | None:
        seen = await wire.get(task["taskId"])
        return seen if seen["status"] == "input_required" else None

    return cast(JSON, await eventually(is_asked, what="the task asks"))


@pytest.mark.smoke
@pytest.mark.parametrize(("server", "worker"), [("0.1.0", "this"), ("this", "0.1.0")])
async def test_a_worker_runs_what_a_server_of_the_other_release_created(
    stage: Stage, server: Release, worker: Release
) -> None:
    url, _ = stage.serve(server)
    gate = stage.folder / "gate"
    async with Wire(url, capabilities=ELICITS) as wire:
        waits, greets, fails, nests, dropped = [
            await wire.create("wait", gate=str(gate)),
            await wire.create("greet"),
            await wire.create("fail"),
            await wire.create("nested"),
            await wire.create("wait", gate=str(stage.folder / "never")),
        ]
        assert (await wire.ask("tasks/cancel", {"taskId": dropped["taskId"]})).message.get("result") is not None
        stage.work(worker)
        question = next(iter((await asked(wire, greets))["inputRequests"]))
        await wire.update(greets["taskId"], {question: {"action": "accept", "content": {"name": "Ada"}}})
        gate.touch()
        assert (await ended(wire, waits))["result"]["structuredContent"] == {"opened": str(gate), "odd": "ünïcode"}
        assert (await ended(wire, greets))["result"]["content"][0]["text"] == "Hello Ada"
        failed = await ended(wire, fails)
        assert (failed["error"]["code"], failed["error"]["data"]) == (-32602, {"year": 1999})
        assert (await ended(wire, nests))["result"]["structuredContent"]["result"] == {"__type__": 1, "format": 2}
        assert (await wire.get(dropped["taskId"]))["status"] == "cancelled"
        assert started_of(stage.folder / "never") == 0


async def test_tasks_in_flight_outlive_the_upgrade_of_every_process(stage: Stage) -> None:
    url, server = stage.serve("0.1.0")
    worker = stage.work("0.1.0")
    gate = stage.folder / "gate"
    async with Wire(url) as wire:
        running = await wire.create("wait", gate=str(gate))
        await eventually(lambda: started_of(gate), what="the job starts")
        done = await wire.create("nested")
        await ended(wire, done)
        worker.kill()
        worker.wait()  # else it may take the next job from the queue while it dies
        waiting = await wire.create("nested")
        server.kill()
    url, _ = stage.serve("this")
    stage.work("this")
    async with Wire(url) as wire:
        assert (await wire.get(done["taskId"]))["status"] == "completed"
        assert (await ended(wire, waiting))["result"]["structuredContent"]["result"] == {"__type__": 1, "format": 2}
        gate.touch()
        # The worker that had it has died, and the tool may be repeated.
        assert (await ended(wire, running))["result"]["structuredContent"]["opened"] == str(gate)
        assert started_of(gate) == 2


async def test_a_job_that_a_later_release_published_fails_with_both_formats(stage: Stage) -> None:
    url, _ = stage.serve("this")
    async with Wire(url) as wire:
        task = await wire.create("nested")
        queued: Any = redis.Redis.from_url(stage.store_url)
        message = json.loads(queued.lpop("mcp.releases"))
        assert message["headers"][FORMAT_HEADER] == FORMAT
        message["headers"][FORMAT_HEADER] = 99
        queued.rpush("mcp.releases", json.dumps(message))
        queued.close()
        stage.work("this")
        failed = await ended(wire, task)
        assert (failed["status"], failed["error"]["code"]) == ("failed", -32603)
        assert "later release" in failed["error"]["message"]
    reason = f"the job's message has format 99; this release reads formats up to {FORMAT}: upgrade it"
    (log,) = stage.folder.glob("celery-*.log")
    # The worker's main process logs the failure after a process of the pool has stored it.
    await eventually(lambda: reason in log.read_text(), what="the worker logs both formats")


def test_the_doctor_names_a_worker_of_the_release_before(stage: Stage) -> None:
    stage.work("0.1.0")
    found = stage.run("this", "mcp_celery", "doctor", "both:server", "--json")
    (named,) = [one for one in found if "is of an earlier release" in one["text"]]
    assert (named["area"], named["level"]) == ("workers", "warning")
    assert named["setting"] == "the release of mcp-celery-backend there"


async def test_with_keys_workers_are_upgraded_first_and_then_servers(stage: Stage) -> None:
    """As docs/upgrades.md says it, with MCP_CELERY_ACCEPT_UNSEALED as long as tasks of the release before are open."""
    stage.settings |= {
        "MCP_CELERY_ENCRYPTION_KEYS": "a-key-for-tests-that-has-more-than-32-bytes",
        "MCP_CELERY_ACCEPT_UNSEALED": "true",
    }
    url, server = stage.serve("0.1.0")
    gate = stage.folder / "gate"
    async with Wire(url, capabilities=ELICITS) as wire:
        waits, greets, fails, nests = [
            await wire.create("wait", gate=str(gate)),
            await wire.create("greet"),
            await wire.create("fail"),
            await wire.create("nested"),
        ]
        stage.work("this")
        question = next(iter((await asked(wire, greets))["inputRequests"]))
        await wire.update(greets["taskId"], {question: {"action": "accept", "content": {"name": "Ada"}}})
        assert (await ended(wire, greets))["result"]["content"][0]["text"] == "Hello Ada"
        failed = await ended(wire, fails)
        assert (failed["error"]["code"], failed["error"]["data"]) == (-32602, {"year": 1999})
        assert (await ended(wire, nests))["result"]["structuredContent"]["result"] == {"__type__": 1, "format": 2}
        server.kill()
    url, _ = stage.serve("this")
    async with Wire(url, capabilities=ELICITS) as wire:
        assert (await wire.get(nests["taskId"]))["status"] == "completed"
        assert (await wire.get(fails["taskId"]))["error"]["data"] == {"year": 1999}
        gate.touch()
        assert (await ended(wire, waits))["result"]["structuredContent"]["opened"] == str(gate)
        assert (await ended(wire, await wire.create("nested")))["status"] == "completed"
