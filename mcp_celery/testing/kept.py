"""The tasks of one server in memory, with what finds them, and what forgets them when their time is over."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from mcp_celery.common.rates import LONGEST_MS
from mcp_celery.engine import (
    RECORD_BYTES,
    Caller,
    Change,
    Claim,
    EarlierTask,
    Extension,
    ForeignWork,
    Idempotency,
    PlaceLimit,
    Publication,
    Question,
    Quota,
    TaskRecord,
    TaskRef,
)
from mcp_celery.engine.recovery.model import PUBLISHING_MS, Expiring
from mcp_celery.errors import StoreFullError

MOST_CALLS: Final = 4
"""So many of the last calls that changed a task are known again."""
MOST_EXPIRED: Final = 10_000
"""The most tasks to remember that have expired and that no reaper has taken up. More: the oldest are forgotten."""
MOST_RATES: Final = 10_000
"""For so many rates creations are counted, before those are forgotten that no window has."""
RETRY_AFTER_MS: Final = 1_000
"""When a request may be repeated for which there was no memory."""


@dataclass(slots=True)
class Kept:
    """A task in memory."""

    record: TaskRecord
    snapshot: bytes
    quota: Quota | None = None
    """The counters that the task occupies, and whose bytes it counts for."""
    started_retries: int = -1
    started_by: str = ""
    claim_retries: int = 0
    claimed_by: str | None = None
    """The worker whose claims the task is among."""
    handbacks: int = 0
    handback_pauses_ms: int = 0
    questions: dict[str, Question] = field(default_factory=dict[str, Question])
    answers: dict[str, str] = field(default_factory=dict[str, str])
    request_state: str | None = None
    is_parked: bool = False
    result: str | bytes | None = None
    """The payload of the job's result, where the store keeps it itself."""
    calls: dict[str, int] = field(default_factory=dict[str, int])
    """The last calls that changed it, by name, and their answers."""
    once: str | None = None
    """The name of the idempotency key that leads to it."""
    counted: tuple[int, bool] = (0, False)
    """The bytes that are counted of it, and whether it is counted as open."""

    @property
    def limits(self) -> tuple[PlaceLimit, ...]:
        """How many jobs like its own may run at a time."""
        return () if self.quota is None else self.quota.places

    @property
    def line(self) -> str | None:
        """The line in which it waits for its caller's turn; None: callers take no turns."""
        return None if self.quota is None else self.quota.line

    @property
    def size(self) -> int:
        """The bytes that limits count."""
        return RECORD_BYTES + len(self.snapshot) + len(self.result or b"")

    @property
    def awaits_claim(self) -> bool:
        """Whether the broker has a message of the job that no worker has received, or should have it."""
        record = self.record
        is_claimed = record.claim is not None and self.claim_retries >= record.retries
        return record.status == "working" and not is_claimed and not self.has_started(record.retries)

    def count_change(self, at_ms: int) -> None:
        """Count a change at that time. Each is later than the one before, whatever the clocks say."""
        record = self.record
        at_ms = max(at_ms, record.updated_at_ms + 1)
        self.record = replace(record, updated_at_ms=at_ms, revision=record.revision + 1)

    def note_answer(self, call: str, answer: int = 1) -> None:
        """Keep what a call is answered that changed the task, for when it is made again."""
        self.calls[call] = answer
        if len(self.calls) > MOST_CALLS:
            del self.calls[next(iter(self.calls))]

    def settle_questions(self) -> None:
        """Bring the questions in line with the status: while some are open the task stays ``input_required``."""
        if self.record.is_terminal:
            self.questions.clear()
            self.answers.clear()
        elif self.questions:
            self.record = replace(self.record, status="input_required")

    def reset_attempt(self) -> None:
        """Forget what is known of the attempt that counted: another one does."""
        self.started_retries, self.started_by = -1, ""
        self.handbacks, self.handback_pauses_ms = 0, 0

    def may_start(self, attempt: int) -> bool:
        """Whether a job of that attempt may begin; questions that its body awaited and left behind do not hinder it."""
        left_behind = bool(self.questions) and not self.is_parked
        return self.record.attempt == attempt and (self.record.status == "working" or left_behind)

    def has_started(self, retries: int) -> bool:
        """Whether a body has started with that many retries, or more."""
        return self.started_retries >= retries

    def extend(self, extension: Extension) -> None:
        """Live longer."""
        ttl_ms = min(extension.until_ms - self.record.created_at_ms, extension.max_ttl_ms)
        self.record = replace(self.record, ttl_ms=max(self.record.ttl_ms, ttl_ms))

    def apply(self, change: Change) -> None:
        """Make a change, which the caller has found allowed."""
        record = self.record
        # None keeps the old message, an empty text takes it away.
        message = record.status_message if change.status_message is None else change.status_message or None
        self.record = replace(
            record,
            status=change.to,
            status_message=message,
            is_error=change.is_error or record.is_error,
            error=change.error or record.error,
            progress=change.progress or record.progress,
            retries=record.retries if change.retries is None else change.retries,
            retry_at_ms=change.retry_at_ms or record.retry_at_ms,
            started_at_ms=change.started_at_ms or record.started_at_ms,
        )
        if self.record.is_terminal:
            self.snapshot = b""

    def counts(self, attempt: int) -> bool:
        """Whether a job of that attempt may still report."""
        return self.record.is_open and self.record.attempt == attempt

    def expiring(self, now_ms: int) -> Expiring:
        """What the reaper must know when the task expires."""
        record = self.record
        return Expiring(
            record.key,
            record.expires_at_ms - now_ms,
            leg=record.leg,
            status=record.status,
            worker=None if record.claim is None else record.claim.worker,
            work=record.work,
            hidden=record.hidden,
            attempt=record.attempt,
            declared_as=record.declared_as,
        )


@dataclass(slots=True)
class _Once:
    """The task of an idempotency key.

    Attributes:
        ref: The task.
        request: Digest of what its request said.
        publisher: The task id that the request has, or would have, which publishes the first job.
        publishing_ms: Since when it does; None once the broker has the job.
    """

    ref: TaskRef
    request: str
    publisher: str
    publishing_ms: int | None


@dataclass(slots=True)
class _Requested:
    """What is counted of one requestor's tasks."""

    tasks: dict[TaskRef, None] = field(default_factory=dict[TaskRef, None])
    bytes: int = 0


class KeptTasks:
    """The tasks of one namespace. Not safe for threads: its owner holds a lock.

    Args:
        max_bytes: How much all tasks may take together, None for any number.
        on_end: Called with each task that has ended, or is forgotten; perhaps more than once.

    Attributes:
        claims: The compound keys of the tasks whose job a worker has, by worker.
        due: Tasks whose next job is still to be published, by since when (ms since the epoch).
        unclaimed: Tasks whose job is with the broker and with no worker, likewise.
        looks: Open tasks of exposed jobs, by when to look at their results.
        attended: Tasks that their owners may abandon, by when they will have.
        expired: What is known of tasks that have expired, with the time, by compound key.
    """

    def __init__(self, max_bytes: int | None, on_end: Callable[[Kept], None]) -> None:
        self._on_end = on_end
        self.claims: dict[str, dict[str, None]] = {}
        self.due: dict[TaskRef, int] = {}
        self.unclaimed: dict[TaskRef, int] = {}
        self.looks: dict[TaskRef, int] = {}
        self.attended: dict[TaskRef, int] = {}
        self.expired: OrderedDict[str, tuple[int, Expiring]] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tasks: dict[TaskRef, Kept] = {}
        self._listed: dict[Caller, list[str]] = {}
        self._requested: dict[str, _Requested] = {}
        self._open: dict[tuple[str, str], int] = {}
        self._once: dict[str, _Once] = {}
        self._created: dict[str, deque[int]] = {}
        self._expiry: list[tuple[int, int, TaskRef]] = []
        self._places: dict[TaskRef, tuple[int, int, TaskRef]] = {}
        self._numbers = count()

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, ref: TaskRef) -> Kept | None:
        """A task; None: unknown or expired."""
        return self._tasks.get(ref)

    def require_room(self, quota: Quota | None, size: int, now_ms: int) -> None:
        """Refuse a new task for which there is no room.

        Raises:
            LimitExceededError: Its requestor, or all together, have as much as they may.
        """
        if self._max_bytes is not None and self._bytes + size > self._max_bytes:
            raise StoreFullError(100, retry_after_ms=RETRY_AFTER_MS)
        if quota is None:
            return
        mine = self._requested.get(quota.requestor, _Requested())
        if quota.bytes is not None and mine.bytes + size > quota.bytes:
            first = min((self._tasks[ref].record.expires_at_ms - now_ms for ref in mine.tasks), default=1)
            raise quota.too_many_bytes(first)
        for counter in quota.counters:
            if self._open.get((counter.kind, counter.whose), 0) >= counter.most:
                raise counter.refusal()
        for limit in quota.rates:
            created, window_ms = self._created.setdefault(limit.whose, deque()), limit.rate.window_ms
            while created and created[0] <= now_ms - window_ms:
                created.popleft()
            if (over := len(created) - limit.rate.number) >= 0:
                raise limit.refusal(created[over] + window_ms - now_ms)

    def count_created(self, quota: Quota | None, now_ms: int) -> None:
        """Count a new task for the rates of its quota."""
        for limit in () if quota is None else quota.rates:
            self._created.setdefault(limit.whose, deque()).append(now_ms)
        if len(self._created) > MOST_RATES:
            since = now_ms - LONGEST_MS
            self._created = {whose: times for whose, times in self._created.items() if times and times[-1] > since}

    def earlier(self, record: TaskRecord, idempotency: Idempotency, now_ms: int) -> EarlierTask | None:
        """The task that an idempotency key leads to, for a request that would create another one."""
        once = self._once.get(idempotency.name)
        if once is None:
            return None
        is_same = once.request == idempotency.request
        publication: Publication = "published"
        if is_same and once.publishing_ms is not None:
            is_over = now_ms - once.publishing_ms >= PUBLISHING_MS
            if once.publisher == record.task_id or (is_over and not record.work.is_foreign):
                if once.publisher != record.task_id:
                    once.publisher, once.publishing_ms = record.task_id, now_ms
                publication = "unpublished"
            elif not is_over:
                publication = "publishing"
        return EarlierTask(once.ref.task_id, is_same, publication)

    def keep_once(self, record: TaskRecord, idempotency: Idempotency, now_ms: int) -> None:
        """Let an idempotency key lead to a new task, whose first job is published from now on."""
        self._once[idempotency.name] = _Once(record.ref, idempotency.request, record.task_id, now_ms)
        self._tasks[record.ref].once = idempotency.name

    def note_published(self, kept: Kept) -> None:
        """Note that the broker has a task's first job."""
        if kept.once is not None:
            self._once[kept.once].publishing_ms = None

    def is_only_request(self, kept: Kept) -> bool:
        """Whether a task may be taken back: no other request with its key may have had it as an answer."""
        once = None if kept.once is None else self._once[kept.once]
        return once is None or (once.publishing_ms is not None and once.publisher == kept.record.task_id)

    def add(self, kept: Kept) -> None:
        """Keep a new task."""
        record, ref = kept.record, kept.record.ref
        self.remove(ref)  # a creation that is repeated
        self._tasks[ref] = kept
        if kept.quota is not None:
            self._requested.setdefault(kept.quota.requestor, _Requested()).tasks[ref] = None
        if record.listed:
            insort(self._listed.setdefault(record.owner, []), record.position)
        if isinstance(record.work, ForeignWork):
            self.looks[ref] = record.created_at_ms
        self.refresh(kept)

    def refresh(self, kept: Kept) -> None:
        """Bring up to date what is counted and noted of a task that may have changed."""
        record, ref = kept.record, kept.record.ref
        if self._tasks.get(ref) is not kept:
            return
        place = self._places.get(ref)
        if place is None or place[0] != record.expires_at_ms:
            self._remove_place(ref)
            self._places[ref] = place = (record.expires_at_ms, next(self._numbers), ref)
            insort(self._expiry, place)
        if not record.is_open:
            self.let_go(kept)
            self.looks.pop(ref, None)
            self.unclaimed.pop(ref, None)
            self._on_end(kept)
        self._count(kept, kept.size, is_open=record.is_open)

    def _count(self, kept: Kept, size: int, *, is_open: bool) -> None:
        before, was_open = kept.counted
        kept.counted = (size, is_open)
        self._bytes += size - before
        if kept.quota is None:
            return
        if (mine := self._requested.get(kept.quota.requestor)) is not None:
            mine.bytes += size - before
        for counter in kept.quota.counters if is_open != was_open else ():
            name = (counter.kind, counter.whose)
            number = self._open.pop(name, 0) + (1 if is_open else -1)
            if number:
                self._open[name] = number

    def _remove_place(self, ref: TaskRef) -> None:
        place = self._places.pop(ref, None)
        if place is not None:
            del self._expiry[bisect_left(self._expiry, place)]

    def remove(self, ref: TaskRef) -> Kept | None:
        """Forget a task. None: there is none."""
        kept = self._tasks.pop(ref, None)
        if kept is None:
            return None
        self._remove_place(ref)
        self.let_go(kept)
        self.due.pop(ref, None)
        self.unclaimed.pop(ref, None)
        self.looks.pop(ref, None)
        self.attended.pop(ref, None)
        self._count(kept, 0, is_open=False)
        self._on_end(kept)
        if kept.once is not None:
            del self._once[kept.once]
        owner, quota = kept.record.owner, kept.quota
        if quota is not None and (mine := self._requested.get(quota.requestor)) is not None:
            mine.tasks.pop(ref, None)
            if not mine.tasks:
                del self._requested[quota.requestor]
        if (positions := self._listed.get(owner)) is not None and kept.record.listed:
            del positions[bisect_left(positions, kept.record.position)]
            if not positions:
                del self._listed[owner]
        return kept

    def expire(self, now_ms: int) -> None:
        """Forget the tasks whose time is over; of each it is remembered what the reaper must know."""
        while self._expiry and self._expiry[0][0] <= now_ms:
            kept = self.remove(self._expiry[0][2])
            if kept is not None:
                self.expired[kept.record.key] = (kept.record.expires_at_ms, kept.expiring(now_ms))
        while len(self.expired) > MOST_EXPIRED:
            self.expired.popitem(last=False)

    def expiring_until(self, until_ms: int, now_ms: int) -> Sequence[Expiring]:
        """The tasks that expire until a time."""
        end = bisect_right(self._expiry, until_ms, key=lambda place: place[0])
        return [self._tasks[ref].expiring(now_ms) for _, _, ref in self._expiry[:end]]

    def page(self, owner: Caller, *, before: str | None, limit: int) -> list[Kept]:
        """An owner's tasks, the newest first."""
        positions = self._listed.get(owner, [])
        end = len(positions) if before is None else bisect_left(positions, before)
        newest = reversed(positions[max(0, end - limit) : end])
        return [self._tasks[TaskRef(owner.scope, position.partition(":")[2])] for position in newest]

    def take(self, kept: Kept, claim: Claim, retries: int) -> None:
        """Give a task's job to a worker, and take it from the one that had it."""
        self.let_go(kept)
        self.unclaimed.pop(kept.record.ref, None)
        kept.record = replace(kept.record, claim=claim)
        kept.claim_retries, kept.claimed_by = retries, claim.worker
        self.claims.setdefault(claim.worker, {})[kept.record.key] = None

    def let_go(self, kept: Kept) -> None:
        """Take a task off the claims of the worker that has its job; the record still says which that was."""
        worker, kept.claimed_by = kept.claimed_by, None
        if worker is not None and (held := self.claims.get(worker)) is not None:
            held.pop(kept.record.key, None)
            if not held:
                del self.claims[worker]
