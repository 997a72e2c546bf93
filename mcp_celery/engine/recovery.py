"""Recovery: what becomes of tasks whose worker has died, whose job was never published, or whose time is over.

Every worker has one heartbeat, and a claim on each job that it has received. A heartbeat that ends is a death, and the
claims say whom it concerns. One process, elected among servers and workers, reaps: so we depend neither on the broker's
own redelivery nor on its time-outs, and a slow job of a live worker is left alone, however long it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcp_celery.engine.outcome import failure
from mcp_celery.engine.record import Change
from mcp_celery.engine.status import OPEN, TaskStatus
from mcp_celery.engine.work import OWN_WORK, Work
from mcp_celery.keys import Hidden

BATCH = 1_000
"""The most of one kind that a sweep takes up."""

PUBLISHING_MS = 10_000
"""Grace period before the reaper publishes a due job itself."""
TRYING_AGAIN = "Trying again: the worker that had the job has died"
"""The status message of a task whose job is published again."""

Loss = Literal["died", "stopped", "disconnected"]
"""How a worker lost its jobs: it died, it stopped in order, or its connection to the broker broke, which takes from it
what it has not begun.
"""
Verdict = Literal["alive", "nothing", "again", "failed"]


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """How soon a death is noticed, and what is done about it.

    Attributes:
        heartbeat_ms: Time between two heartbeats, and between two sweeps.
        max_redeliveries: How often a task's job is published again because its worker died.
    """

    heartbeat_ms: int
    max_redeliveries: int

    @property
    def lease_ms(self) -> int:
        """How long a heartbeat holds: two may be missed."""
        return 3 * self.heartbeat_ms

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
class Sweep:
    """What there is to do, read in one step.

    Attributes:
        dead: Workers whose heartbeat has ended.
        expiring: Tasks whose time is over before the next sweep.
        due: Compound keys of tasks whose next job should have been published by now.
    """

    dead: Sequence[str]
    expiring: Sequence[Expiring]
    due: Sequence[str]
