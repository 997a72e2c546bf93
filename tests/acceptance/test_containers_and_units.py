"""The deployments of config/: each of their command lines and probes runs as a process, and serves."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx2
import pytest

from mcp_celery.embedded import find_store_binary
from tests.support.containers_and_units import CONFIG, Program, compose, image_files, kubernetes, systemd
from tests.support.deployment import process
from tests.support.leaks import eternal_keys
from tests.support.locks import reserve_port
from tests.support.nodes import short_folder
from tests.support.programs import ROOT, Running
from tests.support.waiting import eventually, eventually_sync, soon
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio

PASSWORD: Final = "a-password-of-the-store"
LOGIN: Final = ("operator", "a-password-of-flower")
COMPOSE_ENV: Final = {
    "VALKEY_PASSWORD": PASSWORD,
    "FLOWER_BASIC_AUTH": ":".join(LOGIN),
    "MCP_CELERY_SERVER": "reports:server",
}
ENCRYPTION_KEY: Final = "a-key-for-tests-that-has-more-than-32-bytes"
NO_RESTART: Final = (0, -signal.SIGTERM)
"""How a program ends that was told to: nothing starts it again."""
SERVER: Final = '''
"""A server of somebody's own, as it is copied into the image."""
from pathlib import Path
from typing import Any
import anyio
from mcp_celery import TaskServer

server = TaskServer("NAME", task=True)


@server.tool()
async def report(ARGUMENTS) -> dict[str, Any]:
    """Build a report. Its arguments differ between versions."""
    return {"version": "VERSION", "year": year}


@server.tool()
async def hold(gate: str) -> dict[str, Any]:
    """Wait until a file is there. The same in all versions."""
    Path(gate + ".reached").touch()
    while not Path(gate).exists():
        await anyio.sleep(0.02)
    return {"version": "VERSION"}
'''
ARGUMENTS: Final = {"1": "year: int", "2": 'year: int, style: str = "plain"'}


def status_of(url: str) -> int | None:
    """The HTTP status of a GET request; None where nothing answers."""
    with suppress(OSError):
        try:
            with urlopen(url, timeout=5) as response:
                return response.status
        except HTTPError as error:
            error.close()
            return error.code
    return None


@dataclass
class Started:
    """A program that runs."""

    program: Program
    running: Running
    log: Path
    ports: Mapping[str, str]
    env: Mapping[str, str]
    folder: Path

    def is_up(self) -> bool:
        """Whether it says that it serves."""
        assert self.running.poll() is None, self.log.read_text()
        return re.search(r"(?i) ready\.|answers at |Visit me at ", self.log.read_text()) is not None

    async def is_healthy(self) -> bool:
        """Whether each of its probes succeeds."""
        return all([await asyncio.to_thread(self._probe, one.argv, one.url) for one in self.program.probes])

    def _probe(self, argv: tuple[str, ...], url: str) -> bool:
        if url:
            return status_of(url) == 200
        return subprocess.run(argv, check=False, env=self.env, cwd=self.folder, capture_output=True).returncode == 0

    async def ready(self) -> None:
        """Wait until it says that it serves, and its probes succeed."""
        await eventually(self.is_up, what=f"{' '.join(self.program.argv[:4])} says that it serves")
        await eventually(self.is_healthy, what=f"the probes of {' '.join(self.program.argv[:4])}")

    async def ends(self) -> int:
        """Tell it to end as each of the deployments does. Returns its exit status."""
        self.running.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        return await asyncio.to_thread(self.running.wait, 60)

    async def is_scraped(self) -> None:
        """Check that Prometheus gets metrics where its configuration looks for them, unless they are off."""
        for setting, port in (("MCP_CELERY_HEALTH_PORT", "8001"), ("MCP_CELERY_WORKER_HEALTH_PORT", "8002")):
            if setting in self.program.env and "MCP_CELERY_TELEMETRY" in self.program.env:
                async with httpx2.AsyncClient() as http:
                    response = await http.get(f"http://127.0.0.1:{self.ports[port]}/metrics")
                assert "mcp_celery_tasks_" in response.text, response.text

    @property
    def url(self) -> str:
        """Where MCP clients reach it."""
        return f"http://127.0.0.1:{self.ports['8000']}/mcp"


@dataclass
class Site:
    """Machines to deploy to: folders, the ports that are taken, and the store."""

    folder: Path
    stack: ExitStack
    store: str = ""
    port_of_store: str = field(default_factory=lambda: str(reserve_port()))
    started: int = 0

    def image(self, name: str, version: str = "1") -> Path:
        """What the image of a server has in its working directory."""
        folder = self.folder / f"{name}-{version}"
        if not folder.exists():
            folder.mkdir()
            for source, target in image_files():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            text = SERVER.replace("NAME", name).replace("VERSION", version).replace("ARGUMENTS", ARGUMENTS[version])
            (folder / "reports.py").write_text(text)
        return folder

    def start(self, program: Program, image: Path, **settings: str) -> Started:
        """Start a program as its deployment does, at ports and with folders of this machine."""
        ports = {port: str(reserve_port()) for port in ("8000", "8001", "8002", "5555")}
        changes = {rf"\b{port}\b": found for port, found in ports.items()}
        changes |= {
            r"\b(store|valkey):6379\b": f"127.0.0.1:{self.port_of_store}",
            r"^/run/secrets/mcp-celery": str(self.folder / "secrets"),
            r"^/srv/mcp-celery/\.venv/bin/": "",
            r"^/etc/valkey": str(self.folder / "valkey"),
            r"^/data$": str(self.folder),
            r"^6379$": self.port_of_store,
        }
        placed = program.placed(changes, **settings)
        foreign = ("MCP_CELERY_", "CELERY_", "FLOWER_", "PYTHON")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), inherited["PATH"]])
        env = {**inherited, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **placed.env}
        self.started += 1
        log = self.folder / f"{self.started}-{placed.argv[-1].replace('/', '-')}.log"
        running = self.stack.enter_context(process([*placed.argv], env, log, folder=image))
        return Started(placed, running, log, ports, env, image)


@pytest.fixture(scope="module")
def site() -> Generator[Site]:
    """A site with the store that compose.yaml starts."""
    with short_folder() as folder, ExitStack() as stack:
        site = Site(folder, stack)
        for name in ("bin", "secrets", "valkey"):
            (folder / name).mkdir()
        (folder / "bin" / "valkey-server").symlink_to(find_store_binary())
        client = shutil.which("valkey-cli") or shutil.which("redis-cli")
        if client is not None:
            (folder / "bin" / "valkey-cli").symlink_to(client)
        (folder / "secrets" / "redis-password").write_text(PASSWORD)
        config = (CONFIG / "redis.conf").read_text()
        (folder / "valkey" / "valkey.conf").write_text(config.replace("port 6379", f"port {site.port_of_store}"))
        site.store = f"redis://:{PASSWORD}@127.0.0.1:{site.port_of_store}/0"
        store = site.start(compose(COMPOSE_ENV)["store"], folder)
        if client is not None:
            eventually_sync(lambda: asyncio.run(store.is_healthy()), what="the health check of the store")
        yield site


@pytest.fixture(autouse=True)
def every_key_of_the_site_has_a_lifetime(site: Site) -> Generator[None]:
    yield
    assert eternal_keys(site.store) == []


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


async def said(wire: Wire, task: JSON) -> JSON:
    """What a task's tool returns."""
    last = await wire.get(task["taskId"])
    if last["status"] == "working":
        last = (await soon(follow(wire, task["taskId"])))[-1]
    assert last["status"] == "completed", last
    return last["result"]["structuredContent"]


async def shows_jobs_to_who_has_the_password(flower: Started) -> None:
    page = f"http://127.0.0.1:{flower.ports['5555']}/api/workers"
    async with httpx2.AsyncClient() as http:
        assert (await http.get(page)).status_code == 401
        response = await http.get(page, auth=LOGIN)
    assert response.status_code == 200
    assert isinstance(response.json(), dict)


async def finds_no_error(web: Started) -> None:
    """Have the doctor check the deployment where its server runs."""
    doctor = await asyncio.create_subprocess_exec(
        *("mcp-celery", "doctor"), cwd=web.folder, env=web.env, stdout=asyncio.subprocess.PIPE
    )
    found, _ = await doctor.communicate()
    print(found.decode())  # noqa: T201
    assert doctor.returncode == 0, found.decode()


async def serve(
    site: Site, programs: Mapping[str, Program], image: Path, *, doctor: bool = False, **settings: str
) -> None:
    """Start web, worker and Flower; run a task; have the doctor look, where that is asked; end all three."""
    before = contents(image)
    started = {
        name: site.start(programs[name], image, MCP_CELERY_DRAIN_SECONDS="0.1", **settings)
        for name in ("web", "worker", "flower")
    }
    await asyncio.gather(*(one.ready() for one in started.values()))
    async with Wire(started["web"].url) as wire:
        assert await said(wire, await wire.create("report", year=2026)) == {"version": "1", "year": 2026}
    await asyncio.gather(
        shows_jobs_to_who_has_the_password(started["flower"]),
        started["web"].is_scraped(),
        started["worker"].is_scraped(),
        *([finds_no_error(started["web"])] if doctor else []),
    )
    statuses = dict(zip(started, await asyncio.gather(*(one.ends() for one in started.values())), strict=True))
    logs = "\n".join(f"{name}: {one.log.read_text()}" for name, one in started.items())
    assert set(statuses.values()) <= set(NO_RESTART), f"{statuses}\n{logs}"
    assert contents(image) == before, "with a read-only file system it would fail"


@pytest.mark.slow
async def test_the_services_of_compose_serve(site: Site) -> None:
    await serve(site, compose(COMPOSE_ENV), site.image("compose"))


@pytest.mark.slow
async def test_the_services_of_compose_serve_with_rabbitmq(site: Site, rabbitmq_url: str) -> None:
    programs = compose({**COMPOSE_ENV, "RABBITMQ_PASSWORD": "unused"}, "compose.rabbitmq.yaml")
    assert all(programs[name].env["MCP_CELERY_BROKER_URL"] for name in ("web", "worker", "flower"))
    await serve(site, programs, site.image("compose-rabbitmq"), MCP_CELERY_BROKER_URL=rabbitmq_url)


@pytest.mark.slow
async def test_the_units_of_systemd_serve(site: Site) -> None:
    settings = {
        "MCP_CELERY_SERVER": "reports:server",
        "CELERY_CONFIG_MODULE": "config.celeryconfig",
        "MCP_CELERY_REDIS_URL": site.store,
        "FLOWER_BASIC_AUTH": ":".join(LOGIN),
    }
    await serve(site, systemd(settings), site.image("systemd"), doctor=True)


class Traffic:
    """A client that creates tasks one after the other, at the server that it is sent to.

    Attributes:
        created: Each task, with the version of the server that created it.
    """

    def __init__(self, url: str) -> None:
        self._server = url, "1"
        self.created: list[tuple[str, JSON]] = []
        self._stopped = asyncio.Event()

    async def __aenter__(self) -> Traffic:
        self._flow = asyncio.create_task(self._create())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await soon(self._flow)

    async def _create(self) -> None:
        """Create tasks until it is stopped, at most ten in a second."""
        async with AsyncExitStack() as stack:
            while not self._stopped.is_set():
                wire = await stack.enter_async_context(Wire(self._server[0]))
                server = self._server
                while server == self._server and not self._stopped.is_set():
                    self.created.append((server[1], await wire.create("report", year=2026)))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopped.wait(), 0.1)

    def switch(self, url: str, version: str) -> None:
        """Send it to another server, as a Service does where a pod is not ready."""
        self._server = url, version

    async def goes_on(self) -> None:
        """Wait until there are two more tasks."""
        enough = len(self.created) + 2
        await eventually(lambda: self._flow.done() or len(self.created) >= enough)
        if self._flow.done():
            await self._flow
            raise AssertionError("it has stopped")


@pytest.mark.slow
async def test_a_rolling_upgrade_on_kubernetes_ends_every_task_with_the_version_of_its_server(site: Site) -> None:
    """In the order of docs/upgrades.md: new workers, then servers, then the old workers are told to end."""
    secrets = {"redis-password": PASSWORD, "encryption-keys": ENCRYPTION_KEY, "flower-basic-auth": ":".join(LOGIN)}
    programs = kubernetes({"MCP_CELERY_SERVER": "reports:server"}, secrets)
    gate = site.folder / "gate"

    def start(name: str, version: str) -> Started:
        return site.start(programs[name], site.image("kubernetes", version))

    images = [site.image("kubernetes", version) for version in ARGUMENTS]
    before = [contents(image) for image in images]
    old_web, old_worker, flower = start("web", "1"), start("worker", "1"), start("flower", "1")
    await asyncio.gather(*(one.ready() for one in (old_web, old_worker, flower)))
    async with Wire(old_web.url) as wire:
        held = await wire.create("hold", gate=str(gate))
    await eventually(Path(f"{gate}.reached").exists)
    async with Traffic(old_web.url) as traffic:
        new_worker, new_web = start("worker", "2"), start("web", "2")
        await asyncio.gather(new_worker.ready(), new_web.ready())
        await traffic.goes_on()

        ending = asyncio.create_task(old_web.ends())
        # It is not ready any more, and serves until the Service has noticed.
        await eventually(lambda: 503 in [status_of(one.url) for one in old_web.program.probes])
        await traffic.goes_on()
        traffic.switch(new_web.url, "2")
        assert await soon(ending) in NO_RESTART

        old_worker.running.send_signal(signal.SIGTERM)
        await eventually(lambda: "Warm shutdown" in old_worker.log.read_text())
        await traffic.goes_on()
        assert old_worker.running.poll() is None, "it waits for the job that it runs"
        gate.touch()
        assert await old_worker.ended() in NO_RESTART
        await traffic.goes_on()
    async with Wire(new_web.url) as wire:
        assert await said(wire, held) == {"version": "1"}
        for version, task in traffic.created:
            assert await said(wire, task) == {"version": version, "year": 2026}
    assert {version for version, _ in traffic.created} == {"1", "2"}
    await shows_jobs_to_who_has_the_password(flower)
    await asyncio.gather(new_web.is_scraped(), new_worker.is_scraped())
    statuses = await asyncio.gather(*(one.ends() for one in (new_web, new_worker, flower)))
    assert set(statuses) <= set(NO_RESTART)
    assert [contents(image) for image in images] == before, "with a read-only file system it would fail"
