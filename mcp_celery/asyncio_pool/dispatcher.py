"""Brings jobs to their end: gives each its strand, its limits and its interruption, and reports to Celery."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from celery.exceptions import Terminated, WorkerLostError

from mcp_celery.asyncio_pool.current import set_current_job
from mcp_celery.asyncio_pool.greenlets import LoopStrand
from mcp_celery.asyncio_pool.job import Job, Verdict
from mcp_celery.asyncio_pool.loop import LoopThread
from mcp_celery.asyncio_pool.mailbox import Mailbox
from mcp_celery.asyncio_pool.roster import Roster
from mcp_celery.asyncio_pool.threads import DaemonThreads, ThreadStrand
from mcp_celery.base_exceptions import GuardedCoroutine

logger = logging.getLogger(__name__)

UNWIND_SECONDS: Final = 5.0
"""How long a job that is ended may take for its ``finally`` blocks before it is complained of, and interrupted again;
and how long a worker that ends waits for such jobs."""
COMPLAIN_EVERY_SECONDS: Final = 60.0


class Dispatcher:
    """Runs jobs, on the event loop and in threads.

    Args:
        limit: How many run at once.
        threads: How many of them run in threads.
        mailbox: Runs Celery's callbacks.
    """

    def __init__(self, limit: int, threads: int, mailbox: Mailbox) -> None:
        self.roster = Roster(limit, threads)
        self.loop = LoopThread()
        self._threads = DaemonThreads("asyncio-pool-job")
        self._mailbox = mailbox
        # What was set while the worker came up is seen by every job; what a job sets, by itself alone.
        self._context = contextvars.copy_context()

    def start(self) -> None:
        """Start the event loop."""
        self.loop.start()

    def submit(self, job: Job) -> None:
        """Take a job from Celery; it begins when it has a slot."""
        job.joins(terminate=self._terminate, at_stop=self.loop.at_stop)
        if self.roster.add(job):
            self._begin(job)

    def resize(self, by: int) -> None:
        """Change how many jobs run at once.

        Raises:
            ValueError: That would be fewer than none.
        """
        self._admit(self.roster.resize(by))

    def drop_all(self) -> None:
        """Interrupt every job without a report to Celery: what Celery has not settled itself is delivered again."""
        for job in self.roster.running():
            if self.roster.condemn(job, Verdict.DROPPED):
                self.loop.call(self._interrupt, job, "the worker ends")

    def unfinished(self) -> bool:
        """Whether there are jobs to wait for: all but those that were interrupted and do not end."""
        return any(job.verdict is None or job.unwinds_since() < UNWIND_SECONDS for job in self.roster.running())

    def stop(self, patience: float) -> None:
        """End the event loop and the threads.

        Args:
            patience: How many seconds tasks may take that jobs have left behind on the loop.
        """
        self.loop.stop(patience)
        self._threads.stop()

    # Beginning

    def _admit(self, jobs: list[Job]) -> None:
        """Begin jobs that have waited, on Celery's thread: they may have been revoked meanwhile, or have expired."""
        for job in jobs:
            self._mailbox.post(self._begin_if_wanted, job)

    def _begin_if_wanted(self, job: Job) -> None:
        unwanted = True
        try:
            # It announces by itself what it finds.
            unwanted = job.verdict is None and (request := job.tell.request()) is not None and request.revoked()
        finally:
            if unwanted:
                self.roster.condemn(job, Verdict.DROPPED)
            self._begin(job)

    def _begin(self, job: Job) -> None:
        if not self.roster.begin(job):
            self._finish(job, None)
        elif job.on_loop:
            self.loop.call(self._start_on_loop, job)
        else:
            self._threads.run(partial(self._run_in_thread, job))

    def _start_on_loop(self, job: Job) -> None:
        strand = job.strand = LoopStrand(job, self.loop.watch.busy_with)
        # Guarded: GeneratorExit of another task would close the job's coroutines, and leave its greenlet behind.
        coroutine = GuardedCoroutine(self._run_on_loop(job, strand))
        self.loop.loop.create_task(coroutine, name=str(job), context=self._context_of(job))

    async def _run_on_loop(self, job: Job, strand: LoopStrand) -> None:
        outcome = None
        try:
            if job.verdict is None:
                self._accept(job)
                self._set_limits(job)
                outcome = partial(job.tell.callback, await strand.run(job.work))
        except BaseException as error:  # noqa: BLE001 - asyncio would end the loop for some of them
            outcome = _escaped(job, error)
        finally:
            self._finish(job, outcome)

    def _run_in_thread(self, job: Job) -> None:
        job.strand = ThreadStrand(self.loop.loop)
        outcome = None
        try:
            if job.verdict is None:
                self._accept(job)
                if job.soft_seconds or job.hard_seconds:
                    self.loop.call(self._set_limits, job)
                outcome = partial(job.tell.callback, self._context_of(job).run(job.work))
        except BaseException as error:  # noqa: BLE001 - the thread goes on to the next job
            outcome = _escaped(job, error)
        finally:
            self._finish(job, outcome)

    def _context_of(self, job: Job) -> contextvars.Context:
        context = self._context.copy()
        context.run(set_current_job, job)
        return context

    def _accept(self, job: Job) -> None:
        self._mailbox.post(job.tell.accept_callback, os.getpid(), time.monotonic())

    # Ending

    def _finish(self, job: Job, outcome: Callable[[], Any] | None) -> None:
        verdict = self.roster.settle(job)
        try:
            # Posted before the slot is given back: a pool that stops looks for slots, then at what was posted.
            if verdict is None and outcome is not None:
                self._mailbox.post(outcome)
            elif verdict is Verdict.TERMINATED:
                self._mailbox.post(job.tell.error_callback, _einfo(Terminated(job.signal)))
            if job.timers:
                cancel = partial(_cancel_all, job.timers)
                cancel() if job.on_loop else self.loop.call(cancel)
        finally:
            job.forget()
            self._admit(self.roster.leave(job))

    def _terminate(self, job: Job) -> None:
        if not self.roster.condemn(job, Verdict.TERMINATED):
            return
        if self.roster.withdraw(job):
            self._finish(job, None)
        else:
            self.loop.call(self._interrupt, job, "revoked")

    def _interrupt(self, job: Job, reason: str) -> None:
        if job.done or job.strand is None:
            return
        job.strand.interrupt(reason)
        again = COMPLAIN_EVERY_SECONDS if job.unwinds_since() > UNWIND_SECONDS else UNWIND_SECONDS
        self.loop.loop.call_later(again, self._complain, job, reason)

    def _complain(self, job: Job, reason: str) -> None:
        if not job.done:
            logger.warning(
                "Task %s was ended %.0f s ago (%s) and still holds its slot: it swallows CancelledError, or is in a "
                "blocking call, which cannot be interrupted",
                str(job),
                job.unwinds_since(),
                reason,
            )
            self._interrupt(job, reason)

    # Limits. All on the loop's thread.

    def _set_limits(self, job: Job) -> None:
        if job.done:
            return
        for seconds, pass_limit in ((job.soft_seconds, self._soften), (job.hard_seconds, self._time_out)):
            if seconds:
                job.timers.append(self.loop.loop.call_later(seconds, pass_limit, job, seconds))

    def _soften(self, job: Job, seconds: float) -> None:
        if not job.done and job.verdict is None and job.strand is not None:
            self._mailbox.post(job.tell.timeout_callback, True, seconds)
            job.strand.soften()

    def _time_out(self, job: Job, seconds: float) -> None:
        if self.roster.condemn(job, Verdict.TIMED_OUT):
            self._mailbox.post(job.tell.timeout_callback, False, seconds)
            self._interrupt(job, f"time limit of {seconds:g} s")


def _escaped(job: Job, error: BaseException) -> Callable[[], Any] | None:
    """The report to Celery of an exception that its tracer let through."""
    if job.verdict is not None:
        return None
    if isinstance(error, Exception):  # Reject, and what broke inside the tracer
        return partial(job.tell.error_callback, _einfo(error))
    lost = WorkerLostError(repr(error)).with_traceback(error.__traceback__)
    return partial(job.tell.error_callback, _einfo(lost))


def _einfo(error: BaseException) -> ExceptionInfo:
    try:
        raise error  # noqa: TRY301 - it has to have a traceback
    except BaseException:  # noqa: BLE001
        return ExceptionInfo()


def _cancel_all(timers: list[asyncio.TimerHandle]) -> None:
    for timer in timers:
        timer.cancel()
