"""One delivery of a job, as its message and Celery describe it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mcp_celery.engine import TaskRef
from mcp_celery.keys import TaskKeyParts, parse_task_key
from mcp_celery.telemetry.traces import NOT_DELIVERED, Delivered


class JobRefused(Exception):  # noqa: N818 - an outcome, not an error
    """The body must not run: the task ended, counts another attempt, or another delivery has started it."""


class JobNotStarted(JobRefused):
    """The body did not begin, because the store did not answer. Its task fails, unless another delivery has begun.

    Args:
        delivery: As :attr:`mcp_celery.engine.Start.delivery`.
    """

    def __init__(self, delivery: str) -> None:
        super().__init__()
        self.delivery = delivery


def _leave_to_the_reaper(_key: str, _pause_ms: int) -> bool:
    return False


def _forget(_trace: Mapping[str, str]) -> None:
    pass


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
        publish_later: Publishes a job that was handed back, given the compound key of its task and the pause in ms.
        declared_as: What its component is declared as: the component's name, URI or URI template.
        delivered: How it was published, by its message.
        note_trace: Is given the place of the job's run in a trace, for the message of a retry.
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
    publish_later: Callable[[str, int], bool] = _leave_to_the_reaper
    declared_as: str = ""
    delivered: Delivered = NOT_DELIVERED
    note_trace: Callable[[Mapping[str, str]], None] = _forget

    @property
    def parts(self) -> TaskKeyParts:
        """The parts of the compound key."""
        return parse_task_key(self.key)

    @property
    def ref(self) -> TaskRef:
        """Where the task is kept."""
        return TaskRef(self.parts.task_scope, self.parts.client_task_id)
