"""Jobs in the server's own process: what ``task_always_eager`` means for tasks.

A host sets it in its tests, to need neither broker nor worker. Celery itself then runs a job within ``apply_async``; a
task is answered first, so its job runs in a thread, by the same job class and Celery's own tracer: the outcome is
stored, the signals are sent, and the record moves as in a worker. Limits of time and rate, priorities and pauses are a
worker's, and are not kept here. No worker claims such a job, so the reaper leaves it alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from socket import gethostname
from typing import Any, Final

from celery import Celery, states
from celery.app.trace import build_tracer

from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject, Submission, TaskRecord, failure
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.keys import TaskType
from mcp_celery.queue import name_of_job
from mcp_celery.shown import shown_arguments
from mcp_celery.worker import ComponentJob, WorkerRuntime, bind_jobs

logger = logging.getLogger(__name__)

Components = Mapping[tuple[TaskType, str], TaskConfig]

PATIENCE_SECONDS: Final = 10.0
"""How long the end of a server waits for its jobs, which are cancelled."""
LOOK_EVERY_SECONDS: Final = 0.05


class EagerJobs:
    """The jobs of a server in this process, whatever event loops publish them.

    Args:
        app: The Celery app, with ``task_always_eager``.
        runtime: What the jobs share in this process.
        components: Gives the components that may run as tasks.
    """

    def __init__(self, app: Celery, runtime: WorkerRuntime, components: Callable[[], Components]) -> None:
        self._app = app
        self._runtime = runtime
        self._components = components
        self._users = 0
        self._lock = threading.Lock()

    def queue(self) -> EagerQueue:
        """A queue for the running event loop. When the last one is closed, the server's lifespan is left."""
        jobs = bind_jobs(self._app, self._runtime, self._components())
        if self._runtime.is_here():  # the jobs' own loop, in which a job may submit others
            return EagerQueue(self._app, self._runtime, jobs)
        with self._lock:
            self._users += 1
        logger.warning("task_always_eager is set: jobs run in this process, and no worker is asked")
        return EagerQueue(self._app, self._runtime, jobs, closed=self._leave)

    async def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            await asyncio.to_thread(self._runtime.stop)


class EagerQueue:
    """Fulfils :class:`mcp_celery.engine.TaskQueue` with threads of this process, for one event loop.

    Args:
        app: The Celery app.
        runtime: What its jobs share.
        jobs: They themselves, by name.
        closed: Called when it is closed.
    """

    def __init__(
        self,
        app: Celery,
        runtime: WorkerRuntime,
        jobs: Mapping[str, ComponentJob],
        closed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._app = app
        self._runtime = runtime
        self._jobs = jobs
        self._closed = closed
        self._running: dict[str, threading.Thread] = {}
        self._closing = False

    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:  # noqa: ARG002 - nothing waits here
        """Any number of jobs has a place."""
        yield

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Begin the record's job, after what the event loop does now: the answer to whoever asked for it.

        Raises:
            QueueUnavailableError: It is a canvas, or a job that this process does not have.
        """
        name = name_of_job(self._runtime.namespace, submission, record.job_name)
        plan = submission.plan
        job: Any = self._jobs.get(name) if plan is None else self._app.tasks.get(name)
        arguments: JSONObject | None = {"key": record.key, "attempt": record.attempt, "leg": record.leg}
        if plan is not None:
            arguments = plan.arguments
        if job is None or arguments is None:
            logger.error("task_always_eager: %s is no job that this process could run", name)
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
        }
        thread = threading.Thread(
            target=self._run if plan is None else self._run_exposed,
            args=(job, request, arguments),
            name=f"mcp-celery-eager-{record.task_id}",
            daemon=True,
        )
        self._running[record.job_id] = thread
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

    def _run_exposed(self, job: Any, request: dict[str, Any], arguments: dict[str, Any]) -> None:
        """Run a job of the host's own, which stores what became of it, and tells it to nobody."""
        try:
            self._trace(job, request, arguments)
        except Exception:
            logger.exception("job %s could not be run", request["id"])
        finally:
            self._running.pop(request["id"], None)

    def _run(self, job: ComponentJob, request: dict[str, Any], arguments: dict[str, Any]) -> None:
        try:
            state = self._trace(job, request, arguments)
            if self._closing and state == states.IGNORED:
                self._runtime.tell(arguments, failure("WorkerLostError"))
        except Exception:
            logger.exception("job %s could not be run", request["id"])
            self._runtime.tell(arguments, failure("WorkerLostError"))
        finally:
            self._running.pop(request["id"], None)

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:  # noqa: ARG002 - a job that began is ended
        """End jobs at their ``await``; one that is no coroutine is told where it uses its context."""
        for job_id in job_ids:
            self._runtime.abandon(job_id, interrupt=True)

    async def aclose(self) -> None:
        """End the jobs that run, and wait for their threads."""
        self._closing = True
        await asyncio.sleep(0)  # for the threads that are to be started
        await asyncio.to_thread(self._join)
        if self._closed is not None:
            await self._closed()

    def _join(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while running := dict(self._running):
            for job_id, thread in running.items():
                self._runtime.abandon(job_id, interrupt=True)
                thread.join(LOOK_EVERY_SECONDS)
            if time.monotonic() > deadline:
                logger.warning("%d jobs did not end within %.0f s, and go on", len(running), PATIENCE_SECONDS)
                return
