"""Changes of tasks, as they are reported to observers: the audit log, and whatever else counts or records them.

A store reports each change that it makes, through the :class:`Observers` that it is given. Only two changes are no
single step of a store: ``submitted``, which the engine reports when the job is published, and ``expired``, which the
reaper reports.

================== =====================================================================================================
cause              what happened
================== =====================================================================================================
``submitted``      the record is kept and its job is published
``claimed``        a worker received the job; of one that began at once, with ``started``
``place_awaited``  a limit has no place for the job, and the task waits for one
``place_granted``  the task has its places, and the job is published again
``started``        the body started
``progress``       the job reported progress or a message
``asked``          the job asked a question, and waits for the answer
``answered``       the caller answered a question
``withdrawn``      the job does not wait for its question any more
``parked``         the job ended with questions; the next one waits for the answers
``retry_scheduled`` the component had the job tried again
``completed``      the task has a result
``failed``         the task ended with an error
``cancelled``      the client or an operator cancelled the task
``expired``        the time to live of an open task ended; its record is gone
``handed_back``    a worker had another version of the component, and the job is published again
``recovered``      a worker died or lost its broker, and the job is published again
``requeued``       an operator had the job published again
``retired``        the time to live of an unneeded task was shortened
================== =====================================================================================================

A report is made at most once. One whose process dies before the store's reply is lost. Where the reply itself was lost,
and the call is made again, the report comes with the second reply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from mcp_celery import audit
from mcp_celery.engine.record import Change, TaskRecord, TaskRef
from mcp_celery.engine.status import TERMINAL, TaskStatus
from mcp_celery.keys import TaskType, parse_task_key

logger = logging.getLogger(__name__)

Cause = Literal[
    "submitted",
    "claimed",
    "place_awaited",
    "place_granted",
    "started",
    "progress",
    "asked",
    "answered",
    "withdrawn",
    "parked",
    "retry_scheduled",
    "completed",
    "failed",
    "cancelled",
    "expired",
    "handed_back",
    "recovered",
    "requeued",
    "retired",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a task.

    Attributes:
        ref: Where the task is kept.
        task_type: ``tool``, ``prompt`` or ``resource``.
        component: What the component is declared as: a tool's or prompt's name, a URI, or a URI template.
        before: The status before; None for a task that was submitted.
        after: The status now; None when the record is gone.
        attempt: Which publication of the job counts now, from 1.
        leg: Which job of the task is the current one, from 1.
        cause: What happened.
        at_ms: When, in ms since the epoch.
        created_at_ms: When the task was created, likewise; None when the record is gone.
        started_at_ms: When the body of this attempt started; None before it does.
        is_error: Whether the task is completed with a result that says ``isError``: the tool has failed.
    """

    ref: TaskRef
    task_type: TaskType
    component: str
    before: TaskStatus | None
    after: TaskStatus | None
    attempt: int
    leg: int
    cause: Cause
    at_ms: int
    created_at_ms: int | None = None
    started_at_ms: int | None = None
    is_error: bool = False

    @property
    def age_ms(self) -> int | None:
        """How long after the task's creation it was, in ms; None when the record is gone. The two times are of the
        clocks of two processes.
        """
        return None if self.created_at_ms is None else max(0, self.at_ms - self.created_at_ms)

    @classmethod
    def of_key(  # noqa: PLR0913 - the attributes
        cls,
        key: str,
        declared_as: str | None,
        *,
        before: TaskStatus | None,
        after: TaskStatus | None,
        attempt: int,
        leg: int,
        cause: Cause,
        at_ms: int,
        created_at_ms: int | None = None,
        started_at_ms: int | None = None,
        is_error: bool = False,
    ) -> Transition:
        """The change of the task with a compound key.

        Args:
            key: The compound key.
            declared_as: The URI template of its component, None for the component's own name.
            before, after, attempt, leg, cause, at_ms, created_at_ms, started_at_ms, is_error: As the attributes.

        Raises:
            ValueError: The key is malformed.
        """
        parts = parse_task_key(key)
        return cls(
            ref=TaskRef(parts.task_scope, parts.client_task_id),
            task_type=parts.task_type,
            component=declared_as or parts.component_identifier,
            before=before,
            after=after,
            attempt=attempt,
            leg=leg,
            cause=cause,
            at_ms=at_ms,
            created_at_ms=created_at_ms,
            started_at_ms=started_at_ms,
            is_error=is_error,
        )

    @classmethod
    def of_record(cls, record: TaskRecord, cause: Cause, *, before: TaskStatus | None, at_ms: int) -> Transition:
        """The change that led to a record.

        Args:
            record: The record after the change.
            cause: What happened.
            before: The status before.
            at_ms: When, in ms since the epoch.
        """
        return cls(
            ref=record.ref,
            task_type=record.task_type,
            component=record.declared_as or record.component,
            before=before,
            after=record.status,
            attempt=record.attempt,
            leg=record.leg,
            cause=cause,
            at_ms=at_ms,
            created_at_ms=record.created_at_ms,
            started_at_ms=record.started_at_ms,
            is_error=record.is_error,
        )


Observer = Callable[[Transition], None]
"""Is called for each transition, on whatever thread or event loop made it. It must not block."""


def cause_of(change: Change) -> Cause:
    """The cause that a change reports."""
    if change.to not in ("working", "input_required"):
        return change.to
    if change.retries is not None:
        return "retry_scheduled"
    return "progress" if change.started_at_ms is None else "started"


def write_audit_log(transition: Transition) -> None:
    """The first observer: write the audit log's lines about creations and ends."""
    ref = transition.ref
    if transition.cause == "submitted":
        audit.created(ref.scope, ref.task_id, transition.task_type, transition.component)
    elif transition.after in TERMINAL and transition.after != transition.before:
        audit.ended(
            ref.scope,
            ref.task_id,
            transition.after,
            component=transition.component,
            attempt=transition.attempt,
            age_ms=transition.age_ms,
            is_error=transition.is_error,
        )


class Observers:
    """Calls observers one after another. The error of one is logged; it reaches neither the others nor the task.

    Args:
        *observers: Who is called, in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def notify(self, transition: Transition) -> None:
        """Report a change."""
        for observer in self._observers:
            try:
                observer(transition)
            except Exception:
                name = getattr(observer, "__qualname__", type(observer).__qualname__)
                logger.exception("an observer of task transitions failed: %s", name)


UNOBSERVED: Final = Observers()
"""For a store without observers."""
