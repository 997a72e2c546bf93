"""Waiting for a store that does not answer: a job must not run unconfirmed, and is lost if it gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from mcp_celery.errors import StoreUnavailableError
from mcp_celery.worker.aio.current import await_in_job, in_job

T = TypeVar("T")

PATIENCE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.5
"""Between two tries."""


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until the store answers.

    Raises:
        StoreUnavailableError: It did not for :data:`PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await attempt()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


def patiently_blocking(call: Callable[[], T]) -> T:
    """As :func:`patiently`, for Celery's own threads. On the asyncio pool only the calling job waits."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
        if in_job():
            await_in_job(asyncio.sleep(PAUSE_SECONDS))
        else:
            time.sleep(PAUSE_SECONDS)
