"""Jobs in the server's own process: what ``task_always_eager``, and tasks that are kept in memory, mean for tasks.

A host sets the former in its tests, to need neither broker nor worker. Celery itself then runs a job within
``apply_async``; a task is answered first, so its job runs in a thread, by the same job class and Celery's own tracer:
the outcome is stored, the signals are sent, and the record moves as in a worker. Limits of time and rate, priorities
and pauses are a worker's, and are not kept here. No worker claims such a job, so the reaper leaves it alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from socket import gethostname
from typing import Any, Final

from celery import Celery, states
from celery.app.trace import build_tracer
from typing_extensions import override

from mcp_celery.broker.own_jobs import arguments_of, name_of_job
from mcp_celery.config import TaskConfig
from mcp_celery.engine import JobKind, Lane, Submission, TaskRecord, failure, now_ms
from mcp_celery.engine.ports import TaskQueue
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.keys import TaskType
from mcp_celery.logs import get_logger
from mcp_celery.redaction import shown_arguments
from mcp_celery.telemetry.traces import message_headers
from mcp_celery.worker import ComponentJob, WorkerRuntime, bind_jobs

logger = get_logger(__name__)

Components = Mapping[tuple[TaskType, str], TaskConfig]

NOTICE_OF_EAGER: Final = "task_always_eager is set: jobs run in this process, and no worker is asked"
NOTICE_OF_MEMORY: Final = "tasks are kept in this process, which runs their jobs itself: a restart loses every task"

PATIENCE_SECONDS: Final = 10.0
"""How long the end of a server waits for its jobs, which are cancelled."""
LOOK_EVERY_SECONDS: Final = 0.05


class EagerJobs:
    """The jobs of a server in this process, whatever event loops publish them.

    Args:
        app: The Celery app, with ``task_always_eager``.
        runtime: What the jobs share in this process.
        components: Gives the components that may run as tasks.
        notice: The warning to log when a server starts.
    """

    def __init__(self, app: Celery, runtime: WorkerRuntime, components: Callable[[], Components], notice: str) -> None:
        self._notice = notice
        self._app = app
        self._runtime = runtime
        self._components = components
        self._nested = _RunningJobs(runtime)
        """Those that jobs have submitted: they belong to the jobs' loop, which ends with the last of the others."""
        self._users = 0
        self._lock = threading.Lock()

    def are_here(self) -> bool:
        """Whether the running event loop is the jobs' own, in which a job may submit others."""
        return self._runtime.is_here()

    def queue(self, *, nested: bool) -> EagerQueue:
        """A queue for the running event loop. When the last one is closed, the server's lifespan is left.

        Args:
            nested: Whether it is for what jobs submit, on a loop of their own.
        """
        jobs = bind_jobs(self._app, self._runtime, self._components())
        if nested:
            return EagerQueue(self._app, self._runtime, jobs, self._nested)
        with self._lock:
            self._users += 1
        logger.warning(self._notice)
        return EagerQueue(self._app, self._runtime, jobs, _RunningJobs(self._runtime), closed=self._leave)

    async def _leave(self, deadline: float) -> None:
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            nested, self._nested = self._nested, _RunningJobs(self._runtime)
            await asyncio.to_thread(nested.end, deadline)  # before the loop, which would have to wait for them
            await asyncio.to_thread(self._runtime.stop)


class _RunningJobs:
    """The threads of the jobs that one event loop has submitted, by job id."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime
        self._threads: dict[str, threading.Thread] = {}
        self.is_ending = False
        """Whether jobs that end now are ended with the server, not by their tasks."""

    def add(self, job_id: str, thread: threading.Thread) -> None:
        """Note a job, whose thread is about to start."""
        self._threads[job_id] = thread

    def remove(self, job_id: str) -> None:
        """Forget a job in its thread, which is about to end. A later attempt may have replaced it already."""
        if self._threads.get(job_id) is threading.current_thread():
            del self._threads[job_id]

    def end(self, deadline: float) -> None:
        """Interrupt the jobs, and wait for their threads.

        Args:
            deadline: Until when, by ``time.monotonic``.
        """
        self.is_ending = True
        while running := dict(self._threads):
            for job_id, thread in running.items():
                # Again and again, for those that have not come as far as to be interrupted.
                self._runtime.abandon(job_id, interrupt=True)
                if thread.is_alive():
                    thread.join(LOOK_EVERY_SECONDS)
                else:  # its loop has not come to start it
                    time.sleep(LOOK_EVERY_SECONDS)
            if time.monotonic() > deadline:
                logger.warning("%d jobs did not end within %.0f s", len(running), PATIENCE_SECONDS)
                return


class EagerQueue(TaskQueue):
    """Fulfils :class:`mcp_celery.engine.TaskQueue` with threads of this process, for one event loop.

    Args:
        app: The Celery app.
        runtime: What its jobs share.
        jobs: They themselves, by name.
        running: Where those that run are noted.
        closed: Called when it is closed, with the time by which the server's jobs have to end.
    """

    def __init__(
        self,
        app: Celery,
        runtime: WorkerRuntime,
        jobs: Mapping[str, ComponentJob],
        running: _RunningJobs,
        closed: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self._app = app
        self._runtime = runtime
        self._jobs = jobs
        self._running = running
        self._closed = closed

    @override
    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:
        yield

    @override
    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Start the record's job on a later turn of the event loop, so that the response is sent first.

        Raises:
            QueueUnavailableError: It is a canvas, or a job that this process does not have.
        """
        name = name_of_job(self._runtime.namespace, submission, record.job_name)
        job: Any
        if submission.plan is None:
            job, arguments, run = self._jobs.get(name), arguments_of(record), self._run
        else:
            job, arguments, run = self._app.tasks.get(name), submission.plan.arguments, self._run_foreign
        if job is None or arguments is None:
            logger.error("this process cannot run the job %s, and it asks no worker", name)
            raise QueueUnavailableError
        request: dict[str, Any] = {
            "id": record.job_id,
            "task": name,
            "root_id": record.job_id,
            "retries": record.retries,
            "is_eager": True,
            "ignore_result": False,
            "hostname": gethostname(),
            "delivery_info": {"is_eager": True},
            "argsrepr": "()",
            "kwargsrepr": shown_arguments(submission.snapshot.params, submission.config),
            **message_headers(now_ms()),
        }
        thread = threading.Thread(
            target=run,
            args=(job, request, arguments),
            name=f"mcp-celery-eager-{record.task_id}",
            daemon=True,
        )
        self._running.add(record.job_id, thread)
        asyncio.get_running_loop().call_soon(thread.start)

    def _trace(self, job: Any, request: dict[str, Any], arguments: dict[str, Any]) -> str:
        """Trace a job as a worker does, and again at once when it asks for a retry."""
        # Not Celery's `eager`, which stores nothing and may raise instead of failing.
        trace: Any = build_tracer(job.name, job, app=self._app)
        state: str = states.RETRY
        while state == states.RETRY:
            traced = trace(request["id"], (), arguments, request)
            state = states.SUCCESS if traced.info is None else traced.info.state
            request = {**request, "retries": request["retries"] + 1}
        return state

    def _run_foreign(self, job: Any, request: dict[str, Any], arguments: dict[str, Any]) -> None:
        """Run a foreign job, which only stores its result."""
        try:
            self._trace(job, request, arguments)
        except Exception:
            logger.exception("could not run job %s", request["id"])
        finally:
            self._running.remove(request["id"])

    def _run(self, job: ComponentJob, request: dict[str, Any], arguments: dict[str, Any]) -> None:
        try:
            state = self._trace(job, request, arguments)
            if state == states.IGNORED and self._running.is_ending:
                self._runtime.tell(arguments, failure("WorkerLostError"))
        except asyncio.CancelledError:  # its loop has ended, for which it did not end in time
            logger.warning("job %s was ended with its server", request["id"])
            self._runtime.tell(arguments, failure("WorkerLostError"))
        except Exception:
            logger.exception("could not run job %s", request["id"])
            self._runtime.tell(arguments, failure("WorkerLostError"))
        finally:
            self._running.remove(request["id"])

    @override
    async def lane(self, kind: JobKind) -> Lane | None:
        return None

    @override
    async def length(self, queue: str) -> int | None:
        return None

    @override
    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        for job_id in job_ids:
            self._runtime.abandon(job_id, interrupt=True)

    async def aclose(self) -> None:
        """End the jobs that run, and wait for their threads.

        The jobs' own loop closes when all have ended; the code that closes it waits for what the loop submits.
        """
        if self._closed is None:
            return
        deadline = time.monotonic() + PATIENCE_SECONDS
        await asyncio.sleep(0)  # for the threads that are to be started
        await asyncio.to_thread(self._running.end, deadline)
        await self._closed(deadline)
