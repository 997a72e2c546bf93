"""Runs one job: asks for the start, restores the caller, serves the request and reports the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from mcp.shared.exceptions import MCPError
from mcp_types import InputRequiredResult

from mcp_celery.asyncio_pool.current import current_job
from mcp_celery.base_exceptions import containing
from mcp_celery.common.formats import FORMAT
from mcp_celery.common.jsonable import NotJSONError, is_sendable
from mcp_celery.components.source import ComponentSource
from mcp_celery.context import TaskContext, TaskContextSnapshot, restore_task_snapshot
from mcp_celery.engine import (
    Asking,
    JobOutcome,
    JSONObject,
    NextLeg,
    OtherVersionError,
    Question,
    Start,
    TaskBus,
    TaskRef,
    TaskStore,
    leg_key,
    next_round,
    now_ms,
    too_large,
)
from mcp_celery.engine.places import NoPlaceError
from mcp_celery.engine.retry import JOB_GIVES_UP_SECONDS, until_store_answers
from mcp_celery.errors import (
    INTERNAL_ERROR,
    ComponentExitedError,
    JobFailedError,
    SnapshotUnreadableError,
    StoredDataError,
    StoreUnavailableError,
)
from mcp_celery.keys import MAX_LEGS, METHODS, later_job_id
from mcp_celery.logs import get_logger
from mcp_celery.sealing import UNSIGNED_MESSAGE
from mcp_celery.telemetry.tasks import measure_queue_wait
from mcp_celery.telemetry.traces import JobSpans, current_trace, fail
from mcp_celery.worker.asking import Asker, InputLifetimes, require_askable
from mcp_celery.worker.caller import as_caller
from mcp_celery.worker.delivery import JobCall, JobNotStarted, JobRefused
from mcp_celery.worker.end_watch import EndWatch
from mcp_celery.worker.lifespan import ServerLifespan
from mcp_celery.worker.progress import ProgressReporter
from mcp_celery.worker.request import NOT_SERIALIZED, JobDispatchContext, error_data, handle, request_context
from mcp_celery.worker.revision import CallerRevision, JobRevisions
from mcp_celery.worker.versions import VersionCheck

logger = get_logger(__name__)

_ROUND_PAUSES_SECONDS: Final = (0.05, 0.1, 0.2, *[0.25] * 7)
"""After each round without a question; as many rounds as the SDK's client would make."""


@dataclass(slots=True)
class _Running:
    progress: ProgressReporter
    task: asyncio.Task[Any]
    interrupted: bool = False

    def interrupt(self) -> None:
        """Cancel it, but not again while its ``finally`` blocks await something. Called on the loop's thread."""
        if not self.interrupted:
            self.interrupted = True
            self.task.cancel()


def _spans(call: JobCall, snapshot: TaskContextSnapshot) -> JobSpans:
    return JobSpans(
        component=call.declared_as,
        ref=call.ref,
        attempt=call.attempt,
        leg=call.leg,
        retries=call.retries,
        delivered=call.delivered,
        traceparent=snapshot.traceparent,
        tracestate=snapshot.tracestate,
    )


class JobRunner:
    """Runs jobs of one server on one event loop.

    Args:
        source: The server whose components run.
        namespace: Its namespace.
        open_store: Makes the loop's store, when the first job needs it.
        open_bus: Makes the loop's bus, when the first job waits for input.
        lifetimes: How a wait for input may lengthen a task's life.
        progress_interval_seconds: Shortest time between two progress writes of a job.
        max_result_bytes: Size of the largest result, and of the largest data of an error, as JSON.
        revisions: The protocol revisions of tasks' clients, and of jobs' connections.
        versions: Decides on jobs for another version of their component.

    Attributes:
        follows_ends: Whether jobs are cancelled when their task ends, since no command of Celery's reaches the worker.
    """

    def __init__(  # noqa: PLR0913 - what its jobs share
        self,
        source: ComponentSource,
        *,
        namespace: str,
        open_store: Callable[[], TaskStore],
        open_bus: Callable[[], TaskBus],
        lifetimes: InputLifetimes,
        progress_interval_seconds: float,
        max_result_bytes: int,
        revisions: JobRevisions,
        versions: VersionCheck,
    ) -> None:
        self._source = source
        self._namespace = namespace
        self._open_store = open_store
        self._open_bus = open_bus
        self._lifetimes = lifetimes
        self._progress_interval_seconds = progress_interval_seconds
        self._max_result_bytes = max_result_bytes
        self._revisions = revisions
        self._versions = versions
        self._store: TaskStore | None = None
        self._bus: TaskBus | None = None
        self._hinted: set[str] = set()
        self._lifespan = ServerLifespan(source)
        self._running: dict[str, _Running] = {}
        self._ends = EndWatch(self.store, self.bus)
        self.follows_ends = False

    async def run(self, call: JobCall) -> JobOutcome:
        """Run a job.

        Returns:
            Its outcome, for Celery's result backend.

        Raises:
            JobRefused: It must not run, or its task has ended meanwhile.
            ComponentRaised: It raised one of ``let_through``.
            JobFailedError: It ended in a JSON-RPC error.
        """
        try:
            # Results and errors are objects of user code, whose serializers and properties raise anything.
            with containing(f"what {call.declared_as} returned or raised"):
                return await self._run(call)
        except ComponentExitedError as error:
            raise JobFailedError(error.code, str(error)) from None

    async def _run(self, call: JobCall) -> JobOutcome:
        store = self.store()
        parts, ref = call.parts, call.ref
        progress = ProgressReporter(
            lambda change: store.change(ref, change),
            attempt=call.attempt,
            interval_seconds=self._progress_interval_seconds,
        )
        with self._noted(call.job_id, progress):
            snapshot = await self._start(store, ref, call)
            if (waited_from := call.delivered.available_at_ms) is not None:
                measure_queue_wait(parts.task_type, call.declared_as, now_ms() - waited_from)
            revision = self._revisions.named(snapshot.protocol_version)
            asker = Asker(
                store, self.bus, call, snapshot, revision, self._lifetimes, on_wait=lambda: self._on_wait(call)
            )
            here = TaskContext(parts, call.job_id, self._namespace, call.attempt, snapshot)
            async with AsyncExitStack() as stack:
                stack.enter_context(restore_task_snapshot(here))
                stack.enter_context(as_caller(snapshot))
                span = stack.enter_context(_spans(call, snapshot).running())
                call.note_trace(current_trace())
                if self.follows_ends:
                    await stack.enter_async_context(self._following(ref, call))
                try:
                    result = await self._serve(METHODS[parts.task_type], call, snapshot, revision, progress, asker)
                    if isinstance(result, InputRequiredResult):
                        return await self._park(store, call, snapshot, revision, progress, result)
                    outcome = JobOutcome(
                        result, progress.last_message, progress.last_progress, form=min(snapshot.format, FORMAT)
                    )
                    self._require_storable(outcome)
                    if outcome.is_error:
                        fail(span, "tool_error")
                except MCPError as error:
                    # Without its cause, whose text would be in the traceback that Celery stores and sends to Flower.
                    raise self._failed(call, error, revision) from None
                finally:
                    await asker.aclose()
                    await progress.aclose()
        return outcome

    def _following(self, ref: TaskRef, call: JobCall) -> AbstractAsyncContextManager[None]:
        """Cancel a job when its task ends. One of another attempt ends only where it uses its context."""
        return self._ends.following(
            ref, call.attempt, lambda over: self.abandon(call.job_id, interrupt=over == "ended")
        )

    def _require_storable(self, outcome: JobOutcome) -> None:
        """Refuse a result that cannot be stored, or that is too large.

        Raises:
            MCPError: -32603, with the reason.
        """
        try:
            size = outcome.size
        except NotJSONError:
            raise MCPError(INTERNAL_ERROR, NOT_SERIALIZED) from None
        if not is_sendable(outcome.text):
            raise MCPError(INTERNAL_ERROR, NOT_SERIALIZED)
        if size > self._max_result_bytes:
            raise MCPError(INTERNAL_ERROR, too_large(size, self._max_result_bytes))

    def _failed(self, call: JobCall, error: MCPError, revision: CallerRevision) -> JobFailedError:
        """The end of a job that a JSON-RPC error ended. Data that has no JSON form, or is too large, is left out."""
        try:
            failed = JobFailedError(error.code, error.message, error_data(error, revision))
        except NotJSONError as reason:
            logger.warning("left out the data of the error of job %s: %s", call.job_id, reason)
            return JobFailedError(error.code, error.message)
        if failed.data_json is not None and not is_sendable(failed.data_json):
            logger.warning("left out the data of the error of job %s: it is nested too deeply", call.job_id)
            return JobFailedError(error.code, error.message)
        if failed.data_bytes > self._max_result_bytes:
            logger.warning(
                "left out the data of the error of job %s: its %d bytes are more than MCP_CELERY_MAX_RESULT_BYTES",
                call.job_id,
                failed.data_bytes,
            )
            return JobFailedError(error.code, error.message)
        return failed

    @contextmanager
    def _noted(self, job_id: str, progress: ProgressReporter) -> Generator[None]:
        """Let a job be found while it runs, and end as refused when it is cancelled because it is abandoned."""
        running = _Running(progress, cast("asyncio.Task[Any]", asyncio.current_task()))
        self._running.setdefault(job_id, running)  # a second delivery, which will not run, replaces no entry
        try:
            yield
        except asyncio.CancelledError:
            if not progress.abandoned:
                raise
            logger.info("job %s was ended: its task has ended, or its worker ends", job_id)
            raise JobRefused from None
        finally:
            if self._running.get(job_id) is running:
                del self._running[job_id]

    def abandon(self, job_id: str, *, interrupt: bool = False) -> None:
        """Mark a running job as abandoned. May be called from any thread.

        Args:
            job_id: Its Celery id.
            interrupt: Cancel it at its ``await``, once however often this is called; else it ends where it uses its
                context.
        """
        running = self._running.get(job_id)
        if running is not None:
            running.progress.abandon()
            if interrupt:
                running.task.get_loop().call_soon_threadsafe(running.interrupt)

    def _on_wait(self, call: JobCall) -> None:
        """Say once of a component that its waiting costs something, where it does."""
        job, component = current_job(), call.parts.component_identifier
        if (job is not None and job.on_loop) or component in self._hinted:
            return
        self._hinted.add(component)
        logger.warning(
            "%r waits for input, and holds a slot of this worker meanwhile. It holds none on the asyncio pool, nor on "
            "any pool if it returns InputRequiredResult. TaskConfig(input_timeout=…) bounds the wait",
            component,
        )

    def store(self) -> TaskStore:
        """The event loop's store."""
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def bus(self) -> TaskBus:
        """The event loop's bus."""
        if self._bus is None:
            self._bus = self._open_bus()
        return self._bus

    async def _start(self, store: TaskStore, ref: TaskRef, call: JobCall) -> TaskContextSnapshot:
        delivery = secrets.token_hex(8)  # so that a start whose answer was lost is granted to it again

        async def start(fingerprint: str | None) -> TaskContextSnapshot | None:
            return await until_store_answers(
                lambda: store.start(
                    ref,
                    Start(
                        attempt=call.attempt,
                        retries=call.retries,
                        at_ms=now_ms(),
                        delivery=delivery,
                        worker=call.worker,
                        key=call.key,
                        fingerprint=fingerprint,
                    ),
                ),
                give_up_seconds=JOB_GIVES_UP_SECONDS,
            )

        try:
            if not call.is_genuine:
                await self._refuse_unsigned(store, call)
            try:
                snapshot = await start(await self._versions.fingerprint(call))
            except OtherVersionError as other:
                snapshot = await start(await self._versions.decide(store, call, other.fingerprint))
        except NoPlaceError as full:
            logger.info("job %s does not run yet: its task waits for a free place, %d ahead", call.job_id, full.ahead)
            raise JobRefused from None
        except SnapshotUnreadableError as error:
            logger.warning("the context of task %s cannot be restored: %s", ref.shown_id, error.reason)
            raise JobFailedError(INTERNAL_ERROR, str(error)) from None
        except StoredDataError as error:
            logger.error("job %s does not run: %s", call.job_id, error.reason)
            raise JobFailedError(INTERNAL_ERROR, str(error)) from None
        except StoreUnavailableError:
            logger.error("job %s does not run: the task store did not answer for a minute", call.job_id)
            raise JobNotStarted(delivery) from None
        if snapshot is None:
            await self._say_refused(store, call)
            raise JobRefused
        return snapshot

    async def _refuse_unsigned(self, store: TaskStore, call: JobCall) -> NoReturn:
        """Refuse a job whose message no process with this worker's keys published.

        Raises:
            SnapshotUnreadableError: This worker cannot open the task's request either, so its keys are not the
                server's: the task fails.
            JobRefused: The message is forged. It changes nothing of the task.
        """
        with suppress(StoreUnavailableError):
            await until_store_answers(lambda: store.snapshot(call.ref), give_up_seconds=JOB_GIVES_UP_SECONDS)
        logger.error("job %s does not run: %s", call.job_id, UNSIGNED_MESSAGE)
        raise JobRefused

    async def _say_refused(self, store: TaskStore, call: JobCall) -> None:
        try:
            found = await until_store_answers(lambda: store.load(call.ref), give_up_seconds=JOB_GIVES_UP_SECONDS)
        except StoreUnavailableError:
            logger.error("job %s does not run; why is not known, for the task store does not answer", call.job_id)
            return
        except StoredDataError as error:
            logger.error("job %s does not run; the record of its task cannot be read: %s", call.job_id, error.reason)
            return
        if found is None:
            logger.warning(
                "job %s does not run: there is no record of its task, which has expired or was taken back; or this "
                "worker has another MCP_CELERY_REDIS_URL or MCP_CELERY_KEY_PREFIX than its server",
                call.job_id,
            )
        else:
            logger.info("job %s does not run: its task has ended, or another delivery started it", call.job_id)

    async def _serve(
        self,
        method: str,
        call: JobCall,
        snapshot: TaskContextSnapshot,
        revision: CallerRevision,
        progress: ProgressReporter,
        asker: Asker,
    ) -> JSONObject | InputRequiredResult:
        try:
            state = await self._lifespan.state()
        except Exception as error:  # whatever the user's lifespan raises; it is logged where it was raised
            raise MCPError(INTERNAL_ERROR, "The server's lifespan could not be entered in the worker") from error
        for pause in _ROUND_PAUSES_SECONDS:
            channel = JobDispatchContext(snapshot, progress, asker)
            ctx = request_context(method, snapshot, channel, state, asking_version=self._revisions.asking_version)
            result = await handle(self._source, ctx, channel, revision=revision, let_through=call.let_through)
            if not isinstance(result, InputRequiredResult) or result.input_requests:
                return result
            # It has no question: it only wants to be called again with its state, as a client would after a moment.
            await asyncio.sleep(pause)
            snapshot = next_round(snapshot, {}, result.request_state)
        raise MCPError(INTERNAL_ERROR, "The component asked too often to be called again without asking a question")

    async def _park(
        self,
        store: TaskStore,
        call: JobCall,
        snapshot: TaskContextSnapshot,
        revision: CallerRevision,
        progress: ProgressReporter,
        result: InputRequiredResult,
    ) -> JobOutcome:
        """End this job with questions. Their answers are given to the task's next job, and nothing waits meanwhile."""
        questions: list[Question] = []
        for name, request in (result.input_requests or {}).items():
            wire = request.model_dump(by_alias=True, mode="json", exclude_none=True)
            question = Question(leg_key(call.leg, name), wire["method"], wire.get("params", {}))
            require_askable(snapshot, question.method, question.params)
            questions.append(question)
        if call.leg == MAX_LEGS:
            raise MCPError(INTERNAL_ERROR, "The component asked for input too often")
        leg = NextLeg(
            leg=call.leg + 1,
            job_id=later_job_id(call.job_id, call.leg + 1),
            request_state=result.request_state,
        )
        extension = self._lifetimes.extension(revision, None)
        asking = Asking(attempt=call.attempt, at_ms=now_ms(), extension=extension)
        await progress.flush()
        parked = await until_store_answers(
            lambda: store.park(call.ref, questions, asking, leg), give_up_seconds=JOB_GIVES_UP_SECONDS
        )
        if parked:
            logger.info("job %s ended with questions; the answers begin %s", call.job_id, leg.job_id)
        # No news of the task: its current attempt is the next job's by now, and an outcome of this one is refused.
        return JobOutcome({"resultType": result.result_type})

    async def aclose(self) -> None:
        """Leave the server's lifespan and close the connections."""
        await self._lifespan.aclose()
        if self._bus is not None:
            await self._bus.aclose()
            self._bus = None
        if self._store is not None:
            await self._store.aclose()
            self._store = None
