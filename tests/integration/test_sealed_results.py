"""With encryption keys no result can be read where it is stored, and none is believed that was put there by others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, closing
from typing import Any, Final, cast
from uuid import uuid4

import psycopg
import pytest
import redis

from mcp_celery import Settings
from mcp_celery.engine import JobOutcome, RpcError, TaskRecord
from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.errors import INTERNAL_ERROR, StoredDataError
from tests.integration.conftest import TOOLS, Starter, settings_for, texts_of
from tests.support.brokers import postgresql
from tests.support.live import ANYONE, Gate, LiveServer, celery_events, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import tools
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "place",
        [pytest.param("with the records", marks=pytest.mark.smoke), "another Redis", "PostgreSQL"],
        indirect=True,
        scope="module",
    ),
]

NEW, OLD, OTHER = (f"{name}-key-for-tests-that-has-more-than-32-bytes" for name in ("new", "old", "other"))
FORGED: Final = JobOutcome({"content": [{"type": "text", "text": "forged"}]})
REFUSED: Final = RpcError(INTERNAL_ERROR, FAILURE_REASONS["RefusedResult"])


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> str:
    """Where results are kept."""
    return request.param


@pytest.fixture(scope="module")
def result_backend(shared: Starter, place: str) -> Generator[str | None]:
    with ExitStack() as stack:
        if place == "another Redis":
            node = shared.valkey("sealed-results")
            stack.callback(node.teardown)
            yield node.url
        elif place == "PostgreSQL":
            yield f"db+{stack.enter_context(postgresql())}"
        else:
            yield None


@pytest.fixture(scope="module")
def sealed_settings(store: EmbeddedStoreContainer, pool: Pool, place: str, result_backend: str | None) -> Settings:
    values = {} if result_backend is None else {"result_backend": result_backend}
    return settings_for(
        store, f"sealed-{place.rsplit(maxsplit=1)[-1]}-{pool}".lower(), encryption_keys=f"{NEW},{OLD}", **values
    )


@pytest.fixture(scope="module")
def sealed_worker(shared: Starter, sealed_settings: Settings, pool: Pool) -> Generator[WorkerProcess]:
    worker = shared.worker(TOOLS, pool, sealed_settings)
    yield worker
    worker.teardown()


@pytest.fixture
async def live(sealed_settings: Settings, sealed_worker: WorkerProcess) -> AsyncGenerator[LiveServer]:
    async with live_server(tools.build, sealed_settings) as server:
        yield server


def in_redis(url: str) -> bytes:
    """Everything that a Redis holds in strings, hashes and lists."""
    found: list[bytes] = []
    with closing(cast(Any, redis.Redis.from_url(url))) as client:
        for key in client.scan_iter(count=1_000):
            match client.type(key):
                case b"string":
                    found.append(client.get(key) or b"")
                case b"hash":
                    found += client.hgetall(key).values()
                case b"list":
                    found += client.lrange(key, 0, -1)
                case _:
                    pass
    return b"\n".join(found)


def kept(settings: Settings) -> bytes:
    """Everything that is kept of tasks, their jobs and results."""
    found = [in_redis(settings.redis_url)]
    backend = settings.result_backend or settings.redis_url
    if backend.startswith("db+"):
        with psycopg.connect(backend.removeprefix("db+")) as database:
            rows = database.execute("SELECT result, convert_to(traceback, 'UTF8') FROM celery_taskmeta").fetchall()
        found += [bytes(one or b"") for row in rows for one in row]
    else:
        found.append(in_redis(backend))
    return b"\n".join(found)


def forge(live: LiveServer, record: TaskRecord, value: object, state: str = "SUCCESS") -> None:
    """Put something in the place of a job's result, as who may write to the result backend can."""
    backend: Any = live.app.backend
    backend.forget(record.job_id)
    backend.store_result(record.job_id, value, state)


async def test_nothing_that_a_tool_says_can_be_read_outside_of_server_and_worker(
    live: LiveServer, sealed_worker: WorkerProcess
) -> None:
    secret = f"sesame-{uuid4().hex}"  # other tests put results there that are not sealed
    with celery_events(live.app) as events:
        returned = await live.submit("echo", {"text": secret})
        view = await live.end_of(returned)
        assert view.result is not None
        assert view.result["content"][0]["text"] == secret
        refused = await live.run("refuse", {"message": secret, "detail": secret})
        assert refused.record.error == RpcError(-32050, secret, {"detail": secret})
        await eventually(lambda: "task-succeeded" in events.kinds_of(returned.job_id), what="the job's last event")
        await eventually(lambda: "task-failed" in events.kinds_of(refused.record.job_id), what="the other's last event")
        heard = texts_of(events.all())
    for text in (heard, sealed_worker.logs_since_mark(), kept(live.settings).decode(errors="replace")):
        assert secret not in text
    meta: Any = live.app.backend.get_task_meta(returned.job_id)
    assert meta["result"].keys() == {"format", "sealed"}


async def test_a_result_that_was_put_there_by_others_is_not_believed(live: LiveServer) -> None:
    genuine, other = await live.submit("echo", {"text": "mine"}), await live.submit("echo", {"text": "another"})
    assert (await live.end_of(genuine)).result is not None
    assert (await live.end_of(other)).result is not None
    backend: Any = live.app.backend
    own, others = (backend.get_task_meta(one.job_id)["result"] for one in (genuine, other))
    changed = {**own, "sealed": own["sealed"][:-9] + "AAAAAAAAA"}
    for value in (FORGED.__json__(), others, changed):
        forge(live, genuine, value)
        view = await live.end_of(genuine)
        assert (view.record.status, view.record.error, view.result) == ("failed", REFUSED, None)
    forge(live, genuine, own)
    view = await live.end_of(genuine)
    assert view.result is not None
    assert view.result["content"][0]["text"] == "mine"


async def test_a_running_task_does_not_complete_by_a_forged_result(live: LiveServer, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    forge(live, record, FORGED.__json__())
    view = await live.end_of(record)
    assert (view.record.status, view.record.error) == ("failed", REFUSED)


async def test_servers_with_the_ring_in_another_order_read_it_and_others_do_not(
    live: LiveServer, sealed_settings: Settings
) -> None:
    record = await live.submit("echo", {"text": "mine"})
    assert (await live.end_of(record)).result is not None
    values = sealed_settings.model_dump(exclude_unset=True, exclude={"encryption_keys"})
    async with live_server(tools.build, Settings.load(**values, encryption_keys=f"{OLD},{NEW}")) as rotated:
        assert (await rotated.end_of(record)).result is not None
        assert await rotated.text_of("echo", {"text": "with the old key"}) == "with the old key"
    async with live_server(tools.build, Settings.load(**values, encryption_keys=OTHER)) as other:
        with pytest.raises(StoredDataError, match="was not written with this server's MCP_CELERY_ENCRYPTION_KEYS"):
            await other.engine.get(ANYONE, record.task_id)
    async with live_server(tools.build, Settings.load(**values)) as without:
        view = await without.end_of(record)
        assert (view.record.status, view.record.error) == ("failed", REFUSED)
