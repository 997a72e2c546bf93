"""One delivery of a job, as its message and Celery tell it."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_celery.engine import TaskRef
from mcp_celery.keys import TaskKeyParts, parse_task_key


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCall:
    """One delivery of a job.

    Attributes:
        job_id: Its Celery id.
        key: Compound key of the task.
        attempt: The attempt it was published for.
        leg: Which job of the task it is.
        retries: Celery's count of retries.
        worker: The worker that runs it, as in its claims.
        input_timeout_seconds: How long the component waits for an answer.
        is_genuine: Whether a process with this worker's encryption keys published its message; True without keys.
        let_through: Exceptions of the component that are Celery's business: reasons to run it again, time limits.
    """

    job_id: str
    key: str
    attempt: int
    leg: int
    retries: int
    worker: str
    input_timeout_seconds: float
    is_genuine: bool = True
    let_through: tuple[type[Exception], ...] = ()

    @property
    def parts(self) -> TaskKeyParts:
        """The parts of the compound key."""
        return parse_task_key(self.key)

    @property
    def ref(self) -> TaskRef:
        """Where the task is kept."""
        return TaskRef(self.parts.task_scope, self.parts.client_task_id)
