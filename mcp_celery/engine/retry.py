"""Retrying what needs the task store while the store does not answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

from mcp_celery.errors import StoreUnavailableError

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.0625
LONGEST_PAUSE_SECONDS: Final = 0.5
JOB_GIVES_UP_SECONDS: Final = 60.0
"""How long a job waits for the store. It must not run unconfirmed, and it is lost if it gives up."""


def pauses(longest_seconds: float = LONGEST_PAUSE_SECONDS) -> Iterator[float]:
    """Seconds between attempts, without end.

    They double up to the longest. Each is shortened by up to a half at random, so that the jobs and
    requests that one outage stopped do not all ask the store again at the same moment.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - it keeps no secret
        pause = min(2 * pause, longest_seconds)


async def until_store_answers(attempt: Callable[[], Awaitable[T]], *, give_up_seconds: float = float("inf")) -> T:
    """Repeat an attempt until the store answers.

    Args:
        attempt: What needs the store. It may have been carried out although its answer was lost, so it must be
            harmless to repeat.
        give_up_seconds: How long to repeat it.

    Returns:
        What the attempt returns.

    Raises:
        StoreUnavailableError: The store did not answer for ``give_up_seconds``.
    """
    deadline = time.monotonic() + give_up_seconds
    pause = pauses()
    while True:
        try:
            return await attempt()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(next(pause))


def until_store_answers_blocking(attempt: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """As :func:`until_store_answers`, for a job that waits in sync code.

    Args:
        attempt: What needs the store.
        sleep: Waits so many seconds.

    Raises:
        StoreUnavailableError: The store did not answer for :data:`JOB_GIVES_UP_SECONDS`.
    """
    deadline = time.monotonic() + JOB_GIVES_UP_SECONDS
    pause = pauses()
    while True:
        try:
            return attempt()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
        sleep(next(pause))
