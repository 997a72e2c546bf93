"""Celery's signals drive the record and its pushes.

=============== ======================================= ==============================================
signal          fires in                                what it says of the task
=============== ======================================= ==============================================
task_received   the worker's parent                     claimed by this worker
task_prerun     the child or thread that runs the job   (the body itself asks whether it may start)
task_success    there, after the result is stored       completed
task_failure    there; in the parent for lost processes failed
                and hard time limits
task_retry      there                                   working, with a message
task_revoked    the parent, when the job is reached     cancelled, or failed where it expired
task_unknown    the parent                              failed
=============== ======================================= ==============================================

Handlers block on a blocking store; none of them may raise, for Celery would only log it. What a handler cannot store is
not lost: Celery's stored result is ahead of the record then, and the record is settled when it is next read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, cast

from celery import signals
from celery.concurrency.base import BasePool

from mcp_celery.engine import Change, Claim, JobOutcome, failure, now_ms, success
from mcp_celery.engine import expired as job_expired
from mcp_celery.errors import JobFailedError, StoreUnavailableError
from mcp_celery.worker.job import ComponentJob, WorkerRuntime, task_ref

logger = logging.getLogger(__name__)

_PAUSES_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)
"""How often, and after which pauses, the child of a job tries again to tell its end."""


def _can_terminate(pool: Any) -> bool:
    """Whether a pool can end a running job. Prefork's says how on the instance, so its class does not tell."""
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job


def on_received(sender: Any = None, request: Any = None, **_: Any) -> None:
    """The worker has the job: note the claim."""
    job = request.task
    if not isinstance(job, ComponentJob):
        return
    claim = Claim(request.hostname, _can_terminate(sender.pool), now_ms())
    try:
        job.runtime.ledger(job.runtime.namespace).claim(
            task_ref(request.kwargs),
            attempt=int(request.kwargs["attempt"]),
            retries=int(request.request_dict.get("retries") or 0),
            claim=claim,
        )
    except StoreUnavailableError:
        logger.warning("job %s is received, but its claim could not be noted", request.id)


def on_prerun(sender: Any = None, task_id: str = "", **_: Any) -> None:
    """The job's turn has come; whether its body may begin is the store's word, which the body asks itself."""
    if isinstance(sender, ComponentJob):
        logger.debug("job %s begins", task_id)


def on_success(sender: Any = None, result: Any = None, **_: Any) -> None:
    """The job's result is stored: completed, unless the task was moved together with it."""
    if isinstance(sender, ComponentJob) and isinstance(result, JobOutcome) and not result.told:
        kwargs = cast("dict[str, Any]", cast(Any, sender.request).kwargs)
        sender.runtime.tell(kwargs, success(result), pauses=_PAUSES_SECONDS)


def on_failure(
    sender: Any = None, exception: BaseException | None = None, kwargs: Mapping[str, Any] | None = None, **_: Any
) -> None:
    """The job failed: in its body, in its process, or by its time limit."""
    if not isinstance(sender, ComponentJob) or kwargs is None:
        return
    arguments = exception.args if isinstance(exception, JobFailedError) else ()
    change = failure(type(exception).__name__, arguments)
    sender.runtime.tell(kwargs, change, pauses=_PAUSES_SECONDS[:1])


def on_retry(sender: Any = None, request: Any = None, **_: Any) -> None:
    """The job will run again: still working, and the message says which attempt comes."""
    if isinstance(sender, ComponentJob):
        most = sender.max_retries
        message = f"Trying again: retry {request.retries + 1}{'' if most is None else f' of {most}'}"
        sender.runtime.tell(request.kwargs, Change(to="working", status_message=message))


def on_revoked(sender: Any = None, request: Any = None, expired: bool = False, **_: Any) -> None:
    """An operator revoked the job, or it expired in the queue. After our own cancel the record has ended already."""
    if not isinstance(sender, ComponentJob):
        return
    # Expired while it waited for a retry: it has begun before, and ends all the same.
    revoked = Change(to="cancelled", status_message="The job was revoked")
    change = replace(job_expired(), if_unstarted=False) if expired else revoked
    sender.runtime.tell(request.kwargs, change)


def on_unknown(runtime: WorkerRuntime) -> Callable[..., None]:
    """A handler for jobs of ours that this worker does not know: failed, never ``working`` for ever."""

    def handler(message: Any = None, name: str = "", **_: Any) -> None:
        tag, _dot, rest = name.partition(".")
        namespace = rest.partition(".")[0]
        if tag != "mcp" or not namespace:
            return
        try:
            _args, kwargs, _embed = message.payload
            ref, attempt = task_ref(kwargs), int(kwargs["attempt"])
        except (ValueError, KeyError, TypeError):
            logger.warning("an unknown job %r is not ours", name)
            return
        change = replace(failure("NotRegistered"), attempt=attempt)
        try:
            runtime.ledger(namespace).change(ref, change)
        except StoreUnavailableError:
            logger.error("could not tell that task %s failed: no worker knows its component", ref.task_id)

    return handler


def connect(runtime: WorkerRuntime) -> None:
    """Connect the handlers, once for a process however many servers it serves."""
    handlers: dict[str, Callable[..., None]] = {
        "task_received": on_received,
        "task_prerun": on_prerun,
        "task_success": on_success,
        "task_failure": on_failure,
        "task_retry": on_retry,
        "task_revoked": on_revoked,
        "task_unknown": on_unknown(runtime),
    }
    for name, handler in handlers.items():
        getattr(signals, name).connect(handler, weak=False, dispatch_uid=f"mcp_celery.{name}")

    def stop(**_: Any) -> None:
        runtime.stop()

    uid = f"mcp_celery.stop.{runtime.namespace}"
    signals.worker_process_shutdown.connect(stop, weak=False, dispatch_uid=uid)
    signals.worker_shutdown.connect(stop, weak=False, dispatch_uid=uid)
