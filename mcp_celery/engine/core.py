"""The engine: what a task is and may do, for every caller and every store.

Imports neither Celery nor Redis nor the MCP server. The order of creation is the promise of SEP-2663's durable create:
record, then message, then answer. Where the store can put the message into the queue, record and message are one step.
Else a message that fails takes its record back; a message that arrives although it was given up finds no record and
does not run.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from mcp_celery import audit
from mcp_celery.config import TaskConfig
from mcp_celery.engine.followup_jobs import Answers, Declared, as_itself, too_late_from
from mcp_celery.engine.foreign.states import ExposedTasks
from mcp_celery.engine.idempotency import EarlierTask
from mcp_celery.engine.ids import PAGE_SIZE, cursor_at, is_wire_task_id, new_task_id, position_of
from mcp_celery.engine.limits import TaskLimits
from mcp_celery.engine.lookup import Lookups
from mcp_celery.engine.outcome import refused
from mcp_celery.engine.pending import PendingRequests
from mcp_celery.engine.places import WAITING_FOR_PLACE
from mcp_celery.engine.ports import TaskBus, TaskQueue, TaskResults, TaskStore
from mcp_celery.engine.questions import Extension
from mcp_celery.engine.read_models import StoredTask, TaskPage, TaskView
from mcp_celery.engine.recent_polls import RecentPolls
from mcp_celery.engine.reconcile import Settling
from mcp_celery.engine.record import (
    RETIRED_MS,
    Caller,
    Change,
    JSONObject,
    TaskRecord,
    TaskRef,
    WebhookKind,
    now_ms,
)
from mcp_celery.engine.repeated_requests import RepeatedRequests
from mcp_celery.engine.result_seals import UNSEALED_RESULTS, ResultSeals
from mcp_celery.engine.rollback import Rollback
from mcp_celery.engine.status import OPEN
from mcp_celery.engine.streams import OpenStreams
from mcp_celery.engine.submission import QueueMessage, Submission
from mcp_celery.engine.subscription import TaskWatch
from mcp_celery.engine.transitions import UNOBSERVED, Observers, Transition
from mcp_celery.engine.turns import HeldBack
from mcp_celery.errors import (
    LimitExceededError,
    MessageRefusedError,
    ResultRefusedError,
    StoredDataError,
    TaskNotFoundError,
)
from mcp_celery.keys import Hidden
from mcp_celery.redaction import names_in

logger = logging.getLogger(__name__)


async def _as_it_is(record: TaskRecord) -> TaskRecord:
    return record


def _no_webhook(_: TaskConfig) -> None:
    """The default for tasks without webhooks."""


class TaskEngine:
    """Submit, get, list, respond, cancel, wait and watch.

    Args:
        store: Where records are kept.
        queue: Where jobs are published.
        bus: Announces changes.
        results: Celery's result backend, None where ``store.load`` reads it in the same step.
        limits: What the server grants.
        answer_version: The protocol version at which workers read answers to questions.
        declared: What is known of a component, to publish the next leg of its task.
        exposed: Plans and reads foreign jobs, None where the server exposes none.
        observers: They are notified of submitted tasks.
        seals: Opens the stored results of own jobs.
        noted: Gives a record as its owner sees it: with a message where its job waits for a worker.
            None: as it is stored.
        webhook_of: What webhooks report about the tasks of a component, by its configuration; None where it has none.

    Attributes:
        settling: What brings a record up to what is stored of its jobs.
        streams: Which streams callers hold open at this engine.
        pending: Which requests it works on.
    """

    def __init__(  # noqa: PLR0913 - its ports, and what they are set to
        self,
        *,
        store: TaskStore,
        queue: TaskQueue,
        bus: TaskBus,
        results: TaskResults | None,
        limits: TaskLimits,
        answer_version: str,
        declared: Declared = as_itself,
        exposed: ExposedTasks | None = None,
        observers: Observers = UNOBSERVED,
        seals: ResultSeals = UNSEALED_RESULTS,
        noted: Callable[[TaskRecord], Awaitable[TaskRecord]] | None = None,
        webhook_of: Callable[[TaskConfig], WebhookKind | None] = _no_webhook,
    ) -> None:
        self._noted = noted or _as_it_is
        self._webhook_of = webhook_of
        self._store = store
        self._queue = queue
        self._bus = bus
        self._limits = limits
        self._lookups = Lookups(store, limits, declared)
        self.streams = OpenStreams(limits)
        self.pending = PendingRequests(limits)
        self._polls = RecentPolls(limits.min_poll_interval_ms)
        self._exposed = exposed or ExposedTasks.none()
        self._observers = observers
        self.settling = Settling(
            store, results, exposed=self._exposed, interval_ms=limits.settle_interval_ms, seals=seals
        )
        self._rollback = Rollback(store, queue)
        self._repeats = RepeatedRequests(store, queue)
        self._answers = Answers(store, queue, declared, version=answer_version, max_input_bytes=limits.max_input_bytes)

    async def submit(self, submission: Submission) -> TaskRecord:
        """Create a task and publish its job.

        A submission that names its task makes one task, however often it comes. So it is never taken back: others may
        have had the task as their answer. Where the broker did not take its job, recovery publishes it.

        One with an idempotency key makes one task for as long as that exists. Requests that race with the one that
        creates it wait until its job is published, or until the task is taken back.

        Returns:
            The record, durable; its job is published, or waits for its caller's turn. Of a submission that names its
            task or has an idempotency key, and came before: the record that there is.

        Raises:
            ArgumentsTooLargeError: Nothing was created.
            LimitExceededError: Nothing was created: the caller has as many open tasks, or stored bytes, as it may, too
                many jobs wait, or the store is nearly full.
            StoreUnavailableError: Nothing was created; what the store has carried out without an answer is taken back,
                unless a worker has begun the job or the submission names its task.
            QueueUnavailableError: Nothing was created; the record is taken back, unless the submission names its task.
            InvalidRequestError: An exposed job's work cannot be made of these arguments; nothing was created.
            IdempotencyKeyReusedError: Its idempotency key is that of an earlier request which said something else.
        """
        self._limits.require_fit(submission.snapshot)
        if submission.task_id is not None:
            found = await self._store.load(TaskRef(submission.caller.scope, submission.task_id))
            if found is not None:
                return found.record
        submission = await self._exposed.planned(submission)
        while True:
            record = self._new_record(submission)
            try:
                created = await self._create(record, submission)
            except MessageRefusedError:
                continue  # from now on the queue publishes such jobs itself
            if isinstance(created, HeldBack):
                record = replace(record, status_message=WAITING_FOR_PLACE % created.ahead)
                break
            if created is None:
                break
            if (found := await self._repeats.answer(record, submission, created)) is not None:
                return found
        if record.work.is_foreign:
            self._exposed.began(record.key)
        self._observers.notify(Transition.of_record(record, "submitted", before=None, at_ms=record.created_at_ms))
        return record

    def _new_record(self, submission: Submission) -> TaskRecord:
        created = now_ms()
        return TaskRecord(
            task_id=submission.task_id or new_task_id(),
            scope=submission.caller.scope,
            issuer=submission.caller.issuer,
            session=submission.caller.owner.session,
            job_name=submission.job_name,
            task_type=submission.task_type,
            component=submission.component,
            created_at_ms=created,
            updated_at_ms=created,
            ttl_ms=self._limits.granted_ttl_ms(submission.ttl_ms, submission.config),
            max_ttl_ms=self._limits.max_ttl_ms,
            poll_interval_ms=submission.config.poll_interval_ms or self._limits.poll_interval_ms,
            idempotent=submission.config.acks_late,
            listed=submission.listed,
            hidden=self._hidden(submission),
            start_before_ms=too_late_from(created, submission.expires),
            work=submission.work,
            declared_as=submission.declared_as,
            fingerprint=submission.fingerprint if submission.plan is None else None,
            options=submission.config.message_options() if submission.plan is None else {},
            traceparent=submission.snapshot.traceparent,
            webhook=self._webhook_of(submission.config),
            abandon_after_ms=self._limits.abandon_after_of(submission.config),
        )

    async def _create(self, record: TaskRecord, submission: Submission) -> EarlierTask | HeldBack | None:
        """Keep a new task and publish its job, unless the task waits for its caller's turn.

        Returns:
            None; or that it waits; or, where an earlier request had the same idempotency key, the task that this one
            has made.
        """
        once = submission.idempotency
        message: QueueMessage | None = None
        try:
            with self._queue.message_of(record, submission) as message:
                created = await (
                    self._create_in_turn(record, submission)
                    if message is None
                    else self._store.create(record, submission.snapshot, self._limits.quota(submission), once, message)
                )
            if created is not None or message is not None:
                return created
        except MessageRefusedError:
            raise
        except LimitExceededError as error:
            # A limit that the store does not know of was reached before it was asked.
            if once is not None and (earlier := await self._store.earlier(record, once)) is not None:
                return earlier
            audit.limited(record.scope, error.limit)
            raise
        except BaseException as error:
            # Also when the client hangs up half-way. A creation that seemed to fail may have reached the store.
            if submission.task_id is not None:
                raise
            if not await self._rollback.undo(record, error, has_message=message is not None):
                raise
        if once is not None:
            await self._repeats.note_published(record)
        return None

    async def _create_in_turn(self, record: TaskRecord, submission: Submission) -> EarlierTask | HeldBack | None:
        """Keep a new task, then publish its job. Returns what :meth:`_create` does."""
        once = submission.idempotency
        async with self._queue.place_for(submission):
            created = await self._store.create(record, submission.snapshot, self._limits.quota(submission), once)
            if created is None:
                await self._queue.publish(record, submission)
            return created

    async def aclose(self, *, patience_seconds: float) -> None:
        """End what it does in the background; its store, queue and bus are still open.

        Args:
            patience_seconds: How long that may take.
        """
        await self._rollback.aclose(patience_seconds=patience_seconds)

    def _hidden(self, submission: Submission) -> Hidden:
        """The parts of the task's key that its Celery ids hide."""
        is_id = self._limits.hide_anonymous_ids and submission.caller.scope is None
        is_uri = submission.task_type == "resource" and not names_in(
            submission.declared_as or submission.component
        ).issubset(submission.config.show_arguments)
        return (Hidden.TASK_ID if is_id else Hidden.NOTHING) | (Hidden.COMPONENT if is_uri else Hidden.NOTHING)

    async def _revoke(self, record: TaskRecord) -> None:
        await self._queue.revoke(*record.job_ids, terminate=record.work.may_terminate)

    async def get(self, caller: Caller, task_id: str, *, read_result: bool = True) -> TaskView:
        """A caller's own task, with the result when it completed.

        Args:
            caller: Who asks.
            task_id: The task.
            read_result: False: the result may stay the text that it was stored as, which is not looked at.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            TooManyLookupsError: The caller has asked for too many of those.
            ResultUnavailableError: Completed, but the result backend does not give the result.
            StoreUnavailableError: The store did not answer.
        """
        view = await self.view(await self._lookups.load(caller, task_id), read_result=read_result)
        audit.retrieved(caller.scope, task_id, view.record.status, is_open=view.record.is_open)
        return view

    async def find(self, caller: Caller, task_id: str) -> TaskRecord:
        """A caller's own task without its result.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            TooManyLookupsError: The caller has asked for too many of those.
            StoreUnavailableError: The store did not answer.
        """
        return (await self._lookups.load(caller, task_id)).record

    async def status(self, caller: Caller, task_id: str) -> TaskRecord:
        """A caller's own task as it stands, whether or not its result can be read.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            TooManyLookupsError: The caller has asked for too many of those.
            StoreUnavailableError: The store did not answer.
        """
        record = await self._shown((await self.settling.settled(await self._lookups.load(caller, task_id))).record)
        audit.retrieved(caller.scope, task_id, record.status, is_open=record.is_open)
        return record

    async def poll(
        self, caller: Caller, task_id: str, version: str, read: Callable[[], Awaitable[JSONObject]]
    ) -> JSONObject:
        """A caller's own task in wire form; of an open one the last answer, where that is recent.

        Args:
            caller: Who asks.
            task_id: The task.
            version: Of the protocol, in whose form the answer is.
            read: Reads the task. Its answer has the ``status``.

        Raises:
            TooManyLookupsError: The caller has asked for too many tasks that are not there.
            ServerBusyError: The task has to be read, and too many requests are worked on.
            McpCeleryError: As ``read`` raises.
        """
        self._lookups.admit(caller)
        if (recent := self._polls.find(caller, task_id, version)) is not None:
            return recent
        generation = self._polls.generation(caller, task_id)
        with self.pending.place_for(caller):
            answer = await read()
        if answer.get("status") in OPEN:
            self._polls.note(caller, task_id, version, answer, generation)
        return answer

    async def list(self, caller: Caller, cursor: str | None = None) -> TaskPage:
        """A caller's own tasks, the newest first: those of its scope; of an anonymous caller, those of its session.

        Args:
            caller: Who asks.
            cursor: ``TaskPage.cursor`` of the part before; None: from the newest.

        Raises:
            InvalidCursorError: ``tasks/list`` never gave this cursor.
            StoreUnavailableError: The store did not answer.
        """
        before = None if cursor is None else position_of(cursor)
        found = await self._store.page(caller.owner, before=before, limit=PAGE_SIZE + 1)
        shown = found[:PAGE_SIZE]
        more = len(found) > PAGE_SIZE
        records: list[TaskRecord] = []
        for stored in shown:
            if not await self._lookups.has_scopes(caller, stored.record):
                continue
            await self._lookups.attendance.note(stored.record)
            try:
                records.append(await self._shown((await self.settling.settled(stored)).record))
            except TaskNotFoundError:
                continue  # it expired while its part was read
            except StoredDataError as error:
                logger.error("left task %s out of a list: %s", stored.record.shown_id, error.reason)
        return TaskPage(records, cursor_at(shown[-1].record.position) if more else None)

    async def view(self, stored: StoredTask, *, read_result: bool = True) -> TaskView:
        """A stored task as its owner may see it, reconciled if Celery's stored result is ahead of the record.

        A completed task whose stored result is refused is seen as failed, with that reason.

        Args:
            stored: The task.
            read_result: As for :meth:`get`.

        Raises:
            ResultUnavailableError: Completed, but the result backend does not give the result.
        """
        stored = await self.settling.settled(stored)
        if stored.record.status != "completed":
            return await self._without_result(stored)
        try:
            outcome = await self.settling.outcome(stored)
        except ResultRefusedError:
            return TaskView(refused(stored.record))
        if read_result:
            _ = outcome.result  # here a damaged one is an error of this task
        return TaskView(stored.record, outcome)

    async def status_view(self, stored: StoredTask) -> TaskView:
        """As :meth:`view`, without the result."""
        return await self._without_result(await self.settling.settled(stored))

    async def _without_result(self, stored: StoredTask) -> TaskView:
        record = await self._shown(stored.record)
        return TaskView(record, input_requests={one.key: one.request for one in stored.questions})

    async def _shown(self, record: TaskRecord) -> TaskRecord:
        """A record as its owner sees it: with what it waits for, where that is not in the record, or changes there."""
        if record.waits_in is None:
            return await self._noted(record)
        ahead = await self._store.ahead(record)
        return record if ahead is None else replace(record, status_message=WAITING_FOR_PLACE % ahead)

    async def respond(self, caller: Caller, task_id: str, responses: Mapping[str, object]) -> TaskRecord:
        """Answer questions of a caller's own task.

        Keys that no open question has (unknown, answered, withdrawn) are ignored, so the same answers may come again.
        An answer that was taken is not lost: a leg that cannot be published now is published later.

        Args:
            caller: Who answers.
            task_id: The task.
            responses: By the questions' keys: results of the requests in wire form, or :class:`RpcError` where the
                client answered with one.

        Returns:
            The record as it is now.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            TooManyLookupsError: The caller has asked for too many of those.
            InvalidAnswerError: An answer does not fit its question; none was taken.
            AnswersTooLargeError: All of them together are too large; none was taken.
            StoreUnavailableError: The store did not answer.
        """
        record = await self._answers.take(await self._lookups.load(caller, task_id), responses)
        self._polls.forget(caller, task_id)
        return record

    async def cancel(self, caller: Caller, task_id: str) -> TaskRecord:
        """Cancel a caller's own task: the record first, which no later success can undo, then the job.

        Returns:
            The record as it is now: ``cancelled``, or the terminal status that it already had.

        Raises:
            TaskNotFoundError: Unknown, expired, or another caller's.
            TooManyLookupsError: The caller has asked for too many of those.
            StoreUnavailableError: The store did not answer; nothing was cancelled.
        """
        record = await self.find(caller, task_id)
        if record.is_terminal:
            return record
        changed = await self._store.change(record.ref, Change(to="cancelled", status_message="Cancelled by the client"))
        self._polls.forget(caller, task_id)
        if changed is None:
            raise TaskNotFoundError
        if changed.record.status == "cancelled":
            # Also where it was cancelled a moment ago: by a try whose answer was lost, and with it the revoke.
            await self._revoke(changed.record)
        return changed.record

    async def retire(self, caller: Caller, task_id: str, *, after_ms: int = RETIRED_MS) -> None:
        """Let a caller's own task expire soon instead of at its time: no caller may ask for it again."""
        await self._store.retire(TaskRef(caller.scope, task_id), now_ms() + after_ms)

    async def keep(self, caller: Caller, task_id: str, *, ttl_ms: int | None, config: TaskConfig) -> None:
        """Let a caller's own open task live for as long as if it were created now, within the longest time to live."""
        until_ms = now_ms() + self._limits.granted_ttl_ms(ttl_ms, config)
        await self._store.keep(TaskRef(caller.scope, task_id), Extension(until_ms, self._limits.max_ttl_ms))

    def watch(self, caller: Caller, task_ids: Sequence[str], *, results: bool = True) -> TaskWatch:
        """Follow a caller's own tasks: the current state of each, then every change, until they have ended.

        Args:
            caller: Who asks.
            task_ids: Ids of any origin; those that are not the caller's are left out of ``TaskWatch.accepted``.
            results: Whether a completed task comes with its result.
        """
        asked = dict.fromkeys(task_ids)
        refs = [TaskRef(caller.scope, task_id) for task_id in asked if is_wire_task_id(task_id)]
        if malformed := len(asked) - len(refs):
            audit.refused(caller.scope, None, "malformed", malformed)
        view = self.view if results else self.status_view
        return TaskWatch(caller, refs, store=self._store, lookups=self._lookups, bus=self._bus, view=view)

    async def wait(self, caller: Caller, task_id: str, seen: Callable[[TaskView], None] | None = None) -> TaskView:
        """Wait until a caller's own task has ended.

        Args:
            caller: Who asks.
            task_id: The task.
            seen: Called with each state on the way.

        Returns:
            Its terminal view.

        Raises:
            TaskNotFoundError: Unknown, another caller's, or expired while waiting.
            TooManyLookupsError: The caller has asked for too many of those.
            ResultUnavailableError: Completed, but the result backend does not give the result.
            StoreUnavailableError: The store did not answer.
        """
        async with self.watch(caller, [task_id]) as watch:
            if not watch.accepted:
                raise TaskNotFoundError
            async for view in watch:
                if view.record.is_terminal:
                    return view
                if seen is not None:
                    seen(view)
        return await self.get(caller, task_id)
