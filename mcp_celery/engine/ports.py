"""The ports of the engine, as Protocols: storage and broker.

Redis and Celery fulfil them, and so does :mod:`mcp_celery.testing`. ``engine/backend.py`` bundles those of one storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Protocol

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.handback import HandBack, HandedBack
from mcp_celery.engine.idempotency import EarlierTask
from mcp_celery.engine.questions import Answer, Answered, Asking, Extension, NextLeg
from mcp_celery.engine.read_models import DueTasks, FailedLookups, Queued, StoredTask
from mcp_celery.engine.record import (
    Caller,
    Change,
    Changed,
    Claim,
    EncodedResult,
    Question,
    Quota,
    Start,
    StoredResult,
    TaskRecord,
    TaskRef,
)
from mcp_celery.engine.recovery.model import (
    Expiring,
    Lane,
    Loss,
    PublishedJob,
    RecoveryPolicy,
    StoreCounts,
    Sweep,
    Verdict,
)
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.engine.submission import Idempotency, JobKind, QueueMessage, Submission
from mcp_celery.engine.turns import HeldBack
from mcp_celery.engine.webhooks import Webhook


class QuestionStore(Protocol):
    """The questions of tasks. Every method raises ``StoreUnavailableError`` when the store does not answer in time."""

    async def ask(self, ref: TaskRef, question: Question, asking: Asking) -> bool:
        """Ask in the middle of a job: the task becomes ``input_required``. The same question twice is one.

        Returns:
            False when the task is unknown, has ended, or counts another attempt.
        """
        ...

    async def heard(self, ref: TaskRef, key: str, *, attempt: int) -> Answer | bool:
        """The state of an awaited question: its answer, True while it is open, False when it is gone."""
        ...

    async def withdraw(self, ref: TaskRef, keys: Sequence[str], *, attempt: int, at_ms: int) -> Mapping[str, Answer]:
        """Forget awaited questions and their answers; with the last open one the task is ``working`` again.

        Returns:
            The answers that had come, by key.
        """
        ...

    async def park(self, ref: TaskRef, questions: Sequence[Question], asking: Asking, leg: NextLeg) -> bool:
        """Ask at the end of a job: the task becomes ``input_required``, and the next leg its current one.

        The attempt is counted on, so that no delivery of the job that ended counts any more.

        Returns:
            False when the task is unknown, has ended, or counts another attempt.
        """
        ...

    async def answer(
        self, ref: TaskRef, answers: Mapping[str, Answer], *, at_ms: int, start_before_ms: int | None
    ) -> Answered | None:
        """Take answers, and the questions off the list. Keys without an open question are ignored.

        With the last answer the task is ``working`` again. If its job had ended, the next leg is due, or waits for its
        caller's turn.

        Args:
            ref: The task.
            answers: By the questions' keys.
            at_ms: When they came.
            start_before_ms: When the next leg is too late, where these answers make it due; None for never.

        Returns:
            None when the task is unknown or expired.
        """
        ...

    async def published(self, ref: TaskRef, *, attempt: int) -> None:
        """Note that the job that was due, or the first one of a task with an idempotency key, is with the broker."""
        ...


class TaskStore(QuestionStore, Protocol):
    """Records of tasks, and their questions.

    Every method raises ``StoreUnavailableError`` when the store does not answer in time.
    """

    async def create(
        self,
        record: TaskRecord,
        snapshot: TaskContextSnapshot,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> EarlierTask | HeldBack | None:
        """Keep a new record and its snapshot until the record's ttl ends.

        With a message it is in the queue when the record is there, and not before. A creation that is repeated puts no
        second one there.

        Args:
            record: The new task.
            snapshot: The creating request's context.
            quota: Whose tasks it is one of, and how many of them there may be; None where none are counted.
            idempotency: The request's idempotency key, which leads to the record for as long as there is one. Its first
                job is taken for unpublished until :meth:`published`, unless a message is given.
            message: The job's, to be put into its queue in the same step; None: it is published afterwards.

        Returns:
            None: The record is kept. ``HeldBack``: It is kept, and waits for the turn of its quota's line: its message
            is in no queue, and its job is not to be published now. Else the task that the key leads to, and nothing was
            kept, whatever the quota is.

        Raises:
            TooManyTasksError: The requestor has as many open tasks as it may, and nothing was kept. Counted in one
                step, so that no two servers fill the last place.
            TooManyBytesError: As many bytes are kept for the requestor as may be, and nothing was kept.
            StoreFullError: The store has hardly any memory left, and nothing was kept.
            QueueFullError: As many messages wait in the queue as may, and nothing was kept.
            MessageRefusedError: The store cannot put the message into the queue, and nothing was kept.
        """
        ...

    async def earlier(self, record: TaskRecord, idempotency: Idempotency) -> EarlierTask | None:
        """The task that an idempotency key leads to, as :meth:`create` finds it for this new record. None: none."""
        ...

    async def load(self, ref: TaskRef) -> StoredTask | None:
        """The record, with its open questions, and with the job's stored result where it is at hand. None: unknown or
        expired.
        """
        ...

    async def present(self, refs: Sequence[TaskRef]) -> Sequence[TaskRef]:
        """Filter tasks that exist, in the order given. Much cheaper than loading them."""
        ...

    async def load_many(self, refs: Sequence[TaskRef]) -> Sequence[StoredTask | None]:
        """As :meth:`load`, of several tasks together, each in its place. None also for one that cannot be read."""
        ...

    async def page(self, owner: Caller, *, before: str | None, limit: int) -> list[StoredTask]:
        """An owner's tasks that are alive, the newest first; of an open one with its stored result, if at hand.

        Args:
            owner: As ``Caller.owner`` gives it.
            before: Only what stands before this ``TaskRecord.position``; None: from the newest.
            limit: How many at most.
        """
        ...

    async def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """Apply a change in one step, and announce it on the bus. None: unknown or expired.

        A task with open questions stays ``input_required`` where the change says ``working``. With its end they go.
        """
        ...

    async def start(self, ref: TaskRef, start: Start) -> TaskContextSnapshot | None:
        """Let the body of a job begin, once for each (attempt, retries).

        Returns:
            The snapshot, its params with the answers for which the leg before ended and with the state it left; or None
            when the job must not run: the task is unknown, has ended, counts another attempt, or
            this start was already granted to another delivery.

        Raises:
            OtherVersionError: It might run, but the record has another fingerprint; nothing was granted.
            NoPlaceError: It might run, but a limit has no place for it. Its task waits for one; its next attempt
                counts, which is due when the task has a place.
            SnapshotUnreadableError: The start is granted, but the snapshot is gone or cannot be read.
        """
        ...

    async def hand_back(self, ref: TaskRef, handback: HandBack) -> HandedBack:
        """Hand a job back that has not started, if another live worker advertises the record's fingerprint.

        In one step its next attempt counts, which is due after the pause; and it is no worker's any more.
        """
        ...

    async def ahead(self, record: TaskRecord) -> int | None:
        """How many tasks are before one that waits for a place. None: it waits for none."""
        ...

    async def snapshot(self, ref: TaskRef) -> TaskContextSnapshot | None:
        """The creating request's context, to publish a task's job anew. None: unknown or expired.

        Raises:
            SnapshotUnreadableError: It is there, but cannot be read.
        """
        ...

    async def delete(self, ref: TaskRef) -> bool:
        """Forget a record whose job was not published.

        Returns:
            False: The job was published after all, and has begun, or another request with the same idempotency key has
                the task; the record stays.
        """
        ...

    async def count_failed_lookups(self, requestor: str, number: int, *, window_ms: int) -> FailedLookups:
        """Count look-ups of a requestor that found nothing, for all servers.

        Args:
            requestor: As in :class:`Caller`.
            number: How many more.
            window_ms: How long they are counted from the first.
        """
        ...

    async def retire(self, ref: TaskRef, at_ms: int) -> None:
        """Let a task go at ``at_ms`` (since the epoch), with its stored result, if that is before its time."""
        ...

    async def keep(self, ref: TaskRef, extension: Extension) -> None:
        """Let a task live longer, if it is open."""
        ...

    async def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """Store a job's result where :meth:`load` reads it, and move its task, in one step.

        Returns:
            False when the task is unknown, or the move is refused; then the result is not stored.
        """
        ...

    async def attend(self, ref: TaskRef) -> None:
        """Note that a task's owner is there, where the task is one that may be abandoned."""
        ...

    async def aclose(self) -> None:
        """Close the store's connections. A store belongs to one event loop, and the code that opened it closes it."""
        ...


class JobLedger(Protocol):
    """The store as Celery's signal handlers see it: blocking, usable from any process and thread."""

    def claim(self, ref: TaskRef, *, attempt: int, claim: Claim, retries: int = 0) -> bool:
        """Note which worker received the job.

        Returns:
            False when the task is not open for this attempt, or another delivery of it has begun with these retries.
        """
        ...

    def change(self, ref: TaskRef, change: Change) -> Changed | None:
        """As :meth:`TaskStore.change`."""
        ...

    def finish(self, ref: TaskRef, change: Change, result: EncodedResult) -> bool:
        """As :meth:`TaskStore.finish`."""
        ...

    def hand_back(self, ref: TaskRef, handback: HandBack) -> HandedBack:
        """As :meth:`TaskStore.hand_back`."""
        ...

    def is_kept(self, ref: TaskRef) -> bool:
        """Whether there is a task."""
        ...

    def mark(self) -> StoreMark | None:
        """The store's mark. None: no server has given it one."""
        ...

    def find(self, job_id: str) -> TaskRecord | None:
        """The record whose current job has this Celery id.

        Returns:
            None where there is none: not an id of a task, a task that is gone, or a job of an earlier leg.
        """
        ...


class TaskQueue(Protocol):
    """The broker."""

    def place_for(self, submission: Submission) -> AbstractAsyncContextManager[None]:
        """Hold a place in the queue that the request's job would go to, until it is published.

        Raises:
            QueueFullError: On entry: as many jobs wait there as may.
            QueueUnavailableError: On entry: the broker did not say so in time.
        """
        ...

    def message_of(
        self,
        record: TaskRecord,  # noqa: ARG002 - of a queue that makes none
        submission: Submission,  # noqa: ARG002 - likewise
    ) -> AbstractContextManager[QueueMessage | None]:
        """The message of a new record's job, where the store can put it into the queue together with the record.

        The context lasts while that is done. A ``MessageRefusedError`` in it says that it cannot be done; later calls
        give None for such jobs.

        Returns:
            Gives None where it cannot be done: then :meth:`publish` publishes the job, once the record is kept.
        """
        return nullcontext()

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        """Publish the record's job; returns when the broker has it.

        Raises:
            QueueUnavailableError: The broker did not take it in time.
        """
        ...

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        """Tell the workers to drop jobs, and with ``terminate`` to end them where they run. Best effort."""
        ...

    async def lane(self, kind: JobKind) -> Lane | None:
        """Where jobs of our own wait.

        Returns:
            None where no broker has them.

        Raises:
            QueueUnavailableError: The broker did not answer in time.
        """
        ...

    async def length(self, queue: str) -> int | None:
        """How many jobs wait in a queue, of all priorities; None where the broker cannot say.

        Raises:
            QueueUnavailableError: The broker did not answer in time.
        """
        ...


class TaskResults(Protocol):
    """Celery's result backend, where the store cannot read it in the same step."""

    async def read(self, job_id: str) -> StoredResult | None:
        """The job's stored result, None when there is none yet or it cannot be read."""
        ...


class JobResults(Protocol):
    """Celery's result backend, read for several jobs at once."""

    async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
        """The jobs' stored results by Celery id, None for those that have none yet and ``UNREADABLE`` for those that
        cannot be read. Those for which the backend did not answer are left out.
        """
        ...


class TaskHints(Protocol):
    """References of tasks that may have changed; a hint may be repeated, and several may be merged."""

    async def __anext__(self) -> TaskRef:
        """Wait for the next hint."""
        ...

    async def drop(self, ref: TaskRef) -> None:
        """Stop listening to one task."""
        ...


class TaskBus(Protocol):
    """Hints that tasks have changed."""

    def subscribe(self, refs: Sequence[TaskRef]) -> AbstractAsyncContextManager[TaskHints]:
        """Listen to tasks; on entry the subscription is in force, so that what is loaded afterwards misses nothing.

        Raises:
            StoreUnavailableError: On entry, when the bus does not answer in time.
        """
        ...

    async def aclose(self) -> None:
        """Close the bus's connection. A bus belongs to one event loop, and the code that opened it closes it."""
        ...


class RecoveryStore(Protocol):
    """Storage of recovery: workers and tasks. Its methods raise ``StoreUnavailableError``."""

    async def beat(
        self,
        worker: str,
        lease_ms: int,
        components: Mapping[str, str] | None = None,
        unread_ms: int = 0,
        slots: int = 0,
    ) -> None:
        """Say that a worker lives, and will for ``lease_ms`` if it says nothing more.

        Args:
            worker: Which one, as in its claims.
            lease_ms: How long this heartbeat holds.
            components: The components whose jobs it takes from now on, by fingerprint. Empty, or None: it takes none.
            unread_ms: For how long the worker may have messages that it has not read; 0: it has none.
            slots: How many jobs it can run at a time; 0: that is not known.
        """
        ...

    async def mark(self, new: StoreMark | None = None) -> StoreMark | None:
        """The store's mark, which distinguishes it from other stores.

        Args:
            new: Becomes the mark of a store that has none. None: such a store stays without.
        """
        ...

    async def sweep(self, reaper: str, policy: RecoveryPolicy, skipped: int = 0) -> Sweep | None:
        """The work of one sweep. None: another process is the reaper.

        Args:
            reaper: Who asks.
            policy: How soon a worker is dead, and a job published.
            skipped: How many unclaimed jobs are left out, the oldest first.
        """
        ...

    async def overdue(self) -> Sequence[str]:
        """Compound keys of the tasks whose next job should have been published by now, as :attr:`Sweep.due`."""
        ...

    async def is_due(self, key: str) -> bool:
        """Whether a task's next job is still to be published.

        Args:
            key: The task's compound key.
        """
        ...

    async def some_claimed(self) -> Sequence[PublishedJob]:
        """A sample of the jobs that live workers have."""
        ...

    async def lost(self, job: PublishedJob, policy: RecoveryPolicy) -> Verdict:
        """Decide on a task whose job the broker has lost, unless a worker has claimed the job meanwhile."""
        ...

    async def resign(self, reaper: str) -> None:
        """Let another process reap at once."""
        ...

    async def claimed(self, worker: str) -> Sequence[str]:
        """Compound keys of the tasks whose job a worker has."""
        ...

    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        """Decide on a task whose job a worker had. ``before_ms``: of a worker that was disconnected, leave later claims
        alone.
        """
        ...

    async def bury(self, worker: str, *, died: bool = False) -> bool:
        """Forget a worker.

        Args:
            worker: Which one.
            died: Whether it has not stopped, but counts as dead. One whose heartbeat holds is not forgotten then.

        Returns:
            False: It lives after all, or has claimed a job since its claims were read: the next sweep finds
                it dead.
        """
        ...

    async def forget_due(self, key: str) -> None:
        """A job that was due is published, or its task is gone."""
        ...

    async def drop_due(self, key: str, reason: str) -> None:
        """A job that is due cannot be published, because what is kept of its task cannot be read. It is logged."""
        ...

    async def attended_until_ms(self, key: str) -> int | None:
        """Until when (ms since the epoch, by the store's clock) a task is not abandoned. None: it never is."""
        ...

    async def forget_attended(self, key: str) -> None:
        """Forget when a task will be abandoned: it has ended, or is gone."""
        ...

    async def forget(self, expired: Sequence[Expiring]) -> None:
        """Forget that tasks were to expire, and the claims on them."""
        ...

    async def counts(self) -> StoreCounts:
        """Count the open tasks and the live workers, in time that does not grow with the number of tasks."""
        ...


class TaskResultsBin(Protocol):
    """Where stored results are thrown away."""

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Forget the stored results of jobs. Best effort."""
        ...


class OpenTasks(Protocol):
    """Which tasks of exposed jobs are open. Its methods raise ``StoreUnavailableError``."""

    async def due(self, interval_ms: int, limit: int) -> DueTasks:
        """The tasks that no server has read for an interval; they are the caller's for the next."""
        ...

    async def hurry(self, keys: Sequence[str]) -> None:
        """Let tasks, given by their compound keys, be due at once; what is no open one of exposed jobs is ignored."""
        ...


class QueuedJobs(Protocol):
    """Which jobs wait for a worker, where workers are other processes."""

    async def queued(self, limit: int) -> Queued:
        """The jobs that no worker has received, and what live workers take.

        Args:
            limit: How many jobs at most, the oldest first.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        ...


class WebhookOutbox(Protocol):
    """The webhooks that no receiver has taken yet. Its methods raise ``StoreUnavailableError``."""

    async def due(self, limit: int) -> Sequence[str]:
        """Ids of webhooks whose time has come. They are the caller's for ``webhooks.PUBLISHED_MS``, and twice as long
        each further time.
        """
        ...

    async def waiting(self) -> int:
        """How many webhooks no receiver has taken yet. At ``webhooks.MOST_WAITING`` the outbox drops further ones."""
        ...

    async def take(self, webhook_id: str, lease_ms: int) -> Webhook | None:
        """Take a webhook to deliver it.

        Args:
            webhook_id: Which one.
            lease_ms: For how long it is the caller's.

        Returns:
            None where there is none, or another process delivers it now.
        """
        ...

    async def postpone(self, webhook_id: str, after_ms: int, *, tried: bool) -> None:
        """Let a webhook be due again in a time.

        Args:
            webhook_id: Which one.
            after_ms: In what time.
            tried: Whether its receiver was asked, and did not take it.
        """
        ...

    async def settle(self, webhook_id: str) -> None:
        """Forget a webhook."""
        ...

    async def silence(self, receiver: str, for_ms: int) -> None:
        """Note that a receiver does not answer, so that others of its webhooks wait for so long.

        Args:
            receiver: A digest of its URL.
            for_ms: How long.
        """
        ...

    async def silent_ms(self, receiver: str) -> int:
        """For how much longer the webhooks of a receiver wait; 0 where they do not."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...
