"""Celery's side of a job: one registered Celery task for each component."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import celery
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.utils.time import get_exponential_backoff_interval

from mcp_celery.asyncio_pool.current import at_pool_stop, await_in_job, in_job
from mcp_celery.base_exceptions import text_of_error
from mcp_celery.broker.job_message import FINGERPRINT_HEADER, STORE_HEADER, serializer_of_messages
from mcp_celery.broker.naming import job_name
from mcp_celery.broker.own_results import OwnResults
from mcp_celery.common.formats import (
    FORMAT,
    FORMAT_HEADER,
    UNNUMBERED,
    NewerFormatError,
    is_readable,
)
from mcp_celery.components.source import ComponentRaised
from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    UNSEALED_RESULTS,
    Change,
    Changed,
    EncodedResult,
    JobLedger,
    JobOutcome,
    ResultSeals,
    TaskRef,
    failure,
    now_ms,
    result_lost,
    success,
)
from mcp_celery.engine.retry import until_store_answers_blocking
from mcp_celery.errors import JobFailedError, StoredDataError, StoreUnavailableError
from mcp_celery.keys import TaskType
from mcp_celery.logs import get_logger
from mcp_celery.sealing import UNSIGNED, UNSIGNED_MESSAGE, MessageSigner
from mcp_celery.settings import OtherStore
from mcp_celery.telemetry.traces import AVAILABLE_HEADER, TRACEPARENT, TRACESTATE, Delivered
from mcp_celery.worker.celery.heartbeat import Heart, Living
from mcp_celery.worker.celery.result_backend import JobBackend, ResultPlace, StoreBackend
from mcp_celery.worker.delivery import JobCall, JobNotStarted, JobRefused
from mcp_celery.worker.job_arguments import MalformedJobError, task_of
from mcp_celery.worker.loop import JobLoop, ProcessLoop
from mcp_celery.worker.probe_options import ProbeOptions
from mcp_celery.worker.runner import JobRunner
from mcp_celery.worker.versions import HeldVersion

logger = get_logger(__name__)

if TYPE_CHECKING:
    _CeleryTask = celery.Task[..., JobOutcome]
else:
    _CeleryTask = celery.Task


def _sleep(seconds: float) -> None:
    """Block the calling thread; on the asyncio pool suspend the calling job alone."""
    if in_job():
        await_in_job(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


class WorkerRuntime:
    """The runtime that the jobs of one server share in a worker process, parent or child.

    Args:
        namespace: The server's namespace.
        ledger: Gives the blocking store of a namespace's records.
        living: Says that the worker lives while it is open, given the worker's name in claims.
        make_runner: Makes the process's runner, when its first job needs it.
        results: Where results of jobs are kept. Only where that is not elsewhere, a result and its task are stored in
            one step.
        signer: Checks the messages of jobs, and signs those of retries.
        held: Gives the versions of components that this process has.
        max_handbacks: How often a job for another version is handed back.
        seals: Seals the results of jobs.
        store_name: Which store has the records, for people.
        other_store: What the worker does with a job whose task another store keeps.
        loop: Where jobs run off the asyncio pool. None: on a loop of the process's own.
        probes: Where the worker answers probes, None where it does not.

    Attributes:
        follows_ends: As :attr:`JobRunner.follows_ends`. A worker sets it before its pool forks.
    """

    def __init__(  # noqa: PLR0913 - everything that the jobs of a server share
        self,
        *,
        namespace: str,
        ledger: Callable[[str], JobLedger],
        living: Living,
        make_runner: Callable[[], JobRunner],
        results: ResultPlace,
        signer: MessageSigner = UNSIGNED,
        held: Callable[[], Sequence[HeldVersion]] = tuple,
        max_handbacks: int = 0,
        seals: ResultSeals = UNSEALED_RESULTS,
        store_name: str = "",
        other_store: OtherStore = "stop",
        loop: JobLoop | None = None,
        probes: ProbeOptions | None = None,
    ) -> None:
        self.probes = probes
        self.store_name = store_name
        self.other_store: OtherStore = other_store
        self.max_handbacks = max_handbacks
        self._held = held
        self.namespace = namespace
        self.signer = signer
        self.seals = seals
        self.ledger = ledger
        self.heart = Heart(living)
        self.results: ResultPlace = results
        self._make_runner = make_runner
        self._loop = loop or ProcessLoop()
        self._runner: JobRunner | None = None
        self.follows_ends = False

    @functools.cached_property
    def held(self) -> Sequence[HeldVersion]:
        """The versions of components that this process has, as they were when it was first asked."""
        return self._held()

    @functools.cached_property
    def fingerprints(self) -> frozenset[str]:
        """Their fingerprints."""
        return frozenset(one.fingerprint for one in self.held)

    def is_genuine(self, headers: Any, kwargs: Any, retries: int) -> bool:
        """Whether a process with the encryption keys published a job's message.

        Args:
            headers: What has the message's headers, and ``get``.
            kwargs: The message's arguments.
            retries: Celery's count of retries.
        """
        return self.signer.accepts(headers, self.namespace, kwargs, retries)

    def require_genuine(self, headers: Any, kwargs: Any, retries: int) -> None:
        """As :meth:`is_genuine`.

        Raises:
            MalformedJobError: It is not.
        """
        if not self.is_genuine(headers, kwargs, retries):
            raise MalformedJobError(UNSIGNED_MESSAGE)

    def is_here(self) -> bool:
        """Whether the running event loop is the one on which this process runs its jobs, off the asyncio pool."""
        return self._loop.is_here()

    def held_seconds(self) -> float:
        """As :meth:`JobLoop.held_seconds`, of the loop on which this process runs jobs off the asyncio pool."""
        return self._loop.held_seconds()

    def run(self, call: JobCall) -> JobOutcome:
        """Run a job on the process's event loop, and wait for it.

        On the asyncio pool that is the pool's own loop, and only this job's greenlet waits.
        """
        if in_job():
            if self._runner is None:
                at_pool_stop(self._leave_pool)
            return await_in_job(self._live_runner().run(call))
        return self._loop.run(self._run(call))

    async def _run(self, call: JobCall) -> JobOutcome:
        return await self._live_runner().run(call)

    def _live_runner(self) -> JobRunner:
        if self._runner is None:
            self._runner = self._make_runner()
            self._runner.follows_ends = self.follows_ends
        return self._runner

    def abandon(self, job_id: str, *, interrupt: bool = False) -> None:
        """As :meth:`JobRunner.abandon`, in this process."""
        if self._runner is not None:
            self._runner.abandon(job_id, interrupt=interrupt)

    async def _leave_pool(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.aclose()

    def tell(self, kwargs: Any, change: Change) -> None:
        """Apply a change to the task of a job's message, for the attempt that it was sent for.

        Raises nothing. Where the store does not answer, the change is repeated later: by the heartbeat's thread if this
        process has one, so that a worker's parent is not held up; else the process of the job waits.
        """
        try:
            ref, attempt = task_of(kwargs)
        except MalformedJobError as error:
            logger.error("could not record that a job is %s: %s", change.to, error)
            return
        change = replace(change, attempt=attempt)
        try:
            try:
                self.change(ref, change)
            except StoreUnavailableError:
                if not self.heart.tell_later(ref, change):
                    self._change_at_last(ref, change)
        except StoreUnavailableError:
            logger.error("could not record that task %s is %s: the store does not answer", ref.shown_id, change.to)
        except StoredDataError as error:
            logger.error("could not record that task %s is %s: %s", ref.shown_id, change.to, error.reason)

    def _change_at_last(self, ref: TaskRef, change: Change) -> None:
        """Apply a change in a process without a heartbeat, which blocks the calling thread.

        A child of a worker waits for as long as the worker lives: with the worker its claim lives, so the reaper does
        not end the task. It holds up a warm shutdown as its job does; a cold one ends it.

        Raises:
            StoreUnavailableError: The store did not answer for a minute, and this is no such child.
        """
        while True:
            try:
                until_store_answers_blocking(lambda: self.change(ref, change), _sleep)
            except StoreUnavailableError:
                if not self.heart.is_in_child:
                    raise
                logger.warning("could not record yet that task %s is %s", ref.shown_id, change.to)
            else:
                return

    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change to a task. Blocks the calling thread; on the asyncio pool it suspends the calling job alone.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        if in_job() and self._runner is not None:
            return await_in_job(self._runner.store().change(ref, change))
        return self.ledger(self.namespace).change(ref, change)

    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result and move its task, in one step, as soon as the store answers.

        Raises:
            StoreUnavailableError: It did not for a minute.
        """
        return until_store_answers_blocking(lambda: self._finish(ref, change, result), _sleep)

    def _finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        if in_job() and self._runner is not None:
            return await_in_job(self._runner.store().finish(ref, change, result))
        return self.ledger(self.namespace).finish(ref, change, result)

    def stop(self) -> None:
        """Leave the server's lifespan, close the connections, end the loop and, in the parent, the heartbeat."""
        runner, self._runner = self._runner, None
        self._loop.stop(*([runner.aclose()] if runner is not None else []))
        self.heart.stop()


class RetryReason(Exception):  # noqa: N818 - an outcome, not an error
    """Stands for what a component raised in Celery's event of a retry, which Flower shows: its text is for the log.

    Args:
        name: Name of the exception's class.
    """

    def __repr__(self) -> str:
        return f"{self.args[0]}()"


class ComponentJob(_CeleryTask):
    """The Celery task of one component. Its name is ``mcp.{namespace}.{type}.{component}``.

    ``acks_late``: a job that its worker never began is delivered again by the broker. It does not mean that a body runs
    twice: a body begins only when the store grants the start, once for each attempt.
    """

    acks_late = True
    # A host's settings would hold for what is None here. What becomes of a lost process's job is the record's to say,
    # and a failed one has updated its task already.
    acks_on_failure_or_timeout = True
    acks_on_failure = True
    acks_on_timeout = True
    reject_on_worker_lost = False
    retry_on_worker_lost = False
    ignore_result = False
    track_started = False
    throws = (JobFailedError,)
    run_on_loop = True
    """On the asyncio pool: the body is plain, but waits there by suspending its greenlet."""
    Request = "mcp_celery.worker.celery.celery_request:DiscreetRequest"
    Strategy = "mcp_celery.worker.celery.handing_back:strategy"

    runtime: WorkerRuntime
    config: TaskConfig
    task_type: TaskType
    declared_as: str

    @property
    def serializer(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - Celery reads it only
        """Of the messages of retries."""
        return serializer_of_messages(self.app)

    @property
    def backend(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - a job's backend is never set
        """The app's result backend, whose calls do not hold the asyncio pool's loop."""
        if self.runtime.results == "in store":
            return StoreBackend(self.app, self._finish, self.runtime.seals)
        finish = self._finish if self.runtime.results == "with records" else None
        celery_task = super()

        def of_thread() -> Any:
            backend: Any = celery_task.backend
            return backend.of_namespace(self.runtime.namespace) if isinstance(backend, OwnResults) else backend

        return JobBackend(of_thread, finish, self._tell_lost, self.runtime.seals)

    def _finish(self, request: Any, outcome: JobOutcome, result: EncodedResult) -> bool:
        """Store a result and move its task together. False: the store did not answer; then each is tried alone."""
        ref, attempt = task_of(request.kwargs)
        try:
            self.runtime.finish(ref, replace(success(outcome), attempt=attempt), result)
        except (StoreUnavailableError, StoredDataError):
            return False
        outcome.told = True
        return True

    def _tell_lost(self, request: Any, size: int) -> None:
        self.runtime.tell(request.kwargs, result_lost(size))

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """The message of a retry. Celery would write the arguments' values into it, where Flower shows them."""
        request = self.request if request is None else request
        shown = {"argsrepr": request.get("argsrepr"), "kwargsrepr": request.get("kwargsrepr")}
        message = super().signature_from_request(request, *args, **shown, **options)
        runtime = self.runtime
        signed = runtime.signer.headers(runtime.namespace, request.kwargs, message.options["retries"])
        hints = {name: request.get(name) for name in (FINGERPRINT_HEADER, STORE_HEADER, TRACEPARENT, TRACESTATE)}
        hints[AVAILABLE_HEADER] = now_ms() + round(1000 * (message.options.get("countdown") or 0))
        ours = {FORMAT_HEADER: FORMAT, **{name: hint for name, hint in hints.items() if hint is not None}, **signed}
        message.options["headers"] = {**(message.options.get("headers") or {}), **ours}
        return message

    def run(self, key: str, attempt: int, leg: int = 1) -> JobOutcome:
        """The body that Celery calls in the pool's thread or process.

        Raises:
            NewerFormatError: A later release published the job; its task fails with that reason.
            Ignore: The job must not run; Celery acknowledges it and stores nothing.
            Retry: It will run again.
            JobFailedError: It ended in a JSON-RPC error.
        """
        request: Any = self.request
        if not is_readable(form := request.get(FORMAT_HEADER, UNNUMBERED)):
            raise NewerFormatError("the job's message", form)
        try:
            _, attempt = task_of({"key": key, "attempt": attempt})
        except MalformedJobError as error:
            logger.error("job %.200r does not run: %s", request.id, error)
            raise Ignore from None
        call = JobCall(
            job_id=request.id,
            key=key,
            attempt=attempt,
            leg=leg,
            retries=request.retries,
            # There is no heartbeat for a job in the server's own process.
            worker="" if request.is_eager else self.runtime.heart.worker_id(request.hostname),
            input_timeout_seconds=self.config.input_timeout,
            is_genuine=request.is_eager or self.runtime.is_genuine(request, request.kwargs, request.retries),
            let_through=(*self._reasons_to_retry(), *self._limits()),
            publish_later=self.runtime.heart.publish_later,
            declared_as=self.declared_as,
            delivered=Delivered.of_message(request),
            note_trace=request.update,
        )
        try:
            return self.runtime.run(call)
        except JobNotStarted as given_up:
            # Celery would store it as the job's failure, and a reader would take it for the end of a body that runs.
            change = failure(type(given_up).__name__)
            change = replace(change, unless_begun=request.retries, delivery=given_up.delivery)
            self.runtime.tell(request.kwargs, change)
            raise Ignore from None
        except JobRefused:
            raise Ignore from None
        except ComponentRaised as raised:
            if issubclass(type(raised.reason), self._reasons_to_retry()):
                countdown = self._wait_before_retry(request.retries)
                shown = text_of_error(raised.reason, repr)
                logger.info("job %s is tried again in %d s: %.300s", request.id, countdown, shown)
                raise self._retry(RetryReason(type(raised.reason).__name__), countdown) from None
            raise raised.reason from None

    def _retry(self, reason: RetryReason, countdown: int) -> Exception:
        """Publish the message of a retry, and give what to raise then.

        A broker may be silent for as long as the kernel keeps its connection. On the asyncio pool only this job waits
        for it: the request belongs to the job, also in the thread.

        Raises:
            Reject: The broker did not take the message.
        """

        def publish() -> Exception:
            return self.retry(exc=reason, countdown=countdown, throw=False)

        return await_in_job(asyncio.to_thread(publish)) if in_job() else publish()

    def _reasons_to_retry(self) -> tuple[type[Exception], ...]:
        """Exceptions upon which it runs again; none when no try is left: then the last outcome is the task's."""
        tries_left = self.max_retries is None or self.request.retries < self.max_retries
        return self.config.autoretry_for if tries_left else ()

    def _limits(self) -> tuple[type[Exception], ...]:
        """On the asyncio pool a soft limit is raised inside the component. It is the job's end, not a tool's error."""
        request: Any = self.request
        soft = (request.timelimit or (None, None))[1] or self.soft_time_limit or self.app.conf.task_soft_time_limit
        return (SoftTimeLimitExceeded,) if soft else ()

    def _wait_before_retry(self, retries: int) -> int:
        """Seconds, as Celery's own ``autoretry_for`` computes them with a ``retry_backoff``.

        Without one there is no wait, where Celery waits for ``default_retry_delay``, three minutes by default.
        """
        config = self.config
        if not config.retry_backoff:
            return 0
        return get_exponential_backoff_interval(
            factor=int(max(1.0, config.retry_backoff)),
            retries=retries,
            maximum=config.retry_backoff_max,
            full_jitter=config.retry_jitter,
        )


def job_class(task_type: TaskType, component: str, config: TaskConfig, runtime: WorkerRuntime) -> type[ComponentJob]:
    """The class of one component's job. Celery keeps annotations and limits on classes, so each job has its own."""
    name = job_name(runtime.namespace, task_type, component)
    attributes = {**config.celery_options("class"), "name": name, "config": config, "runtime": runtime}
    attributes |= {"task_type": task_type, "declared_as": component}
    return type("ComponentJob", (ComponentJob,), attributes)
