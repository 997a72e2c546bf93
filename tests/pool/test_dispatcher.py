"""Each job is told to Celery exactly once, whatever happens to it."""

import asyncio
import logging
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final

import pytest
from billiard.einfo import ExceptionInfo
from celery.app.task import Context

from mcp_celery.asyncio_pool.current import await_in_job, current_job
from mcp_celery.asyncio_pool.dispatcher import Dispatcher
from mcp_celery.asyncio_pool.job import Callbacks, Job
from mcp_celery.asyncio_pool.mailbox import ThreadMailbox
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.smoke  # no processes: quick


class Pool:
    """A dispatcher, and what it has told of each job."""

    def __init__(self, limit: int = 4, threads: int = 2) -> None:
        self._mailbox = ThreadMailbox()
        self.dispatcher = Dispatcher(limit, threads, self._mailbox)
        self.dispatcher.start()
        self.told: dict[str, list[Any]] = {}

    def submit(self, body: Callable[[], Any], *, on_loop: bool = True, **limits: float) -> Job:
        """Take a job whose work does with the body what Celery's tracer does."""
        name = f"job-{len(self.told)}"
        told = self.told[name] = list[Any]()

        job = Job(lambda: _trace(body), job_id=name, name="job", on_loop=on_loop, tell=_into(told), **limits)
        self.dispatcher.submit(job)
        return job

    def end_of(self, job: Job) -> Any:
        """Wait for the last that is told of a job."""
        eventually_sync(lambda: _ended(self.told[job.id]), what=f"the end of {job.id}")
        return self.told[job.id][-1]

    def close(self) -> None:
        self.dispatcher.roster.close()
        self.dispatcher.drop_all()
        eventually_sync(lambda: not self.dispatcher.unfinished())
        self._mailbox.close()
        self.dispatcher.stop(1.0)


def _into(told: list[Any]) -> Callbacks:
    def returned(value: Any) -> None:
        told.append(("returned", value))

    def accepted(*_: Any) -> None:
        told.append("accepted")

    def timed_out(soft: bool, _seconds: float) -> None:
        told.append("soft" if soft else "hard")

    def failed(einfo: ExceptionInfo) -> None:
        told.append(("failed", _kind(einfo)))

    return Callbacks(returned, accepted, timed_out, failed)


def _trace(body: Callable[[], Any]) -> Any:
    job = current_job()
    assert isinstance(job, Job)
    assert job.begins(Context(called_directly=False))
    return job.run_body(body, (), {})


def _kind(einfo: ExceptionInfo) -> str:
    return type(getattr(einfo.exception, "exc", einfo.exception)).__name__


def _ended(told: list[Any]) -> bool:
    return any(isinstance(what, tuple) or what == "hard" for what in told)


@pytest.fixture
def pool() -> Generator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


on_either = pytest.mark.parametrize("on_loop", [True, False])


@on_either
def test_a_job_is_accepted_and_ends(pool: Pool, on_loop: bool) -> None:
    job = pool.submit(lambda: asyncio.sleep(0.01, "slept"), on_loop=on_loop)
    assert pool.end_of(job) == ("returned", "slept")
    assert pool.told[job.id] == ["accepted", ("returned", "slept")]


@on_either
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError])
def test_an_exception_that_a_job_raises_fails_that_job_alone(
    pool: Pool, on_loop: bool, error: type[BaseException]
) -> None:
    def body() -> None:
        raise error

    expected = error.__name__ if issubclass(error, Exception) else "WorkerLostError"
    assert pool.end_of(pool.submit(body, on_loop=on_loop)) == ("failed", expected)
    assert pool.end_of(pool.submit(lambda: 7, on_loop=on_loop)) == ("returned", 7)


@on_either
def test_a_job_that_waits_for_a_coroutine_can_be_terminated(pool: Pool, on_loop: bool) -> None:
    seen = list[str]()

    async def body() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0.01)
            seen.append("cleaned")

    job = pool.submit(body, on_loop=on_loop)
    eventually_sync(lambda: pool.told[job.id])
    job.terminate(15)
    job.terminate(15)
    assert pool.end_of(job) == ("failed", "Terminated")
    assert (seen, pool.told[job.id]) == (["cancelled", "cleaned"], ["accepted", ("failed", "Terminated")])


def test_an_exception_is_raised_in_a_body_and_nowhere_else(pool: Pool) -> None:
    """A thread that has left the body, or comes to the next one, is not interrupted any more."""
    left = threading.Event()

    def slow_to_leave() -> None:
        strand = pool.dispatcher.roster.running()[0].strand
        assert strand is not None
        strand.leave_body()
        left.set()
        time.sleep(0.05)

    job = pool.submit(slow_to_leave, on_loop=False, soft_seconds=0.01)
    assert left.wait(10)
    assert pool.end_of(job) == ("returned", None)
    assert [pool.end_of(pool.submit(lambda: 1, on_loop=False)) for _ in range(20)] == [("returned", 1)] * 20


TRACED: Final = """
import asyncio, threading
from mcp_celery.asyncio_pool.threads import ThreadStrand

def trace(*_):
    return trace

def run():
    for interrupt in (False, True):
        strand = ThreadStrand(asyncio.new_event_loop())
        strand.enter_body()
        if interrupt:
            try:
                strand.interrupt("at the end of the body")
            except asyncio.CancelledError:
                pass
        strand.leave_body()
    print("left")

def wait():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    strand = ThreadStrand(loop)

    async def body():
        loop.call_soon(strand.interrupt, "while the thread waits")
        await asyncio.sleep(60)

    strand.enter_body()
    try:
        strand.wait(body())
    except asyncio.CancelledError:
        print("cancelled")
    strand.leave_body()

threading.settrace(trace)
for target in (run, wait):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
"""


def test_a_body_can_be_left_and_cancelled_while_a_debugger_traces_its_thread() -> None:
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "left\ncancelled\n"


@on_either
def test_a_soft_limit_that_passes_before_the_body_is_raised_as_it_begins(on_loop: bool) -> None:
    pool = Pool()
    ran = list[bool]()

    def work() -> Any:
        await_in_job(asyncio.sleep(0.1))  # a signal handler
        return _trace(lambda: ran.append(True))

    told = list[Any]()
    pool.dispatcher.submit(Job(work, job_id="1", name="job", on_loop=on_loop, tell=_into(told), soft_seconds=0.01))
    eventually_sync(lambda: _ended(told))
    assert told == ["accepted", "soft", ("failed", "SoftTimeLimitExceeded")]
    assert not ran
    pool.close()


def test_sync_code_may_wait_inside_a_coroutine(pool: Pool) -> None:
    async def inner() -> str:
        await asyncio.sleep(0.01)
        return "inner"

    async def body() -> list[str]:
        await asyncio.sleep(0.01)
        return [await_in_job(inner()), await inner(), await_in_job(asyncio.ensure_future(inner()))]

    assert pool.end_of(pool.submit(body)) == ("returned", ["inner"] * 3)


def test_nothing_outside_a_job_can_wait_in_it(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(RuntimeError, match="outside a job of the asyncio pool"):
        await_in_job(asyncio.sleep(0))
    assert not recwarn


@pytest.mark.parametrize("seed", range(3))
def test_no_job_is_lost_or_reported_twice(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    chance = random.Random(seed)
    limit = 20
    pool = Pool(limit=limit, threads=6)
    jobs = list[Job]()

    async def coroutine(seconds: float) -> float:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(seconds))
                await asyncio.sleep(seconds / 2)
        finally:
            await asyncio.sleep(0)
        return seconds

    def function(seconds: float) -> float:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.0005)
        return seconds

    def fails(error: type[BaseException]) -> None:
        raise error

    for n in range(600):
        seconds = chance.random() * 0.02
        work = chance.choice([coroutine, coroutine, function])
        # Chosen here: in the jobs' threads, the order of the choices would be another in each run.
        error = chance.choice([ValueError, SystemExit])
        does_fail = chance.random() < 0.05
        body: Callable[[], Any] = partial(fails, error) if does_fail else partial(work, seconds)
        limits = {name: chance.random() * 0.02 for name in ("soft_seconds", "hard_seconds") if chance.random() < 0.3}
        jobs.append(pool.submit(body, on_loop=chance.random() < 0.7 or work is coroutine, **limits))
        if chance.random() < 0.3:
            victim = chance.choice(jobs)
            threading.Timer(chance.random() * 0.01, victim.terminate, args=(15,)).start()
        if n % 50 == 0:
            by = chance.choice([-5, 5]) if limit > 5 else 5  # where none may run, none ends
            limit += by
            pool.dispatcher.resize(by)
    ends = Counter[str]()
    for job in jobs:
        pool.end_of(job)
    eventually_sync(lambda: not pool.dispatcher.roster.running())
    pool.close()
    for job in jobs:
        told = pool.told[job.id]
        last = [what for what in told if what not in ("accepted", "soft")]
        assert len(last) == 1, told
        assert told[-1] == last[0] or told[-1] == "soft", told
        assert told.count("accepted") <= 1, told
        ends[str(last[0][1]) if last[0][0] == "failed" else str(last[0][0])] += 1
    assert ends["returned"] > 50
    assert ends["Terminated"] > 5
    assert pool.dispatcher.roster.census().waiting == 0
