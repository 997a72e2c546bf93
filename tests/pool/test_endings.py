"""Jobs that are ended from outside: by a limit, by a revoke."""

import time

import pytest

from tests.pool.conftest import Starter, Worker, end_of, state_of, value_of
from tests.support.waiting import eventually_sync

REVOKED = "revoked terminated=False expired=False in MainThread"
EXPIRED = "revoked terminated=False expired=True in MainThread"
TERMINATED = "revoked terminated=True expired=False in MainThread"


@pytest.fixture(scope="module")
def narrow(shared: Starter) -> Worker:
    """A worker with one slot, and limits for all jobs that set none."""
    return shared("--time-limit=60", "--soft-time-limit=50", concurrency=1)


@pytest.mark.smoke
def test_a_soft_limit_is_raised_where_the_coroutine_waits(worker: Worker) -> None:
    assert worker.run("soft_caught") == "caught"
    assert "Soft time limit (0.3s) exceeded for tests.pool.app.soft_caught" in worker.logs()


def test_a_soft_limit_that_is_not_caught_is_celerys_own_exception(worker: Worker) -> None:
    job = worker.submit("soft_uncaught")
    state, error = end_of(job)
    assert state == "FAILURE"
    assert (type(error).__module__, type(error).__name__) == ("billiard.exceptions", "SoftTimeLimitExceeded")
    worker.noted(job, "failure SoftTimeLimitExceeded in asyncio-pool")


def test_a_soft_limit_leaves_no_children_behind(worker: Worker) -> None:
    job = worker.submit("soft_in_a_group")
    state, error = end_of(job)
    assert (state, type(error).__name__) == ("FAILURE", "SoftTimeLimitExceeded")
    # They had ended before it was recorded.
    assert worker.notes(job)[:2] == ["child ended", "child ended"]


@pytest.mark.smoke
def test_a_soft_limit_is_raised_in_a_thread(worker: Worker) -> None:
    assert worker.run("soft_sync") == "caught"
    assert worker.run("echo_sync", "the thread is fine") == "the thread is fine"


@pytest.mark.parametrize("limits", [{"soft_time_limit": 0.2}, {"time_limit": 0.2}])
def test_limits_of_a_single_job_hold(worker: Worker, limits: dict[str, float]) -> None:
    state, error = end_of(worker.submit("hold", "never", **limits))
    assert (state, type(error).__name__.removeprefix("Soft")) == ("FAILURE", "TimeLimitExceeded")


def test_limits_of_the_worker_are_taken_up(narrow: Worker) -> None:
    assert narrow.ask("stats")["pool"]["timeouts"] == [50.0, 60.0]
    assert narrow.run("echo", "in time") == "in time"


@pytest.mark.smoke
def test_a_hard_limit_cancels_the_coroutine_and_is_a_failure(worker: Worker) -> None:
    job = worker.submit("hold_limited", "never")
    state, error = end_of(job)
    assert (state, repr(error)) == ("FAILURE", "TimeLimitExceeded(0.3)")
    worker.noted(job, "cleaned")
    worker.noted(job, "failure TimeLimitExceeded in MainThread")  # by another thread
    assert sorted(worker.notes(job)) == ["begun", "cancelled", "cleaned", "failure TimeLimitExceeded in MainThread"]
    eventually_sync(lambda: not worker.ask("stats")["pool"]["running"])
    assert state_of(job) == "FAILURE"


def test_a_hard_limit_ends_a_body_in_a_thread_too(worker: Worker) -> None:
    job = worker.submit("hold_sync_limited")
    state, error = end_of(job)
    assert (state, repr(error)) == ("FAILURE", "TimeLimitExceeded(0.3)")
    worker.noted(job, "cleaned")


@pytest.mark.smoke
@pytest.mark.parametrize("task", ["hold", "hold_sync"])
def test_a_revoked_job_is_cancelled_where_it_waits_and_cleans_up(worker: Worker, task: str) -> None:
    job = worker.submit(task, "never")
    worker.noted(job, "begun")
    job.revoke(terminate=True)
    state, error = end_of(job)
    assert (state, repr(error)) == ("REVOKED", "TaskRevokedError('terminated')")
    worker.noted(job, "cleaned")
    worker.noted(job, TERMINATED)
    assert [note for note in worker.notes(job) if note != TERMINATED] == ["begun", "cancelled", "cleaned"]
    eventually_sync(lambda: not worker.ids("active"))


@pytest.mark.parametrize("task", ["survives", "breaks_down"])
def test_the_outcome_of_a_revoked_body_does_not_count(worker: Worker, task: str) -> None:
    job = worker.submit(task, "never")
    worker.noted(job, "begun")
    job.revoke(terminate=True)
    assert end_of(job)[0] == "REVOKED"
    eventually_sync(lambda: not worker.ask("stats")["pool"]["running"])
    assert state_of(job) == "REVOKED"


def test_a_job_that_waits_for_a_slot_can_be_revoked(narrow: Worker) -> None:
    running, waiting, behind = (narrow.submit("hold", gate) for gate in ("one", "two", "one"))
    narrow.noted(running, "begun")
    eventually_sync(lambda: narrow.ids("reserved") == {waiting.id, behind.id})
    waiting.revoke(terminate=True)
    assert end_of(waiting)[0] == "REVOKED"
    eventually_sync(lambda: narrow.ids("reserved") == {behind.id})
    narrow.open("one")
    assert value_of(running) == value_of(behind) == "held"
    assert narrow.notes(waiting) == [TERMINATED]


def test_a_job_that_is_revoked_or_expires_while_it_waits_does_not_begin(narrow: Worker) -> None:
    running = narrow.submit("hold", "three")
    narrow.noted(running, "begun")
    revoked, kept = narrow.submit("hold", "three"), narrow.submit("echo", 1)
    expired = narrow.submit("hold", "three", expires=2)
    expires_at = time.time() + 2
    eventually_sync(lambda: narrow.ids("reserved") == {revoked.id, expired.id, kept.id})
    revoked.revoke()
    eventually_sync(lambda: revoked.id in narrow.ask("revoked"))
    eventually_sync(lambda: time.time() > expires_at)
    narrow.open("three")
    assert value_of(kept) == 1
    assert end_of(revoked)[0] == end_of(expired)[0] == "REVOKED"
    narrow.noted(expired, EXPIRED)
    assert (narrow.notes(revoked), narrow.notes(expired)) == ([REVOKED], [EXPIRED])


def test_a_cancelled_job_that_keeps_running_is_logged(narrow: Worker) -> None:
    job = narrow.submit("ignores_its_end", "four")
    narrow.noted(job, "begun")
    job.revoke(terminate=True)
    assert end_of(job)[0] == "REVOKED"
    eventually_sync(lambda: f"{job.id}] was ended" in narrow.logs(), what="the complaint")
    narrow.open("four")
    assert narrow.run("echo", 1) == 1


def test_a_job_that_blocks_the_loop_is_named(worker: Worker) -> None:
    job = worker.submit("blocks_the_loop", 3.0)
    value_of(job)
    eventually_sync(lambda: f"Task tests.pool.app.blocks_the_loop[{job.id}] holds the event loop" in worker.logs())
    assert "time.sleep(seconds)" in worker.logs()
