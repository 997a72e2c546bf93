"""What operators see and say."""

import pytest

from tests.pool.conftest import Starter, Worker, value_of
from tests.support.live import celery_events
from tests.support.waiting import eventually_sync


@pytest.fixture(scope="module")
def worker(shared: Starter) -> Worker:
    children = ("--max-tasks-per-child=5", "--max-memory-per-child=100000")
    return shared("--task-events", *children, worker_pool_restarts=1, worker_asyncio_threads=2)


@pytest.mark.smoke
def test_the_worker_reports_its_running_jobs_and_its_pool(worker: Worker) -> None:
    job = worker.submit("hold", "seen")
    worker.noted(job, "begun")
    (active,) = worker.ask("active")
    assert (active["id"], active["worker_pid"], active["acknowledged"]) == (job.id, worker.pid, True)
    pool = worker.ask("stats")["pool"]
    assert pool["implementation"] == "mcp_celery.asyncio_pool.pool:TaskPool"
    assert (pool["max-concurrency"], pool["running"], pool["waiting"], pool["processes"]) == (10, 1, 0, [worker.pid])
    worker.open("seen")
    assert value_of(job) == "held"
    eventually_sync(lambda: worker.ids("active") == set())


def test_events_show_flower_each_state_of_a_job(worker: Worker) -> None:
    with celery_events(worker.app) as log:
        good, bad, gone = worker.submit("echo", 1), worker.submit("fails", "x"), worker.submit("hold", "never")
        worker.noted(gone, "begun")
        gone.revoke(terminate=True)
        for job, end in ((good, "task-succeeded"), (bad, "task-failed"), (gone, "task-revoked")):
            told = ["task-received", "task-started", end]
            eventually_sync(lambda job=job, told=told: log.kinds_of(job.id) == told, what=f"{told}")


def test_options_of_child_processes_are_logged_as_without_effect(worker: Worker) -> None:
    for setting in ("worker_max_tasks_per_child", "worker_max_memory_per_child"):
        assert f"{setting} (" in worker.logs()
    assert [worker.run("echo", n) for n in range(8)] == list(range(8))


def test_a_restart_of_the_pool_leaves_jobs_alone(worker: Worker) -> None:
    job = worker.submit("hold", "restarted")
    worker.noted(job, "begun")
    assert worker.tell("pool_restart") == {"ok": "reload started"}
    worker.open("restarted")
    assert value_of(job) == "held"
    assert worker.run("echo", 1) == 1


def test_sync_bodies_share_the_threads_that_they_are_given(worker: Worker) -> None:
    jobs = [worker.submit("hold_sync", "threads") for _ in range(4)]
    eventually_sync(lambda: len(worker.ids("active")) == 2)
    assert worker.ask("stats")["pool"]["threads"] == {"max": 2, "running": 2}
    assert worker.run("echo", "overtakes") == "overtakes"
    worker.open("threads")
    assert [value_of(job) for job in jobs] == ["held"] * 4


@pytest.mark.smoke
def test_the_pool_grows_and_shrinks(start: Starter) -> None:
    worker = start(concurrency=1)
    jobs = [worker.submit("hold", gate) for gate in "abcd"]
    eventually_sync(lambda: len(worker.ids("active")) == 1)
    assert worker.tell("pool_grow", n=2) == {"ok": "pool will grow"}
    eventually_sync(lambda: len(worker.ids("active")) == 3)
    assert worker.tell("pool_shrink", n=2) == {"ok": "pool will shrink"}
    assert len(worker.ids("active")) == 3  # they go on
    worker.open("a")
    worker.open("b")
    assert [value_of(job) for job in jobs[:2]] == ["held"] * 2
    eventually_sync(lambda: worker.ids("active") == {jobs[2].id})
    worker.open("c")
    eventually_sync(lambda: worker.ids("active") == {jobs[3].id})
    worker.open("d")
    assert value_of(jobs[3]) == "held"
    assert "cannot shrink" in worker.tell("pool_shrink", n=2)["error"]


def test_the_pool_grows_to_the_limit_of_autoscale(start: Starter) -> None:
    worker = start("--autoscale=4,0")
    jobs = [worker.submit("hold", "open") for _ in range(8)]
    eventually_sync(lambda: len(worker.ids("active")) == 4)
    assert worker.ask("stats")["pool"]["max-concurrency"] == 4
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 8
