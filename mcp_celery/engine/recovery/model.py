"""Recovery of tasks whose worker has died, whose job was never published, or whose time is over.

Every worker has one heartbeat, and a claim on each job that it has received. A heartbeat that ends is a death, and the
claims say whom it concerns. One process, elected among servers and workers, reaps: so we depend neither on the broker's
own redelivery nor on its time-outs, and a slow job of a live worker is left alone, however long it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcp_celery.engine.outcome import failure
from mcp_celery.engine.record import Change, TaskRef
from mcp_celery.engine.status import OPEN, TaskStatus
from mcp_celery.engine.work import OWN_WORK, Work
from mcp_celery.keys import Hidden

BATCH = 1_000
"""The most of one kind that a sweep takes up."""

UNCLAIMED_BATCH = 500
"""The most unclaimed jobs that a sweep looks at; the next one goes on with the others."""

WAITING_BATCH = 200
"""The most tasks that wait for a place that a sweep looks at; the next one looks at others."""
PLACES_BATCH = 20
"""At how many of the tasks that have the places of a limit a sweep looks, any of them."""
DUE = TaskRef(None, "due")
"""Stands for no task, and has no form of a task's id: a hint of it says that jobs are due that no process publishes."""

PUBLISHING_MS = 10_000
"""Grace period before the reaper publishes a due job itself."""
TRYING_AGAIN = "Trying again: the worker that had the job has died"
"""The status message of a task whose job is published again because its worker died."""
TRYING_AGAIN_LOST = "Trying again: the broker has lost the job"
"""The status message of a task whose job is published again because the broker lost it."""
REQUEUED = "Trying again: an operator put the job back into the queue"
"""The status message of a task whose job is published again because an operator said so."""
ABANDONED = "Cancelled: its client has neither asked for it nor followed it for {seconds:g} s"
"""The status message of a task that was cancelled because its owner was gone."""
CLAIMING_MS = 3_000
"""The shortest time that a worker gets to claim a job that the broker no longer has."""
CLAIM_HOLDS_MS = 15_000
"""For how long a claim stands for the heartbeat of a worker that has none: it was paused and forgotten, or it is a
child whose parent has died. One that lives beats in that time.
"""
LATER_CLAIMED_MS = 30_000
"""For how long a later job must have been claimed before an earlier one of the same lane is taken for lost."""
ORDER_MS = 10_000
"""By how much a job must be later than another one to be behind it in the queue for sure: servers publish a job after
they have created its task, and their clocks differ.
"""

Loss = Literal["died", "stopped", "disconnected"]
"""How a worker lost its jobs: it died, it stopped in order, or its connection to the broker broke, which takes from it
what it has not begun.
"""
Verdict = Literal["alive", "nothing", "again", "failed"]
RequeueVerdict = Literal["again", "started", "nothing"]
"""The reply to an operator who wants a job published again. ``started``: nothing, for its body has started and may
have had effects. ``nothing``: the task has ended, waits for an answer, or is one of exposed jobs.
"""


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """How soon a death is noticed, and what is done about it.

    Attributes:
        heartbeat_ms: Time between two heartbeats, and between two sweeps.
        max_redeliveries: How often a task's job is published again because its worker died or the broker lost it.
        publish_timeout_ms: How long a server waits for the broker to take a job.
        lost_after_ms: How long a job may wait for a worker where the broker cannot say how many jobs wait.
    """

    heartbeat_ms: int
    max_redeliveries: int
    publish_timeout_ms: int = 1_500
    lost_after_ms: int = 3_600_000

    @property
    def lease_ms(self) -> int:
        """How long a heartbeat holds: two may be missed."""
        return 3 * self.heartbeat_ms

    @property
    def publishing_ms(self) -> int:
        """After what time a job whose task exists is with the broker, or its request has been refused."""
        return 2 * self.publish_timeout_ms + 2_000

    @property
    def claiming_ms(self) -> int:
        """After what time a worker has claimed a job that it took from the broker."""
        return max(2 * self.heartbeat_ms, CLAIMING_MS)

    @property
    def lost_too_often(self) -> Change:
        """How a task fails whose job the broker lost after it was published again often enough."""
        return failure("JobLost")

    @property
    def died_in_work(self) -> Change:
        """How a task fails whose body had begun and may have had effects."""
        return failure("WorkerDied")

    @property
    def died_too_often(self) -> Change:
        """How a task fails whose job was published again often enough."""
        return failure("WorkersDied")


@dataclass(frozen=True, slots=True)
class Expiring:
    """A task whose time is over, or soon will be.

    Attributes:
        key: Its compound key.
        left_ms: Until then; not above 0: it is over, and of the record nothing is left.
        leg: Which job it has.
        status: Its last status, None where it is not known or its job has been revoked.
        worker: Which worker has claimed it, None for none.
        work: Who runs its jobs. No worker claims foreign jobs.
        hidden: What its Celery ids do not show of its key.
        attempt: Which publication of the job counts.
        declared_as: The URI template of its component, None for the component's own name.
    """

    key: str
    left_ms: int
    leg: int = 1
    status: TaskStatus | None = None
    worker: str | None = None
    work: Work = OWN_WORK
    hidden: Hidden = Hidden.NOTHING
    attempt: int = 1
    declared_as: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether its job waits or runs."""
        return self.status in OPEN

    @property
    def open_job_ids(self) -> list[str]:
        """The Celery ids of the jobs that may wait or run."""
        return self.work.job_ids(self.key, self.leg, self.hidden)

    @property
    def job_ids(self) -> list[str]:
        """The Celery ids of all its jobs, the current ones first."""
        return self.work.all_job_ids(self.key, self.leg, self.hidden)


@dataclass(frozen=True, slots=True)
class PublishedJob:
    """A job of our own that a server has published.

    Attributes:
        key: Compound key of its task.
        at_ms: When, in ms since the epoch: of one that waits for a worker, the broker has had it since then or shortly
            after; of one that a worker has claimed, it was published then or later.
        job_name: Celery name of the job, None for the component's own.
        declared_as: As in :class:`mcp_celery.engine.TaskRecord`.
        options: Likewise, as pairs; None where the record does not say, since 0.1.0 created it.
    """

    key: str
    at_ms: int
    job_name: str | None = None
    declared_as: str | None = None
    options: tuple[tuple[str, object], ...] | None = None


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How many open tasks and live workers a store has. A task that waits for its client without a job is in none.

    Attributes:
        queued: Tasks whose job waits for a worker.
        claimed: Tasks whose job a worker has.
        due: Tasks whose next job is still to be published.
        exposed: Tasks of exposed jobs, whose own app runs them.
        workers: Workers whose heartbeat holds.
        webhooks: Webhooks that no receiver has taken yet.
        waiting: Tasks that wait for a place of a limit on running jobs.
    """

    queued: int
    claimed: int
    due: int
    exposed: int
    workers: int
    webhooks: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Lane:
    """The jobs of a queue that workers receive in the order of their publication.

    Attributes:
        queue: The queue. None: the jobs go to an exchange, which may have any number of queues.
        priority: Celery's priority of the jobs, None for the broker's default.
        exchange: The exchange and the routing key, where there is no single queue.
    """

    queue: str | None
    priority: int | None = None
    exchange: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The work of one sweep, read in one step.

    Attributes:
        dead: Workers whose heartbeat has ended.
        expiring: Tasks whose time is over before the next sweep.
        due: Compound keys of tasks whose next job should have been published by now.
        unclaimed: A part of the jobs that should be with the broker by now, and that no worker has received; the oldest
            first.
        unread_since_ms: Since when (ms since the epoch) some worker may have messages that it has not read, and so not
            claimed; None: there is no such worker.
        at_ms: When it was read, in ms since the epoch, by the clock of the store.
        abandoned: Compound keys of tasks whose owner has neither polled nor followed them for too long.
        after_failover: Whether another server than at the sweep before has answered. It may lack the last heartbeats.
    """

    dead: Sequence[str]
    expiring: Sequence[Expiring]
    due: Sequence[str]
    unclaimed: Sequence[PublishedJob] = ()
    unread_since_ms: int | None = None
    at_ms: int = 0
    abandoned: Sequence[str] = ()
    after_failover: bool = False
