"""Workers without kombu's hub, as with SQS: Celery is told on a thread of the pool's own."""

import time

import pytest

from tests.pool.conftest import Starter, Worker, end_of, value_of
from tests.support.waiting import eventually_sync


@pytest.fixture(scope="module")
def worker(shared: Starter) -> Worker:
    return shared("--pool=custom", hub="no", worker_pool="solo", concurrency=3)


def test_the_pool_can_be_selected_for_one_worker(worker: Worker) -> None:
    assert worker.ask("stats")["pool"]["implementation"] == "mcp_celery.asyncio_pool.pool:TaskPool"


@pytest.mark.smoke
def test_jobs_run_on_a_worker_without_a_hub(worker: Worker) -> None:
    jobs = [worker.submit(task, n) for n in range(20) for task in ("echo", "echo_sync")]
    assert [value_of(job) for job in jobs] == [n for n in range(20) for _ in range(2)]


def test_celerys_callbacks_run_on_one_thread_that_is_not_the_loops(worker: Worker) -> None:
    job = worker.submit("hold_limited", "never")
    assert end_of(job)[0] == "FAILURE"
    worker.noted(job, "failure TimeLimitExceeded in asyncio-pool-callbacks")


def test_a_running_job_can_be_revoked(worker: Worker) -> None:
    job = worker.submit("hold", "never")
    worker.noted(job, "begun")
    eventually_sync(lambda: job.id in worker.ids("active"))
    job.revoke(terminate=True)
    assert end_of(job)[0] == "REVOKED"
    worker.noted(job, "cleaned")


def test_a_job_that_expires_while_it_waits_does_not_begin(worker: Worker) -> None:
    running = [worker.submit("hold", "open") for _ in range(3)]
    for job in running:
        worker.noted(job, "begun")
    expired = worker.submit("hold", "open", expires=2)
    expires_at = time.time() + 2
    eventually_sync(lambda: expired.id in worker.ids("reserved"))
    eventually_sync(lambda: time.time() > expires_at)
    worker.open("open")
    assert end_of(expired)[0] == "REVOKED"
    worker.noted(expired, "revoked terminated=False expired=True in asyncio-pool-callbacks")
    assert "begun" not in worker.notes(expired)
