"""The last answers to clients that poll: one that asks again too soon gets the same, and the store is not asked."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cachetools import LRUCache, TTLCache

from mcp_celery.engine.record import Caller, JSONObject, TaskRef

MOST: Final = 10_000
"""Of so many tasks the last answer is remembered; with more, of those that were asked for last."""


class _Poll(NamedTuple):
    """The key, besides the task, by which a kept answer belongs to a caller."""

    ref: TaskRef
    issuer: str | None
    token_scopes: frozenset[str] | None
    version: str


class RecentPolls:
    """Answers about tasks that have not ended. Belongs to one process.

    Args:
        interval_ms: How long an answer is good for; 0: none is remembered.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, interval_ms: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers: TTLCache[TaskRef, tuple[_Poll, JSONObject]] | None = (
            TTLCache(MOST, interval_ms / 1000, timer=clock) if interval_ms else None
        )
        self._generations: LRUCache[TaskRef, int] = LRUCache(MOST)
        self._numbers = itertools.count(1)

    def find(self, caller: Caller, task_id: str, version: str) -> JSONObject | None:
        """The last answer, where it is good for a caller's next poll.

        Args:
            caller: Who polls.
            task_id: The task.
            version: Of the protocol, in whose form the answer is.
        """
        if self._answers is None:
            return None
        poll = _poll(caller, task_id, version)
        found = self._answers.get(poll.ref)
        return dict(found[1]) if found is not None and found[0] == poll else None

    def generation(self, caller: Caller, task_id: str) -> int:
        """A number that another one follows when the caller changes the task."""
        return self._generations.get(TaskRef(caller.scope, task_id), 0)

    def note(self, caller: Caller, task_id: str, version: str, answer: JSONObject, generation: int) -> None:
        """Remember an answer about a task that has not ended.

        Args:
            caller: Who polled.
            task_id: The task.
            version: Of the protocol, in whose form the answer is.
            answer: What was read.
            generation: The :meth:`generation` from before it was read. If there has been another since, the caller has
                changed the task, perhaps after it was read.
        """
        if self._answers is not None and generation == self.generation(caller, task_id):
            poll = _poll(caller, task_id, version)
            self._answers[poll.ref] = (poll, dict(answer))

    def forget(self, caller: Caller, task_id: str) -> None:
        """Forget the last answer: the caller has changed the task, and has to see the change."""
        if self._answers is not None:
            ref = TaskRef(caller.scope, task_id)
            self._generations[ref] = next(self._numbers)
            self._answers.pop(ref, None)


def _poll(caller: Caller, task_id: str, version: str) -> _Poll:
    return _Poll(TaskRef(caller.scope, task_id), caller.issuer, caller.token_scopes, version)
