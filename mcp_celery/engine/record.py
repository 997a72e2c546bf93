"""The record of a task, the changes to it, and the part that its caller may see."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mcp_celery.common.rates import Rate
from mcp_celery.engine.ids import new_call
from mcp_celery.engine.status import OPEN, TERMINAL, TaskStatus
from mcp_celery.engine.work import OWN_WORK, Work
from mcp_celery.errors import LimitExceededError, TooManyBytesError, TooManyCreationsError, TooManyTasksError
from mcp_celery.keys import Hidden, TaskType, build_task_key, celery_job_id, parse_task_key
from mcp_celery.logs import shown_task_id

JSONObject = dict[str, Any]
PlaceKind = Literal["caller", "scope", "component", "turn"]
"""What a limit on running jobs counts: the jobs of a component for one caller, all jobs of one caller, or the jobs of a
component. ``turn``: the jobs that the broker has, where callers take turns.
"""
WebhookKind = Literal["state", "contents"]
"""What a task's webhooks contain: its ``state`` alone, or the ``contents`` of its status message too."""

RETIRED_MS: Final = 60_000
"""Grace period before an unneeded task is deleted, so that late signals and operators can still find it."""


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request.

    Attributes:
        scope: The scope of its tasks, None for an anonymous caller.
        issuer: Issuer of its token, None where the token names none.
        session: The session it asks in, None where there is none.
        requestor: The caller as the limits count it; None: limits do not apply.
        is_shared: Whether others may be the same requestor, as behind one address.
        token_scopes: OAuth scopes of its token; None for the server and its jobs, which need no scopes.
    """

    scope: str | None = None
    issuer: str | None = None
    session: str | None = None
    requestor: str | None = None
    is_shared: bool = False
    token_scopes: frozenset[str] | None = field(default=None, compare=False)

    @property
    def owner(self) -> Caller:
        """Whose list of tasks it may see: those of its scope; an anonymous caller's, those of its session.

        The session is a digest here, so that readers of keys and records cannot impersonate it.
        """
        if self.scope is not None or self.session is None:
            return Caller(self.scope, self.issuer)
        return Caller(None, self.issuer, hashlib.sha256(self.session.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Counter:
    """A limit on open tasks that count together. A store refuses a task of which one counter is full.

    Attributes:
        kind: What is limited; a part of the counter's name in the store.
        whose: Which tasks count together, for example those of a requestor.
        most: How many of them may be open.
        error: Makes the error of the refusal from ``most``.
    """

    kind: str
    whose: str
    most: int
    error: Callable[[int], LimitExceededError] = TooManyTasksError

    def refusal(self) -> LimitExceededError:
        """The error for a task of which this counter is full."""
        return self.error(self.most)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit on how often tasks are created that count together. A store refuses a task too many.

    Attributes:
        whose: Which tasks count together, for example those of a requestor.
        rate: How many of them may be created in any window.
    """

    whose: str
    rate: Rate

    def refusal(self, retry_after_ms: int) -> LimitExceededError:
        """The error for a task too many.

        Args:
            retry_after_ms: In how many ms the next one may be created.
        """
        number, window_ms = self.rate.number, self.rate.window_ms
        return TooManyCreationsError(number, window_ms=window_ms, retry_after_ms=retry_after_ms)


@dataclass(frozen=True, slots=True)
class PlaceLimit:
    """A limit on jobs that run at a time and count together. A job too many waits for a place.

    Attributes:
        kind: What is limited; a part of the limit's name in the store.
        whose: Which jobs count together, for example those of a component.
        most: How many of them may run.
    """

    kind: PlaceKind
    whose: str
    most: int

    @property
    def name(self) -> str:
        """Tells it from all other limits."""
        return f"{self.kind}:{self.whose}"


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a requestor may have.

    Attributes:
        requestor: Whose bytes count, as in :class:`Caller`.
        counters: The counters that the new task occupies while it is open.
        bytes: How many bytes of requests, records and results, None for any number.
        rates: How often such tasks may be created.
        places: How many of their jobs may run at a time, in the order in which a task takes its places.
        line: In whose line the task waits, where callers take turns; None: its job is published at once.
    """

    requestor: str
    counters: tuple[Counter, ...] = ()
    bytes: int | None = None
    rates: tuple[RateLimit, ...] = ()
    places: tuple[PlaceLimit, ...] = ()
    line: str | None = None

    def too_many_bytes(self, first_expires_ms: int) -> LimitExceededError:
        """The error for too many bytes.

        Args:
            first_expires_ms: In how many ms the first of the requestor's tasks expires.
        """
        return TooManyBytesError(self.bytes or 0, retry_after_ms=first_expires_ms)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Where a task is kept."""

    scope: str | None
    task_id: str

    @classmethod
    def of_key(cls, key: str) -> TaskRef:
        """Where the task of a compound key is kept.

        Raises:
            ValueError: The key is malformed.
        """
        parts = parse_task_key(key)
        return cls(parts.task_scope, parts.client_task_id)

    @property
    def shown_id(self) -> str:
        """The task's id as a log line shows it."""
        return shown_task_id(self.scope, self.task_id)


@dataclass(frozen=True, slots=True)
class RpcError:
    """A JSON-RPC error object."""

    code: int
    message: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job says it is, as in ``ctx.report_progress``."""

    value: float
    total: float | None = None

    @property
    def count(self) -> str:
        """For people: ``3/10``."""
        return f"{self.value:g}" if self.total is None else f"{self.value:g}/{self.total:g}"

    def told_with(self, message: str | None) -> str:
        """The task's message that shows the progress; :meth:`said_in` reads it back."""
        return f"{message} ({self.count})" if message else self.count

    def said_in(self, told: str | None) -> str | None:
        """The component's own message with its progress; None without one."""
        return None if told is None or told == self.count else told.removesuffix(f" ({self.count})")


@dataclass(frozen=True, slots=True)
class Claim:
    """Which worker holds the job.

    Attributes:
        worker: Which one: Celery's node name, ``/``, and a mark of its process, since a restarted worker has its
            predecessor's name.
        at_ms: When it took the job.
    """

    worker: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A job's body that is about to begin.

    Attributes:
        attempt: Which attempt of the task the delivered job is of.
        retries: Celery's count of its retries.
        at_ms: When it begins.
        delivery: Distinguishes this delivery from every other, so that it may ask again when the answer was lost; ''
            where each call is another's.
        worker: Who begins it, as in its claim; '' for a process whose death does not concern the task.
        key: The compound key in the job's message, which may be forged; '' where there is no message.
        fingerprint: Of the component that would run, '' where there is none; None: whatever the record's is.
    """

    attempt: int
    retries: int
    at_ms: int
    delivery: str = ""
    worker: str = ""
    key: str = ""
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """The task as the store keeps it. The truth: pub/sub messages are hints to read it again.

    Attributes:
        task_id: The id that the client holds.
        scope: Who may reach the task, None for an anonymous caller.
        issuer: Issuer of the creating token; every access compares it.
        session: Digest of the session whose list shows the task; None for a task that has a scope, and where there is
            none.
        job_name: Celery name of the task's jobs, None for the component's own.
        task_type: ``tool``, ``prompt`` or ``resource``.
        component: The tool's or prompt's name, or the resource's URI.
        created_at_ms: Never changes.
        updated_at_ms: Changes with the state or its message only, never by reading.
        ttl_ms: The granted time to live, counted from creation.
        max_ttl_ms: The most that it may grow to. Stores keep it with encryption keys alone; it is not read back.
        poll_interval_ms: How often a client without push should ask.
        status: See :mod:`mcp_celery.engine.status`.
        status_message: For people; None when there is nothing to say.
        is_error: For a completed tool: whether its result says ``isError``.
        error: For a failed task.
        progress: The last progress the job reported.
        attempt: Which publication of the job counts, from 1, counted on through the legs. Jobs of any other attempt do
            not run.
        retries: How often the component had this attempt tried again (Celery's count).
        retry_at_ms: When the retry that the component had made is to begin, None for at once.
        redeliveries: How often the job was published again because its worker died or the broker lost it.
        idempotent: Whether a body that has begun may begin again when its worker dies.
        listed: Whether its owner's list shows the task.
        leg: Which job of the task, from 1.
        hidden: What its Celery ids do not show of its key.
        claim: The worker that received the job, None while it is queued.
        started_at_ms: When the body of this attempt began, None before.
        start_before_ms: When a body that has not begun is too late, None for never.
        work: Who runs the jobs, and how many there are.
        revision: Counts the changes, so that readers recognize repetition.
        declared_as: The URI template of a resource, None where the component is declared under its own name.
        fingerprint: Of the component that the request was checked against; a worker with another one does not start the
            job. None: any worker may.
        options: What the component declares for the messages of its jobs (``TaskConfig.message_options``), so that a
            process which has another version of it, or none, can republish them.
        traceparent: The creating request's place in a distributed trace (W3C Trace Context), None where it has none.
        webhook: What its webhooks contain; None: it has none.
        abandon_after_ms: After what time without its owner it is cancelled; None for never.
        waits_in: Which limit on running jobs it waits for a place of, as the store names it; None: it waits for none.
    """

    task_id: str
    scope: str | None
    issuer: str | None
    task_type: TaskType
    component: str
    created_at_ms: int
    updated_at_ms: int
    ttl_ms: int
    poll_interval_ms: int
    status: TaskStatus = "working"
    status_message: str | None = None
    is_error: bool = False
    error: RpcError | None = None
    progress: Progress | None = None
    attempt: int = 1
    retries: int = 0
    retry_at_ms: int | None = None
    redeliveries: int = 0
    idempotent: bool = False
    listed: bool = True
    leg: int = 1
    claim: Claim | None = None
    started_at_ms: int | None = None
    start_before_ms: int | None = None
    session: str | None = None
    job_name: str | None = None
    hidden: Hidden = Hidden.NOTHING
    work: Work = OWN_WORK
    revision: int = 1
    declared_as: str | None = None
    fingerprint: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    traceparent: str | None = None
    webhook: WebhookKind | None = None
    abandon_after_ms: int | None = None
    waits_in: str | None = None
    max_ttl_ms: int | None = field(default=None, compare=False)

    @property
    def ref(self) -> TaskRef:
        """Where the record is kept."""
        return TaskRef(self.scope, self.task_id)

    @property
    def shown_id(self) -> str:
        """The task's id as a log line shows it."""
        return self.ref.shown_id

    @property
    def owner(self) -> Caller:
        """Whose list shows the task."""
        return Caller(self.scope, self.issuer, self.session)

    @property
    def position(self) -> str:
        """Where the task stands in its owner's list: by creation, then by id; as text it sorts the same."""
        return f"{self.created_at_ms:015d}:{self.task_id}"

    @property
    def key(self) -> str:
        """The compound key."""
        return build_task_key(self.scope, self.task_id, self.task_type, self.component)

    @property
    def job_id(self) -> str:
        """The Celery id of the current leg."""
        return celery_job_id(self.key, self.leg, hidden=self.hidden)

    @property
    def job_ids(self) -> list[str]:
        """The Celery ids of the jobs that the task has now."""
        return self.work.job_ids(self.key, self.leg, self.hidden)

    @property
    def expires_at_ms(self) -> int:
        """When the record is forgotten."""
        return self.created_at_ms + self.ttl_ms

    def is_too_late(self, now: int) -> bool:
        """Whether the job should have begun before ``now`` (ms), and has not."""
        return self.start_before_ms is not None and self.started_at_ms is None and now > self.start_before_ms

    @property
    def is_open(self) -> bool:
        """Whether something may still happen to the task."""
        return self.status in OPEN

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A move of a task, applied only if the status table and the attempt allow it.

    Attributes:
        to: The new status; the same as before for a new message.
        attempt: Apply only to this attempt of the task, None for any.
        unless_begun: Apply only while no body of the attempt has begun with that many retries, or more.
        delivery: As :attr:`Start.delivery`. A body that was let begin for this one does not count as begun: its start
            was given up, because the answer did not arrive.
        status_message: The new message, None to keep the old one, '' for none any more.
        is_error: See :class:`TaskRecord`.
        error: See :class:`TaskRecord`.
        progress: The job's progress, None to keep the old one.
        retries: The retry that comes, None to keep the count.
        retry_at_ms: When it is to begin.
        started_at_ms: When the job began, where its own start did not record it.
        at_ms: When it happened.
        call: Its name. A store to which the same change is given again, because its answer was lost, knows it by that.
    """

    to: TaskStatus
    attempt: int | None = None
    unless_begun: int | None = None
    delivery: str = ""
    status_message: str | None = None
    is_error: bool = False
    error: RpcError | None = None
    progress: Progress | None = None
    retries: int | None = None
    retry_at_ms: int | None = None
    started_at_ms: int | None = None
    at_ms: int = field(default_factory=now_ms)
    call: str = field(default_factory=new_call, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Changed:
    """A store's reply to a change.

    Attributes:
        accepted: Whether it was applied.
        record: The record after it.
    """

    accepted: bool
    record: TaskRecord


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A job's entry in Celery's result backend.

    Attributes:
        state: Celery's state, for example ``SUCCESS``.
        value: The job's return value, or the description of its exception.
    """

    state: str
    value: Any


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """A job's result as Celery's result backend would store it.

    Attributes:
        key: Where.
        payload: What.
    """

    key: str
    payload: str | bytes


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the caller.

    Attributes:
        key: Unique for the life of the task.
        method: ``elicitation/create``, ``sampling/createMessage`` or ``roots/list``.
        params: Parameters of the request, in wire form.
    """

    key: str
    method: str
    params: JSONObject

    @property
    def request(self) -> JSONObject:
        """The request as it is shown to the caller."""
        return {"method": self.method, "params": self.params} if self.params else {"method": self.method}
