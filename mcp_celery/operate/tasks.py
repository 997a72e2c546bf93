"""Listing tasks, and describing the whole life of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from mcp_celery.broker.consumers import celery_workers
from mcp_celery.broker.naming import job_name
from mcp_celery.config import TaskConfig
from mcp_celery.engine import TaskRecord, is_own_reason
from mcp_celery.engine.followup_jobs import as_recorded
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.errors import QueueUnavailableError, SnapshotUnreadableError
from mcp_celery.operate.site import Open, Site
from mcp_celery.operate.waiting import Surroundings, Waiting, waiting_of
from mcp_celery.store.inspection import InspectedTask

Activity = Literal["queued", "received", "running", "asks", "completed", "failed", "cancelled"]
"""What a task does: its status, and of a working task how far its job is."""

SHORTEST_ID: Final = 6
"""How many characters of a task's id name it at least."""


class AmbiguousTaskError(Exception):
    """The beginning of an id names several tasks, or none; the text says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which tasks are listed. Everything given has to hold.

    Attributes:
        statuses: Any of these statuses or activities; empty: any.
        component: The component's name, URI or URI template; None: any.
        scope: The caller's scope; '' for anonymous callers; None: any.
        older_than_ms: Created at least so long ago; None: at any time.
        worker: The worker that has the job: its node name, or the beginning of it; None: any, or none.
        queue: The queue that the jobs go to; None: any.
    """

    statuses: frozenset[str] = frozenset()
    component: str | None = None
    scope: str | None = None
    older_than_ms: int | None = None
    worker: str | None = None
    queue: str | None = None

    def takes(self, task: InspectedTask, now_ms: int) -> bool:
        """Whether a task is one of them, its queue aside."""
        record = task.record
        worker = "" if record.claim is None else record.claim.worker
        return (
            (not self.statuses or not self.statuses.isdisjoint((record.status, activity_of(task))))
            and self.component in (None, record.component, record.declared_as)
            and (self.scope is None or self.scope == (record.scope or ""))
            and (self.older_than_ms is None or record.created_at_ms <= now_ms - self.older_than_ms)
            and (self.worker is None or worker.startswith(self.worker))
        )


def activity_of(task: InspectedTask) -> Activity:
    """The activity of a task."""
    record = task.record
    if record.status == "input_required":
        return "asks"
    if record.status != "working":
        return record.status
    if record.claim is None or (task.claimed_retries or 0) < record.retries:
        return "queued"
    return "running" if task.has_started else "received"


class Routes:
    """Where the jobs of a server are routed, found out once for each kind of job.

    Args:
        site: Where tasks are kept.
        namespace: The server's namespace.
    """

    def __init__(self, site: Site, namespace: str) -> None:
        self._jobs = site.own_jobs(namespace)
        self._namespace = namespace
        self._known: dict[Any, str | None] = {}

    def queue_of(self, record: TaskRecord) -> str | None:
        """The queue that a task's job goes to; None where a route names an exchange only, and for exposed jobs."""
        if record.work.is_foreign:
            return None
        declared_as, config = as_recorded(TaskConfig(), record.component, record.declared_as, record.options)
        name = record.job_name or job_name(self._namespace, record.task_type, declared_as)
        kind = (name, config.queue)
        if kind not in self._known:
            self._known[kind] = self._jobs.queue_of_job(name, config)
        return self._known[kind]


async def listed(site: Site, opened: Open, only: Filter) -> AsyncGenerator[InspectedTask]:
    """The tasks of a server that a filter takes, about the newest first."""
    now, routes = await opened.inspection.now_ms(), Routes(site, opened.namespace)
    async for page in opened.inspection.pages():
        for task in page:
            if only.takes(task, now) and only.queue in (None, routes.queue_of(task.record)):
                yield task


async def find_task(servers: Sequence[Open], text: str) -> tuple[Open, InspectedTask]:
    """The one task that a text names.

    Args:
        servers: Where to look.
        text: A compound key, a Celery id, a task id, or the beginning of an id.

    Raises:
        AmbiguousTaskError: There is none, or there are several.
    """
    if len(text.rstrip("…")) < SHORTEST_ID:
        raise AmbiguousTaskError(f"{text!r} is too short: give at least {SHORTEST_ID} characters of the task's id")
    found: list[tuple[Open, InspectedTask]] = []
    for server in servers:
        tasks = await server.inspection.tasks(await server.inspection.find(text, most=2))
        found += [(server, task) for task in tasks if task is not None]
    if not found:
        names = ", ".join(server.namespace for server in servers) or "none"
        raise AmbiguousTaskError(f"no task {text!r}: it has expired, or is of another server (looked at: {names})")
    if len(found) > 1:
        raise AmbiguousTaskError(f"several tasks begin with {text!r}: give more of the task's id")
    return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The life of a task.

    Attributes:
        namespace: Its server's namespace.
        task: The task.
        around: What is known around it.
        waiting: What it waits for.
        questions: The keys of its open questions.
        contents: Its arguments, as the client sent them; None where they are not asked for, or are gone.
        reason: Why a failed task failed, where the text is this library's own and holds no content.
    """

    namespace: str
    task: InspectedTask
    around: Surroundings
    waiting: Waiting
    questions: Sequence[str] = ()
    contents: Any = None
    reason: str | None = None


async def life_of(site: Site, opened: Open, task: InspectedTask, *, contents: bool = False) -> Life:
    """Find out all that is known of a task. This takes some seconds, until the workers have answered.

    Args:
        site: Where tasks are kept.
        opened: Its server.
        task: The task.
        contents: Whether its arguments are read.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    record, around = task.record, await surroundings_of(site, opened, task)
    questions = await opened.inspection.question_kinds(record) if record.status == "input_required" else []
    return Life(
        namespace=opened.namespace,
        task=task,
        around=around,
        waiting=waiting_of(task, around),
        questions=questions,
        contents=await _arguments(opened, record) if contents else None,
        reason=record.error.message if record.error is not None and is_own_reason(record.error) else None,
    )


async def surroundings_of(site: Site, opened: Open, task: InspectedTask) -> Surroundings:
    """Find out what is around a task. Of a working task this takes some seconds, until the workers have answered.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    inspection, record = opened.inspection, task.record
    queue = Routes(site, opened.namespace).queue_of(record)
    around = Surroundings(
        place=await inspection.place(task),
        leased=await inspection.workers(),
        queue=queue,
        command=None if queue is None else site.worker_command(opened.namespace, queue),
        has_reaper=await inspection.has_reaper(),
        lease_ms=RecoveryPolicy(site.settings.heartbeat_ms, 0).lease_ms,
    )
    if record.status != "working" or record.work.is_foreign:
        return around
    answering = await asyncio.to_thread(celery_workers, site.app)
    return replace(around, answering=answering, length=await _length(site, opened.namespace, queue))


async def _arguments(opened: Open, record: TaskRecord) -> Any:
    """The parameters of the request that created a task; a text where they cannot be read, None where they are gone."""
    try:
        snapshot = await opened.store.snapshot(record.ref)
    except SnapshotUnreadableError as error:
        return f"cannot be read: {error.reason}"
    return None if snapshot is None else snapshot.params


async def _length(site: Site, namespace: str, queue: str | None) -> int | None:
    if queue is None:
        return None
    try:
        async with site.queue(namespace) as broker:
            return await broker.length(queue)
    except QueueUnavailableError:
        return None
