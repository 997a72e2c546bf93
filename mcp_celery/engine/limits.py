"""What the server grants: how long tasks are kept, and how much a requestor may ask."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_celery.config import TaskConfig
from mcp_celery.engine.record import Caller, Quota


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What the server grants.

    Attributes:
        default_ttl_ms: When nobody asks.
        max_ttl_ms: Whoever asks.
        poll_interval_ms: When the component does not say.
        settle_interval_ms: How often an open task's stored result is looked at, where that is a request of its own.
        max_input_bytes: How large the answers may be that one request brings, as JSON.
        max_open_tasks: How many open tasks a requestor may have, None for any number.
        max_failed_lookups: How many look-ups of a requestor may fail in a window, None for any number.
        lookup_window_ms: How long a window is.
        hide_anonymous_ids: Whether Celery's ids show a digest in place of an anonymous task's id.
    """

    default_ttl_ms: int
    max_ttl_ms: int
    poll_interval_ms: int
    settle_interval_ms: int = 2_000
    max_input_bytes: int = 1_048_576
    max_open_tasks: int | None = None
    max_failed_lookups: int | None = None
    lookup_window_ms: int = 60_000
    hide_anonymous_ids: bool = False

    def granted_ttl_ms(self, asked: int | None, config: TaskConfig) -> int:
        """The time to live of a new task: what the client asks, else the component, else the default; clamped."""
        wanted = next((value for value in (asked, config.ttl_ms) if value is not None), self.default_ttl_ms)
        return max(1, min(wanted, self.max_ttl_ms))

    def quota(self, caller: Caller) -> Quota | None:
        """How many open tasks a caller may have, None for any number."""
        if self.max_open_tasks is None or caller.requestor is None:
            return None
        return Quota(caller.requestor, self.max_open_tasks)
