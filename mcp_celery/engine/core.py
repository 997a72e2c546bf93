"""The engine: what a task is and may do, whoever asks and whatever stores it.

Imports neither Celery nor Redis nor the MCP server. The order of creation is the promise of SEP-2663's durable create:
record, then message, then answer. A message that fails takes its record back; a message that arrives although it was
given up finds no record and does not run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from mcp_celery.config import TaskConfig
from mcp_celery.engine.outcome import JobOutcome, expired, settlement
from mcp_celery.engine.ports import TaskBus, TaskQueue, TaskResults, TaskStore
from mcp_celery.engine.record import (
    Caller,
    Change,
    StoredResult,
    StoredTask,
    Submission,
    TaskRecord,
    TaskRef,
    TaskView,
    new_task_id,
    now_ms,
)
from mcp_celery.engine.watch import TaskWatch
from mcp_celery.errors import McpCeleryError, ResultUnavailableError, TaskNotFoundError
from mcp_celery.keys import is_wire_task_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What the server grants.

    Attributes:
        default_ttl_ms: When nobody asks.
        max_ttl_ms: Whoever asks.
        poll_interval_ms: When the component does not say.
        settle_interval_ms: How often an open task's stored result is looked at, where that is a request of its own.
    """

    default_ttl_ms: int
    max_ttl_ms: int
    poll_interval_ms: int
    settle_interval_ms: int = 2_000

    def granted_ttl_ms(self, asked: int | None, config: TaskConfig) -> int:
        """The time to live of a new task: what the client asks, else the component, else the default; clamped."""
        wanted = next((value for value in (asked, config.ttl_ms) if value is not None), self.default_ttl_ms)
        return max(1, min(wanted, self.max_ttl_ms))


class TaskEngine:
    """Submit, get, cancel, wait and watch.

    Args:
        store: Where records are kept.
        queue: Where jobs are published.
        bus: Who tells of changes.
        results: Celery's result backend, None where ``store.load`` reads it in the same step.
        limits: What the server grants.
    """

    def __init__(
        self, *, store: TaskStore, queue: TaskQueue, bus: TaskBus, results: TaskResults | None, limits: TaskLimits
    ) -> None:
        self._store = store
        self._queue = queue
        self._bus = bus
        self._results = results
        self._limits = limits
        self._looked_at_ms: dict[TaskRef, int] = {}

    async def submit(self, submission: Submission) -> TaskRecord:
        """Create a task and publish its job.

        Returns:
            The record, durable and published.

        Raises:
            StoreUnavailableError: Nothing was created.
            QueueUnavailableError: Nothing was created; the record was taken back.
        """
        created = now_ms()
        record = TaskRecord(
            task_id=new_task_id(),
            scope=submission.caller.scope,
            issuer=submission.caller.issuer,
            task_type=submission.task_type,
            component=submission.component,
            created_at_ms=created,
            updated_at_ms=created,
            ttl_ms=self._limits.granted_ttl_ms(submission.ttl_ms, submission.config),
            poll_interval_ms=submission.config.poll_interval_ms or self._limits.poll_interval_ms,
            start_before_ms=None if (expires := submission.config.expires) is None else created + round(expires * 1000),
        )
        try:
            await self._store.create(record, submission.snapshot)
            await self._queue.publish(record, submission)
        except BaseException:
            # Also when the client hangs up half-way. A creation that seemed to fail may have reached the store.
            with anyio.CancelScope(shield=True):
                await self._take_back(record.ref)
            raise
        logger.info("task created: scope=%r task=%s job=%s", record.scope, record.task_id, record.job_id)
        return record

    async def _take_back(self, ref: TaskRef) -> None:
        try:
            await self._store.delete(ref)
        except McpCeleryError as error:
            logger.warning("task %s was not published and could not be taken back: %s", ref.task_id, error)

    async def get(self, caller: Caller, task_id: str) -> TaskView:
        """A caller's own task, with the result when it completed.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            ResultUnavailableError: Completed, but the result backend does not give the result.
            StoreUnavailableError: The store did not answer.
        """
        return await self.view(await self._load(caller, task_id))

    async def find(self, caller: Caller, task_id: str) -> TaskRecord:
        """A caller's own task without its result.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            StoreUnavailableError: The store did not answer.
        """
        return (await self._load(caller, task_id)).record

    async def _load(self, caller: Caller, task_id: str) -> StoredTask:
        if not is_wire_task_id(task_id):
            raise TaskNotFoundError
        stored = await self._store.load(TaskRef(caller.scope, task_id))
        if stored is None or stored.record.issuer != caller.issuer:
            raise TaskNotFoundError
        return stored

    async def view(self, stored: StoredTask) -> TaskView:
        """What its owner may see of a stored task, settled if Celery's stored result is ahead of the record.

        Raises:
            ResultUnavailableError: Completed, but the result backend does not give the result.
        """
        record, result = stored.record, stored.result
        if record.is_open:
            result = result or await self._look(record)
            change = settlement(result)
            if change is None and record.is_too_late(now_ms()):
                change = expired()  # and no worker was there to say so
            if change is not None:
                # Else the worker died, or lost the store, between storing the result and telling of it.
                settled = await self._store.change(record.ref, change)
                if settled is None:
                    raise TaskNotFoundError
                record = settled.record
        if record.status != "completed":
            return TaskView(record)
        self._looked_at_ms.pop(record.ref, None)
        if result is None and self._results is not None:
            result = await self._results.read(record.job_id)
        outcome = None if result is None else JobOutcome.from_json(result.value)
        if outcome is None:
            raise ResultUnavailableError
        return TaskView(record, outcome.result)

    async def _look(self, record: TaskRecord) -> StoredResult | None:
        """Celery's stored result of an open task, at most every ``settle_interval_ms`` for one task."""
        if self._results is None:
            return None
        now = now_ms()
        looked = self._looked_at_ms
        if now - looked.get(record.ref, record.created_at_ms) < self._limits.settle_interval_ms:
            return None
        looked.pop(record.ref, None)
        looked[record.ref] = now
        while len(looked) > _LOOKS_REMEMBERED:
            looked.pop(next(iter(looked)))
        return await self._results.read(record.job_id)

    async def cancel(self, caller: Caller, task_id: str) -> TaskRecord:
        """Cancel a caller's own task: the record first, which no later success can undo, then the job.

        Returns:
            The record as it is now: ``cancelled``, or the terminal status that it already had.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            StoreUnavailableError: The store did not answer; nothing was cancelled.
        """
        record = await self.find(caller, task_id)
        if record.is_terminal:
            return record
        changed = await self._store.change(record.ref, Change(to="cancelled", status_message="Cancelled by the client"))
        if changed is None:
            raise TaskNotFoundError
        if changed.record.status == "cancelled":
            # Also where it was cancelled a moment ago: by a try whose answer was lost, and with it the revoke.
            logger.info("task cancelled: scope=%r task=%s", record.scope, record.task_id)
            claim = changed.record.claim
            await self._queue.revoke(changed.record.job_id, terminate=claim is not None and claim.can_terminate)
        return changed.record

    def watch(self, caller: Caller, task_ids: Sequence[str]) -> TaskWatch:
        """Follow a caller's own tasks: the current state of each, then every change, until they have ended.

        Args:
            caller: Who asks.
            task_ids: Ids of any origin; those that are not the caller's are left out of ``TaskWatch.accepted``.
        """
        refs = [TaskRef(caller.scope, task_id) for task_id in dict.fromkeys(task_ids) if is_wire_task_id(task_id)]
        return TaskWatch(caller, refs, store=self._store, bus=self._bus, view=self.view)

    async def wait(self, caller: Caller, task_id: str) -> TaskView:
        """Wait until a caller's own task has ended.

        Returns:
            Its terminal view.

        Raises:
            TaskNotFoundError: Unknown, another caller's, or expired while waiting.
            ResultUnavailableError: Completed, but the result backend does not give the result.
            StoreUnavailableError: The store did not answer.
        """
        async with self.watch(caller, [task_id]) as watch:
            async for view in watch:
                if view.record.is_terminal:
                    return view
        return await self.get(caller, task_id)


_LOOKS_REMEMBERED = 10_000
