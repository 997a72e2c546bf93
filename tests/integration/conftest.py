"""Real stores, brokers and workers, as pytest-celery nodes that are processes of this machine.

A worker takes seconds to start, so those that no test harms are shared: one for each pool, under a namespace and thus a
queue of its own. Tests that stop or kill things start their own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup  # pyright: ignore[reportMissingTypeStubs]

from mcp_celery import Settings
from tests.support.clusters import Cluster
from tests.support.deployment import Deployment, deployed
from tests.support.leaks import no_eternal_keys, no_processes_left
from tests.support.live import EventLog, Gate, LiveServer, celery_events, host_app, live_server
from tests.support.nodes import (
    BackendNode,
    BrokerNode,
    EmbeddedStoreContainer,
    Pool,
    ProcessContainer,
    ValkeyProcess,
    WorkerNode,
    WorkerProcess,
    short_folder,
)
from tests.support.sentinels import Watched
from tests.support.servers import tools
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

STARTED = pytest.StashKey[list[ProcessContainer]]()
TOOLS = "tests.support.servers.tools:server"
JOB_SECONDS: Final = 120.0


def started(config: pytest.Config) -> list[ProcessContainer]:
    """The processes that run now."""
    return config.stash.setdefault(STARTED, list[ProcessContainer]())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for node in started(item.config):
        node.mark()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failing test what the nodes have logged since it began."""
    report = yield
    if report.failed:
        for node in started(item.config):
            if said := node.logs_since_mark():
                report.sections.append((f"log of {node.name}", said[-20_000:]))
    return report


class Starter:
    """Starts nodes, remembers them for the reports, and stops them at the end."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._known = started(config)
        self._folder = folder
        self._stack = ExitStack()

    def start(self, node: ProcessContainer) -> None:
        self._known.append(node)
        self._stack.callback(self._stop, node)
        node.start()
        node.ready()

    def _stop(self, node: ProcessContainer) -> None:
        node.teardown()
        self._known.remove(node)

    def worker(
        self, server: str, pool: Pool, settings: Settings, *, env: dict[str, str] | None = None, **options: Any
    ) -> WorkerProcess:
        """Start a worker and wait until it is ready."""
        variables = {**worker_environment(settings), **(env or {})}
        node = WorkerProcess(server, pool, folder=self._folder, settings=variables, **options)
        self.start(node)
        return node

    def valkey(self, name: str = "valkey", **options: Any) -> ValkeyProcess:
        """Start a server that keeps nothing."""
        node = ValkeyProcess(self._folder, name=name, **options)
        self.start(node)
        return node

    def watched(self, **options: Any) -> Watched:
        """Start a master, a replica and three Sentinels."""
        return Watched(self._folder, self.start, **options)

    def cluster(self, **options: Any) -> Cluster:
        """Start three shards of a cluster."""
        return Cluster(self._folder, self.start, **options)

    def close(self) -> None:
        self._stack.close()


def worker_environment(settings: Settings) -> dict[str, str]:
    """The variables that give a worker the settings of a server."""
    values = cast("dict[str, object]", settings.model_dump(exclude_unset=True, exclude_none=True))
    if settings.key_ring:
        values["encryption_keys"] = ",".join(settings.key_ring)
    return {f"MCP_CELERY_{name.upper()}": str(value) for name, value in values.items()}


@pytest.fixture(scope="session")
def nodes_folder() -> Generator[Path]:
    """Torn down after all that is shared, so nothing of it may run any more."""
    with short_folder() as folder, no_processes_left(folder, children=False):
        yield folder


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, nodes_folder: Path) -> Generator[Starter]:
    starter = Starter(request.config, nodes_folder)
    yield starter
    starter.close()


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Generator[Starter]:
    """Starts nodes that belong to one test."""
    with short_folder() as folder, no_processes_left(folder):
        starter = Starter(request.config, folder)
        yield starter
        starter.close()


@pytest.fixture(scope="session")
def store(nodes_folder: Path) -> Generator[EmbeddedStoreContainer]:
    """Records, messages and results of all tests that harm none of them."""
    node = EmbeddedStoreContainer(nodes_folder)
    node.start()
    yield node
    node.teardown()


@pytest.fixture
def own_store() -> Generator[EmbeddedStoreContainer]:
    """A store of the test's own, which keeps its data over a restart."""
    with short_folder() as folder:
        node = EmbeddedStoreContainer(folder)
        node.start()
        yield node
        node.teardown()


@pytest.fixture(autouse=True)
def no_key_is_left_without_a_lifetime(request: pytest.FixtureRequest) -> Generator[None]:
    if "store" not in request.fixturenames:
        yield
        return
    node = cast(EmbeddedStoreContainer, request.getfixturevalue("store"))
    with no_eternal_keys(node.url):
        yield


def settings_for(store: EmbeddedStoreContainer | ValkeyProcess, namespace: str, **values: Any) -> Settings:
    """Settings that leave nothing to the developer's environment."""
    ours = {"snapshot_headers": "X-Tenant, traceparent", "store_timeout_ms": 5_000, "publish_timeout_ms": 5_000}
    return Settings.load(redis_url=store.url, namespace=namespace, **{**ours, **values})


@pytest.fixture(scope="session")
def settings(store: EmbeddedStoreContainer, pool: Pool) -> Settings:
    """The settings of the shared workers and of the servers that use them."""
    return settings_for(store, f"tools-{pool}")


@pytest.fixture(scope="session")
def witness(nodes_folder: Path, pool: Pool) -> Path:
    """Where the shared worker tells when the server's lifespan is entered and left."""
    return nodes_folder / f"lifespan-{pool}"


@pytest.fixture(scope="session")
def shared_worker(shared: Starter, settings: Settings, pool: Pool, witness: Path) -> Generator[WorkerProcess]:
    worker = shared.worker(TOOLS, pool, settings, env={tools.WITNESS_VARIABLE: str(witness)})
    yield worker
    worker.teardown()


@pytest.fixture(scope="session")
def events(settings: Settings, shared_worker: WorkerProcess) -> Generator[EventLog]:
    """What Flower would hear of all workers on the shared broker. It listens from before the test."""
    with host_app(settings) as app, celery_events(app) as log:
        yield log


# pytest-celery's own fixtures, given processes instead of containers. The owners above end them.


@pytest.fixture
def celery_broker(store: EmbeddedStoreContainer) -> BrokerNode:
    return BrokerNode(store)


@pytest.fixture
def celery_backend(store: EmbeddedStoreContainer) -> BackendNode:
    return BackendNode(store)


@pytest.fixture
def celery_worker(shared_worker: WorkerProcess, celery_setup_app: Celery) -> WorkerNode:
    return WorkerNode(shared_worker, celery_setup_app)


@pytest.fixture
def celery_setup_app(
    celery_setup_cls: type[CeleryTestSetup], celery_setup_config: dict[str, Any], celery_setup_name: str
) -> Generator[Celery]:
    """The app of a host that already uses Celery. It does not stay the current one after its test."""
    app = celery_setup_cls.create_setup_app(celery_setup_config, celery_setup_name)
    yield app
    app.close()


@pytest.fixture
def worker(celery_setup: CeleryTestSetup) -> WorkerNode:
    """The shared worker, of either pool."""
    return cast(WorkerNode, celery_setup.worker)


@pytest.fixture
async def live(celery_setup: CeleryTestSetup, settings: Settings) -> AsyncGenerator[LiveServer]:
    """A server in this process whose jobs the shared worker runs, on the host's own Celery app."""
    async with live_server(tools.build, settings, celery_setup.app) as server:
        yield server


@pytest.fixture
def gate(tmp_path: Path) -> Generator[Gate]:
    """Holds jobs until it is opened; at the end of the test it is open in any case."""
    folder = tmp_path / "gate"
    folder.mkdir()
    gate = Gate(folder)
    yield gate
    gate.open()


@pytest.fixture
def gates(tmp_path: Path) -> Generator[Callable[[], Gate]]:
    """Makes further gates."""
    made: list[Gate] = []

    def another() -> Gate:
        folder = tmp_path / f"gate-{len(made)}"
        folder.mkdir()
        made.append(Gate(folder))
        return made[-1]

    yield another
    for gate in made:
        gate.open()


def lines(path: Path) -> list[str]:
    """The lines of a file that may not exist yet."""
    return path.read_text().splitlines() if path.exists() else []


def texts_of(events: Iterable[dict[str, Any]]) -> str:
    """Everything that events say, as one text to search in."""
    return "\n".join(repr(event) for event in events)


@asynccontextmanager
async def running(url: str, name: str, pool: Pool, **settings: str) -> AsyncGenerator[tuple[Deployment, Wire]]:
    """A server and a worker of a store, and a client of the server.

    Args:
        url: Of the store.
        name: What the name of the deployment begins with.
        pool: The worker's.
        **settings: Of both.
    """
    with (
        deployed(url, f"{name}-{os.urandom(3).hex()}", spec=TOOLS, settings=settings) as deployment,
        deployment.worker(pool),
    ):
        async with Wire(deployment.serve()) as wire:
            yield deployment, wire


async def cancel_a_running_job(wire: Wire) -> None:
    """Cancel a task when its job runs, and see that its follower learns of it."""
    held = (await wire.create("report_steadily", count=10_000, pause_ms=10))["taskId"]
    follower = asyncio.create_task(follow(wire, held))

    async def runs() -> bool:
        return "statusMessage" in await wire.get(held)

    await eventually(runs, what="the job runs")
    await wire.ask("tasks/cancel", {"taskId": held})
    assert (await soon(follower, seconds=JOB_SECONDS))[-1]["status"] == "cancelled"
