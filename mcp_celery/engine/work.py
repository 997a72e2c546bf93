"""The kinds of work: own jobs run in workers with this package, foreign jobs in workers without it.

A foreign job is an existing Celery job that is exposed as a tool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from mcp_celery.keys import Hidden, celery_job_id


class Work(Protocol):
    """The jobs of a task, as its record describes them."""

    @property
    def is_foreign(self) -> bool:
        """Whether the workers know nothing of tasks: they start a job without asking the store, and report no end."""
        ...

    @property
    def may_terminate(self) -> bool:
        """Whether a cancel has a worker terminate a job that runs."""
        ...

    @property
    def parts(self) -> int:
        """How many jobs the task has at a time."""
        ...

    @property
    def gathered(self) -> int:
        """How many jobs, from the first, give the list that is the task's result. 0: the first job gives the result."""
        ...

    def job_ids(self, key: str, leg: int, hidden: Hidden) -> list[str]:
        """The Celery ids of the jobs that a task has now.

        Args:
            key: The task's compound key.
            leg: The number of the task's current job.
            hidden: What the ids do not show of the key.
        """
        ...

    def all_job_ids(self, key: str, leg: int, hidden: Hidden) -> list[str]:
        """The Celery ids of all jobs that a task has or had, the current ones first. Arguments: as for ``job_ids``."""
        ...


@dataclass(frozen=True, slots=True)
class OwnWork:
    """A component's own job. A task has one at a time, and each leg is another."""

    is_foreign: bool = field(default=False, init=False)
    may_terminate: bool = field(default=True, init=False)
    parts: int = field(default=1, init=False)
    gathered: int = field(default=0, init=False)

    def job_ids(self, key: str, leg: int, hidden: Hidden) -> list[str]:
        """The job of the current leg."""
        return [celery_job_id(key, leg, hidden=hidden)]

    def all_job_ids(self, key: str, leg: int, hidden: Hidden) -> list[str]:
        """The jobs of all legs."""
        return _job_ids(key, range(leg, 0, -1), hidden)


@dataclass(frozen=True, slots=True)
class ForeignWork:
    """Foreign jobs: a single one, or the parts of a chain, group or chord. The record keeps the three fields."""

    is_foreign: bool = field(default=True, init=False)
    parts: int = 1
    gathered: int = 0
    may_terminate: bool = False

    def job_ids(self, key: str, leg: int, hidden: Hidden) -> list[str]:  # noqa: ARG002 - there is one leg
        """The jobs of all parts."""
        return _job_ids(key, range(1, self.parts + 1), hidden)

    all_job_ids = job_ids


OWN_WORK: Final = OwnWork()


def _job_ids(key: str, numbers: Iterable[int], hidden: Hidden) -> list[str]:
    return [celery_job_id(key, number, hidden=hidden) for number in numbers]
