"""A worker claims the jobs that it receives. A store that does not answer holds up none of its deliveries."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mcp_celery import TaskConfig
from mcp_celery.engine import Claim, JobLedger, TaskRef, now_ms
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.worker_lease import WorkerLife
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.worker.celery.signals import on_received
from mcp_celery.worker.job import WorkerRuntime, job_class
from tests.support.waiting import PATIENCE_SECONDS, eventually_sync


class Store:
    """A store that answers when it is to; notes on which threads it was asked for a claim."""

    def __init__(self) -> None:
        self.answers = True
        self.asked_by: list[threading.Thread] = []
        self.claims = 0
        self.claimed: list[str] = []
        self.looked_at = threading.Event()

    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int) -> bool:
        self.asked_by.append(threading.current_thread())
        self._answer()
        self.claims += 1
        self.claimed.append(ref.task_id)
        return True

    async def settle(self, *_: Any) -> None:
        """What the reaper does with what the worker has."""
        self.looked_at.set()

    async def beat(self, *_: Any, **__: Any) -> None:
        self._answer()

    def _answer(self) -> None:
        if not self.answers:
            raise StoreUnavailableError


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def runtime(store: Store) -> Generator[WorkerRuntime]:
    @asynccontextmanager
    async def living(worker: str, _components: Callable[[], Mapping[str, str]]) -> AsyncGenerator[WorkerLife]:
        policy = RecoveryPolicy(heartbeat_ms=1_000, max_redeliveries=3)
        anything = cast(Any, store)
        yield WorkerLife(worker, store=anything, tasks=anything, reaper=anything, policy=policy)

    runtime = WorkerRuntime(
        namespace="reports",
        ledger=lambda _: cast(JobLedger, store),
        living=living,
        make_runner=lambda: pytest.fail("nothing runs here"),
        results="elsewhere",
    )
    yield runtime
    runtime.stop()


def start(runtime: WorkerRuntime) -> None:
    async def unread_ms() -> int:
        return 0

    runtime.heart.start("worker@here", unread_ms, lambda: 1)


def receive(runtime: WorkerRuntime, task_id: str = "claimed") -> None:
    """Have the worker receive a job."""
    job = job_class("tool", "build_report", TaskConfig(), runtime)()
    kwargs = {"key": f"anon:{task_id}:tool:build_report", "attempt": 1}
    on_received(request=SimpleNamespace(task=job, hostname="worker@here", kwargs=kwargs, request_dict={}, id="job-1"))


def test_a_job_is_claimed_when_it_is_received(runtime: WorkerRuntime, store: Store) -> None:
    start(runtime)
    receive(runtime)
    assert store.asked_by == [threading.current_thread()]
    assert store.claims == 1


def test_a_store_that_took_no_heartbeat_is_asked_on_another_thread(runtime: WorkerRuntime, store: Store) -> None:
    store.answers = False
    start(runtime)
    receive(runtime)
    assert threading.current_thread() not in store.asked_by
    store.answers = True
    eventually_sync(lambda: store.claims == 1, what="the job is claimed")
    assert threading.current_thread() not in store.asked_by


def test_a_worker_whose_heartbeat_has_ended_claims_jobs_itself(runtime: WorkerRuntime, store: Store) -> None:
    store.answers = False
    start(runtime)
    runtime.heart.stop()
    store.answers = True
    receive(runtime)
    assert store.claims == 1


def test_a_job_whose_connection_is_lost_before_the_store_answers_is_not_claimed(
    runtime: WorkerRuntime, store: Store
) -> None:
    store.answers = False
    start(runtime)
    receive(runtime, "before")
    received_ms = now_ms()
    eventually_sync(lambda: now_ms() > received_ms, what="a millisecond is over")
    runtime.heart.reconnected()
    assert store.looked_at.wait(PATIENCE_SECONDS)
    receive(runtime, "after")
    store.answers = True
    eventually_sync(lambda: store.claims > 0, what="a job is claimed")
    runtime.heart.stop()
    assert store.claimed == ["after"]
