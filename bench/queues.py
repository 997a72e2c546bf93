"""A worker's place at its queue: jobs gather while it is away, and it runs them when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery

from bench.systems import System
from mcp_celery.common.redis_translation import celery_url

_LOOK_SECONDS: Final = 0.02
_LONGEST_SECONDS: Final = 600.0


@contextmanager
def celery_of(system: System) -> Generator[Celery]:
    """A Celery app on the broker of a system."""
    assert system.store is not None
    with Celery(broker=celery_url(system.store), set_as_current=False) as app:
        yield app


async def stop_consuming(app: Celery, system: System) -> None:
    """Have the worker take no more jobs."""
    control: Any = app.control

    def cancel() -> None:
        while not control.cancel_consumer(system.queue, reply=True, timeout=2, limit=1):
            time.sleep(_LOOK_SECONDS)  # a worker hears commands a moment after it begins to consume

    await asyncio.to_thread(cancel)


async def start_consuming(app: Celery, system: System) -> None:
    """Have the worker take jobs again."""
    control: Any = app.control
    await asyncio.to_thread(control.add_consumer, system.queue, reply=True, timeout=5, limit=1)


async def until(reached: Callable[[], bool], what: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It did not come within ten minutes.
    """
    deadline = time.perf_counter() + _LONGEST_SECONDS
    while not reached():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"it took too long until {what}")
        await asyncio.sleep(_LOOK_SECONDS)
