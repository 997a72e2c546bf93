"""The same over RabbitMQ and Redis as brokers, Redis, SQLite and PostgreSQL as result backends."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from mcp_celery import Settings, TaskConfig
from mcp_celery.engine import Caller, RpcError, now_ms
from mcp_celery.keys import MAX_JOB_ID_BYTES, is_shortened
from tests.integration.conftest import Starter, lines, settings_for
from tests.support.brokers import delete_queues, postgresql
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import anywhere
from tests.support.waiting import eventually

SERVER: Final = "tests.support.servers.anywhere:server"
OPERATOR = {"CELERY_CONFIG_MODULE": "tests.support.servers.prioritized"}
PATIENCE_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Place:
    """Where jobs wait, and where their results are kept."""

    broker: str
    backend: str

    def __str__(self) -> str:
        return f"{self.broker}-{self.backend}"


RABBITMQ_REDIS = Place("rabbitmq", "redis")
RABBITMQ_POSTGRESQL = Place("rabbitmq", "postgresql")
REDIS_SQLITE = Place("redis", "sqlite")
REDIS_POSTGRESQL = Place("redis", "postgresql")

# Every pair of a pool and a broker, of a pool and a result backend, and of a broker and a result backend. The whole
# product has three combinations more and shows nothing that these do not.
COMBINATIONS = (
    pytest.param("asyncio", RABBITMQ_REDIS, marks=pytest.mark.smoke),
    ("asyncio", RABBITMQ_POSTGRESQL),
    ("asyncio", REDIS_SQLITE),
    ("prefork", RABBITMQ_REDIS),
    ("prefork", REDIS_POSTGRESQL),
    ("prefork", REDIS_SQLITE),
    ("threads", RABBITMQ_REDIS),
    ("threads", RABBITMQ_POSTGRESQL),
    ("threads", REDIS_SQLITE),
    pytest.param("asyncio", REDIS_POSTGRESQL, marks=pytest.mark.long),
    pytest.param("prefork", RABBITMQ_POSTGRESQL, marks=pytest.mark.long),
    pytest.param("threads", REDIS_POSTGRESQL, marks=pytest.mark.long),
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(("pool", "place"), COMBINATIONS, indirect=True, scope="module", ids=str),
]


@pytest.fixture(scope="session")
def postgresql_url() -> Generator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Place:
    return request.param


@pytest.fixture(scope="module")
def place_settings(
    request: pytest.FixtureRequest, store: EmbeddedStoreContainer, nodes_folder: Path, pool: Pool, place: Place
) -> Settings:
    urls: dict[str, str] = {}
    if place.broker == "rabbitmq":
        urls["broker_url"] = request.getfixturevalue("rabbitmq_url")
    if place.backend == "sqlite":
        urls["result_backend"] = f"db+sqlite:///{nodes_folder}/results.db"
    if place.backend == "postgresql":
        urls["result_backend"] = f"db+{request.getfixturevalue('postgresql_url')}"
    return settings_for(store, f"{place}-{pool}-{os.urandom(4).hex()}", **urls)


@pytest.fixture(scope="module")
def place_worker(shared: Starter, pool: Pool, place: Place, place_settings: Settings) -> Generator[WorkerProcess]:
    with ExitStack() as stack:
        if place.broker == "rabbitmq":
            names = (f"mcp.{place_settings.namespace}",)
            stack.callback(delete_queues, str(place_settings.broker_url), *names)
        worker = shared.worker(SERVER, pool, place_settings, concurrency=1, env=OPERATOR)
        stack.callback(worker.teardown)
        yield worker


@pytest.fixture
async def live(place_worker: WorkerProcess, place_settings: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(anywhere.build, place_settings, task_queue_max_priority=9) as server:
        yield server


@pytest.mark.shows("C9")
async def test_a_job_runs_and_its_result_is_read(live: LiveServer) -> None:
    assert await live.text_of("add", {"a": 2, "b": 3}) == "5"


@pytest.mark.shows("C9")
async def test_a_large_result_is_read_whole(live: LiveServer) -> None:
    assert await live.text_of("letters", {"count": 3_000_000}) == "x" * 3_000_000


@pytest.mark.shows("C9")
async def test_a_json_rpc_error_is_returned_unchanged(live: LiveServer) -> None:
    record = (await live.run("refuse")).record
    assert (record.status, record.error) == ("failed", RpcError(-32050, "the gears are stuck", {"gear": 7}))


@pytest.mark.shows("C2", "C9")
@pytest.mark.parametrize("scope", ["s" * 500, "a" * 60, "任务|%41~!"], ids=["shortened", "long", "quoted"])
async def test_ids_of_every_kind_and_length_are_carried(live: LiveServer, scope: str) -> None:
    record = await live.submit("add", {"a": 1, "b": 1}, caller=Caller(scope))
    assert len(record.job_id.encode()) <= MAX_JOB_ID_BYTES
    assert is_shortened(record.job_id) is (len(scope) == 500)
    assert (await live.end_of(record)).record.status == "completed"


@pytest.mark.shows("C9")
async def test_a_running_job_is_cancelled(live: LiveServer, place_worker: WorkerProcess, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    await live.engine.cancel(ANYONE, record.task_id)
    await eventually(lambda: gate.notes("cleaned"), what="the tool's own clean-up", seconds=PATIENCE_SECONDS)
    assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
    assert (await live.now(record)).status == "cancelled"
    assert "Traceback" not in place_worker.logs_since_mark()


@pytest.mark.shows("C9")
async def test_a_queued_job_that_an_operator_revokes_is_cancelled(live: LiveServer, gate: Gate, tmp_path: Path) -> None:
    held = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    record = await live.submit("touch", {"path": str(tmp_path / "ran")})
    live.app.control.revoke(record.job_id)
    assert (await live.end_of(record)).record.status == "cancelled"
    gate.open()
    assert (await live.end_of(held)).record.status == "completed"
    assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
    assert lines(tmp_path / "ran") == []


@pytest.mark.shows("C9")
async def test_a_job_is_tried_again_later(live: LiveServer, tmp_path: Path) -> None:
    record = await live.submit("fails_at_first", {"path": str(tmp_path / "tries")}, config=anywhere.RETRIED)
    waiting = await live.becomes(record, lambda now: now.status_message, "the retry is announced")
    assert (waiting.status, waiting.status_message) == ("working", "Trying again: retry 1 of 3")
    view = await live.end_of(record)
    assert (view.record.status, len(lines(tmp_path / "tries"))) == ("completed", 2)


@pytest.mark.shows("C9")
async def test_a_job_that_expires_fails(live: LiveServer, gate: Gate, tmp_path: Path) -> None:
    held = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    record = await live.submit("touch", {"path": str(tmp_path / "ran")}, config=TaskConfig(expires=0.2))
    await eventually(lambda: record.is_too_late(now_ms()))
    gate.open()
    await live.end_of(held)
    ended = (await live.end_of(record)).record
    assert (ended.status, lines(tmp_path / "ran")) == ("failed", [])


@pytest.mark.shows("C9")
async def test_jobs_run_in_the_order_of_their_priority(
    live: LiveServer, place: Place, gate: Gate, tmp_path: Path
) -> None:
    """9 is RabbitMQ's highest; in Redis kombu looks for 0 first."""
    held = [await live.submit("hold", {"gate": str(gate)}) for _ in range(2)]  # one runs, the worker may hold another
    await gate.reached()
    path = str(tmp_path / "order")
    first, last = ("urgent", "idle") if place.broker == "rabbitmq" else ("idle", "urgent")
    records = [
        await live.submit(tool, {"path": path, "line": tool}, config=TaskConfig(priority=9 if tool == "urgent" else 0))
        for tool in (last, first)
    ]
    gate.open()
    for record in (*held, *records):
        await live.end_of(record)
    assert lines(tmp_path / "order") == [first, last]
