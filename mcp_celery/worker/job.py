"""Celery's side of a job: one registered Celery task for each component."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import celery
from celery.exceptions import Ignore

from mcp_celery.config import TaskConfig
from mcp_celery.engine import JobLedger, JobOutcome, JSONObject
from mcp_celery.errors import JobFailedError
from mcp_celery.keys import TaskType, job_name
from mcp_celery.worker.loop import ProcessLoop
from mcp_celery.worker.runner import JobCall, JobRefused, JobRunner

if TYPE_CHECKING:
    _CeleryTask = celery.Task[..., JobOutcome]
else:
    _CeleryTask = celery.Task


class WorkerRuntime:
    """What the jobs of one server share in a worker process, parent or child.

    Args:
        namespace: The server's namespace.
        ledger: Gives the blocking store of a namespace's records.
        make_runner: Makes the process's runner, when its first job needs it.
    """

    def __init__(
        self, *, namespace: str, ledger: Callable[[str], JobLedger], make_runner: Callable[[], JobRunner]
    ) -> None:
        self.namespace = namespace
        self.ledger = ledger
        self._make_runner = make_runner
        self._loop = ProcessLoop()
        self._runner: JobRunner | None = None

    def run(self, call: JobCall) -> JobOutcome:
        """Run a job on the process's event loop, and wait for it."""
        return self._loop.run(self._run(call))

    async def _run(self, call: JobCall) -> JobOutcome:
        if self._runner is None:
            self._runner = self._make_runner()
        return await self._runner.run(call)

    def stop(self) -> None:
        """Leave the server's lifespan, close the connections, end the loop."""
        runner, self._runner = self._runner, None
        self._loop.stop(*([runner.aclose()] if runner is not None else []))


class ComponentJob(_CeleryTask):
    """The Celery task of one component. Its name is ``mcp.{namespace}.{type}.{component}``.

    ``acks_late``: a job that its worker never began is delivered again by the broker. It does not mean that a body runs
    twice: a body begins only when the store grants the start, once for each attempt.
    """

    acks_late = True
    ignore_result = False
    track_started = False
    throws = (JobFailedError,)
    Request = "mcp_celery.worker.received:DiscreetRequest"

    def __init__(self, task_type: TaskType, component: str, config: TaskConfig, runtime: WorkerRuntime) -> None:
        self.name = job_name(runtime.namespace, task_type, component)
        self.runtime = runtime
        self.config = config

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """The message of a retry. Celery would write the arguments' values into it, where Flower shows them."""
        request = self.request if request is None else request
        shown = {"argsrepr": request.get("argsrepr"), "kwargsrepr": request.get("kwargsrepr")}
        return super().signature_from_request(request, *args, **shown, **options)

    def run(self, key: str, attempt: int, params: JSONObject) -> JobOutcome:
        """The body that Celery calls in the pool's thread or process.

        Raises:
            Ignore: The job must not run; Celery acknowledges it and stores nothing.
            JobFailedError: It ended in a JSON-RPC error.
        """
        request: Any = self.request
        call = JobCall(job_id=request.id, key=key, attempt=attempt, retries=request.retries, params=params)
        try:
            return self.runtime.run(call)
        except JobRefused:
            raise Ignore from None
