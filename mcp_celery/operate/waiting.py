"""What a task waits for, and why it does not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from mcp_celery.broker.consumers import CeleryWorker
from mcp_celery.common.durations import clock, span
from mcp_celery.engine import PlaceKind
from mcp_celery.store.inspection import InspectedTask, LeasedWorker, Place

Reason = Literal[
    "ended",
    "running",
    "no worker",
    "other version",
    "busy",
    "starting",
    "answer",
    "retry",
    "missed heartbeats",
    "to be published",
    "place",
    "exposed",
]
"""``ended``: nothing. ``starting``: a worker is about to start the job. ``place``: a limit on running jobs has no free
place, or it is not its caller's turn. ``exposed``: the jobs are other workers'.
"""

_LIMITS: Final[Mapping[PlaceKind | None, str]] = {
    "caller": "max_running_per_caller of its component",
    "scope": "MCP_CELERY_MAX_RUNNING_PER_SCOPE",
    "component": "max_running of its component",
    "turn": "MCP_CELERY_FAIR: tasks of its caller; callers take turns",
    None: "a limit on running jobs",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a task waits for.

    Attributes:
        reason: In one word or two, for programs.
        text: A sentence, for people.
        command: What starts the worker that is missing; None where none is, or its queue is unknown.
    """

    reason: Reason
    text: str
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is known around a task.

    Attributes:
        place: Where it stands in the indices.
        leased: The workers that the store knows.
        answering: Celery's workers by node name; None where they cannot be asked.
        queue: Where its job goes; None where a route names an exchange only.
        command: What starts a worker that consumes that queue.
        length: How many jobs wait in that queue; None where the broker cannot say.
        has_reaper: Whether a process is elected that publishes due jobs.
        lease_ms: How long a heartbeat holds.
    """

    place: Place
    leased: Sequence[LeasedWorker] = ()
    answering: Mapping[str, CeleryWorker] | None = field(default_factory=dict[str, CeleryWorker])
    queue: str | None = None
    command: str | None = None
    length: int | None = None
    has_reaper: bool = True
    lease_ms: int = 15_000

    def lease_of(self, worker: str) -> LeasedWorker | None:
        """What the store knows of a worker, by its name in claims."""
        return next((one for one in self.leased if one.worker == worker), None)

    @property
    def live(self) -> Sequence[LeasedWorker]:
        """The workers whose heartbeat holds."""
        return [one for one in self.leased if one.until_ms > self.place.now_ms]

    def may_consume(self, node: str) -> bool:
        """Whether a worker consumes the queue, or does not say what it consumes."""
        answer = (self.answering or {}).get(node)
        return answer is None or self.queue is None or self.queue in answer.queues

    @property
    def consumers(self) -> Sequence[CeleryWorker]:
        """The workers that report that they consume the queue."""
        return [one for one in (self.answering or {}).values() if self.queue in one.queues]

    def fitting(self, fingerprint: str | None) -> Sequence[LeasedWorker]:
        """The live workers that may take a job of this version from the queue; None: of any version."""
        return [
            one
            for one in self.live
            if (fingerprint is None or fingerprint in one.components) and self.may_consume(one.node)
        ]

    def is_without_worker(self, fingerprint: str | None) -> bool:
        """Whether no live worker consumes the queue, as far as workers say it."""
        return not self.fitting(fingerprint) and not self.consumers


def waiting_of(task: InspectedTask, around: Surroundings) -> Waiting:
    """What a task waits for.

    Args:
        task: The task.
        around: What is known around it.
    """
    record, now = task.record, around.place.now_ms
    if record.is_terminal:
        return Waiting("ended", f"nothing: the task has ended ({record.status})")
    if record.status == "input_required":
        holds = "no job runs meanwhile" if task.is_parked else f"its job waits on {_worker_of(task)}"
        return Waiting("answer", f"the client's answer to a question, {since(record.updated_at_ms, now)}; {holds}")
    if record.work.is_foreign:
        return Waiting("exposed", "the end of exposed Celery jobs, whose workers report to Celery only")
    if record.claim is not None and (task.claimed_retries or 0) >= record.retries:
        return _of_claimed(task, around)
    return _of_unclaimed(task, around)


def _of_unclaimed(task: InspectedTask, around: Surroundings) -> Waiting:
    """Explain a task whose job no worker has."""
    record, now, due_ms = task.record, around.place.now_ms, around.place.due_ms
    if record.retry_at_ms is not None and record.retry_at_ms > now:
        return Waiting("retry", f"its retry {record.retries}, at {clock(record.retry_at_ms)}")
    if due_ms is not None:
        who = "the reaper publishes it within seconds" if around.has_reaper else "no server or worker runs"
        return Waiting("to be published", f"its job to be published again, {since(due_ms, now)}: {who}")
    if (before := around.place.before_place) is not None:
        ahead = f"{before} {'task is' if before == 1 else 'tasks are'} ahead of it"
        limit = _LIMITS[around.place.limit]
        return Waiting("place", f"a free place, {since(record.updated_at_ms, now)}: {ahead} ({limit})")
    return _of_queued(task, around)


def _of_claimed(task: InspectedTask, around: Surroundings) -> Waiting:
    """Explain a task whose job a worker has."""
    record, now = task.record, around.place.now_ms
    worker = _worker_of(task)
    lease = None if record.claim is None else around.lease_of(record.claim.worker)
    if lease is None or lease.until_ms <= now:
        last = "its heartbeats have ended"
        if lease is not None:
            last = f"its last heartbeat was {span(now - lease.until_ms + around.lease_ms)} ago"
        return Waiting(
            "missed heartbeats",
            f"the worker {worker} has missed heartbeats ({last}): the reaper publishes the job again or fails the task",
        )
    if task.has_started:
        return Waiting("running", f"its job, which runs on {worker}, {since(record.started_at_ms, now)}")
    node = (around.answering or {}).get(lease.node)
    if node is not None and node.is_busy:
        return Waiting("busy", f"a free slot of {worker}: all {node.slots} are busy, and it has the job already")
    return Waiting(
        "starting", f"the worker {worker} to start its job, {since(record.claim and record.claim.at_ms, now)}"
    )


def _of_queued(task: InspectedTask, around: Surroundings) -> Waiting:
    """Explain a task whose job is in the broker's queue."""
    record, now, place = task.record, around.place.now_ms, around.place
    queue = "a queue that a route names" if around.queue is None else f"the queue {around.queue!r}"
    fitting = around.fitting(record.fingerprint)
    consumers = around.consumers
    waited = since(place.unclaimed_ms, now)
    if not fitting and consumers:
        nodes = ", ".join(one.node for one in consumers)
        if not any(one.node in {lease.node for lease in around.live} for one in consumers):
            return Waiting(
                "no worker",
                f"a worker, {waited}: {nodes} consumes {queue}, but sends no heartbeat to this store: check its "
                "MCP_CELERY_REDIS_URL and MCP_CELERY_KEY_PREFIX",
            )
        return Waiting(
            "other version",
            f"a worker with version {record.fingerprint} of the component, {waited}: {nodes} consumes {queue} and has "
            "another version, or none",
        )
    if not fitting:
        return Waiting("no worker", f"a worker, {waited}: no live worker consumes {queue}", around.command)
    ahead = f"{place.ahead} {'job is' if place.ahead == 1 else 'jobs are'} ahead of it"
    if around.length is not None:
        ahead += f", {around.length} in {queue}"
    busy = [one for one in consumers if one.is_busy]
    if consumers and len(busy) == len(consumers):
        slots = sum(one.slots or 0 for one in busy)
        return Waiting("busy", f"a free slot, {waited}: all {slots} are busy, and {ahead}")
    return Waiting("busy", f"its turn, {waited}: {ahead}")


def _worker_of(task: InspectedTask) -> str:
    """The node name of the worker that has the job."""
    claim = task.record.claim
    return "no worker" if claim is None else claim.worker.rpartition("/")[0]


def since(at_ms: int | None, now_ms: int) -> str:
    """How long something lasts, in words."""
    return "for an unknown time" if at_ms is None else f"for {span(now_ms - at_ms)}"
