"""Measurements at intervals: the lag of the event loop, and counts in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from mcp_celery.engine.ports import RecoveryStore
from mcp_celery.engine.recovery.model import StoreCounts
from mcp_celery.errors import McpCeleryError
from mcp_celery.telemetry.instruments import LOOP_LAG, OPEN, WEBHOOKS, WORKERS, Attributes

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS: Final = 0.5
COUNT_EVERY_SECONDS: Final = 5.0


async def measure_lag(name: str) -> None:
    """Measure the running event loop until this is cancelled: what holds it, holds all its requests or jobs.

    Args:
        name: Which loop it is: ``server``, or ``jobs`` of a worker.
    """
    loop, labels = asyncio.get_running_loop(), {"loop": name}
    while True:
        due = loop.time() + LOOK_EVERY_SECONDS
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        LOOP_LAG(max(0.0, loop.time() - due), labels)


async def count_in_store(store: RecoveryStore, namespace: str) -> None:
    """Count the open tasks, live workers and waiting webhooks of a store until this is cancelled.

    A store that does not answer has no counts meanwhile, so that no old ones are taken for true.

    Args:
        store: The store.
        namespace: The server's namespace, whose tasks are counted.
    """
    counts: StoreCounts | None = None

    def open_tasks() -> Iterable[tuple[float, Attributes]]:
        if counts is not None:
            yield counts.queued, {"namespace": namespace, "state": "queued"}
            yield counts.claimed, {"namespace": namespace, "state": "claimed"}
            yield counts.due, {"namespace": namespace, "state": "due"}
            yield counts.exposed, {"namespace": namespace, "state": "exposed"}
            yield counts.waiting, {"namespace": namespace, "state": "waiting"}

    def workers() -> Iterable[tuple[float, Attributes]]:
        if counts is not None:
            yield counts.workers, {"namespace": namespace}

    def webhooks() -> Iterable[tuple[float, Attributes]]:
        if counts is not None:
            yield counts.webhooks, {"namespace": namespace}

    OPEN.watch(store, open_tasks)
    WORKERS.watch(store, workers)
    WEBHOOKS.watch(store, webhooks)
    try:
        while True:
            try:
                counts = await store.counts()
            except McpCeleryError as error:
                counts = None
                logger.debug("could not count the open tasks: %s", error)
            await asyncio.sleep(COUNT_EVERY_SECONDS)
    finally:
        OPEN.leave(store)
        WORKERS.leave(store)
        WEBHOOKS.leave(store)
