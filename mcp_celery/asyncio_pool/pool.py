"""An asyncio pool for Celery: thousands of waiting jobs in one worker process, with all that Celery does around them.

Select it with ``worker_pool = "mcp_celery.asyncio_pool.pool:TaskPool"``; nothing else of an app needs to change. Tasks
with an ``async def`` body run on one event loop, plain functions in threads. See ``docs/asyncio-pool.md``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, Final, cast

from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured
from celery.worker import state

from mcp_celery.asyncio_pool.bodies import Bodies
from mcp_celery.asyncio_pool.current import at_pool_stop, await_in_job, current_job, in_job
from mcp_celery.asyncio_pool.dispatcher import UNWIND_SECONDS, Dispatcher
from mcp_celery.asyncio_pool.job import Callbacks, Job
from mcp_celery.asyncio_pool.mailbox import HubMailbox, Mailbox, ThreadMailbox
from mcp_celery.asyncio_pool.roster import Census

__all__ = ["TaskPool", "at_pool_stop", "await_in_job", "current_job", "in_job"]

logger = logging.getLogger(__name__)

THREADS_SETTING: Final = "worker_asyncio_threads"
DEFAULT_THREADS: Final = 32
"""Threads share one interpreter lock with the event loop: more of them would slow every job rather than help."""
LOOK_EVERY_SECONDS: Final = 0.05
"""While the pool stops."""
COLD_SECONDS: Final = 1.0
"""How long a cold shutdown waits for tasks on the event loop that are no jobs."""
_CALLBACKS: Final = tuple(field.name for field in fields(Callbacks))


class TaskPool(BasePool):
    """Runs jobs on an event loop and in threads. ``limit`` is how many run at once."""

    body_can_be_buffer = True
    signal_safe = False
    # `result.get()` in a job would block the loop, so Celery has to go on refusing it.
    task_join_will_block = True

    _CHILD_SETTINGS: ClassVar = {
        "maxtasksperchild": "worker_max_tasks_per_child (--max-tasks-per-child)",
        "max_memory_per_child": "worker_max_memory_per_child (--max-memory-per-child)",
    }

    _dispatcher: Dispatcher
    _mailbox: Mailbox
    _bodies: Bodies
    _tasks: Mapping[str, Any]
    _stopped = True

    def on_start(self) -> None:
        """Adapt the app's tasks and start the event loop."""
        hostname: str | None = (self.options.get("initargs") or (None, None))[1]
        for option, setting in self._CHILD_SETTINGS.items():
            if self.options.get(option):
                logger.warning("%s has no effect on the asyncio pool, which has no child to replace", setting)
        threads = self._threads()
        self._tasks = self.app.tasks
        self._bodies = Bodies(self.app, hostname)
        self._bodies.adapt_all()
        # Celery says `threads` where it runs without a hub.
        self._mailbox = ThreadMailbox() if self.options.get("threads", True) else HubMailbox()
        self._dispatcher = Dispatcher(self.limit, threads, self._mailbox)
        self._dispatcher.start()
        self._stopped = False
        # The worker is the process in which jobs run. Its handlers set up tracing, connections and the like.
        signals.worker_process_init.send(sender=hostname)

    def _threads(self) -> int:
        value: Any = self.app.conf.get(THREADS_SETTING, DEFAULT_THREADS)
        try:
            threads = int(value)
        except (TypeError, ValueError):
            threads = 0
        if threads < 1:
            raise ImproperlyConfigured(f"{THREADS_SETTING} must be a number of threads, 1 or more, not {value!r}")
        return threads

    def did_start_ok(self) -> bool:
        """Whether the event loop runs."""
        return self._dispatcher.loop.is_alive()

    def register_with_event_loop(self, loop: Any) -> None:
        """Tell Celery of jobs from inside its hub. Called whenever the worker has connected to its broker."""
        self._mailbox.attach(loop)

    def on_apply(  # pyright: ignore[reportIncompatibleMethodOverride] - the stub says that pools return None
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        """Take a job.

        Args:
            target: Celery's tracer, whose first argument is the task's name; or any function, which runs in a thread.
            args, kwargs: Its arguments.
            options: ``correlation_id`` is the job's id; ``soft_timeout`` and ``timeout`` are its limits in seconds, for
                which those of the worker stand in; and the callbacks.

        Returns:
            The job, which can be terminated.
        """
        name = args[0] if args and isinstance(args[0], str) and args[0] in self._tasks else None
        job = Job(
            partial(target, *args, **(kwargs or {})),
            job_id=str(options.get("correlation_id")),
            name=name or repr(target),
            on_loop=name is not None and self._bodies.on_loop(name),
            tell=Callbacks(**{kind: options[kind] for kind in _CALLBACKS if options.get(kind)}),
            soft_seconds=options.get("soft_timeout") or self.options.get("soft_timeout"),
            hard_seconds=options.get("timeout") or self.options.get("timeout"),
        )
        self._dispatcher.submit(job)
        return job

    def terminate_job(self, pid: Any, signal: Any | None = None) -> None:
        """Nothing: all jobs have one process. Celery also calls ``terminate`` on the job itself, which ends it."""

    def grow(self, n: int = 1) -> None:
        """Run more jobs at a time."""
        self._resize(n)

    def shrink(self, n: int = 1) -> None:
        """Run fewer jobs at a time; those that run go on.

        Raises:
            ValueError: There are not as many slots.
        """
        self._resize(-n)

    def census(self) -> Census:
        """Count the jobs."""
        return self._dispatcher.roster.census()

    def has_room(self) -> bool:
        """Whether the next job on the event loop has a slot at once."""
        return self._dispatcher.roster.has_room()

    def held_seconds(self) -> float:
        """For how long one job has held the event loop, in seconds; 0 while the loop turns."""
        return self._dispatcher.loop.watch.held_seconds()

    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Await something on the event loop that is no job. What it raises is logged.

        Args:
            make: Makes the coroutine, on the loop's thread.
            name: For its task.
        """
        self._dispatcher.loop.spawn(make, name)

    def post(self, tell: Callable[..., Any], *args: Any) -> None:
        """Call something on the thread of Celery's callbacks."""
        self._mailbox.post(tell, *args)

    def _resize(self, by: int) -> None:
        self._dispatcher.resize(by)
        self.limit = self._dispatcher.roster.limit

    def restart(self) -> None:
        """Adapt tasks that were imported anew. Jobs go on: there is no process to replace."""
        self._bodies.adapt_all()

    def flush(self) -> None:
        """Forget the jobs that have not begun: the connection that delivered them is lost, or the worker stops."""
        if not self._stopped:
            self._dispatcher.roster.flush()

    def on_close(self) -> None:
        """Let no further job begin."""
        if not self._stopped:
            self._dispatcher.roster.close()

    def on_stop(self) -> None:
        """Wait for the jobs that run; in a cold shutdown, and if one begins meanwhile, interrupt them first."""
        self._end(interrupt=False)

    def on_terminate(self) -> None:
        """Interrupt the jobs that run, and wait a moment for their ``finally`` blocks."""
        self._end(interrupt=True)

    def _end(self, *, interrupt: bool) -> None:
        if self._stopped:
            return
        dispatcher, mailbox = self._dispatcher, self._mailbox
        dispatcher.roster.close()
        cold = interrupt
        while dispatcher.unfinished() and not self._stopped:
            cold = interrupt or state.should_terminate not in (None, False)
            if cold:
                dispatcher.drop_all()
            # In a cold shutdown this may be a signal handler, inside the very hub that would be served.
            mailbox.pump(LOOK_EVERY_SECONDS, upkeep=not cold)
        if self._stopped:  # by a signal handler meanwhile
            return
        self._stopped = True
        mailbox.close()
        dispatcher.stop(COLD_SECONDS if cold else UNWIND_SECONDS)
        signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)

    def _get_info(self) -> dict[str, Any]:
        census = self.census()
        return {
            **cast(Any, super())._get_info(),
            "processes": [os.getpid()],
            "max-tasks-per-child": "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": [self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0],
            "running": census.running,
            "waiting": census.waiting,
            "threads": {"max": self._dispatcher.roster.threads, "running": census.in_threads},
        }

    @property
    def num_processes(self) -> int:
        """How many jobs run at once, from which Celery takes how many messages to prefetch."""
        return self.limit
