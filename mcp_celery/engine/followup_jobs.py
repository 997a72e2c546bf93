"""Taking answers, and publishing the jobs of a task after its first.

Answers are durable before a leg is published, and the store lists it as due until the broker has it. So a process that
dies in between, or a broker that does not answer, only delays a leg: the reaper publishes what stays due.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mcp_celery.config import TaskConfig
from mcp_celery.engine.outcome import failure
from mcp_celery.engine.ports import TaskQueue, TaskStore
from mcp_celery.engine.questions import check_answers
from mcp_celery.engine.read_models import StoredTask
from mcp_celery.engine.record import Caller, TaskRecord, now_ms
from mcp_celery.engine.submission import Submission
from mcp_celery.errors import McpCeleryError, SnapshotUnreadableError, TaskNotFoundError
from mcp_celery.keys import TaskType
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

Declared = Callable[[TaskType, str], Awaitable[tuple[str, TaskConfig]]]
"""What a component was declared as (a resource: its template), and its configuration."""


async def as_itself(_: TaskType, component: str) -> tuple[str, TaskConfig]:
    """A component that declares nothing."""
    return component, TaskConfig()


def as_recorded(
    config: TaskConfig, component: str, declared_as: str | None, options: Mapping[str, Any]
) -> tuple[str, TaskConfig]:
    """What a component was declared as when its task was created, and its configuration then, as far as messages go.

    Args:
        config: Its configuration in this process.
        component: The component.
        declared_as: As in the record.
        options: Likewise.
    """
    return declared_as or component, config.with_message_options(options)


def too_late_from(now: int, expires: float | datetime | None) -> int | None:
    """When a job that is published now has expired (ms), given in how many seconds or at what time; None for never."""
    if isinstance(expires, datetime):
        return round(expires.timestamp() * 1000)
    return None if expires is None else now + round(expires * 1000)


class Republisher:
    """Publishes jobs of tasks that exist already.

    Args:
        store: Where records are kept.
        queue: Where jobs are published.
        declared: What the components declare, for their jobs' queues and options.
    """

    def __init__(self, store: TaskStore, queue: TaskQueue, declared: Declared) -> None:
        self._store = store
        self._queue = queue
        self._declared = declared

    async def publish(self, record: TaskRecord) -> None:
        """Publish a task's current job. A task whose context cannot be read fails instead.

        Raises:
            StoreUnavailableError: Nothing was published.
            QueueUnavailableError: The broker did not take it in time.
        """
        try:
            snapshot = await self._store.snapshot(record.ref)
        except SnapshotUnreadableError as error:
            logger.warning("the context of task %s cannot be restored: %s", record.shown_id, error.reason)
            await self._store.change(record.ref, replace(failure(type(error).__name__), attempt=record.attempt))
            return
        if snapshot is None:
            return  # expired meanwhile
        declared_as, config = await self.declared(record)
        submission = Submission(
            caller=Caller(record.scope, record.issuer),
            task_type=record.task_type,
            component=record.component,
            config=config,
            snapshot=snapshot,
            declared_as=declared_as,
        )
        await self._queue.publish(record, submission)

    async def declared(self, record: TaskRecord) -> tuple[str, TaskConfig]:
        """The declared identifier of a task's component, and its configuration.

        Where the record says it, that counts: this process may have another version of the component, or none.
        """
        found = await self._declared(record.task_type, record.component)
        if record.fingerprint is None:  # 0.1.0 created the task
            return found
        return as_recorded(found[1], record.component, record.declared_as, record.options)


class Answers:
    """Takes answers, and lets tasks go on.

    Args:
        store: Where records are kept.
        queue: Where jobs are published.
        declared: What the components declare.
        version: The protocol version at which workers read answers.
        max_input_bytes: How large the answers of one request may be, as JSON.
    """

    def __init__(
        self, store: TaskStore, queue: TaskQueue, declared: Declared, *, version: str, max_input_bytes: int
    ) -> None:
        self._store = store
        self._version = version
        self._max_input_bytes = max_input_bytes
        self._legs = Republisher(store, queue, declared)

    async def take(self, stored: StoredTask, responses: Mapping[str, object]) -> TaskRecord:
        """As ``TaskEngine.respond``, for a task that has been loaded."""
        record = stored.record
        answers = check_answers(stored.questions, responses, version=self._version, max_bytes=self._max_input_bytes)
        if not answers:
            return record
        now = now_ms()
        _, config = await self._legs.declared(record)
        too_late = too_late_from(now, config.expires)
        answered = await self._store.answer(record.ref, answers, at_ms=now, start_before_ms=too_late)
        if answered is None:
            raise TaskNotFoundError
        record = answered.changed.record
        if answered.is_due:
            await self._go_on(record)
        return record

    async def _go_on(self, record: TaskRecord) -> None:
        """Publish the leg that is due. If that fails it stays due. If it happens twice only one of the jobs begins."""
        try:
            await self._legs.publish(record)
            await self._store.published(record.ref, attempt=record.attempt)
        except McpCeleryError as error:
            logger.warning("could not publish leg %d of task %s yet: %s", record.leg, record.shown_id, error)
        else:
            logger.info(
                "published the next job of a task: scope=%r task=%s job=%s",
                record.scope,
                record.shown_id,
                record.job_id,
            )
