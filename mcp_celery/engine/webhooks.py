"""Webhooks: a task has ended or waits for its client, and the operator's receiver learns of it.

The step of the store that changes a task keeps its webhook too, in the *outbox*, where it stays until the receiver has
taken it. So no process has to live for a webhook to be delivered. It holds what it tells of the task, for it outlives
the record. Each process that holds connections looks for webhooks that are due (``webhook_dispatcher.py``), and has
each delivered by a job of its own. What looked or delivered and died had the webhook for a time; then it is due again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from mcp_celery.engine.record import JSONObject, TaskRef
from mcp_celery.engine.status import OPEN, TaskStatus
from mcp_celery.keys import TaskKeyParts, parse_task_key

WEBHOOK_LIFETIME_MS: Final = 4 * 86_400_000
"""After this time a webhook is forgotten that nothing has delivered: a day more than it may be tried for."""
MOST_WAITING: Final = 100_000
"""Webhooks that wait in one outbox, some 50 MB. Further ones are dropped, so that a receiver which is gone cannot fill
the store.
"""
PUBLISHED_MS: Final = 30_000
"""For how long a webhook whose job is published is not published again. It doubles each time, for a job that waits."""
LONGEST_PUBLISHED_MS: Final = 3_600_000
FIRST_PAUSE_MS: Final = 5_000
"""After what time a webhook is tried again that its receiver did not take. It doubles each time."""
LONGEST_PAUSE_MS: Final = 3_600_000
SHOWN_CHARS: Final = 200
"""Of a scope, as in the audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A stored webhook.

    Attributes:
        id: Tells it from all others, and stays the same however often it is sent.
        key: The task's compound key.
        declared_as: The URI template of its component, None for the component's own name.
        status: The task's status when it was kept.
        is_error: Whether the task is completed with a result that says ``isError``.
        created_at_ms: When the task was created, in ms since the epoch.
        at_ms: When it came to its status, likewise.
        sequence: The record's revision then: of two webhooks of a task, the later has the higher one.
        status_message: The task's message then; None where the webhook leaves it out.
        attempts: How often the receiver did not take it.
    """

    id: str
    key: str
    declared_as: str | None
    status: TaskStatus
    is_error: bool
    created_at_ms: int
    at_ms: int
    sequence: int
    status_message: str | None = None
    attempts: int = 0

    @property
    def task(self) -> TaskKeyParts:
        """The parts of the key."""
        return parse_task_key(self.key)

    @property
    def shown_task_id(self) -> str:
        """The task's id as logs and webhooks show it: of an anonymous task, whose id is the right to read it, the first
        characters.
        """
        return TaskRef.of_key(self.key).shown_id

    def pause_ms(self) -> int:
        """In what time it is tried again after one more attempt. Many that failed together do not come back at once."""
        pause = min(FIRST_PAUSE_MS * 2 ** min(self.attempts, 20), LONGEST_PAUSE_MS)
        return round(pause * random.uniform(0.5, 1))  # noqa: S311 - it keeps no secret

    def payload(self, namespace: str, *, contents: bool) -> JSONObject:
        """The body, in the form that Standard Webhooks recommends.

        Args:
            namespace: The server's.
            contents: Whether it contains the status message.
        """
        task = self.task
        data: JSONObject = {
            "namespace": namespace,
            "taskId": self.shown_task_id,
            "scope": None if task.task_scope is None else task.task_scope[:SHOWN_CHARS],
            "taskType": task.task_type,
            "component": (self.declared_as or task.component_identifier)[:SHOWN_CHARS],
            "status": self.status,
            "sequence": self.sequence,
            "createdAt": _timestamp(self.created_at_ms),
            "lastUpdatedAt": _timestamp(self.at_ms),
        }
        if self.status == "completed":
            data["isError"] = self.is_error
        if contents and self.status_message is not None:
            data["statusMessage"] = self.status_message
        return {"type": f"task.{self.status}", "timestamp": _timestamp(self.at_ms), "data": data}


def _timestamp(at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_told(before: TaskStatus, after: TaskStatus) -> bool:
    """Whether a change of a task makes a webhook: the task has ended, or now waits for its client."""
    return before in OPEN and after != before and (after == "input_required" or after not in OPEN)
