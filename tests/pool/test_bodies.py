"""What a body may be, and what it sees."""

import subprocess
import sys
from typing import Any, cast

import pytest
from celery import chain, chord, group

from tests.pool.conftest import Worker, end_of, state_of, value_of
from tests.support.waiting import eventually_sync


@pytest.mark.smoke
def test_an_async_body_is_awaited(worker: Worker) -> None:
    assert worker.run("echo", {"a": 1}) == {"a": 1}


def test_each_of_a_thousand_interleaved_jobs_has_its_own_request(worker: Worker) -> None:
    jobs = [worker.submit("identity", [0.001 * (n % 7), 0.002 * (n % 5), 0.0]) for n in range(1000)]
    for job in jobs:
        seen = value_of(job)
        assert seen == {"body": [job.id] * 3, "task": [job.id] * 3, "variable": [job.id] * 3, "thread": [job.id]}


@pytest.mark.smoke
def test_a_sync_body_runs_in_a_thread_as_itself(worker: Worker) -> None:
    jobs = [worker.submit("sync_identity") for _ in range(50)]
    for job in jobs:
        seen = value_of(job)
        assert seen.pop("thread").startswith("asyncio-pool-job-")
        assert seen == {
            "id": job.id, "current": job.id, "job": job.id, "in_job": True, "variable": "nobody", "awaited": 7,
        }  # fmt: skip


def test_a_base_class_with_a_call_of_its_own_is_called(worker: Worker) -> None:
    job = worker.submit("with_base")
    assert value_of(job) == ["called", job.id]


def test_a_class_based_task_can_be_suspended_wherever_celery_calls_its_code(worker: Worker) -> None:
    job = worker.submit("class_based", 1)
    assert value_of(job) == 2
    worker.noted(job, "success current=True")
    assert worker.notes(job) == [
        "prerun in_job=True current=True",
        "before_start in_job=True",
        "on_success 2",
        "success current=True",
    ]


def test_an_awaitable_that_a_plain_function_returns_is_awaited(worker: Worker) -> None:
    assert worker.run("wrapped", 5) == 5


def test_tasks_that_are_called_like_functions_are_functions(worker: Worker) -> None:
    job = worker.submit("calls_others")
    assert value_of(job) == ["direct", "eager", "sync", job.id]


def test_a_task_says_where_it_runs(worker: Worker) -> None:
    assert worker.run("on_loop", 0.01) == ["asyncio-pool", True]
    job = worker.submit("in_thread")
    assert value_of(job) == "asyncio-pool"
    eventually_sync(lambda: any(note.startswith("success in asyncio-pool-job-") for note in worker.notes(job)))


def test_an_asyncio_task_that_calls_a_sync_method_gets_an_error_to_await(worker: Worker) -> None:
    assert "beside job" in worker.run("in_a_child_task")


@pytest.mark.smoke
def test_an_exception_is_stored_with_the_traceback_of_the_coroutine(worker: Worker) -> None:
    job = worker.submit("fails", "no good")
    state, error = end_of(job)
    assert (state, repr(error)) == ("FAILURE", "ValueError('no good')")
    assert "in fails\n    raise ValueError(text)" in str(job.traceback)


def test_ignored_and_rejected_jobs_are_what_they_are_on_any_pool(worker: Worker) -> None:
    rejected = worker.submit("rejects")
    assert end_of(rejected)[0] == "FAILURE"  # so says Celery 5.7 of one that is not requeued
    ignored = worker.submit("ignores")
    assert worker.run("echo", 1) == 1
    assert state_of(ignored) == "STARTED"


def test_a_job_cannot_end_the_worker(worker: Worker) -> None:
    state, error = end_of(worker.submit("exits"))
    assert (state, type(error).__name__) == ("FAILURE", "WorkerLostError")
    assert worker.run("child_exits") == "SystemExit(4)"
    assert worker.run("echo", "alive") == "alive"


def test_a_body_that_is_cancelled_from_inside_has_failed(worker: Worker) -> None:
    state, error = end_of(worker.submit("cancels_itself"))
    assert (state, type(error).__name__) == ("FAILURE", "CancelledError")


@pytest.mark.smoke
def test_a_body_that_raises_retry_runs_again(worker: Worker) -> None:
    job = worker.submit("retries", 2)
    assert value_of(job) == 2
    assert worker.notes(job) == ["attempt 0", "attempt 1", "attempt 2"]


def test_a_body_fails_after_its_last_retry(worker: Worker) -> None:
    state, error = end_of(worker.submit("retries", 9))
    assert (state, type(error).__name__) == ("FAILURE", "MaxRetriesExceededError")


def test_a_body_is_retried_for_the_exceptions_it_names(worker: Worker) -> None:
    assert worker.run("autoretries", 2) == 2
    state, error = end_of(worker.submit("autoretries", 9))
    assert (state, repr(error)) == ("FAILURE", "ConnectionError('not yet')")


@pytest.mark.smoke
def test_chains_groups_and_chords_run_to_their_results(worker: Worker) -> None:
    add = worker.signature
    assert value_of(chain(add("adds", 1, 2), add("adds", 3), add("adds", 4)).apply_async()) == 10
    many = cast(Any, group([add("adds", n, n) for n in range(5)]).apply_async())
    assert [value_of(job) for job in many.results] == [0, 2, 4, 6, 8]
    assert value_of(chord([add("adds", n, 1) for n in range(4)], add("adds_up")).apply_async()) == 10


@pytest.mark.parametrize("task", ["echo", "echo_sync"])
def test_more_jobs_than_slots_all_come_to_their_turn(worker: Worker, task: str) -> None:
    jobs = [worker.submit(task, n) for n in range(200)]
    assert [value_of(job) for job in jobs] == list(range(200))


def test_the_process_is_set_up_like_any_in_which_jobs_run(worker: Worker) -> None:
    assert worker.notes("process")[0] == "init"


def test_a_second_worker_of_a_process_runs_them_where_the_first_did() -> None:
    """Celery's pytest plugin starts one after the other."""
    places = """
from mcp_celery.asyncio_pool.bodies import Bodies
from tests.pool.app import app
names = [f"tests.pool.app.{name}" for name in ("echo", "echo_sync", "on_loop", "in_thread", "autoretries")]
for _ in range(2):
    bodies = Bodies(app, None)
    print([bodies.on_loop(name) for name in names])
"""
    said = subprocess.run([sys.executable, "-c", places], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [str([True, False, True, False, True])] * 2
