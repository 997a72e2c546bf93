"""Times and durations for people."""

from __future__ import annotations

from datetime import UTC, datetime


def span(ms: float) -> str:
    """A duration for people.

    >>> span(850), span(61_000), span(7_260_000), span(180_000_000)
    ('1s', '1m 1s', '2h 1m', '2d 2h')
    """
    seconds = max(0, round(ms / 1000))
    for unit, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= unit:
            rest = seconds % unit // smaller
            return f"{seconds // unit}{name}" + (f" {rest}{smaller_name}" if rest else "")
    return f"{seconds}s"


def clock(at_ms: int) -> str:
    """A time for people, in UTC.

    >>> clock(1_000_000)
    '1970-01-01 00:16:40 UTC'

    Args:
        at_ms: In ms since the epoch.
    """
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
