"""Celery's signals drive the record and its pushes.

=============== ======================================= ==============================================
signal          fires in                                what it means for the task
=============== ======================================= ==============================================
task_received   the worker's parent                     claimed by this worker (``claims.py``)
task_prerun     the child or thread that runs the job   (the body itself asks whether it may start)
task_success    there, after the result is stored       completed
task_failure    there; in the parent for lost processes failed
                and hard time limits
task_retry      there                                   working, with a message
task_revoked    the parent, when the job is reached     cancelled, or failed where it expired
task_unknown    the parent                              failed
=============== ======================================= ==============================================

Handlers block on a blocking store; none of them may raise, for Celery would only log it. What a handler cannot store,
since the store does not answer, is stored later (``WorkerRuntime.tell``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, cast

from celery import signals

from mcp_celery.engine import Change, JobOutcome, failure, now_ms, revoked, success
from mcp_celery.engine import expired as job_expired
from mcp_celery.errors import JobFailedError, StoredDataError, StoreUnavailableError
from mcp_celery.logs import get_logger
from mcp_celery.telemetry.tasks import count_retry
from mcp_celery.worker.celery.bootsteps import retries_of, runtime_of, runtimes
from mcp_celery.worker.celery.claims import claim
from mcp_celery.worker.consumer import Consumer
from mcp_celery.worker.job import ComponentJob, WorkerRuntime
from mcp_celery.worker.job_arguments import MalformedJobError, task_of

logger = get_logger(__name__)

_live: Final[weakref.WeakSet[WorkerRuntime]] = weakref.WeakSet()
"""Those of the workers of this process: each worker that is started makes its own."""


def on_received(sender: Any = None, request: Any = None, **_: Any) -> None:
    """The worker has the job: claim it."""
    job = request.task
    if isinstance(job, ComponentJob):
        claim(job.runtime, request, sender.starting if isinstance(sender, Consumer) else None)


def on_prerun(sender: Any = None, task_id: str = "", **_: Any) -> None:
    """The job's turn has come; whether its body may begin is the store's word, which the body asks itself."""
    if isinstance(sender, ComponentJob):
        logger.debug("job %s starts", task_id)


def on_success(sender: Any = None, result: Any = None, **_: Any) -> None:
    """The job's result is stored: completed, unless the task was moved together with it."""
    if isinstance(sender, ComponentJob) and isinstance(result, JobOutcome) and not result.told:
        kwargs = cast("dict[str, Any]", cast(Any, sender.request).kwargs)
        sender.runtime.tell(kwargs, success(result))


def on_failure(
    sender: Any = None, exception: BaseException | None = None, kwargs: Mapping[str, Any] | None = None, **_: Any
) -> None:
    """The job failed: in its body, in its process, or by its time limit."""
    if not isinstance(sender, ComponentJob) or kwargs is None:
        return
    arguments = exception.args if isinstance(exception, JobFailedError) else ()
    change = failure(type(exception).__name__, arguments)
    sender.runtime.tell(kwargs, change)


def on_retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    """The job will run again: still working, and the message says which attempt comes."""
    if isinstance(sender, ComponentJob):
        count_retry(sender.task_type, sender.declared_as)
        most = sender.max_retries
        message = f"Trying again: retry {request.retries + 1}{'' if most is None else f' of {most}'}"
        change = Change(to="working", status_message=message, retries=request.retries + 1, retry_at_ms=_time_of(reason))
        sender.runtime.tell(request.kwargs, change)


def _time_of(retry: Any) -> int | None:
    """When a retry is to begin, in ms since the epoch. Celery gives seconds from now, or a time."""
    when: datetime | float | None = getattr(retry, "when", None)
    if isinstance(when, datetime):
        return round(when.timestamp() * 1000)
    return None if when is None else now_ms() + round(when * 1000)


def on_revoked(sender: Any = None, request: Any = None, expired: bool = False, **_: Any) -> None:
    """An operator revoked the job, or it expired in the queue. After our own cancel the record has ended already."""
    if not isinstance(sender, ComponentJob):
        return
    try:
        # A message that is delivered again while its job runs may have expired: the job goes on.
        retries = retries_of(request)
        sender.runtime.require_genuine(request, request.kwargs, retries)
        change = job_expired(retries) if expired else revoked()
    except MalformedJobError as error:
        logger.error("could not record that job %.200r has expired: %s", request.id, error)
        return
    sender.runtime.tell(request.kwargs, change)


def on_unknown(sender: Any = None, message: Any = None, name: Any = None, **_: Any) -> None:
    """Fail the task of an MCP job that this worker does not know, so that it does not stay ``working``.

    The name alone says whose job it is, and every writer to the queue can choose it. So a worker ends tasks of
    the servers that it serves, and of no other: that one learns from Celery's stored result that its job was rejected.
    """
    if not isinstance(name, str) or not name.startswith("mcp."):
        return
    runtime = runtime_of(sender.app, name)
    if runtime is None:
        logger.error(
            "rejected job %.200r, which is of a server that this worker does not serve: if it was not forged, that "
            "server and this worker share a queue (MCP_CELERY_QUEUE, or task_routes)",
            name,
        )
        return
    try:
        _args, kwargs, _embed = message.payload
        ref, attempt = task_of(kwargs)
        retries = retries_of(message.headers)
        runtime.require_genuine(message.headers, kwargs, retries)
    except Exception as error:  # noqa: BLE001 - whatever kombu raises for a body that it cannot read
        logger.warning("an unknown job %.200r names no task: %s", name, type(error).__name__)
        return
    change = replace(failure("NotRegistered"), attempt=attempt, unless_begun=retries)
    try:
        runtime.ledger(runtime.namespace).change(ref, change)
    except (StoreUnavailableError, StoredDataError):
        logger.error("could not record that task %s failed: no worker knows its component", ref.shown_id)


def on_worker_end(sender: Any = None, **_: Any) -> None:
    """A worker has stopped, and waits for no job."""
    for runtime in runtimes(sender.app):
        runtime.stop()


def on_process_end(**_: Any) -> None:
    """Handle the end of a process in which jobs ran. The signal does not name its worker."""
    for runtime in tuple(_live):
        runtime.stop()


def connect(runtime: WorkerRuntime) -> None:
    """Connect the handlers of a worker, once for a process however many servers it serves, and workers it starts."""
    _live.add(runtime)
    connect_outcomes()
    _connect(
        task_received=on_received,
        task_prerun=on_prerun,
        task_revoked=on_revoked,
        task_unknown=on_unknown,
        worker_process_shutdown=on_process_end,
        worker_shutdown=on_worker_end,
    )


def connect_outcomes() -> None:
    """Connect the handlers of ends of jobs, in every process."""
    _connect(task_success=on_success, task_failure=on_failure, task_retry=on_retry)


def _connect(**handlers: Callable[..., None]) -> None:
    for name, handler in handlers.items():
        getattr(signals, name).connect(handler, weak=False, dispatch_uid=f"mcp_celery.{name}")
