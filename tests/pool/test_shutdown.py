"""How a worker ends."""

import signal
import sys

import pytest

from tests.pool.conftest import Starter, state_of, value_of
from tests.support.nodes import COVERAGE_IS_MEASURED
from tests.support.waiting import PATIENCE_SECONDS, eventually_sync


@pytest.mark.smoke
def test_a_warm_shutdown_lets_running_jobs_finish_and_cleans_up(start: Starter) -> None:
    worker = start("--loglevel=DEBUG")
    gone = worker.submit("leaves_something")
    value_of(gone)
    jobs = [worker.submit(task, "open") for task in ("hold", "hold_late", "hold_sync")]
    for job in jobs:
        worker.noted(job, "begun")
    worker.send(signal.SIGTERM)
    eventually_sync(lambda: "Worker: Stopping Pool..." in worker.logs())
    late = worker.submit("echo", "for the next worker")
    worker.open("open")
    assert worker.process.wait(PATIENCE_SECONDS) == 0
    assert [value_of(job) for job in jobs] == ["held"] * 3
    assert state_of(late) == "PENDING"
    assert worker.notes(gone) == ["cleaned up", "stray ended"]
    assert worker.notes("process") == ["init", "shutdown"]


def test_a_job_that_ends_during_a_warm_shutdown_is_acknowledged_at_once(start: Starter) -> None:
    worker = start()
    first, second = worker.submit("hold_late", "first"), worker.submit("hold_late", "second")
    for job in (first, second):
        worker.noted(job, "begun")
    worker.send(signal.SIGTERM)
    eventually_sync(lambda: "Warm shutdown" in worker.logs())
    worker.open("first")
    eventually_sync(lambda: worker.unacknowledged() == {second.id}, what="one message left")
    worker.open("second")
    assert worker.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.skipif(
    COVERAGE_IS_MEASURED and sys.version_info < (3, 12),
    reason="in CPython 3.11 a traced call does not end while an exception waits for a thread that is in a C call",
)
def test_a_cold_shutdown_cancels_the_jobs_and_waits_for_none_that_does_not_end(start: Starter) -> None:
    worker = start()
    jobs = [worker.submit(task, "open") for task in ("hold", "hold_late", "hold_sync")]
    stuck = [worker.submit("ignores_its_end", "open"), worker.submit("stuck")]
    for job in (*jobs, *stuck):
        worker.noted(job, "begun")
    worker.send(signal.SIGQUIT)
    worker.process.wait(PATIENCE_SECONDS)
    for job in jobs:
        assert worker.notes(job) == ["begun", "cancelled", "cleaned"]
    worker.restart()
    worker.open("open")
    assert value_of(jobs[1]) == "held"  # late: delivered again


def test_jobs_may_finish_during_a_soft_shutdown(start: Starter) -> None:
    worker = start(worker_soft_shutdown_timeout=2)
    finishes, does_not = worker.submit("hold_late", "soon"), worker.submit("hold_late", "later")
    for job in (finishes, does_not):
        worker.noted(job, "begun")
    worker.send(signal.SIGQUIT)
    eventually_sync(lambda: "Initiating Soft Shutdown" in worker.logs())
    worker.open("soon")
    worker.process.wait(PATIENCE_SECONDS)
    assert value_of(finishes) == "held"
    assert worker.notes(does_not) == ["begun", "cancelled", "cleaned"]
    worker.restart()
    worker.open("later")
    assert value_of(does_not) == "held"
    assert worker.notes(finishes) == ["begun", "cleaned"]


def test_a_cold_shutdown_may_follow_a_warm_one(start: Starter) -> None:
    worker = start()
    job = worker.submit("hold", "never")
    worker.noted(job, "begun")
    worker.send(signal.SIGTERM)
    eventually_sync(lambda: "Warm shutdown" in worker.logs())
    worker.send(signal.SIGQUIT)
    worker.process.wait(PATIENCE_SECONDS)
    assert worker.notes(job) == ["begun", "cancelled", "cleaned"]


def test_workers_without_a_hub_end_as_well(start: Starter) -> None:
    warm, cold = (start(hub="no") for _ in range(2))
    finishes, cancelled = (worker.submit("hold", "open") for worker in (warm, cold))
    warm.noted(finishes, "begun")
    cold.noted(cancelled, "begun")
    cold.send(signal.SIGQUIT)
    warm.send(signal.SIGTERM)
    eventually_sync(lambda: "Warm shutdown" in warm.logs())
    warm.open("open")
    assert warm.process.wait(PATIENCE_SECONDS) == 0
    cold.process.wait(PATIENCE_SECONDS)
    assert value_of(finishes) == "held"
    assert cold.notes(cancelled) == ["begun", "cancelled", "cleaned"]
