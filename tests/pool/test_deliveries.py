"""Acknowledgements, prefetching, delays and rates."""

import signal
import time

import pytest

from tests.pool.conftest import Starter, Worker, state_of, value_of
from tests.support.waiting import PATIENCE_SECONDS, eventually_sync


@pytest.mark.smoke
@pytest.mark.parametrize(("task", "left"), [("hold", 0), ("hold_late", 1)])
def test_messages_are_acknowledged_early_or_late(worker: Worker, task: str, left: int) -> None:
    job = worker.submit(task, f"{task}-open")
    worker.noted(job, "begun")
    eventually_sync(lambda: len(worker.unacknowledged()) == left, what=f"{left} unacknowledged messages")
    worker.open(f"{task}-open")
    assert value_of(job) == "held"
    eventually_sync(lambda: not worker.unacknowledged())


def test_as_many_messages_are_prefetched_as_the_slots_say(start: Starter) -> None:
    worker = start("--prefetch-multiplier=2", concurrency=3)
    jobs = [worker.submit("hold_late", "open") for _ in range(12)]
    eventually_sync(lambda: len(worker.ids("active")) == 3)
    eventually_sync(lambda: len(worker.ids("reserved")) == 3)
    assert len(worker.unacknowledged()) == 6
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 12


def test_a_countdown_is_waited_for(worker: Worker) -> None:
    before = time.time()
    assert value_of(worker.submit("limited", countdown=0.7)) - before > 0.7


def test_a_scheduled_job_is_seen_and_can_be_revoked(worker: Worker) -> None:
    job = worker.submit("echo", 1, countdown=30)
    eventually_sync(lambda: job.id in {entry["request"]["id"] for entry in worker.ask("scheduled")})
    job.revoke()
    eventually_sync(lambda: state_of(job) == "REVOKED")


def test_a_rate_limit_spaces_the_jobs(worker: Worker) -> None:
    times = sorted(value_of(job) for job in [worker.submit("limited") for _ in range(6)])
    assert times[-1] - times[0] > 0.9  # 5 in a second, the sixth later


def test_a_late_job_of_a_killed_worker_is_delivered_again(start: Starter) -> None:
    worker = start(visibility_timeout=1)
    job = worker.submit("hold_late", "open")
    worker.noted(job, "begun")
    worker.kill()
    worker.restart()
    worker.open("open")
    assert value_of(job) == "held"
    assert worker.notes(job) == ["begun", "begun", "cleaned"]


def test_jobs_go_on_while_the_broker_is_lost_and_none_is_lost_with_it(start: Starter) -> None:
    worker = start(concurrency=2)
    jobs = [worker.submit("hold_late", "open") for _ in range(6)]
    eventually_sync(lambda: len(worker.ids("active")) == 2)
    # Of a message that Redis has handed out and the worker has not taken down yet, nobody knows: kombu's own gap.
    eventually_sync(lambda: worker.unacknowledged() == {job.id for job in jobs}, what="all messages are received")
    worker.store.client_kill_filter(_type="normal", skipme=True)
    eventually_sync(lambda: "Connection to broker lost" in worker.logs())
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 6
    assert worker.run("echo", "again") == "again"


def test_a_late_job_is_cancelled_with_its_connection_if_the_app_wants_that(start: Starter) -> None:
    worker = start(worker_cancel_long_running_tasks_on_connection_loss=1)
    job = worker.submit("hold_late", "open")
    worker.noted(job, "begun")
    worker.store.client_kill_filter(_type="normal", skipme=True)
    worker.noted(job, "cleaned")
    worker.open("open")
    # It is delivered again, to the same worker, which may be before the first delivery has cleaned up.
    assert value_of(job) == "held"
    assert sorted(worker.notes(job)) == ["begun", "begun", "cancelled", "cleaned", "cleaned"]


def test_a_stopped_worker_gives_back_what_it_has_not_begun(start: Starter) -> None:
    worker = start("--loglevel=DEBUG", concurrency=1)
    running, *waiting = [worker.submit("hold_late", "open") for _ in range(4)]
    worker.noted(running, "begun")
    eventually_sync(lambda: len(worker.ids("reserved")) == 3)
    worker.send(signal.SIGTERM)
    eventually_sync(lambda: "Worker: Stopping Pool..." in worker.logs())
    worker.open("open")
    worker.process.wait(PATIENCE_SECONDS)
    assert value_of(running) == "held"
    assert [worker.notes(job) for job in waiting] == [[], [], []]
    worker.restart()
    assert [value_of(job) for job in waiting] == ["held"] * 3
    assert worker.notes(running) == ["begun", "cleaned"]
