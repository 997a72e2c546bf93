"""A pool may have more slots while its jobs only wait, and gives them up again."""

import re
import resource

import pytest

from mcp_celery.asyncio_pool.growth import Growth
from mcp_celery.asyncio_pool.roster import Census
from tests.pool.conftest import Starter, Worker, value_of
from tests.support.waiting import eventually_sync


def slots(worker: Worker) -> int:
    return worker.ask("stats")["pool"]["max-concurrency"]


@pytest.mark.parametrize("hub", ["yes", "no"])
def test_slots_are_added_while_jobs_wait_and_go_again(start: Starter, hub: str) -> None:
    way = {} if hub == "yes" else {"hub": "no", "worker_pool": "solo"}
    options = [] if hub == "yes" else ["--pool=custom"]
    worker = start(*options, concurrency=4, worker_asyncio_grow_to=20, worker_prefetch_multiplier=1, **way)
    assert slots(worker) == 4
    assert worker.tell("pool_grow", n=1) == {"ok": "pool will grow"}  # an operator's, which stays
    jobs = [worker.submit("hold_late", "open") for _ in range(30)]
    eventually_sync(lambda: len(worker.ids("active")) == 20, what="20 jobs at a time")
    assert slots(worker) == 20
    assert len(worker.ids("reserved") - worker.ids("active")) == 0, "what it cannot run is left to others"
    assert worker.ask("stats")["asyncio-growth"] == {"max": 20, "added": 15}
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 30
    eventually_sync(lambda: slots(worker) == 5, what="the slots of before")
    eventually_sync(lambda: worker.ask("stats")["prefetch_count"] == 5)


def test_prefetched_jobs_get_all_the_slots_that_they_need(start: Starter) -> None:
    worker = start(concurrency=4, worker_asyncio_grow_to=20, worker_prefetch_multiplier=0)
    jobs = [worker.submit("hold", "open") for _ in range(20)]
    eventually_sync(lambda: len(worker.ids("active")) == 20, what="20 jobs at a time")
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 20


def test_jobs_that_fall_due_together_get_more_slots(start: Starter) -> None:
    """Celery tells of a message when it arrives, and not of one that has an ETA."""
    worker = start(concurrency=1, worker_asyncio_grow_to=8)
    jobs = [worker.submit("hold", "open", countdown=1) for _ in range(8)]
    eventually_sync(lambda: len(worker.ids("active")) == 8, what="8 jobs at a time")
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 8


def test_a_lost_connection_takes_no_slots_away(start: Starter) -> None:
    worker = start(concurrency=4, worker_asyncio_grow_to=8, worker_prefetch_multiplier=1)
    jobs = [worker.submit("hold", "open") for _ in range(6)]
    eventually_sync(lambda: len(worker.ids("active")) == 6, what="6 jobs at a time")
    worker.store.client_kill_filter(_type="normal", skipme=True)
    eventually_sync(lambda: worker.logs().count("Connected to") == 2, what="a new connection")
    jobs += [worker.submit("hold", "open") for _ in range(2)]
    eventually_sync(lambda: len(worker.ids("active")) == 8, what="8 jobs at a time")
    stats = worker.ask("stats")
    assert (stats["pool"]["max-concurrency"], stats["prefetch_count"]) == (8, 8)
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["held"] * 8


def test_a_busy_loop_gets_no_more_jobs_until_it_has_time(start: Starter) -> None:
    worker = start("--loglevel=DEBUG", concurrency=4, worker_asyncio_grow_to=20, worker_prefetch_multiplier=1)
    busy = [worker.submit("computes", "done") for _ in range(3)]
    for job in busy:
        worker.noted(job, "begun")
    waiting = [worker.submit("hold_late", "open") for _ in range(10)]
    eventually_sync(lambda: len(re.findall("no more slots: the event loop is", worker.logs())) >= 3)
    assert slots(worker) == 4
    worker.open("done")
    # It is looked at again without another job: there can be none, since as many are prefetched as may be.
    eventually_sync(lambda: len(worker.ids("active")) == 10, what="all others at a time")
    worker.open("open")
    assert [value_of(job) for job in busy + waiting] == ["computed"] * 3 + ["held"] * 10


def test_jobs_that_wait_for_threads_get_no_more_slots(start: Starter) -> None:
    # anyio has 40 threads by default: fewer than the share of the slots from which on more are thought of.
    worker = start("--loglevel=DEBUG", concurrency=60, worker_asyncio_grow_to=100)
    jobs = [worker.submit("waits_for_a_thread", "open") for _ in range(60)]
    eventually_sync(lambda: "20 jobs wait for threads" in worker.logs())
    assert slots(worker) == 60
    worker.open("open")
    assert [value_of(job) for job in jobs] == ["waited"] * 60


class Counted:
    """A pool of which only the numbers matter."""

    def __init__(self, limit: int, running: int) -> None:
        self.limit = limit
        self.running = running

    def census(self) -> Census:
        return Census(running=self.running, in_threads=0, waiting=0, waits_for_thread=False)

    def grow(self, n: int = 1) -> None:
        self.limit += n

    def shrink(self, n: int = 1) -> None:
        self.limit -= n


@pytest.mark.smoke
def test_a_pool_grows_by_half_and_shrinks_to_twice_what_was_needed() -> None:
    pool = Counted(100, running=74)
    growth = Growth(pool, 300)
    assert not growth.is_short()
    pool.running = 75
    assert growth.is_short()
    assert growth.add() == 50
    assert growth.add() == 0, "they suffice"
    pool.running = 300
    assert [growth.add() for _ in range(3)] == [75, 75, 0]
    assert not growth.is_short()
    pool.running = 80
    assert growth.remove() == 0, "300 have run since the last look"
    assert growth.remove() == 140
    pool.running = 0
    growth.remove()
    assert (pool.limit, growth.info()) == (100, {"max": 300, "added": 0})


@pytest.mark.smoke
def test_a_pool_that_an_operator_shrinks_grows_no_more() -> None:
    pool = Counted(4, running=6)
    growth = Growth(pool, 20)
    assert [growth.add(), growth.add()] == [2, 3]
    assert growth.info() == {"max": 20, "added": 5}
    pool.shrink(2)
    assert growth.info() == {"max": 7, "added": 3}
    pool.running = 7
    assert not growth.is_short()
    pool.shrink(5)
    pool.running = 0
    assert growth.remove() == 0
    assert growth.info() == {"max": 2, "added": 0}
    pool.shrink(2)
    assert not growth.is_short(), "a worker that is to have no slots stays without"
    pool.grow(3)
    assert (growth.is_short(), growth.info()) == (False, {"max": 0, "added": 0})


@pytest.mark.parametrize("options", [{}, {"worker_asyncio_grow_to": 0}])
def test_without_the_setting_the_number_of_slots_is_fixed(start: Starter, options: dict[str, int]) -> None:
    assert "asyncio-growth" not in start(concurrency=2, **options).ask("stats")


def test_celerys_own_autoscaler_decides_where_it_is_configured(start: Starter) -> None:
    stats = start("--autoscale=4,2", worker_asyncio_grow_to=20).ask("stats")
    assert "asyncio-growth" not in stats
    assert stats["autoscaler"]["max"] == 4


def test_a_limit_of_prefetched_messages_fixes_the_slots(start: Starter) -> None:
    assert "asyncio-growth" not in start(worker_asyncio_grow_to=20, worker_eta_task_limit=30).ask("stats")


def test_no_more_slots_than_the_process_may_open_files(start: Starter) -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    stats = start(worker_asyncio_grow_to=10**9).ask("stats")
    assert stats["asyncio-growth"]["max"] == min(10**9, files // 2)


@pytest.mark.smoke
def test_a_wrong_setting_is_named(start: Starter) -> None:
    with pytest.raises(Exception, match=r"worker_asyncio_grow_to must be a number of jobs, 0 or more, not 'many'"):
        start(concurrency=2, worker_asyncio_grow_to="many")
