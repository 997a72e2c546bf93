"""The end of a job is told to a store that does not answer, for as long as no other process would tell it."""

from __future__ import annotations

import os
from typing import cast

import pytest
from celery import Celery
from celery.exceptions import Ignore

from mcp_celery import TaskConfig
from mcp_celery.engine import Change, JobLedger, JobOutcome, RpcError, TaskRef
from mcp_celery.engine import retry as engine_retry
from mcp_celery.engine.outcome import UNKNOWN_REASON
from mcp_celery.errors import INTERNAL_ERROR, StoreUnavailableError
from mcp_celery.worker.delivery import JobCall, JobNotStarted
from mcp_celery.worker.job import WorkerRuntime, job_class
from mcp_celery.worker.runner import JobRunner

KEY = "anon:told:tool:build_report"
KWARGS = {"key": KEY, "attempt": 1}
TRIES = 5


class Silent:
    """A store that answers the last of some tries."""

    def __init__(self) -> None:
        self.tries = 0

    def change(self, _ref: TaskRef, _change: Change) -> None:
        self.tries += 1
        if self.tries < TRIES:
            raise StoreUnavailableError

    def told(self) -> bool:
        return self.tries == TRIES


@pytest.fixture
def store() -> Silent:
    return Silent()


@pytest.fixture
def runtime(store: Silent, monkeypatch: pytest.MonkeyPatch) -> WorkerRuntime:
    """That of a worker whose jobs give up as soon as they may."""
    monkeypatch.setattr(engine_retry, "JOB_GIVES_UP_SECONDS", -1.0)
    return WorkerRuntime(
        namespace="reports",
        ledger=lambda _: cast(JobLedger, store),
        living=lambda _worker, _components: pytest.fail("nothing lives here"),
        make_runner=lambda: pytest.fail("nothing runs here"),
        results="elsewhere",
    )


def in_a_child(runtime: WorkerRuntime, store: Silent) -> bool:
    """Whether the end of a job is told in a child process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            runtime.tell(KWARGS, Change(to="failed"))
            code = 0 if store.told() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def test_the_child_of_a_live_worker_waits_however_long_the_store_does_not_answer(
    runtime: WorkerRuntime, store: Silent
) -> None:
    runtime.heart.name("worker@here")
    assert in_a_child(runtime, store)


def test_the_child_of_a_worker_that_has_died_gives_up(
    runtime: WorkerRuntime, store: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.heart.name("worker@here")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not in_a_child(runtime, store)


def test_a_process_that_is_no_child_of_a_worker_gives_up(
    runtime: WorkerRuntime, store: Silent, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.tell(KWARGS, Change(to="failed"))
    assert not store.told()
    assert "could not record that task" in caplog.text


def test_a_worker_whose_heartbeat_has_ended_gives_up(runtime: WorkerRuntime, store: Silent) -> None:
    runtime.heart.name("worker@here")
    runtime.tell(KWARGS, Change(to="failed"))
    assert not store.told()


class TestAJobThatGaveUpItsStart:
    def test_it_tells_so_and_leaves_no_result_behind(self) -> None:
        told: list[Change] = []

        class Ledger:
            def change(self, _ref: TaskRef, change: Change) -> None:
                told.append(change)

        class Runner:
            async def run(self, _: JobCall) -> JobOutcome:
                raise JobNotStarted("delivery-1")

            async def aclose(self) -> None:
                pass

        runtime = WorkerRuntime(
            namespace="reports",
            ledger=lambda _: cast(JobLedger, Ledger()),
            living=lambda _worker, _components: pytest.fail("nothing lives here"),
            make_runner=lambda: cast(JobRunner, Runner()),
            results="elsewhere",
        )
        job = Celery(set_as_current=False).register_task(job_class("tool", "build_report", TaskConfig(), runtime)())
        job.push_request(id="job-1", retries=2, kwargs=KWARGS, hostname="worker@here", is_eager=False)
        try:
            with pytest.raises(Ignore):
                job.run(KEY, 1)
        finally:
            runtime.stop()
        [change] = told
        assert (change.to, change.attempt, change.unless_begun, change.delivery) == ("failed", 1, 2, "delivery-1")
        assert change.error == RpcError(INTERNAL_ERROR, UNKNOWN_REASON)
