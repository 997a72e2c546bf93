"""The observer of task transitions that counts and measures, and what else is counted of tasks."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from mcp_celery.engine import TERMINAL, TaskRecord, Transition, now_ms
from mcp_celery.keys import TaskType
from mcp_celery.telemetry.instruments import (
    CREATED,
    DELIVERED,
    ENDED,
    OTHER,
    QUEUED,
    RAN,
    RECOVERIES,
    REFUSED,
    RETRIES,
    STARTED,
    STORE,
    TOTAL,
    Attributes,
    is_measured,
)

MOST_NAMES: Final = 1_000
"""How many names of components one process has in labels. Servers declare the components, so this is the last resort
against forged records.
"""
_RUN_ENDS: Final = frozenset({"completed", "failed", "cancelled", "parked", "retry_scheduled"})
"""The causes that end a body which has started."""
_PUBLISHED_AGAIN: Final = frozenset({"recovered", "handed_back"})


class BoundedNames:
    """Names that labels may have: the first ones that come.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()

    def label(self, name: str) -> str:
        """The label of a name."""
        if name in self._names:
            return name
        if len(self._names) >= self._most:
            return OTHER
        self._names.add(name)
        return name


_names: Final = BoundedNames(MOST_NAMES)


def component_labels(task_type: TaskType, declared_as: str) -> dict[str, str | bool]:
    """The labels of a component.

    Args:
        task_type: Its kind.
        declared_as: What it is declared as: its name, URI or URI template.
    """
    return {"component": _names.label(declared_as), "type": task_type}


def measure_transition(transition: Transition) -> None:
    """Count a change of a task, and measure what ends with it. An observer."""
    cause = transition.cause
    if cause == "progress" or not is_measured():
        return
    labels = component_labels(transition.task_type, transition.component)
    if cause == "submitted":
        CREATED(1, labels)
    elif cause == "started":
        STARTED(1, labels)
    elif cause in _PUBLISHED_AGAIN:
        RECOVERIES(1, {**labels, "cause": cause})
    if cause in _RUN_ENDS and transition.started_at_ms is not None:
        RAN(max(0, transition.at_ms - transition.started_at_ms) / 1000, labels)
    if cause == "expired" or (transition.after in TERMINAL and transition.after != transition.before):
        _measure_end(transition, labels)


def _measure_end(transition: Transition, labels: Attributes) -> None:
    status = transition.after or "expired"
    ENDED(1, {**labels, "status": status, "cause": transition.cause, "tool_error": transition.is_error})
    if transition.age_ms is not None:
        TOTAL(transition.age_ms / 1000, {**labels, "status": status})


def count_retry(task_type: TaskType, declared_as: str) -> None:
    """Count a retry that a component asked for. It is no change of the task where the retry has ended it already.

    Args:
        task_type: Kind of the component.
        declared_as: What it is declared as.
    """
    if is_measured():
        RETRIES(1, component_labels(task_type, declared_as))


def measure_queue_wait(task_type: TaskType, declared_as: str, waited_ms: int) -> None:
    """Measure how long a job waited for a worker.

    Args:
        task_type: Kind of its component.
        declared_as: What the component is declared as.
        waited_ms: From when it could start until it did, in ms.
    """
    if is_measured():
        QUEUED(max(0, waited_ms) / 1000, component_labels(task_type, declared_as))


def measure_delivery(record: TaskRecord) -> None:
    """Measure how long after its end a task is reported to its client. Call it when the notification is sent.

    Args:
        record: As it is reported; one that has not ended is not measured.
    """
    if record.is_terminal and is_measured():
        labels = component_labels(record.task_type, record.declared_as or record.component)
        DELIVERED(max(0, now_ms() - record.updated_at_ms) / 1000, labels)


class _Operation:
    """One round trip to the task store."""

    __slots__ = ("_began", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        labels = {"operation": self._name}
        if kind is not None:
            labels["error.type"] = kind.__name__
        STORE(time.perf_counter() - self._began, labels)


_UNMEASURED: Final = nullcontext()


def measured_operation(operation: str) -> AbstractContextManager[None]:
    """Measure one round trip to the task store.

    Args:
        operation: What it does, of a fixed list.
    """
    return _Operation(operation) if is_measured() else _UNMEASURED


def count_refusal(limit: str) -> None:
    """Count a request that a limit refused.

    Args:
        limit: Which one, as ``LimitExceededError.limit`` names it.
    """
    REFUSED(1, {"limit": limit})
