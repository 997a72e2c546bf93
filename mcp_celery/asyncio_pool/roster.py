"""Which jobs run and which wait for a slot. Jobs come and go from any thread.

A job in a thread needs a slot like any other, and one of the threads, of which there are fewer: while none is free,
jobs on the loop overtake those that wait for one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mcp_celery.asyncio_pool.job import Job, Verdict


@dataclass(frozen=True, slots=True)
class Census:
    """How many jobs there are, and whether one waits for a thread."""

    running: int
    in_threads: int
    waiting: int
    waits_for_thread: bool


class Roster:
    """The jobs of a pool.

    Args:
        limit: How many run at once.
        threads: How many of them run in threads.
    """

    def __init__(self, limit: int, threads: int) -> None:
        self.limit = limit
        self.threads: Final = threads
        # Reentrant: Celery stops a pool from inside a signal handler, which may have interrupted this very code.
        self._lock = threading.RLock()
        self._running: set[Job] = set()
        self._in_threads = 0
        self._waiting: dict[bool, OrderedDict[Job, int]] = {True: OrderedDict(), False: OrderedDict()}
        self._arrivals = 0
        self._open = True

    def add(self, job: Job) -> bool:
        """Take a job in.

        Returns:
            Whether it has a slot and can begin. False for one that waits, or arrives after :meth:`close`.
        """
        with self._lock:
            if not self._open:
                self._drop(job)
                return False
            self._arrivals += 1
            self._waiting[job.on_loop][job] = self._arrivals
            # Jobs that have waited longer were considered when there was room: none can be admitted before this one.
            return job in self._admit()

    def begin(self, job: Job) -> bool:
        """Note that a job with a slot begins.

        Returns:
            False where it was condemned meanwhile.
        """
        with self._lock:
            job.begun = True
            return job.verdict is None

    def condemn(self, job: Job, verdict: Verdict) -> bool:
        """Settle how a job ends, unless it has ended or that is settled.

        Returns:
            Whether this was the first word.
        """
        with self._lock:
            if job.done or job.verdict is not None:
                return False
            job.condemn(verdict)
            return True

    def withdraw(self, job: Job) -> bool:
        """Take a job that waits for a slot out of the queue.

        Returns:
            False where it does not wait.
        """
        with self._lock:
            if job not in self._waiting[job.on_loop]:
                return False
            del self._waiting[job.on_loop][job]
            job.done = True
            return True

    def settle(self, job: Job) -> Verdict | None:
        """Note that a job's work has ended; it keeps its slot until :meth:`leave`.

        Returns:
            The verdict, which nothing changes any more.
        """
        with self._lock:
            job.done = True
            return job.verdict

    def leave(self, job: Job) -> list[Job]:
        """Free a job's slot.

        Returns:
            Those that have waited and can begin now.
        """
        with self._lock:
            if job in self._running:
                self._running.remove(job)
                self._in_threads -= not job.on_loop
            return self._admit()

    def resize(self, by: int) -> list[Job]:
        """Change the limit. Jobs above a lower one run on.

        Returns:
            Those that have waited and can begin now.

        Raises:
            ValueError: The limit would be negative.
        """
        with self._lock:
            if self.limit + by < 0:
                raise ValueError(f"the pool runs {self.limit} jobs at a time and cannot shrink by {-by}")
            self.limit += by
            return self._admit()

    def flush(self) -> None:
        """Drop all jobs that have not begun: their messages are delivered again."""
        with self._lock:
            for queue in self._waiting.values():
                for job in queue:
                    self._drop(job)
                queue.clear()
            for job in self._running:
                if not job.begun:
                    self.condemn(job, Verdict.DROPPED)

    def close(self) -> None:
        """Let no job begin from now on."""
        with self._lock:
            self._open = False
            self.flush()

    def running(self) -> list[Job]:
        """The jobs that have a slot."""
        with self._lock:
            return list(self._running)

    def census(self) -> Census:
        """Count the jobs."""
        with self._lock:
            waiting = sum(map(len, self._waiting.values()))
            waits_for_thread = bool(self._waiting[False]) and self._in_threads >= self.threads
            return Census(len(self._running), self._in_threads, waiting, waits_for_thread)

    def has_room(self) -> bool:
        """Whether a job on the loop that came now would have a slot."""
        with self._lock:
            return self._open and not self._waiting[True] and len(self._running) < self.limit

    def _admit(self) -> list[Job]:
        admitted: list[Job] = []
        while self._open and len(self._running) < self.limit and (queue := self._longest_wait()) is not None:
            job, _ = queue.popitem(last=False)
            self._running.add(job)
            self._in_threads += not job.on_loop
            admitted.append(job)
        return admitted

    def _longest_wait(self) -> OrderedDict[Job, int] | None:
        """The queue whose first job may run and has waited longest."""
        queues: Iterable[bool] = (True, False) if self._in_threads < self.threads else (True,)
        heads = [(next(iter(queue.values())), queue) for key in queues if (queue := self._waiting[key])]
        return min(heads, key=lambda head: head[0])[1] if heads else None

    @staticmethod
    def _drop(job: Job) -> None:
        job.condemn(Verdict.DROPPED)
        job.done = True
