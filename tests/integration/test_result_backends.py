"""Each result backend gives back what a worker has stored: written as jobs do, read and forgotten as servers do."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Retry

from mcp_celery.broker.results import CeleryResults
from mcp_celery.common.django_connections import fresh_connections
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine import (
    LARGE_RESULT_BYTES,
    UNSEALED_RESULTS,
    JobOutcome,
    JSONObject,
    Progress,
    RpcError,
    StoredResult,
)
from mcp_celery.engine.outcome import settlement
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError
from mcp_celery.keys import MAX_JOB_ID_BYTES
from mcp_celery.worker.celery.result_backend import JobBackend
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import mariadb, memcached, postgresql
from tests.support.django_results import django_database
from tests.support.live import live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, short_folder
from tests.support.servers import odd
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

ODD: Final = "tests.support.servers.odd:server"
LARGE: Final = 3_000_000
HOLDS: Final = {"mariadb": 65_535, "memcached": 1_000_000}
"""Bytes, of backends that do not hold what a task may return by default."""
NAMES: Final = ("redis", "sqlite", "postgresql", "mariadb", "files", "memcached", "django-sqlite", "django-postgresql")
ODD_TEXTS: Final = ("", 'quotes " and \\ and \n', "\u2028 🚀 ж", "\x00", "caf\udce9", "%s {} ${x}")


@dataclass
class Kept:
    """A result backend, as a worker and a server have it."""

    name: str
    app: Celery
    results: CeleryResults
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    lost: list[int] = field(default_factory=list[int])

    def of_job(self) -> JobBackend:
        return JobBackend(
            lambda: self.app.backend, None, lambda _request, size: self.lost.append(size), UNSEALED_RESULTS
        )

    def request(self, job_id: str) -> Context:
        return Context(id=job_id, kwargs={"key": "auth:alice:7c0ffee0:tool:report", "attempt": 1}, args=())

    async def in_worker(self, work: Callable[[JobBackend], Any]) -> None:
        """Do something with the backend of a job, in a thread of a worker's pool."""

        def do() -> None:
            with fresh_connections(self.app.backend):  # as Celery's fix-up for Django does around each job
                work(self.of_job())

        await asyncio.get_running_loop().run_in_executor(self.worker, do)

    async def returns(self, outcome: JobOutcome, job_id: str | None = None) -> str:
        """Store what a job returned."""
        job_id = job_id or new_id()
        await self.in_worker(lambda job: job.mark_as_done(job_id, outcome, self.request(job_id)))
        return job_id

    async def raises(self, error: BaseException, traceback: str | None = None) -> str:
        """Store how a job failed."""
        job_id = new_id()
        await self.in_worker(lambda job: job.mark_as_failure(job_id, error, traceback, self.request(job_id)))
        return job_id

    async def result_of(self, job_id: str) -> JSONObject | None:
        """The wire result that a server gives, None where it says that there is none."""
        (alone, together) = await self.results.read(job_id), (await self.results.read_many([job_id]))[job_id]
        if together is None:
            assert settlement(alone) is None
            return None
        assert alone == together
        outcome = JobOutcome.from_json(together.value)
        assert outcome is not None
        return outcome.result


class Place(NamedTuple):
    """A result backend: its name, its database where it is one, and Celery's URL of it."""

    name: str
    database: str
    url: str


def new_id() -> str:
    return f"auth:client~7Calice:{uuid.uuid4().hex}:tool:report"


def saying(text: str) -> JobOutcome:
    return JobOutcome({"content": [{"type": "text", "text": text}]}, "last words", Progress(1, 2))


def text_of(stored: StoredResult | None) -> str | None:
    """What a stored result says; None where there is none."""
    outcome = JobOutcome.from_json(stored.value) if stored is not None else None
    return None if outcome is None else outcome.result["content"][0]["text"]


def application(url: str, **conf: Any) -> Celery:
    app = Celery(f"results-{uuid.uuid4().hex[:8]}", backend=url, set_as_current=False)
    app.conf.update({"result_expires": 600, **conf})
    return app


@pytest.fixture(scope="module", params=NAMES)
def place(request: pytest.FixtureRequest) -> Generator[Place]:
    name: str = request.param
    database = ""
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        if name == "redis":
            url = celery_url(request.getfixturevalue("store").url)
        elif name == "files":
            (folder / "results").mkdir()
            url = f"file://{folder}/results"
        elif name == "memcached":
            url = stack.enter_context(memcached(folder))
        elif name == "mariadb":
            database = stack.enter_context(mariadb())
            url = f"db+{database}"
        elif name in ("postgresql", "sqlite"):
            database = stack.enter_context(postgresql()) if name == "postgresql" else f"sqlite:///{folder}/results.db"
            url = f"db+{database}"
        else:
            database = stack.enter_context(postgresql()) if name == "django-postgresql" else str(folder / "results.db")
            stack.enter_context(django_database(database))
            url = "django-db"
        yield Place(name, database, url)


@pytest.fixture
def open_backend(place: Place) -> Generator[Callable[..., Kept]]:
    opened: list[Kept] = []

    def open_(**conf: Any) -> Kept:
        app = application(place.url, **conf)
        opened.append(Kept(place.name, app, CeleryResults(app, timeout_seconds=60)))
        return opened[-1]

    yield open_
    for one in opened:
        one.worker.shutdown()
        one.results.close()
        one.app.close()


@pytest.fixture
def kept(open_backend: Callable[..., Kept]) -> Kept:
    return open_backend()


@pytest.mark.smoke
async def test_the_value_that_a_job_returned_is_read(kept: Kept) -> None:
    outcomes = [saying(text) for text in ODD_TEXTS]
    job_ids = [await kept.returns(outcome) for outcome in outcomes]
    for outcome, job_id in zip(outcomes, job_ids, strict=True):
        assert await kept.result_of(job_id) == json.loads(outcome.text)
    (stored,) = (await kept.results.read_many(job_ids[:1])).values()
    change = settlement(stored)
    assert change is not None
    assert (change.to, change.status_message, change.progress) == ("completed", "last words", Progress(1, 2))
    assert kept.lost == []


async def test_results_under_ids_of_every_length_and_kind_are_read(kept: Kept) -> None:
    for job_id in ("x" * MAX_JOB_ID_BYTES, "auth:~25~7C!:0:resource:reports~3A~2F~2F~7Byear~7D", f"{new_id()}!9999"):
        assert await kept.result_of(await kept.returns(saying(job_id), job_id)) == saying(job_id).result


async def test_a_large_result_is_read_whole_or_reported_as_lost(kept: Kept) -> None:
    text = "ж" * (LARGE // 2)
    outcome = saying(text)
    if kept.name not in HOLDS:
        assert await kept.result_of(await kept.returns(outcome)) == outcome.result
        return
    with pytest.raises(Exception, match=r"."):
        await kept.returns(outcome)
    assert kept.lost == [outcome.size]
    fits = saying("x" * (HOLDS[kept.name] - 2_000))
    assert fits.size > LARGE_RESULT_BYTES
    assert await kept.result_of(await kept.returns(fits)) == fits.result
    assert kept.lost == [outcome.size]


async def test_the_error_of_a_failed_job_is_read(kept: Kept) -> None:
    for text in ODD_TEXTS:
        data = {"gear": 7, "text": text}
        job_id = await kept.raises(JobFailedError(-32050, text, data), f"Traceback (most recent call last):\n{text}")
        shown = text.encode(errors="replace").decode()
        for stored in (await kept.results.read(job_id), (await kept.results.read_many([job_id]))[job_id]):
            change = settlement(stored)
            assert change is not None
            assert (change.to, change.error) == ("failed", RpcError(-32050, shown, {"gear": 7, "text": shown}))


async def test_a_job_that_is_retried_or_revoked_leaves_nothing_at_the_place_of_its_result(kept: Kept) -> None:
    job_id = new_id()
    request = kept.request(job_id)

    def tried_again_and_revoked(job: JobBackend) -> None:
        job.mark_as_retry(job_id, Retry("later"), "Traceback", request)
        job.mark_as_revoked(job_id, "expired", request)

    await kept.in_worker(tried_again_and_revoked)
    assert await kept.result_of(job_id) is None
    await kept.returns(saying("at last"), job_id)
    await kept.in_worker(tried_again_and_revoked)
    assert await kept.result_of(job_id) == saying("at last").result


async def test_a_failure_that_is_followed_by_success_is_a_success(kept: Kept) -> None:
    """A worker that was lost and came back: what a job returned is what it ended in."""
    job_id = await kept.raises(JobFailedError(-32050, "lost"))
    await kept.returns(saying("found"), job_id)
    assert await kept.result_of(job_id) == saying("found").result


async def test_several_results_are_read_together_and_a_missing_one_is_none(kept: Kept) -> None:
    job_ids = [await kept.returns(saying(str(number))) for number in range(5)]
    missing = new_id()
    found = await kept.results.read_many([*job_ids, missing])
    assert found[missing] is None
    assert [text_of(found[job_id]) for job_id in job_ids] == [str(number) for number in range(5)]


async def test_a_forgotten_result_is_gone_and_no_other(kept: Kept) -> None:
    gone, kept_id = await kept.returns(saying("gone")), await kept.returns(saying("kept"))
    assert await kept.result_of(gone) == saying("gone").result
    await kept.results.forget([new_id(), gone, new_id()])
    assert await kept.result_of(gone) is None
    assert await kept.result_of(kept_id) == saying("kept").result
    await kept.results.forget([gone])


async def test_an_expired_result_is_gone(open_backend: Callable[..., Kept]) -> None:
    short, long = open_backend(result_expires=1), open_backend()
    job_id, other = await short.returns(saying("gone")), await long.returns(saying("kept"))
    backend: Any = short.app.backend

    async def is_gone() -> bool:
        if not backend.supports_autoexpire:
            await short.in_worker(lambda _: backend.cleanup())  # as `celery beat` has it done
        # Read once: it may expire between two reads.
        return settlement(await short.results.read(job_id)) is None

    await eventually(is_gone)
    if backend.supports_autoexpire:
        assert await long.result_of(other) == saying("kept").result


async def test_many_results_are_read_at_a_time(kept: Kept) -> None:
    job_ids = [await kept.returns(saying(str(number))) for number in range(12)]
    found = await asyncio.gather(*(kept.results.read(job_id) for job_id in job_ids))
    assert [text_of(stored) for stored in found] == [str(number) for number in range(12)]


@pytest.mark.parametrize("place", ["postgresql", "django-postgresql"], indirect=True)
async def test_a_connection_that_the_database_has_ended_is_made_anew(kept: Kept, place: Place) -> None:
    job_id = await kept.returns(saying("still there"))
    assert await kept.result_of(job_id) == saying("still there").result
    with psycopg.connect(place.database, autocommit=True) as server:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
        server.execute(f"{end} pg_backend_pid()")
    assert await kept.result_of(job_id) == saying("still there").result


@pytest.mark.parametrize("pool", ["asyncio"], indirect=True)
async def test_a_worker_keeps_results_in_memcached_of_many_jobs_at_a_time(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool
) -> None:
    with short_folder() as folder, memcached(folder) as url:
        settings = settings_for(store, f"memcached-{pool}", result_backend=url)
        own.worker(ODD, pool, settings)
        async with live_server(odd.build, settings) as live:
            sizes = range(20_000, 20_040)
            texts = await asyncio.gather(*(live.text_of("sized", {"size": size}) for size in sizes))
            assert [len(text) for text in texts] == list(sizes)
            record = (await live.run("sized", {"size": 600_000})).record  # it is stored as text and structured
            assert (record.status, record.error) == ("failed", RpcError(INTERNAL_ERROR, record.status_message or ""))
            assert "the result backend does not hold its result of 1200" in (record.status_message or "")
            assert await live.text_of("sized", {"size": 3}) == "xxx"
