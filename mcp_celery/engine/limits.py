"""Limits of the server: how long tasks are kept, and how much a requestor may ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mcp_celery.common.jsonable import json_text
from mcp_celery.common.rates import Rate
from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine.places import places_of
from mcp_celery.engine.record import Counter, Quota, RateLimit
from mcp_celery.engine.submission import Submission
from mcp_celery.errors import ArgumentsTooLargeError

RECORD_BYTES: Final = 2_048
"""What a task is counted with besides its request and its result: its record and its places in indices."""


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """The limits of the server.

    Attributes:
        default_ttl_ms: Where the request asks for none, in ms.
        max_ttl_ms: At most, in ms.
        poll_interval_ms: When the component does not say.
        min_poll_interval_ms: How long the last answer to a poll of an open task is good for the next one.
        settle_interval_ms: How often an open task's stored result is looked at, where that is a request of its own.
        max_input_bytes: How large the answers may be that one request brings, as JSON.
        max_argument_bytes: How large a request may be that becomes a task: the JSON of its parameters and ``_meta``.
        max_open_tasks: How many open tasks a requestor may have, None for any number.
        max_stored_bytes: How many bytes may be kept for a requestor, None for any number.
        create_rate: How often a requestor may create tasks, None for any rate.
        takes_turns: Whether requestors take turns: their jobs go to the broker as workers can take them.
        max_running: How many jobs of a requestor may run at a time, None for any number.
        max_failed_lookups: How many look-ups of a requestor may fail in a window, None for any number.
        lookup_window_ms: How long a window is.
        max_open_streams: How many streams a requestor may hold open at one process, None for any number.
        max_streams: How many streams one process holds open, None for any number.
        max_pending_requests: How many requests one process works on at a time, None for any number.
        abandon_after_ms: After what time a task is cancelled whose owner is gone, where its component says nothing.
            None: never.
        hide_anonymous_ids: Whether Celery's ids show a digest in place of an anonymous task's id.
    """

    default_ttl_ms: int
    max_ttl_ms: int
    poll_interval_ms: int
    min_poll_interval_ms: int = 0
    settle_interval_ms: int = 2_000
    max_input_bytes: int = 1_048_576
    max_argument_bytes: int = 4_194_304
    max_open_tasks: int | None = None
    max_stored_bytes: int | None = None
    create_rate: Rate | None = None
    max_running: int | None = None
    takes_turns: bool = False
    max_failed_lookups: int | None = None
    lookup_window_ms: int = 60_000
    max_open_streams: int | None = None
    max_streams: int | None = None
    max_pending_requests: int | None = None
    abandon_after_ms: int | None = None
    hide_anonymous_ids: bool = False

    def granted_ttl_ms(self, asked: int | None, config: TaskConfig) -> int:
        """The time to live of a new task: what the client asks, else the component, else the default; clamped."""
        wanted = next((value for value in (asked, config.ttl_ms) if value is not None), self.default_ttl_ms)
        return max(1, min(wanted, self.max_ttl_ms))

    def abandon_after_of(self, config: TaskConfig) -> int | None:
        """After what time a new task is cancelled whose owner is gone, in ms; None for never."""
        if config.abandon_after is False:
            return None
        return self.abandon_after_ms if config.abandon_after is None else max(1, round(1000 * config.abandon_after))

    def quota(self, submission: Submission) -> Quota | None:
        """How much the caller of a submission may have, None for any number."""
        requestor = submission.caller.requestor
        places = tuple(places_of(submission, max_per_scope=self.max_running))
        if requestor is None:
            return Quota("", places=places) if places else None
        counters, rates = tuple(self._counters(requestor)), tuple(self._rates(requestor, submission))
        line = requestor if self.takes_turns and submission.plan is None else None
        if not counters and not rates and not places and line is None and self.max_stored_bytes is None:
            return None
        return Quota(requestor, counters, self.max_stored_bytes, rates, places, line)

    def _rates(self, requestor: str, submission: Submission) -> Iterator[RateLimit]:
        if self.create_rate is not None:
            yield RateLimit(requestor, self.create_rate)
        if (rate := submission.config.rate_per_caller) is not None:
            component = submission.declared_as or submission.component
            yield RateLimit(json_text([requestor, submission.task_type, component]), rate)

    def _counters(self, requestor: str) -> Iterator[Counter]:
        if self.max_open_tasks is not None:
            yield Counter("open", requestor, self.max_open_tasks)

    def require_fit(self, snapshot: TaskContextSnapshot) -> None:
        """Refuse a request that is too large to become a task.

        Raises:
            ArgumentsTooLargeError: It is larger, together with what its client declares about itself.
        """
        sent = (snapshot.params, snapshot.meta, snapshot.client_info, snapshot.client_capabilities)
        if (size := len(json_text(sent).encode())) > self.max_argument_bytes:
            raise ArgumentsTooLargeError(size, self.max_argument_bytes)
