"""A running job is cancelled also where no command of Celery's reaches its worker: on solo, or by its broker."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from mcp_celery import Settings
from mcp_celery.engine import TaskRecord
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import PATIENT_SQLITE, delete_queues
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import cancelling
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.cancelling:server"
SETTINGS_MODULE: Final = "tests.support.servers.queued_settings"
PATIENCE_SECONDS: Final = 120.0
NO_COMMANDS: Final = {"worker_enable_remote_control": False}


@dataclass(frozen=True)
class Way:
    """A pool, a broker, and Celery's settings of the worker."""

    pool: Pool
    broker: str
    conf: dict[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        return f"{self.pool}-{self.broker}"


DEAF: Final = (
    pytest.param(Way("solo", "redis"), marks=pytest.mark.smoke),
    Way("solo", "rabbitmq"),
    Way("asyncio", "filesystem", NO_COMMANDS),
    Way("threads", "sqlite"),
    Way("prefork", "redis", NO_COMMANDS),
)


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


@pytest.fixture(scope="module")
def conf(way: Way, nodes_folder: Path) -> dict[str, Any]:
    if way.broker == "sqlite":
        return {**way.conf, "broker_transport_options": PATIENT_SQLITE}
    if way.broker != "filesystem":
        return way.conf
    (messages := nodes_folder / f"messages-{os.urandom(2).hex()}").mkdir()
    folders = {"data_folder_in": str(messages), "data_folder_out": str(messages), "control_folder": f"{messages}-c"}
    return {**way.conf, "broker_transport_options": folders}


@pytest.fixture(scope="module")
def way_settings(
    request: pytest.FixtureRequest, store: EmbeddedStoreContainer, nodes_folder: Path, way: Way
) -> Settings:
    name = f"deaf-{way}-{os.urandom(3).hex()}"
    urls: dict[str, dict[str, str]] = {
        "redis": {},
        "filesystem": {"broker_url": "filesystem://"},
        "sqlite": {"broker_url": f"sqla+sqlite:///{nodes_folder}/{name}.db"},
    }
    url = {"broker_url": request.getfixturevalue("rabbitmq_url")} if way.broker == "rabbitmq" else urls[way.broker]
    return settings_for(store, name, progress_interval_ms=10, publish_timeout_ms=60_000, **url)


@pytest.fixture(scope="module")
def worker(shared: Starter, way: Way, way_settings: Settings, conf: dict[str, Any]) -> Generator[WorkerProcess]:
    env = {"CELERY_CONFIG_MODULE": SETTINGS_MODULE, "QUEUED_SETTINGS": json.dumps(conf)}
    with ExitStack() as stack:
        if way.broker == "rabbitmq":
            stack.callback(delete_queues, str(way_settings.broker_url), f"mcp.{way_settings.namespace}")
        worker = shared.worker(SERVER, way.pool, way_settings, concurrency=1, env=env)
        stack.callback(worker.teardown)
        yield worker


@pytest.fixture
async def live(worker: WorkerProcess, way_settings: Settings, conf: dict[str, Any]) -> AsyncGenerator[LiveServer]:
    async with live_server(cancelling.build, way_settings, **conf) as server:
        yield server


async def cancelled(live: LiveServer, gate: Gate, record: TaskRecord) -> None:
    """Cancel a task while its job runs, see that the job learns it, and that the worker takes the next one."""
    await gate.reached()
    await live.engine.cancel(ANYONE, record.task_id)
    await eventually(lambda: gate.notes("cleaned"), what="the tool's own clean-up", seconds=PATIENCE_SECONDS)
    assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
    assert (await live.now(record)).status == "cancelled"


def followers(live: LiveServer, record: TaskRecord) -> int:
    """How many connections listen to a task."""
    store: Any = live.redis()
    with store:
        [(_channel, count)] = store.pubsub_numsub(live.keys.channel(record.scope, record.task_id))
        return int(count)


@pytest.mark.shows("C3")
@pytest.mark.parametrize("way", DEAF, indirect=True, ids=str)
class TestWithoutCommands:
    async def test_a_running_coroutine_is_cancelled_without_commands(
        self, live: LiveServer, worker: WorkerProcess, gate: Gate
    ) -> None:
        record = await live.submit("hold", {"gate": str(gate)})
        await cancelled(live, gate, record)
        assert "Traceback" not in worker.logs_since_mark()
        assert followers(live, record) == 0

    @pytest.mark.parametrize("what", ["progress", "info"])
    async def test_a_plain_function_sees_the_cancel_in_its_context(
        self, live: LiveServer, gate: Gate, what: str
    ) -> None:
        record = await live.submit("use_context_sync", {"gate": str(gate), "what": what})
        await cancelled(live, gate, record)

    async def test_a_job_that_is_not_cancelled_completes(self, live: LiveServer, gate: Gate) -> None:
        record = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        gate.open()
        assert (await live.end_of(record)).record.status == "completed"
        await eventually(lambda: followers(live, record) == 0, what="nothing follows it any more")


@pytest.mark.shows("C3")
@pytest.mark.parametrize("way", [Way("solo", "redis")], indirect=True, ids=str)
async def test_a_lost_connection_is_made_anew(live: LiveServer, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    await eventually(lambda: followers(live, record) == 1, what="the worker follows the task")
    store: Any = live.redis()
    with store:
        # Those of Celery's own events, which other tests read, subscribe to patterns.
        for client in store.client_list(_type="pubsub"):
            if client["psub"] == "0":
                store.client_kill_filter(_id=client["id"])
    await eventually(lambda: followers(live, record) == 1, what="the worker follows it again")
    await cancelled(live, gate, record)


@pytest.mark.parametrize("way", [Way("threads", "redis")], indirect=True, ids=str)
async def test_nothing_is_followed_where_commands_reach_the_worker(live: LiveServer, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    assert followers(live, record) == 0
    await cancelled(live, gate, record)
