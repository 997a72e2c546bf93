"""Changes by operators, through the same scripts as servers: durable, with one end, and pushed to clients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from mcp_celery.engine import Change, Changed, TaskRecord
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.operate.site import Open, Site
from mcp_celery.operate.tasks import AmbiguousTaskError
from mcp_celery.store.inspection import InspectedTask

CANCELLED: Final = "Cancelled by an operator"
"""The status message of a task that an operator cancelled."""


class RefusedError(Exception):
    """A task cannot be changed so; the text says why."""


async def requeued(opened: Open, task: InspectedTask, *, force: bool) -> None:
    """Have a task's job published again. The process that recovers does so within a heartbeat.

    Its next attempt counts: how an earlier one fails is dropped, and what it returns too, unless it is in another
    result backend than the Redis of the records. A body starts once for each attempt.

    Args:
        opened: Its server.
        task: The task.
        force: Whether a body that has started and may have had effects is repeated nevertheless.

    Raises:
        StoreUnavailableError: The store did not answer.
        RefusedError: It has ended, waits for an answer, or is one of exposed jobs; or its body has started.
    """
    record = task.record
    verdict = await opened.inspection.requeue(record, force=force)
    if verdict == "started":
        raise RefusedError(
            f"the job of task {record.shown_id} has started and may have had effects, and its tool is not declared "
            "repeatable (readOnlyHint, idempotentHint or acks_late): use --force to run it again nevertheless"
        )
    if verdict == "nothing":
        why = "it has ended, and ended tasks stay as they are: call the tool again"
        if record.work.is_foreign:
            why = "its jobs are exposed Celery jobs, which other workers run"
        elif record.status == "input_required":
            why = "it waits for an answer of its client"
        raise RefusedError(f"task {record.shown_id} cannot be put back into the queue: {why}")


async def purgeable(opened: Open, *, older_than_ms: int, most: int, besides: Collection[str] = ()) -> list[TaskRecord]:
    """Tasks that ended some time ago.

    Args:
        opened: Their server.
        older_than_ms: They ended at least so long ago.
        most: How many to return at most.
        besides: Compound keys of tasks that are left out.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    now, found = await opened.inspection.now_ms(), list[TaskRecord]()
    async for page in opened.inspection.pages():
        found += [
            task.record
            for task in page
            if task.record.is_terminal
            and task.record.updated_at_ms <= now - older_than_ms
            and task.record.key not in besides
        ]
        if len(found) >= most:
            break
    return found[:most]


async def purged(opened: Open, records: Sequence[TaskRecord]) -> None:
    """Let ended tasks go now, with their results, instead of at their time.

    The process that recovers deletes results that another result backend has, as those of all tasks whose time is over:
    after a while, because a worker that ends a job late stores its result late.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    # By the clock of the store: by that of this machine, if it is ahead, they would live on.
    now = await opened.inspection.now_ms()
    for record in records:
        await opened.store.retire(record.ref, now)


async def cancelled(site: Site, opened: Open, record: TaskRecord) -> tuple[Changed, bool]:
    """Cancel a task: the record first, which no later success can undo, then the job.

    Returns:
        What the store says, not accepted where the task had ended already; and whether the broker has taken the revoke
        of its job.

    Raises:
        StoreUnavailableError: The store did not answer; nothing was cancelled.
        AmbiguousTaskError: The task has just expired.
    """
    changed = await opened.store.change(record.ref, Change(to="cancelled", status_message=CANCELLED))
    if changed is None:
        raise AmbiguousTaskError(f"task {record.shown_id} has expired")
    if not changed.accepted:
        return changed, False
    async with site.queue(opened.namespace) as queue:
        try:
            await queue.revoke_now(*changed.record.job_ids, terminate=changed.record.work.may_terminate)
        except QueueUnavailableError:
            return changed, False
    return changed, True
