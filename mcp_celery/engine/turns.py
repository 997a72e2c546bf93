"""Turns: the broker has the jobs of a few tasks only, and the store lets the others go on caller by caller.

A broker gives jobs to workers in the order in which they came: all jobs of one caller's burst before a job that another
caller asks for later. With turns the broker has only as many jobs as workers can take soon (the *window*). The tasks
beyond wait in the store, those of each caller in a line of their own. When a job ends, the next line has its turn: its
oldest task goes on, as one does that has got a place of a limit (:mod:`mcp_celery.engine.places`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

WINDOW_FACTOR: Final = 1.25
"""How many jobs the broker may have for each slot of the live workers, with those that run. A worker which has ended a
job finds the next one there, and need not wait for the store.
"""
SMALLEST_WINDOW: Final = 4
"""How many jobs it may have while no live worker says how many it can run. A worker that starts finds work at once;
autoscalers that look at the queue see some there; and workers of earlier releases, which do not say it, get jobs.
"""


def window_of(slots: int) -> int:
    """How many jobs the broker may have.

    >>> window_of(8), window_of(1), window_of(0)
    (10, 2, 4)

    Args:
        slots: How many jobs the live workers can run at a time; 0: that is not known.
    """
    return ceil(slots * WINDOW_FACTOR) if slots > 0 else SMALLEST_WINDOW


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A new task whose job is not to be published now: it waits for its caller's turn.

    Attributes:
        ahead: How many tasks of its caller are before it.
    """

    ahead: int
