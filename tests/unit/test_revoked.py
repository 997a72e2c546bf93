"""The watch over a worker's revoked ids: what is new, whose it is, and what it does while the store is away."""

from __future__ import annotations

import logging
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.utils.collections import LimitedSet
from celery.worker import state
from kombu.message import Message

from mcp_celery import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import TaskRecord
from mcp_celery.testing import MemoryBackend
from mcp_celery.worker.celery.celery_request import DiscreetRequest
from mcp_celery.worker.celery.revocations import RevokedIds, RevokedWatch
from mcp_celery.worker.job import WorkerRuntime, job_class
from tests.support.waiting import eventually_sync
from tests.support.worlds import a_record

JOB_ID = "anon:expired:tool:build_report"
ODD = "odd"
SNAPSHOT = TaskContextSnapshot(protocol_version="2026-07-28", request_id="request-1")


class TestNews:
    def test_only_ids_that_were_added_since_the_last_read_are_new(self) -> None:
        ids: Any = LimitedSet(maxlen=100)
        news = RevokedIds(ids).news
        assert list(news()) == []
        ids.update(["a", "b"])
        assert sorted(news()) == ["a", "b"]
        assert list(news()) == []
        ids.add("c")
        assert list(news()) == ["c"]

    def test_a_new_id_before_an_old_one_that_is_revoked_again_is_found(self) -> None:
        ids: Any = LimitedSet(maxlen=100)
        news = RevokedIds(ids).news
        ids.update(["a", "b"])
        news()
        ids.add("c")
        ids.add("b")
        assert list(news()) == ["c"]

    def test_new_ids_are_found_in_a_full_set(self) -> None:
        ids: Any = LimitedSet(maxlen=3)
        news = RevokedIds(ids).news
        ids.update(["a", "b", "c"])
        news()
        ids.update(["d", "e"])
        assert sorted(news()) == ["d", "e"]

    def test_an_id_that_is_not_a_text_is_skipped(self) -> None:
        ids: Any = LimitedSet(maxlen=100)
        ids.update([7, None, "a"])
        assert list(RevokedIds(ids).news()) == ["a"]


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def a_job(backend: MemoryBackend, namespace: str) -> Any:
    """A component's job whose records are in a backend."""
    runtime = WorkerRuntime(
        namespace=namespace,
        ledger=lambda _: backend.store.ledger,
        living=lambda _worker, _components: pytest.fail("nothing lives here"),
        make_runner=lambda: pytest.fail("nothing runs here"),
        results="elsewhere",
    )
    return job_class("tool", "build_report", TaskConfig(), runtime)()


@pytest.fixture
def app(backend: MemoryBackend) -> Celery:
    app = Celery("host", set_as_current=False)
    app.register_task(a_job(backend, "reports"))
    return app


@pytest.fixture
def ids() -> Any:
    return LimitedSet(maxlen=100)


@pytest.fixture
def watch(app: Celery, ids: Any) -> Generator[RevokedWatch]:
    watch = RevokedWatch(app, ids)
    yield watch
    watch.stop()


@pytest.fixture
def asked(backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were looked up; of one the record cannot be read."""
    found = backend.store.ledger.find
    asked: list[str] = []

    def find(job_id: str) -> TaskRecord | None:
        asked.append(job_id)
        if job_id == ODD:
            raise ValueError("not a record")
        return found(job_id)

    monkeypatch.setattr(backend.store.ledger, "find", find)
    return asked


def kept(backend: MemoryBackend, **values: Any) -> TaskRecord:
    record = a_record(**values)
    backend.store.ledger.create(record, SNAPSHOT)
    return record


def status(backend: MemoryBackend, record: TaskRecord) -> str:
    stored = backend.store.ledger.load(record.ref)
    assert stored is not None
    return stored.record.status


def test_the_task_of_a_revoked_job_is_cancelled(backend: MemoryBackend, watch: RevokedWatch, ids: Any) -> None:
    before, during = kept(backend), kept(backend, leg=2)
    ids.add(before.job_id)
    watch.start()
    eventually_sync(lambda: status(backend, before) == "cancelled")
    ids.update(["somebody's", f"{before.job_id}!2", during.job_id])
    eventually_sync(lambda: status(backend, during) == "cancelled")
    assert list(backend.bus.told) == [before.ref, during.ref]


def test_each_server_of_a_worker_finds_its_own(
    backend: MemoryBackend, app: Celery, watch: RevokedWatch, ids: Any
) -> None:
    other = MemoryBackend()
    app.register_task(a_job(other, "sales"))
    mine, theirs = kept(backend), kept(other)
    ids.update([mine.job_id, theirs.job_id])
    watch.start()
    eventually_sync(lambda: status(backend, mine) == status(other, theirs) == "cancelled")


def test_a_store_that_is_away_is_asked_again(
    backend: MemoryBackend, asked: list[str], watch: RevokedWatch, ids: Any, caplog: pytest.LogCaptureFixture
) -> None:
    records = [kept(backend) for _ in range(3)]
    backend.store.ledger.fail()
    ids.update(record.job_id for record in records)
    with caplog.at_level(logging.WARNING):
        watch.start()
        eventually_sync(lambda: asked)
        backend.store.ledger.recover()
        for record in records:
            eventually_sync(lambda record=record: status(backend, record) == "cancelled")
    assert not caplog.records


def test_a_task_that_cannot_be_cancelled_delays_no_other(
    backend: MemoryBackend, asked: list[str], watch: RevokedWatch, ids: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record = kept(backend)
    ids.update([ODD, record.job_id])
    with caplog.at_level(logging.ERROR):
        watch.start()
        eventually_sync(lambda: status(backend, record) == "cancelled" and ODD in asked)
        watch.stop()
    assert f"could not cancel the task of the revoked job {ODD}" in caplog.text


def test_an_expired_job_is_not_among_the_revoked(app: Celery) -> None:
    """Else it would be cancelled here before its own signal says that it failed."""
    expires = datetime.now(UTC) - timedelta(seconds=1)
    headers = {"id": JOB_ID, "task": "mcp.reports.tool.build_report", "expires": expires.isoformat()}
    make: Any = DiscreetRequest  # Celery's signature is hidden where types are checked
    request = make(Message(headers=headers), app=app, decoded=True, headers=headers, body=([], {}, {}))
    assert request.maybe_expire() is True
    assert JOB_ID not in state.revoked
