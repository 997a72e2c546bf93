"""What a worker learns of the end of a task whose job runs, where no command of Celery's reaches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

import anyio
import pytest
from celery import Celery
from celery.concurrency.solo import TaskPool as SoloPool

from mcp_celery.asyncio_pool.pool import TaskPool
from mcp_celery.engine import TaskRef, TaskStore
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.worker import end_watch
from mcp_celery.worker.celery.bootsteps import no_remote_control
from mcp_celery.worker.end_watch import EndWatch, Over
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

REF = TaskRef(None, "task456")


class Records:
    """A store of one record."""

    def __init__(self) -> None:
        self.attempt = 1
        self.is_terminal = False
        self.is_there = True
        self.fails = False
        self.looks = 0

    async def load(self, ref: TaskRef) -> Any:
        assert ref == REF
        self.looks += 1
        if self.fails:
            raise StoreUnavailableError
        return Mock(record=self) if self.is_there else None


class Followed:
    """A job that follows its task."""

    def __init__(self) -> None:
        self.records = Records()
        self.bus = MemoryTaskBus()
        self.over: list[Over] = []
        self._watch = EndWatch(lambda: cast(TaskStore, self.records), lambda: self.bus)

    def following(self) -> Any:
        return self._watch.following(REF, 1, self.over.append)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Followed:
    monkeypatch.setattr(end_watch, "LOOK_SECONDS", 0.0)
    return Followed()


def end(records: Records) -> None:
    records.is_terminal = True


def forget(records: Records) -> None:
    records.is_there = False


def repeat(records: Records) -> None:
    records.attempt = 2


@pytest.mark.parametrize(("change", "over"), [(end, "ended"), (forget, "superseded"), (repeat, "superseded")])
async def test_the_watch_reports_once_why_a_job_is_over(
    job: Followed, change: Callable[[Records], None], over: Over
) -> None:
    async with job.following():
        await eventually(lambda: job.records.looks == 1)
        job.bus.tell(REF)  # its own progress
        await eventually(lambda: job.records.looks == 2)
        assert job.over == []
        change(job.records)
        job.bus.tell(REF)
        await eventually(lambda: job.over == [over])
        assert job.bus.followers == 0


async def test_an_end_before_it_listened_is_not_missed(job: Followed) -> None:
    end(job.records)
    async with job.following():
        await eventually(lambda: job.over == ["ended"])


@pytest.mark.parametrize("fault", ["bus", "store"])
async def test_the_watch_listens_again_when_the_store_answers(job: Followed, fault: str) -> None:
    if fault == "bus":
        job.bus.fail()
    job.records.fails = fault == "store"
    async with job.following():
        await anyio.sleep(0.1)
        end(job.records)
        job.bus.recover()
        job.records.fails = False
        await eventually(lambda: job.over == ["ended"])


async def test_a_hint_that_is_lost_only_takes_longer(job: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_watch, "RECHECK_SECONDS", 0.05)
    async with job.following():
        await eventually(lambda: job.records.looks)
        end(job.records)
        await eventually(lambda: job.over == ["ended"])


async def test_the_watch_ends_with_the_job(job: Followed) -> None:
    async with job.following():
        await eventually(lambda: job.bus.followers == 1)
    assert job.bus.followers == 0
    assert job.over == []


@pytest.mark.parametrize(
    ("pool", "conf", "reason"),
    [
        (TaskPool, {"broker_url": "redis://"}, None),
        (TaskPool, {"broker_url": "amqp://"}, None),
        (SoloPool, {"broker_url": "redis://"}, "the solo pool handles no command while a job runs"),
        (TaskPool, {"broker_url": "redis://", "worker_enable_remote_control": False}, "worker_enable_remote_control"),
        (TaskPool, {"broker_url": "sqla+sqlite://"}, "the broker carries no commands"),
    ],
    ids=str,
)
def test_only_workers_that_commands_do_not_reach_follow(pool: Any, conf: dict[str, Any], reason: str | None) -> None:
    app = Celery("host", set_as_current=False)
    app.conf.update(conf)
    found = no_remote_control(Mock(app=app, pool_cls=pool))
    assert found is None if reason is None else reason in str(found)
