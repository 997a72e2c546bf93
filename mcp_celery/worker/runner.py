"""Running one job: may it start, who asked, serve the request, say how it ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError

from mcp_celery.context import TaskContext, TaskContextSnapshot, restore_task_snapshot
from mcp_celery.engine import Change, EncodedResult, JobOutcome, JSONObject, TaskRef, TaskStore, now_ms
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError, StoreUnavailableError
from mcp_celery.keys import TaskType, parse_task_key
from mcp_celery.worker.lifespan import ServerLifespan
from mcp_celery.worker.progress import ProgressReporter
from mcp_celery.worker.request import as_caller, handle, request_context

logger = logging.getLogger(__name__)

METHODS: Final[dict[TaskType, str]] = {"tool": "tools/call", "prompt": "prompts/get", "resource": "resources/read"}
START_PATIENCE_SECONDS: Final = 60.0
"""How long a job waits for a store that does not answer. It must not run unconfirmed, and is lost if it gives up."""


class ClosableTaskStore(TaskStore, Protocol):
    """A store that belongs to one event loop."""

    async def aclose(self) -> None:
        """Close its connections."""
        ...

    async def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result where the result backend keeps it, and move its task, in one step."""
        ...


class JobRefused(Exception):  # noqa: N818 - an outcome, not an error
    """The body must not run: the task ended, counts another attempt, or another delivery has started it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCall:
    """One delivery of a job.

    Attributes:
        job_id: Its Celery id.
        key: Compound key of the task.
        attempt: The attempt it was published for.
        retries: Celery's count of retries.
        params: Parameters of the MCP request.
        let_through: Exceptions of the component that are Celery's business: reasons to run it again, time limits.
    """

    job_id: str
    key: str
    attempt: int
    retries: int
    params: JSONObject
    let_through: tuple[type[Exception], ...] = ()


class JobRunner:
    """Runs jobs of one server on one event loop.

    Args:
        server: Whose components run.
        namespace: Its namespace.
        open_store: Makes the loop's store, when the first job needs it.
        progress_interval_seconds: Shortest time between two progress writes of a job.
    """

    def __init__(
        self,
        server: MCPServer[Any],
        *,
        namespace: str,
        open_store: Callable[[], ClosableTaskStore],
        progress_interval_seconds: float,
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._open_store = open_store
        self._progress_interval_seconds = progress_interval_seconds
        self._store: ClosableTaskStore | None = None
        self._lifespan = ServerLifespan(server)

    async def run(self, call: JobCall) -> JobOutcome:
        """Run a job.

        Returns:
            Its outcome, for Celery's result backend.

        Raises:
            JobRefused: It must not run.
            ComponentRaised: It raised one of ``let_through``.
            JobFailedError: It ended in a JSON-RPC error.
        """
        store = self.store()
        parts = parse_task_key(call.key)
        ref = TaskRef(parts.task_scope, parts.client_task_id)
        snapshot = await self._start(store, ref, call)
        progress = ProgressReporter(
            lambda change: store.change(ref, change),
            attempt=call.attempt,
            interval_seconds=self._progress_interval_seconds,
        )
        here = TaskContext(parts, call.job_id, self._namespace, call.attempt, snapshot)
        with restore_task_snapshot(here), as_caller(snapshot.token):
            try:
                result = await self._serve(METHODS[parts.task_type], call, snapshot, progress)
            except MCPError as error:
                # Without its cause, whose text would be in the traceback that Celery stores and sends to Flower.
                raise JobFailedError(error.code, error.message, error.data) from None
            finally:
                await progress.aclose()
        return JobOutcome(result, progress.last_message, progress.last_progress)

    def store(self) -> ClosableTaskStore:
        """The event loop's store."""
        if self._store is None:
            self._store = self._open_store()
        return self._store

    async def _start(self, store: TaskStore, ref: TaskRef, call: JobCall) -> TaskContextSnapshot:
        deadline = asyncio.get_running_loop().time() + START_PATIENCE_SECONDS
        delivery = secrets.token_hex(8)  # so that a start whose answer was lost is granted to it again
        while True:
            try:
                snapshot = await store.start(
                    ref, attempt=call.attempt, retries=call.retries, at_ms=now_ms(), delivery=delivery
                )
                break
            except StoreUnavailableError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.5)
            except ValueError as error:
                raise JobFailedError(INTERNAL_ERROR, "The request's context cannot be restored") from error
        if snapshot is None:
            logger.info("job %s does not run: its task has ended, or another delivery started it", call.job_id)
            raise JobRefused
        return snapshot

    async def _serve(
        self, method: str, call: JobCall, snapshot: TaskContextSnapshot, progress: ProgressReporter
    ) -> JSONObject:
        try:
            state = await self._lifespan.state()
        except Exception as error:  # whatever the user's lifespan raises; it is logged where it was raised
            raise MCPError(INTERNAL_ERROR, "The server's lifespan could not be entered in the worker") from error
        ctx = request_context(method, call.params, snapshot, progress, state)
        return await handle(self._server, ctx, snapshot.protocol_version, call.let_through)

    async def aclose(self) -> None:
        """Leave the server's lifespan and close the store."""
        await self._lifespan.aclose()
        if self._store is not None:
            await self._store.aclose()
            self._store = None
